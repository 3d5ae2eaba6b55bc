//! Device state: any bytes as the body of a VFIO section; any packets in any order, which stay within their memory; and the packets
//! of devices that keep to the rules, interleaved in any way, which give what was sent. Packets that are looked at before, by an
//! assembler that keeps no data, come to the same.
//!
//! The first byte says which of the three the others are for.

use arbitrary::Unstructured;
use migwire::ChannelId;
use migwire::channel::{ChannelEvent as _, Located};
use migwire::device_state::{
    Ability, Arrangement, Assembler, DeviceId, Out, Plan, Settings, Slot, SyntheticDevice, SyntheticVerdict,
    VfioEvent, VfioParser, VfioSection,
};
use migwire::dialect::{Dialect, Release};
use migwire::wire::{DevicePacket, MultifdFlags, Name, PacketHead, PaddedName, SectionKind};

use crate::reading::{bytewise, read, whole};

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => section(rest),
        1 => any_packets(rest),
        _ => drop(good_packets(&mut Unstructured::new(rest))),
    }
}

/// Whole, byte by byte, and through the driver, it is the same; and what parses is given back.
fn section(bytes: &[u8]) {
    for dialect in [Dialect::ANY, Dialect::release(Release::new(5, 2)), Dialect::release(Release::new(11, 1))]
    {
        let found = read(&mut VfioParser::new(dialect, 7), bytes, whole);
        assert_eq!(found, read(&mut VfioParser::new(dialect, 7), bytes, bytewise), "{dialect}");
        assert!(found.error.is_some() || found.end == 7 + bytes.len() as u64, "{dialect}");
        for step in [1, 13, bytes.len().max(1)] {
            let (mut out, mut count) = (Vec::new(), 0);
            let mut each = |located: Located<'_, VfioEvent<'_>>| {
                located.event.emit(&mut out);
                count += 1;
                Ok(())
            };
            let mut section = VfioSection::new(dialect, 7);
            let result = bytes.chunks(step).try_for_each(|slice| section.handle(slice, &mut each));
            let result = result.and_then(|()| section.finish(&mut each));
            assert_eq!(result.err().map(|e| e.to_string()), found.error, "{dialect}, slices of {step}");
            assert!(bytes.starts_with(&out), "{dialect}, slices of {step}: not given back as it came");
            assert_eq!(count, found.events.len(), "{dialect}, slices of {step}");
        }
    }
}

/// Most bytes that may wait here.
const MEMORY: u64 = 300;

/// Steps that bytes spell out: nothing panics, and no more waits than may.
fn any_packets(mut bytes: &[u8]) {
    let ability = [Ability::Live, Ability::Downtime, Ability::Off][usize::from(byte(&mut bytes) % 3)];
    let settings = Settings { ability, memory: MEMORY, load_ready: None };
    let (mut assembler, mut twin) = (Assembler::new(settings), Assembler::without_data(settings));
    let devices: Vec<_> =
        (0..2).map(|n| assembler.set_up(Name(b"vfio"), n).expect("a few devices can be set up")).collect();
    for n in 0..2 {
        twin.set_up(Name(b"vfio"), n).expect("a few devices can be set up");
    }
    let mut slots: [Option<(Slot, Slot)>; 4] = [const { None }; 4];
    let nothing = &mut |_: DeviceId, _: &[u8]| {};
    let (mut given, mut taken) = (0, 0);
    let mut out = |_: DeviceId, bytes: &[u8]| taken += bytes.len();
    while !bytes.is_empty() {
        let step = byte(&mut bytes);
        let channel = usize::from(step >> 4) % slots.len();
        // Errors are what is expected here; each leaves the others as they are.
        let (result, again) = match step % 8 {
            0 | 1 => {
                let mut field = [0; 256];
                PaddedName::pad(b"vfio", &mut field);
                let packet = DevicePacket {
                    head: PacketHead::new(MultifdFlags::DEVICE_STATE),
                    idstr: PaddedName::new(&field),
                    instance_id: u32::from(byte(&mut bytes) % 3),
                    payload_size: u32::from(byte(&mut bytes)),
                };
                let channel_id = ChannelId::Multifd(channel as u8);
                match (assembler.begin(&packet, channel_id, 0), twin.begin(&packet, channel_id, 0)) {
                    (Ok(slot), Ok(other)) => {
                        slots[channel] = Some((slot, other));
                        (Ok(()), Ok(()))
                    }
                    (slot, other) => (slot.map(drop), other.map(drop)),
                }
            }
            2 | 3 => {
                let length = usize::from(byte(&mut bytes)).min(bytes.len());
                let (piece, rest) = bytes.split_at(length);
                bytes = rest;
                given += length;
                match &mut slots[channel] {
                    Some((slot, other)) => {
                        let looked = other.look(piece);
                        (assembler.piece(slot, piece, &mut out), twin.piece(other, looked, nothing))
                    }
                    None => (Ok(()), Ok(())),
                }
            }
            4 | 5 => match slots[channel].take() {
                Some((slot, other)) => (assembler.end(slot, &mut out), twin.end(other, nothing)),
                None => (Ok(()), Ok(())),
            },
            6 => {
                let kind = [SectionKind::PART, SectionKind::END, SectionKind::FULL][channel % 3];
                let length = usize::from(byte(&mut bytes)).min(bytes.len());
                let (body, rest) = bytes.split_at(length);
                bytes = rest;
                given += length;
                let device = devices[usize::from(step >> 3 & 1)];
                (
                    section_of(&mut assembler, (device, kind), body, &mut out),
                    section_of(&mut twin, (device, kind), body, nothing),
                )
            }
            _ => (assembler.switchover(&mut out), twin.switchover(nothing)),
        };
        let message = |result: migwire::Result<()>| result.err().map(|e| e.to_string());
        assert_eq!(message(result), message(again));
        assert_eq!(assembler.queued(), twin.queued());
        assert!(assembler.queued() <= MEMORY, "{} bytes wait", assembler.queued());
    }
    let complete = assembler.is_complete();
    let reports = assembler.finish(&mut out);
    assert_eq!(reports, twin.finish(nothing));
    assert!(!complete || reports.iter().all(|report| report.config.is_some()));
    assert!(reports.iter().all(|report| report.queued_peak <= MEMORY));
    assert!(taken <= given, "{taken} bytes out of {given}");
}

/// A section of that device and kind.
fn section_of(
    assembler: &mut Assembler,
    (device, kind): (DeviceId, SectionKind),
    body: &[u8],
    out: &mut Out<'_>,
) -> migwire::Result<()> {
    let mut section = VfioSection::new(Dialect::ANY, 0);
    let mut each =
        |located: Located<'_, VfioEvent<'_>>| assembler.handle_main(device, kind, &located, &mut *out);
    section.handle(body, &mut each)?;
    section.finish(&mut each)
}

fn byte(bytes: &mut &[u8]) -> u8 {
    match bytes.split_first() {
        Some((first, rest)) => {
            *bytes = rest;
            *first
        }
        None => 0,
    }
}

/// What bytes choose is the sizes, the channels, and whose turn it is.
fn good_packets(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let ability = *u.choose(&[Ability::Live, Ability::Downtime])?;
    let settings = Settings { ability, ..Settings::default() };
    let (mut assembler, looks) = match u.int_in_range(0..=2)? {
        0 => (Assembler::new(settings), false),
        1 => (Assembler::new(settings), true),
        _ => (Assembler::without_data(settings), true),
    };
    let mut plans = Vec::new();
    for n in 0..u.int_in_range(1..=3)? {
        let chunk = u.int_in_range(40..=400)?;
        let size = u.int_in_range(32..=u64::from(chunk) * 12)?;
        let device = SyntheticDevice::new("vfio", n, size, chunk, u.arbitrary()?).expect("it can be");
        let arrangement = *u.choose(&[Arrangement::Live, Arrangement::Downtime])?;
        let plan = device.plan(arrangement, Dialect::ANY).with_live_share(u.int_in_range(0..=size)?);
        let id = assembler.set_up(Name(b"vfio"), n).expect("it can be set up");
        plans.push((id, plan));
    }
    let mut queues: [Vec<(usize, u32)>; 4] = Default::default();
    for (n, (_, plan)) in plans.iter().enumerate() {
        for idx in plan.live_packets().chain(plan.stop_packets()) {
            let queue = &mut queues[u.int_in_range(0..=3)?];
            let at = u.int_in_range(0..=queue.len())?;
            queue.insert(at, (n, idx));
        }
    }
    // The main channel: PARTs in turns, then SWITCHOVER_START. It may be late, but its order is its own.
    let mut parts: Vec<_> = plans.iter().map(|(_, plan)| 0..plan.parts()).collect();
    let mut switched = false;
    let mut open: [Option<(Slot, Vec<u8>)>; 4] = [const { None }; 4];
    let mut out = |_: DeviceId, _: &[u8]| {};
    loop {
        let busy: Vec<_> = (0..4).filter(|c| open[*c].is_some() || !queues[*c].is_empty()).collect();
        if busy.is_empty() && switched {
            break;
        }
        let turn = u.int_in_range(0..=busy.len())?;
        let Some(&channel) = busy.get(turn) else {
            match parts.iter_mut().enumerate().find_map(|(n, parts)| Some((n, parts.next()?))) {
                Some((n, number)) => part(&mut assembler, plans[n].0, &plans[n].1, number),
                None if !switched => {
                    assembler.switchover(&mut out).expect("it comes once");
                    switched = true;
                }
                None => {}
            }
            continue;
        };
        match open[channel].take() {
            None => {
                let (n, idx) = queues[channel].remove(0);
                let (mut field, mut payload) = ([0; 256], Vec::new());
                plans[n].1.packet(idx, &mut payload);
                let head = plans[n].1.packet_head(idx, &mut field);
                let slot = assembler.begin(&head, ChannelId::Multifd(channel as u8), 0);
                open[channel] = Some((slot.expect("it may begin"), payload));
            }
            Some((slot, payload)) if payload.is_empty() => {
                assembler.end(slot, &mut out).expect("it may end");
            }
            Some((mut slot, payload)) => {
                let (piece, rest) = payload.split_at(u.int_in_range(1..=payload.len())?);
                let looked = if looks { slot.look(piece) } else { piece.into() };
                assembler.piece(&mut slot, looked, &mut out).expect("it is taken");
                open[channel] = Some((slot, rest.to_vec()));
            }
        }
    }
    assert_eq!(assembler.queued(), 0);
    for (report, (_, plan)) in assembler.finish(&mut out).iter().zip(&plans) {
        assert_eq!(report.incomplete, None);
        assert_eq!(report.synthetic, SyntheticVerdict::Equal);
        assert_eq!(report.main_bytes + report.multifd_bytes, plan.device().size());
    }
    Ok(())
}

fn part(assembler: &mut Assembler, id: DeviceId, plan: &Plan, number: u64) {
    let mut body = Vec::new();
    plan.part(number).for_each(|record| plan.emit(record, &mut body));
    let mut section = VfioSection::new(Dialect::ANY, 0);
    let mut each = |located: Located<'_, VfioEvent<'_>>| {
        assembler.handle_main(id, SectionKind::PART, &located, &mut |_, _| {})
    };
    section.handle(&body, &mut each).expect("it is one");
    section.finish(&mut each).expect("it is whole");
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("device_state", 4_000, super::run);
    }
}
