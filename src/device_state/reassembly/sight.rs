//! What the thread that receives a packet finds out about its bytes by itself, without the assembler.
//!
//! ```text
//! thread of a channel     bytes ──> Slot::look ──> Piece: bytes, and which part of a made-up state they are ──┐
//! under a lock                                                                        Assembler::piece <──────┘
//! ```
//! An assembler is one for all channels, behind a lock. To compare bytes with what a made-up device must have takes time; but what its
//! state is made of is known from its header, and any word of it says where it stands. So the comparison needs nothing that other
//! packets change, and the assembler only has to see that the parts follow each other. Nor must a packet be kept that waits for others:
//! it can be made again. What is not as expected goes the way of all other data, so that nothing is judged here.

use crate::device_state::synthetic::{Maker, Run};
use crate::wire::VfioPacketHead;

/// A packet that is being received. Given back with [`Assembler::end`](super::Assembler::end).
#[derive(Debug)]
pub struct Slot {
    pub(super) number: usize,
    sight: Sight,
    owner: u64,
}

/// What was found so far.
#[derive(Clone, Copy, Debug)]
enum Sight {
    /// Nothing has come; what the state is made of, if that is known.
    Begin(Option<Maker>),
    /// Everything so far was as expected; the last piece was this.
    Seen(Run),
    /// Something else.
    Lost,
}

/// Bytes of a packet's payload, and what was found out about them. Plain bytes are one about which nothing was.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'b> {
    pub(super) bytes: &'b [u8],
    /// What the data in them is: the bytes behind the packet's own head.
    pub(super) run: Option<Run>,
}

impl<'b> From<&'b [u8]> for Piece<'b> {
    fn from(bytes: &'b [u8]) -> Self {
        Self { bytes, run: None }
    }
}

impl Slot {
    pub(super) fn new(number: usize, maker: Option<Maker>, owner: u64) -> Self {
        Self { number, sight: Sight::Begin(maker), owner }
    }

    /// Looks at the next bytes of the payload before they are given to the assembler: worth it where other threads wait for that.
    pub fn look<'b>(&mut self, bytes: &'b [u8]) -> Piece<'b> {
        let run = match self.sight {
            Sight::Begin(maker) => bytes.get(VfioPacketHead::LEN..).and_then(|data| {
                let maker = maker.or_else(|| Maker::of_header(data, self.owner))?;
                maker.find(data)
            }),
            Sight::Seen(run) => run.next(bytes),
            Sight::Lost => None,
        };
        self.sight = run.map_or(Sight::Lost, Sight::Seen);
        Piece { bytes, run }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_state::{
        Arrangement, Assembler, DeviceReport, Plan, Settings, SyntheticDevice, SyntheticVerdict,
    };
    use crate::dialect::Dialect;
    use crate::error::ChannelId;
    use crate::wire::Name;

    fn plan() -> Plan {
        let device = SyntheticDevice::new("vfio", 0, 1000, 300, 7).unwrap();
        device.plan(Arrangement::Downtime, Dialect::ANY).with_live_share(0)
    }

    /// Packets of [`plan`] in that order, with the payloads that `change` makes of them; what waits when the last one has come is
    /// handed over by the switchover. Bytes that were kept until then, and the report.
    fn sent(order: &[u32], change: impl Fn(u32, &mut Vec<u8>)) -> (usize, DeviceReport) {
        let plan = plan();
        let mut assembler = Assembler::without_data(Settings::default());
        assembler.set_up(Name(b"vfio"), 0).unwrap();
        for idx in order {
            let (mut field, mut payload) = ([0; 256], Vec::new());
            plan.packet(*idx, &mut payload);
            change(*idx, &mut payload);
            let head = plan.packet_head(*idx, &mut field);
            let mut slot = assembler.begin(&head, ChannelId::Multifd(0), 0).unwrap();
            for bytes in payload.chunks(100) {
                let piece = slot.look(bytes);
                assembler.piece(&mut slot, piece, &mut |_, _| {}).unwrap();
            }
            assembler.end(slot, &mut |_, _| {}).unwrap();
        }
        let kept = assembler.devices[0].queue.values().map(|entry| entry.data.len()).sum();
        assembler.switchover(&mut |_, _| {}).unwrap();
        (kept, assembler.finish(&mut |_, _| {}).remove(0))
    }

    #[test]
    fn what_can_be_made_again_is_counted_and_not_kept() {
        let config = plan().packet_len(4) as usize - VfioPacketHead::LEN;
        let (kept, report) = sent(&[0, 2, 4, 3, 1], |_, _| {});
        assert_eq!((kept, report.queued_peak), (config, 1000 + config as u64));
        assert_eq!((report.synthetic, report.incomplete), (SyntheticVerdict::Equal, None));
        // Before the header has come nothing is known.
        let (kept, report) = sent(&[3, 2, 1, 0, 4], |_, _| {});
        assert_eq!((kept, report.synthetic), (700 + config, SyntheticVerdict::Equal));
    }

    #[test]
    fn what_is_wrong_is_named_as_if_it_had_not_been_looked_at() {
        for order in [[0, 2, 4, 3, 1], [3, 2, 1, 0, 4], [0, 1, 2, 3, 4]] {
            for at in [12, 13, 99, 100, 150, 311] {
                let (_, report) = sent(&order, |idx, payload| {
                    if idx == 1 {
                        payload[at] ^= 8;
                    }
                });
                let wrong = SyntheticVerdict::Different(300 + at as u64 - 12);
                assert_eq!((report.synthetic, report.incomplete), (wrong, None), "{order:?}");
            }
            // Right in itself, and in the wrong place.
            let (_, report) = sent(&order, |idx, payload| {
                if idx == 1 || idx == 2 {
                    payload.clear();
                    plan().packet(3 - idx, payload);
                    payload[..VfioPacketHead::LEN]
                        .copy_from_slice(&[[0; 7].as_slice(), &[idx as u8], &[0; 4]].concat());
                }
            });
            assert_eq!(report.synthetic, SyntheticVerdict::Different(300), "{order:?}");
        }
    }

    #[test]
    fn what_nobody_takes_or_looks_at_is_not_kept() {
        let kept = |mut assembler: Assembler, is_switched: bool| {
            assembler.set_up(Name(b"vfio"), 0).unwrap();
            if is_switched {
                assembler.switchover(&mut |_, _| {}).unwrap();
            }
            for idx in [0, 2, 3] {
                let (mut field, mut payload) = ([0; 256], Vec::new());
                let plan = plan();
                plan.packet(idx, &mut payload);
                payload[VfioPacketHead::LEN..].fill(0x5a);
                let head = plan.packet_head(idx, &mut field);
                let mut slot = assembler.begin(&head, ChannelId::Multifd(0), 0).unwrap();
                let piece = slot.look(&payload);
                assembler.piece(&mut slot, piece, &mut |_, _| {}).unwrap();
                assembler.end(slot, &mut |_, _| {}).unwrap();
            }
            let bytes: usize = assembler.devices[0].queue.values().map(|entry| entry.data.len()).sum();
            (bytes, assembler.queued())
        };
        let settings = Settings::default();
        assert_eq!(kept(Assembler::without_data(settings), true), (0, 400));
        assert_eq!(kept(Assembler::new(settings), true), (400, 400));
        assert_eq!(kept(Assembler::without_data(settings), false), (700, 700));
    }
}
