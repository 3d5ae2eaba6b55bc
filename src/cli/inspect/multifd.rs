//! Multifd channels on a page: each, and all together.

use migwire::report::migration::{DevicePackets, MigrationSummary, PacketSummary};
use migwire::report::packets::PacketCounts;

use super::{counted, line, output, table, writer};

/// What a channel has.
pub(super) fn channel(text: &mut String, packets: &PacketSummary) {
    line(text, "  uuid", packets.uuid.as_deref().unwrap_or("none"));
    body(text, &packets.counts, packets.compression.as_deref(), packets.ratio);
    devices(text, &packets.devices);
}

/// What all of them come to.
pub(super) fn together(whole: &MigrationSummary) -> String {
    let mut text =
        format!("\ntogether: {}, {} bytes\n", counted(whole.channels as u64, "multifd channel"), whole.bytes);
    let mode = match &whole.sync {
        Some(mode) => format!("{mode}, {}", counted(whole.synchronisations, "time")),
        None => "nothing tells how, or whether at all".to_owned(),
    };
    let unmatched = match whole.unmatched {
        0 => String::new(),
        count => format!("; {count} SYNC without an answer"),
    };
    line(&mut text, "  synchronised", &format!("{mode}{unmatched}"));
    body(&mut text, &whole.counts, whole.compression.as_deref(), whole.ratio);
    if let Some((least, most)) = whole.balance.filter(|_| whole.channels > 1) {
        let share = format!("a channel has {:.0} % to {:.0} % of the bytes", 100.0 * least, 100.0 * most);
        line(&mut text, "  balance", &share);
    }
    devices(&mut text, &whole.devices);
    if whole.writer.evidence.is_empty() {
        line(&mut text, "  written by", "nothing in it tells");
    } else {
        writer(&mut text, &whole.writer);
    }
    if !whole.blocks.is_empty() {
        let rows = whole.blocks.iter().map(|b| vec![b.name.clone(), b.raw.to_string(), b.zero.to_string()]);
        text += &table(&["block", "raw", "zero"], "<>>", rows.collect());
    }
    for fault in &whole.faults {
        line(&mut text, "  fault", &output::whole_text(fault));
    }
    text
}

fn body(text: &mut String, counts: &PacketCounts, compression: Option<&str>, ratio: Option<f64>) {
    let mut packets = counted(counts.packets, "packet");
    for (count, what) in [
        (counts.syncs, "with SYNC"),
        (counts.pages_with_sync, "with SYNC and pages"),
        (counts.empty, "of nothing"),
        (counts.device_packets, "of device state"),
    ] {
        if count > 0 {
            packets += &format!(", {count} {what}");
        }
    }
    line(text, "  packets", &packets);
    let pages = format!("{}, {} of them zero", counted(counts.pages, "page"), counts.zero_pages);
    line(text, "  pages", &pages);
    if let Some(compression) = compression {
        let ratio = ratio.map_or_else(String::new, |ratio| format!(", {ratio:.2} bytes of pages for each"));
        line(text, "  payload", &format!("{} ({compression}){ratio}", output::bytes(counts.payload_bytes)));
    }
}

fn devices(text: &mut String, devices: &[DevicePackets]) {
    for device in devices {
        let instance = if device.instance == 0 { String::new() } else { format!(" {}", device.instance) };
        let what = format!(
            "{}{instance}: {} in {}",
            device.name,
            output::bytes(device.bytes),
            counted(device.packets, "packet")
        );
        line(text, "  device state", &what);
    }
}
