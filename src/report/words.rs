//! Events in words, for dumps and summaries.

use crate::multifd::{Packet, PacketParser, codec};
use crate::postcopy::{Reply, Urgent};
use crate::stream::{Event, Grammar};
use crate::wire::{
    Command, ConfigurationSubsection, Cursor, Message, Method, MultifdFlags, Name, Page, PageBody, PageWord,
    RamBlock, RamFlags, RamPacket, SectionHead, VfioPacketFlags, VfioPacketHead, VfioTag, Wire as _,
};

/// What an event says. `grammar` is the state behind it.
pub(super) fn event(event: &Event<'_>, grammar: &Grammar) -> String {
    match event {
        Event::Header(header) => format!("file header, version {}", header.version),
        Event::Configuration(configuration) => format!("configuration, machine {:?}", configuration.machine),
        Event::ConfigurationSubsection(sub) => subsection(sub),
        Event::Section(head) => section(head, grammar),
        Event::RamWord(word) => ram_word(*word, grammar),
        Event::RamBlock(block) => ram_block(block),
        Event::MappedRam(_) => match grammar.blocks().last() {
            Some(block) => format!("bitmap, holes and pages of {:?}", Name(&block.name)),
            None => "mapped-ram area".to_owned(),
        },
        Event::Page(page) => format!(
            "{} page {:#x} of {}",
            page_kind(page),
            page.word.offset(grammar.page_size()),
            current_block(grammar)
        ),
        Event::Payload(bulk) => match grammar.current_section() {
            Some((_, _, section)) => {
                let what = format!("payload of {:?} {}", section.name(), section.instance_id);
                // What VFIO sections say, they say in words of their own.
                let first = bulk.bytes().filter(|_| section.idstr.ends_with(b"vfio"));
                match first.map(|bytes| VfioTag::parse(&mut Cursor::new(0, bytes))) {
                    Some(Ok(tag)) if tag.name().is_some() => format!("{what}, {tag}"),
                    _ => what,
                }
            }
            None => "payload".to_owned(),
        },
        Event::Footer(footer) => format!("footer of section {}", footer.section_id),
        Event::Command(sent) => command(sent),
        Event::Eof if grammar.package_end().is_some() => "EOF of the package".to_owned(),
        Event::Eof => "EOF".to_owned(),
        Event::Description(head) => format!("VM description of {} bytes", head.length),
        Event::DescriptionText(_) => "text of the VM description".to_owned(),
        Event::Trailing(_) => "trailing bytes, which nobody reads".to_owned(),
    }
}

/// What a page is, in a word.
pub(super) fn page_kind(page: &Page<'_>) -> &'static str {
    match page.body {
        PageBody::Zero(0) => "zero",
        PageBody::Zero(_) => "filled",
        PageBody::Raw(_) => "raw",
        PageBody::Xbzrle { .. } => "xbzrle",
        PageBody::Compressed(_) => "compressed",
    }
}

/// Name of the block that the last page belongs to.
pub(super) fn current_block(grammar: &Grammar) -> String {
    match grammar.current_block().and_then(|index| grammar.blocks().get(index)) {
        Some(block) => format!("{:?}", Name(&block.name)),
        None => "an unknown block".to_owned(),
    }
}

/// What a command says.
pub(super) fn command(command: &Command<'_>) -> String {
    let code = command.code();
    match command {
        Command::Ping(value) => format!("{code} {value:#x}"),
        Command::PostcopyAdvise(Some(advise)) => {
            format!(
                "{code}, target pages of {} bytes, block pages {:#x}",
                advise.target_page_size, advise.page_size_summary
            )
        }
        Command::PostcopyAdvise(None) => format!("{code} without page sizes"),
        Command::PostcopyRamDiscard(discard) => {
            let total = discard.ranges.iter().fold(0u64, |sum, range| sum.saturating_add(range.length));
            format!("{code}, {} ranges with {total} bytes of {:?}", discard.ranges.len(), discard.block)
        }
        Command::Packaged { size } => format!("{code}, {size} bytes follow"),
        Command::RecvBitmap { block } => format!("{code} of {block:?}"),
        Command::Other { payload, .. } => format!("{code} with {} bytes of payload", payload.len()),
        Command::OpenReturnPath
        | Command::PostcopyListen
        | Command::PostcopyRun
        | Command::EnableColo
        | Command::PostcopyResume
        | Command::SwitchoverStart => code.to_string(),
    }
}

/// What a reply on the return path says.
pub(super) fn reply(reply: &Reply<'_>) -> String {
    match reply {
        Reply::Message(message) => self::message(message),
        Reply::Bitmap(head) => format!("bitmap of {} bytes", head.size),
        Reply::BitmapBits(_) => "bits of the bitmap".to_owned(),
        Reply::BitmapEnd(_) => "end of the bitmap".to_owned(),
    }
}

/// What a record of a preempt channel says.
pub(super) fn urgent(urgent: &Urgent<'_>, page_size: u64) -> String {
    match urgent {
        Urgent::Page(page) => {
            let kind = if matches!(page.body, PageBody::Zero(_)) { "zero" } else { "raw" };
            let block = page.block.map_or_else(String::new, |block| format!(" of {block:?}"));
            format!("{kind} page {:#x}{block}", page.word.offset(page_size))
        }
        Urgent::Word(word) => format!("RAM word {:?}", word.flags(page_size)),
    }
}

fn message(message: &Message<'_>) -> String {
    let kind = message.kind();
    match message {
        Message::Shut(status) => format!("{kind} {status}"),
        Message::Pong(value) | Message::ResumeAck(value) => format!("{kind} {value:#x}"),
        Message::ReqPagesId { start, length, block } => {
            format!("{kind} {length} bytes at {start:#x} of {block:?}")
        }
        Message::ReqPages { start, length } => format!("{kind} {length} bytes at {start:#x}"),
        Message::RecvBitmap { block } => format!("{kind} of {block:?}"),
        Message::SwitchoverAck => kind.to_string(),
        Message::Other { payload, .. } => format!("{kind} with {} bytes of payload", payload.len()),
    }
}

/// What a record of a multifd channel says; `parser` is the state behind it.
pub(super) fn packet(packet: &Packet<'_>, parser: &PacketParser) -> String {
    match packet {
        Packet::Hello(hello) => {
            let whose = match hello.uuid {
                [0, ..] if hello.uuid == [0; 16] => "no UUID".to_owned(),
                bytes => format!("UUID {}", uuid(&bytes)),
            };
            let unused = if hello.unused.iter().any(|b| *b != 0) { ", unused bytes in use" } else { "" };
            format!("hello of multifd channel {}, version {}, {whose}{unused}", hello.id, hello.version)
        }
        Packet::Ram(packet) => ram_packet(packet, parser),
        Packet::Payload(_) => "payload".to_owned(),
        Packet::Device(packet) => format!(
            "state of {:?} {}, {} bytes",
            packet.idstr.name(),
            packet.instance_id,
            packet.payload_size
        ),
        Packet::DeviceData(bulk) => {
            // Where the payload begins, so does the head that VFIO has in it.
            let batch = parser.batch();
            let is_first = batch.payload_len() - batch.left() == bulk.len();
            let head = bulk
                .bytes()
                .filter(|_| is_first)
                .map(|bytes| VfioPacketHead::parse(&mut Cursor::new(0, bytes)));
            match head {
                Some(Ok(head)) if head.flags.contains(VfioPacketFlags::CONFIG_STATE) => {
                    format!("VFIO packet {}, the config", head.idx)
                }
                Some(Ok(head)) => format!("VFIO packet {}", head.idx),
                _ => "device state".to_owned(),
            }
        }
    }
}

fn ram_packet(packet: &RamPacket<'_>, parser: &PacketParser) -> String {
    let batch = parser.batch();
    let (normal, zero) = (batch.normal(), batch.zero());
    let mut text = format!("packet {}", packet.packet_num);
    let sync = packet.head.flags.contains(MultifdFlags::SYNC);
    if normal.is_empty() && zero.is_empty() {
        text += if sync { ", SYNC" } else { ", of nothing" };
        // What sources up to 8.2 leave behind.
        if !packet.block.name().is_empty() {
            text += &format!(" (left over: {:?}, {} bytes)", packet.block.name(), packet.payload_size);
        }
    } else {
        let page_size = parser.page_size();
        let mut parts = Vec::new();
        if !normal.is_empty() {
            parts.push(format!("{} {}", pages(normal.len(), ""), ranges(normal, page_size)));
        }
        if !zero.is_empty() {
            parts.push(format!("{} {}", pages(zero.len(), "zero "), ranges(zero, page_size)));
        }
        text += &format!(", {} of {:?}", parts.join(" and "), batch.name());
        if !normal.is_empty() {
            text += &format!(", {} bytes of payload ({})", batch.payload_len(), method(batch.method()));
        }
        if sync {
            text += ", SYNC";
        }
    }
    let known = MultifdFlags::SYNC.0 | MultifdFlags::METHOD_MASK | MultifdFlags::DEVICE_STATE.0;
    if packet.head.flags.0 & !known != 0 {
        text += &format!(", flags {:#x}", packet.head.flags.0);
    }
    text
}

fn pages(count: usize, kind: &str) -> String {
    format!("{count} {kind}page{}", if count == 1 { "" } else { "s" })
}

/// A method as QMP calls it.
pub(super) fn method(method: Method) -> String {
    codec::name(method).map_or_else(|| format!("method {:#x}", method.0), str::to_owned)
}

/// Offsets of pages from the lowest on, those in a row as one. Which order they have is in the bytes.
fn ranges(offsets: &[u64], page_size: u64) -> String {
    /// Longer lists help nobody; JSON has no more either.
    const MOST: usize = 12;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut offsets = offsets.to_vec();
    offsets.sort_unstable();
    for offset in offsets {
        match runs.last_mut() {
            Some((_, end)) if *end == offset => *end = offset.wrapping_add(page_size),
            _ => runs.push((offset, offset.wrapping_add(page_size))),
        }
    }
    let shown = runs.iter().take(MOST).map(|(first, end)| match end.wrapping_sub(*first) == page_size {
        true => format!("{first:#x}"),
        false => format!("{first:#x}..{end:#x}"),
    });
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if runs.len() > MOST {
        text += &format!(" and {} more", runs.len() - MOST);
    }
    text
}

/// A UUID as people write it.
pub(super) fn uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

fn subsection(sub: &ConfigurationSubsection<'_>) -> String {
    match sub {
        ConfigurationSubsection::TargetPageBits { bits, .. } => format!("{}, {bits}", sub.name()),
        ConfigurationSubsection::Capabilities { names, .. } => format!("{}, {names:?}", sub.name()),
        ConfigurationSubsection::Uuid { uuid: bytes, .. } => format!("{}, {}", sub.name(), uuid(bytes)),
    }
}

fn section(head: &SectionHead<'_>, grammar: &Grammar) -> String {
    let (kind, id) = (head.kind, head.section_id);
    match (head.identity, grammar.section(id)) {
        (Some(identity), _) => format!(
            "{kind} of section {id}, {:?} {} version {}",
            identity.idstr, identity.instance_id, identity.version_id
        ),
        (None, Some(section)) => format!("{kind} of section {id}, {:?}", section.name()),
        (None, None) => format!("{kind} of section {id}"),
    }
}

fn ram_word(word: PageWord, grammar: &Grammar) -> String {
    let page_size = grammar.page_size();
    match word.flags(page_size) {
        RamFlags::MEM_SIZE => format!("MEM_SIZE, blocks of {} bytes in total", word.offset(page_size)),
        RamFlags::EOS => "EOS, end of this part of RAM".to_owned(),
        flags => flags.to_string(),
    }
}

fn ram_block(block: &RamBlock<'_>) -> String {
    let mut text = format!("block {:?} of {} bytes", block.name, block.used_length);
    if let Some(size) = block.page_size {
        text += &format!(", on pages of {size} bytes");
    }
    if let Some(gpa) = block.gpa {
        text += &format!(", at guest address {gpa:#x}");
    }
    if let Some(mapped) = block.mapped {
        text += &format!(", bitmap at {:#x}, pages at {:#x}", mapped.bitmap_offset, mapped.pages_offset);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_in_a_row_are_one() {
        assert_eq!(ranges(&[0, 4096, 8192, 0x5000, 0x4000], 4096), "0x0..0x3000, 0x4000..0x6000");
        let apart: Vec<u64> = (0..20).map(|n| n * 8192).collect();
        assert!(ranges(&apart, 4096).ends_with("0x16000 and 8 more"), "{}", ranges(&apart, 4096));
        assert_eq!(ranges(&[!0xfff], 4096), "0xfffffffffffff000");
    }

    #[test]
    fn a_uuid_has_its_dashes() {
        let bytes = std::array::from_fn(|i| i as u8 * 17);
        assert_eq!(uuid(&bytes), "00112233-4455-6677-8899-aabbccddeeff");
    }
}
