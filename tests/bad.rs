//! Hand-broken streams: one file a defect in `fixtures/bad/`, and what the parser says about each.
//!
//! The files are generated here from small valid streams. `UPDATE=1 INSTA_UPDATE=always cargo test --test bad` writes files
//! and texts anew; without it the test fails if a file is stale. Streams cut at every byte are a loop in `tests/split.rs`.

mod common;

use std::fmt::Write as _;
use std::fs;

use common::place;
use common::reading::{Reading, bytewise, read, whole};
use common::small::{DEVICE, RAM, Small};
use migwire::dialect::Dialect;
use migwire::stream::{Event, Mode, Parser};
use migwire::wire::{
    Advise, Bulk, Command, CommandCode, ConfigurationSubsection, Discard, DiscardRange, FileHeader,
    MappedRamHeader, Name, PageBody, PageWord, RamBlock, SectionKind,
};

const START: SectionKind = SectionKind::START;
const PART: SectionKind = SectionKind::PART;
const END: SectionKind = SectionKind::END;
const FULL: SectionKind = SectionKind::FULL;

/// Wrong only in the text of their description, which neither the main channel's parser reads nor a destination; [`descriptions`]
/// has what the reader of descriptions says.
const DESCRIPTIONS: [&str; 4] =
    ["description-duplicate-key", "description-nested", "description-no-json", "description-no-utf8"];

fn cases() -> Vec<(&'static str, Vec<u8>)> {
    let cases = [
        headers(),
        sections(),
        footers(),
        block_lists(),
        pages(),
        commands(),
        packages(),
        postcopy(),
        ends(),
    ];
    let mut cases: Vec<_> = cases.into_iter().flatten().map(|(name, small)| (name, small.0)).collect();
    cases.sort();
    cases
}

type Cases = Vec<(&'static str, Small)>;

fn headers() -> Cases {
    let header = |magic, version| Small::default().event(&Event::Header(FileHeader { magic, version }));
    let long = b"\x07\xff\xff\xff\xffnone";
    let capabilities = b"\x05\x1aconfiguration/capabilities\0\0\0\x01\xff\xff\xff\xff\x06xbzrle";
    vec![
        ("header-magic", header(0x5145_564e, 3).configuration("none").eof()),
        ("header-version-2", header(FileHeader::MAGIC, 2).configuration("none").eof()),
        ("header-version-4", header(FileHeader::MAGIC, 4).configuration("none").eof()),
        ("configuration-name-4g", header(FileHeader::MAGIC, 3).raw(long).eof()),
        ("configuration-twice", Small::begin().command(Command::OpenReturnPath).configuration("none").eof()),
        ("configuration-twice-at-once", Small::begin().configuration("none").eof()),
        ("configuration-subsection-unknown", Small::begin().raw(b"\x05\x0fconfiguration/x\0\0\0\x01").eof()),
        ("configuration-capabilities-4g", Small::begin().raw(capabilities).eof()),
        ("configuration-page-bits-0", Small::begin().page_bits(0).eof()),
        ("configuration-page-bits-64", Small::begin().page_bits(64).eof()),
        (
            "configuration-subsection-version-2",
            Small::begin().subsection(ConfigurationSubsection::Uuid { version: 2, uuid: [0; 16] }).eof(),
        ),
        (
            "configuration-subsection-late",
            Small::begin().command(Command::OpenReturnPath).page_bits(12).eof(),
        ),
    ]
}

fn sections() -> Cases {
    let ram = || Small::begin().ram("ram", 0x1000);
    vec![
        ("record-type-unknown", ram().raw(b"\x42").eof()),
        ("record-type-footer", ram().footer(RAM).eof()),
        ("record-type-description", ram().description("{}").eof()),
        ("section-part-unknown", ram().again(PART, 0x99).eos().footer(0x99).eof()),
        ("section-end-unknown", ram().again(END, 0x99).eos().footer(0x99).eof()),
        ("section-id-reused", ram().named(FULL, RAM, "device", 1).raw(b"1234").footer(RAM).eof()),
        ("section-name-empty", ram().named(FULL, DEVICE, "", 1).raw(b"1234").footer(DEVICE).eof()),
        ("section-ram-version-3", Small::begin().named(START, RAM, "ram", 3).eos().footer(RAM).eof()),
        // The mark of EOF and a description, where a page word stands: read as one.
        ("section-eof-inside", ram().again(PART, RAM).eof().description("{\"page_size\": 4096}")),
        ("section-stream-ends-inside", ram().again(PART, RAM).page(0, Some("ram"), PageBody::Zero(0))),
    ]
}

fn footers() -> Cases {
    let ram = || Small::begin().ram("ram", 0x1000);
    vec![
        ("footer-other-id", ram().again(PART, RAM).eos().footer(RAM + 1).eof()),
        ("footer-missing", ram().again(PART, RAM).eos().again(END, RAM).eos().footer(RAM).eof()),
        ("footer-missing-before-eof", ram().again(END, RAM).eos().eof().description("{}")),
        // Where a payload without footer ends cannot be known, so that the search for it meets the end of the stream.
        ("footer-missing-behind-device", ram().named(FULL, DEVICE, "device", 1).raw(b"1234").eof()),
        (
            "footer-other-id-behind-device",
            ram().named(FULL, DEVICE, "device", 1).raw(b"1234").footer(9).eof(),
        ),
        (
            "footer-behind-sections-without",
            Small::begin()
                .named(START, RAM, "ram", 4)
                .list(0x1000, &[RamBlock::new(Name(b"ram"), 0x1000)])
                .eos()
                .again(END, RAM)
                .eos()
                .footer(RAM)
                .eof(),
        ),
    ]
}

fn block_lists() -> Cases {
    let start = || Small::begin().named(START, RAM, "ram", 4);
    let block = |name: &'static [u8], length| RamBlock::new(Name(name), length);
    let list = |total, blocks: &[RamBlock<'_>]| start().list(total, blocks).eos().footer(RAM).eof();
    let mapped = |twist: &dyn Fn(MappedRamHeader) -> MappedRamHeader| {
        let capabilities = ["x-ignore-shared", "mapped-ram"];
        let start = Small::begin().page_bits(10).capabilities(&capabilities).named(START, RAM, "ram", 4);
        start.list(0x400, &[]).mapped("a", 1, twist)
    };
    let whole = |start: Small| start.eos().footer(RAM).eof();
    vec![
        ("block-list-exceeds-total", list(0x1000, &[block(b"a", 0x1000 + 0x1000)])),
        ("block-list-second-exceeds-total", list(0x3000, &[block(b"a", 0x2000), block(b"b", 0x2000)])),
        ("block-list-short-of-total", list(0x3000, &[block(b"a", 0x1000)])),
        ("block-list-total-0", list(0, &[block(b"a", 0x1000)])),
        ("block-list-total-huge", list(!0xfff, &[block(b"a", 0x1000)])),
        ("block-list-length-huge", list(0x1000, &[block(b"a", !0xfff)])),
        ("block-list-name-twice", list(0x2000, &[block(b"a", 0x1000), block(b"a", 0x1000)])),
        ("block-list-name-empty", list(0x1000, &[block(b"", 0x1000)])),
        ("mapped-ram-pages-backwards", mapped(&|h| MappedRamHeader { pages_offset: 0x20, ..h })),
        ("mapped-ram-bitmap-backwards", mapped(&|h| MappedRamHeader { bitmap_offset: 0x20, ..h })),
        (
            "mapped-ram-bitmap-behind-pages",
            mapped(&|h| MappedRamHeader { bitmap_offset: h.pages_offset + 8, ..h }),
        ),
        ("mapped-ram-version-2", whole(mapped(&|h| MappedRamHeader { version: 2, ..h }))),
        (
            "mapped-ram-pages-unaligned",
            whole(mapped(&|h| MappedRamHeader { pages_offset: h.pages_offset + 8, ..h })),
        ),
        (
            "mapped-ram-page-in-stream",
            mapped(&|h| h).page(0, Some("a"), PageBody::Zero(0)).eos().footer(RAM).eof(),
        ),
        ("mapped-ram-pages-overflow", list_overflow()),
    ]
}

/// Offset and length that add up to more than 64 bits.
fn list_overflow() -> Small {
    let header =
        MappedRamHeader { version: 1, page_size: 0x1000, bitmap_offset: 0x1000, pages_offset: !0xfff };
    let block = RamBlock { mapped: Some(header), ..RamBlock::new(Name(b"a"), 0x1000) };
    Small::begin().capabilities(&["mapped-ram"]).named(START, RAM, "ram", 4).list(0x1000, &[block])
}

fn pages() -> Cases {
    let part = || Small::begin().ram("ram", 0x2000).again(PART, RAM);
    let end = |small: Small| small.eos().footer(RAM).eof();
    let word = |flags| end(part().event(&Event::RamWord(PageWord(flags))));
    let named = |flags: u64| end(part().event(&Event::RamWord(PageWord(flags))).raw(b"\x03ram\0"));
    let zero = PageBody::Zero(0);
    vec![
        ("page-continue-without-block", end(part().page(0, None, zero))),
        ("page-block-unknown", end(part().page(0, Some("pc.ram"), zero))),
        ("page-block-empty", end(part().page(0, Some(""), zero))),
        ("page-offset-past-block", end(part().page(0x2000, Some("ram"), zero))),
        ("page-offset-huge", end(part().page(!0xfff, Some("ram"), zero))),
        ("page-flags-two", named(0x0a)),
        ("page-flag-none", word(0)),
        ("page-flag-full", word(0x01)),
        ("page-flag-400", word(0x400)),
        ("page-flag-eos-and-more", word(0x12)),
        (
            "page-xbzrle-encoding",
            end(part().page(0, Some("ram"), PageBody::Xbzrle { encoding: 2, delta: b"\x01\x01a" })),
        ),
        (
            "page-xbzrle-too-long",
            end(part().page(0, Some("ram"), PageBody::Xbzrle { encoding: 1, delta: &[1; 4097] })),
        ),
        (
            "page-compressed-too-long",
            end(part()
                .event(&Event::RamWord(PageWord(0x100)))
                .raw(b"\x03ram\xff\xff\xff\xff")
                .raw(b"\x78\x9c\x03\0\0\0\0\x01")),
        ),
        ("page-cut", part().page(0, Some("ram"), PageBody::Raw(Bulk::Bytes(&[0x5a; 100])))),
    ]
}

fn commands() -> Cases {
    let odd = |code, payload: &[u8]| Small::begin().odd_command(code, payload).eof();
    vec![
        ("command-unknown", odd(CommandCode(0x42), b"")),
        ("command-invalid", odd(CommandCode::INVALID, b"")),
        ("command-length-too-small", odd(CommandCode::PING, b"\0\x01")),
        ("command-length-too-large", odd(CommandCode::OPEN_RETURN_PATH, b"\x01")),
        ("command-length-past-the-end", Small::begin().raw(b"\x08\0\x02\xff\xff\0\0\0\x01").eof()),
        ("command-discard-cut", odd(CommandCode::POSTCOPY_RAM_DISCARD, b"\0\x03ram\0\0\0\0\0")),
        ("command-advise-length", odd(CommandCode::POSTCOPY_ADVISE, &[0; 8])),
        ("command-bitmap-name-past-the-end", odd(CommandCode::RECV_BITMAP, b"\x09ram")),
    ]
}

fn postcopy() -> Cases {
    let advise =
        || Command::PostcopyAdvise(Some(Advise { page_size_summary: 0x20_1000, target_page_size: 0x1000 }));
    let begun = || {
        let huge = RamBlock { page_size: Some(0x2000), ..RamBlock::new(Name(b"huge"), 0x4000) };
        let small = Small::begin().command(advise()).named(SectionKind::START, 2, "ram", 4);
        small.list(0x8000, &[huge, RamBlock::new(Name(b"ram"), 0x4000)]).eos().footer(2)
    };
    let discard = |version, block: &'static [u8], nil, ranges: &[(u64, u64)]| {
        let ranges =
            ranges.iter().map(|(start, length)| DiscardRange { start: *start, length: *length }).collect();
        Command::PostcopyRamDiscard(Discard { version, block: Name(block), nil, ranges })
    };
    let good = || discard(0, b"ram", 0, &[(0, 0x1000)]);
    let run = || begun().command(good()).package(&inside());
    let part = |small: Small| small.again(SectionKind::PART, 2);
    let delta = PageBody::Xbzrle { encoding: 1, delta: b"\x02\x01A" };
    vec![
        ("postcopy-advise-twice", begun().command(advise()).eof()),
        ("postcopy-listen-without-advise", Small::begin().command(Command::PostcopyListen).eof()),
        ("postcopy-run-without-listen", begun().command(Command::PostcopyRun).eof()),
        ("postcopy-run-without-discard", begun().package(&inside()).eof()),
        ("postcopy-listen-twice", run().command(Command::PostcopyListen).eof()),
        ("postcopy-discard-without-advise", Small::begin().ram("ram", 0x4000).command(good()).eof()),
        ("postcopy-discard-after-run", run().command(good()).eof()),
        ("postcopy-discard-version", begun().command(discard(1, b"ram", 0, &[(0, 0x1000)])).eof()),
        ("postcopy-discard-no-nul", begun().command(discard(0, b"ram", 7, &[(0, 0x1000)])).eof()),
        ("postcopy-discard-no-range", begun().command(discard(0, b"ram", 0, &[])).eof()),
        ("postcopy-discard-unknown-block", begun().command(discard(0, b"tape", 0, &[(0, 0x1000)])).eof()),
        ("postcopy-discard-misaligned", begun().command(discard(0, b"ram", 0, &[(0x800, 0x1000)])).eof()),
        ("postcopy-discard-past-the-end", begun().command(discard(0, b"ram", 0, &[(0x3000, 0x2000)])).eof()),
        ("postcopy-discard-overflow", begun().command(discard(0, b"ram", 0, &[(!0xfff, 0x2000)])).eof()),
        ("postcopy-discard-in-package", begun().package(&Small::default().command(good())).eof()),
        ("postcopy-bitmap-unknown-block", run().command(Command::RecvBitmap { block: Name(b"tape") }).eof()),
        ("postcopy-delta", part(run()).page(0x1000, Some("ram"), delta).eof()),
        (
            "postcopy-host-page-torn",
            part(run())
                .page(0, Some("huge"), PageBody::Zero(0))
                .page(0x1000, Some("ram"), PageBody::Zero(0))
                .eof(),
        ),
    ]
}

/// What is in a package at least.
fn inside() -> Small {
    Small::default().command(Command::PostcopyListen).command(Command::PostcopyRun)
}

fn packages() -> Cases {
    let ram = || Small::begin().command(Command::PostcopyAdvise(None)).ram("ram", 0x1000);
    let inside = || Small::default().command(Command::PostcopyListen).device("device", b"1234");
    let run = || inside().command(Command::PostcopyRun);
    let sized = |size| ram().command(Command::Packaged { size });
    let cut = |bytes: usize| sized(run().0.len() as u32 - bytes as u32).raw(&run().0).eof();
    vec![
        ("package-4g", sized(u32::MAX).raw(&run().0).eof()),
        ("package-empty", sized(0).eof()),
        ("package-nested", ram().package(&inside().package(&run())).eof()),
        ("package-without-run", ram().package(&inside()).eof()),
        // RUN has five bytes, the footer in front of it five more, and the payload four.
        ("package-ends-inside-run", cut(2)),
        ("package-ends-inside-footer", cut(7)),
        ("package-ends-inside-payload", cut(12)),
        ("package-goes-on-behind-run", ram().package(&run().command(Command::Ping(4))).eof()),
        ("package-larger-than-its-stream", sized(0x1000).raw(&run().0)),
        ("package-configuration-inside", ram().package(&Small::default().configuration("none")).eof()),
    ]
}

fn ends() -> Cases {
    let ram = || Small::begin().ram("ram", 0x1000).again(END, RAM).eos().footer(RAM).eof();
    let nested = "[".repeat(100_000) + &"]".repeat(100_000);
    vec![
        ("description-4g", ram().raw(b"\x06\xff\xff\xff\xff{}")),
        ("description-cut", ram().raw(b"\x06\0\0\0\x10{}")),
        ("description-no-json", ram().description("{\"page_size\": 4096, devices")),
        ("description-no-utf8", ram().raw(b"\x06\0\0\0\x06{\"\xff\": ")),
        ("description-nested", ram().description(&nested)),
        (
            "description-duplicate-key",
            ram().description("{\"page_size\": 4096, \"page_size\": 4096, \"devices\": []}"),
        ),
        ("trailing-bytes", ram().description("{}").raw(b"more")),
        ("trailing-bytes-behind-eof", ram().raw(b"\x01\0\0\0\x02")),
        ("trailing-second-description", ram().description("{}").description("{}")),
    ]
}

fn verdict(bytes: &[u8], mode: Mode) -> (Reading, Vec<String>) {
    let mut parser = Parser::with(mode, Dialect::ANY);
    let found = read(&mut parser, bytes, whole);
    let complaints = parser.grammar().complaints().iter().map(ToString::to_string).collect();
    (found, complaints)
}

fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../fixtures/snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn every_file_is_what_this_test_makes() {
    let directory = place("fixtures/bad");
    if std::env::var_os("UPDATE").is_some() {
        for (_, stale) in common::files(&directory, "bin") {
            fs::remove_file(stale).expect("a stale file can be removed");
        }
        for (name, bytes) in cases() {
            fs::write(directory.join(name).with_extension("bin"), bytes).expect("a file can be written");
        }
    }
    let there: Vec<_> = common::files(&directory, "bin").into_iter().map(|(name, _)| name).collect();
    let mut made: Vec<_> = cases().iter().map(|(name, _)| format!("{name}.bin")).collect();
    made.sort();
    assert_eq!(there, made, "run with UPDATE=1");
    for (name, bytes) in cases() {
        let found = fs::read(directory.join(name).with_extension("bin")).expect("it is there");
        assert!(found == bytes, "{name} is stale; run with UPDATE=1");
    }
}

#[test]
fn each_is_refused_with_a_place() {
    for (name, bytes) in cases() {
        let (found, _) = verdict(&bytes, Mode::Strict);
        if DESCRIPTIONS.contains(&name) {
            assert_eq!(found.error, None, "{name}");
            continue;
        }
        let error = found.error.unwrap_or_else(|| panic!("{name} is taken for valid"));
        assert!(error.contains("(main channel, offset 0x"), "{name}: {error}");
        let again = read(&mut Parser::new(), &bytes, bytewise);
        assert_eq!(again.error, Some(error), "{name}, byte by byte");
    }
}

#[test]
fn texts() {
    let mut texts = String::new();
    for (name, bytes) in cases() {
        let (strict, _) = verdict(&bytes, Mode::Strict);
        let (lenient, complaints) = verdict(&bytes, Mode::Lenient);
        writeln!(texts, "{name}").expect("a string takes it");
        let end = |found: &Reading| found.error.clone().unwrap_or_else(|| "accepted".to_owned());
        writeln!(texts, "  strict:  {}", end(&strict)).expect("a string takes it");
        for complaint in complaints {
            writeln!(texts, "  lenient: forgives {complaint}").expect("a string takes it");
        }
        writeln!(texts, "  lenient: {}", end(&lenient)).expect("a string takes it");
    }
    snapshot("bad", &texts);
}

#[cfg(feature = "json")]
#[test]
fn descriptions() {
    use migwire::vmstate::Description;

    let mut texts = String::new();
    for (name, bytes) in cases().into_iter().filter(|(name, _)| DESCRIPTIONS.contains(name)) {
        let (found, _) = verdict(&bytes, Mode::Strict);
        let text: Vec<_> = found.events.iter().filter(|e| e.name == "VM description text").collect();
        let (start, end) = (text[0].range.start, text[text.len() - 1].range.end);
        let verdict = match Description::parse(&bytes[start as usize..end as usize], start) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        writeln!(texts, "{name}\n  {verdict}").expect("a string takes it");
    }
    snapshot("bad-descriptions", &texts);
}

/// Multifd packets that a destination refuses, and some that look wrong and are taken: what is done to a channel of zlib, and what comes
/// of it. The main channel has a block `ram` of eight pages; the packet in question stands behind a hello and a SYNC, at 0x580.
#[cfg(all(feature = "container", feature = "json"))]
#[test]
fn multifd_packets() {
    use migwire::ErrorKind::{Malformed, OutOfOrder, TooLarge, Truncated};

    const AT: u64 = 64 + 1344;
    let set = |at: usize, value: u32| {
        move |bytes: &mut Vec<u8>| bytes[AT as usize + at..][..4].copy_from_slice(&value.to_be_bytes())
    };
    let both = |first: fn(&mut Vec<u8>), second: fn(&mut Vec<u8>)| {
        move |bytes: &mut Vec<u8>| {
            first(bytes);
            second(bytes);
        }
    };
    let no_pages: fn(&mut Vec<u8>) = |bytes| {
        let payload = AT as usize + 1344..bytes.len() - 1344;
        bytes.drain(payload);
        bytes[AT as usize + 16..][..4].fill(0);
    };
    let refused = multifd::refused;
    // What the packet says of itself.
    assert_eq!(refused(&|_| ()), None);
    assert_eq!(refused(&set(0, 0x1122_3345)), Some((Malformed, AT)), "bad magic");
    assert_eq!(refused(&set(4, 2)), Some((Malformed, AT + 4)), "bad version");
    assert_eq!(refused(&set(12, 129)), Some((Malformed, AT + 12)), "pages_alloc of more than fit");
    assert_eq!(refused(&set(12, 12_801)), Some((Malformed, AT + 12)), "pages_alloc of far more than fit");
    assert_eq!(refused(&set(12, 1)), Some((Malformed, AT + 16)), "more pages than pages_alloc");
    assert_eq!(refused(&set(32, 127)), Some((Malformed, AT + 16)), "pages and zero pages of more than fit");
    assert_eq!(refused(&set(20, (1 << 20) + 1)), Some((TooLarge, AT + 20)), "a payload of more than 1 MiB");
    assert_eq!(refused(&set(8, 4)), Some((Malformed, AT + 1344)), "another method: these are no zstd bytes");
    assert_eq!(refused(&set(8, 6)), Some((Malformed, AT + 8)), "two methods at once");
    let size: fn(&mut Vec<u8>) = |bytes| bytes[AT as usize + 20..][..4].copy_from_slice(&7u32.to_be_bytes());
    let zero: fn(&mut Vec<u8>) = |bytes| bytes[AT as usize + 35] = 1;
    let zero_only = |bytes: &mut Vec<u8>| {
        no_pages(bytes);
        zero(bytes);
    };
    assert_eq!(refused(&zero_only), Some((Malformed, AT + 20)), "a payload for zero pages only");
    // Where its pages are.
    assert_eq!(refused(&set(64, 0x7261_6e00)), Some((Malformed, AT + 64)), "an unknown block");
    assert_eq!(refused(&set(324, 0x8000)), Some((Malformed, AT + 320)), "an offset past the block");
    assert_eq!(refused(&set(320, 1)), Some((Malformed, AT + 320)), "an offset far past the block");
    let far_zero = |bytes: &mut Vec<u8>| {
        zero(bytes);
        bytes[AT as usize + 336] = 1;
    };
    assert_eq!(refused(&far_zero), Some((Malformed, AT + 336)), "a zero page past the block");
    // What its payload is.
    assert_eq!(refused(&set(1344, 0)), Some((Malformed, AT + 1344 + 2)), "no zlib: its header has two bytes");
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(AT as usize + 1344 + 5);
    assert_eq!(refused(&cut), Some((Truncated, AT + 1344 + 5)), "a payload that is cut");
    assert_eq!(
        refused(&|b| b.truncate(AT as usize + 700)),
        Some((Truncated, AT + 700)),
        "a packet that is cut"
    );
    assert_eq!(refused(&|b| b.truncate(AT as usize + 12)), Some((Truncated, AT + 12)), "cut behind its head");
    // When it comes.
    assert_eq!(refused(&|b| b.truncate(AT as usize)), Some((OutOfOrder, AT)), "no second SYNC");
    let early = |bytes: &mut Vec<u8>| {
        let sync: Vec<u8> = bytes.drain(64..AT as usize).collect();
        let behind = bytes.len() - 1344;
        bytes.splice(behind..behind, sync);
    };
    assert_eq!(refused(&early), Some((OutOfOrder, 64)), "pages in front of the first SYNC");

    // What every release takes.
    assert_eq!(refused(&both(no_pages, |_| ())), None, "empty, with a size that is left over");
    let unknown_block = both(no_pages, |bytes| bytes[AT as usize + 64] = b'x');
    assert_eq!(refused(&unknown_block), None, "an unknown block without pages");
    assert_eq!(
        refused(&both(no_pages, |bytes| bytes[AT as usize + 11] = 4)),
        None,
        "another method without pages"
    );
    assert_eq!(refused(&both(no_pages, size)), None, "any size without pages");
    assert_eq!(refused(&set(8, 2 | 0x80 | 0x8000_0000)), None, "unknown flags");
    assert_eq!(refused(&set(24, 0xffff_ffff)), None, "any number");
    assert_eq!(refused(&set(36, 0xffff_ffff)), None, "unused words");
    assert_eq!(refused(&set(324, 0x1001)), None, "an offset that is not aligned");
    assert_eq!(refused(&set(332, 0)), None, "an offset twice");
    let with_sync = |bytes: &mut Vec<u8>| {
        bytes[AT as usize + 11] |= 1;
        bytes.truncate(bytes.len() - 1344);
    };
    assert_eq!(refused(&with_sync), None, "SYNC together with pages");
}

/// A migration of two files with one packet of pages.
#[cfg(all(feature = "container", feature = "json"))]
mod multifd {
    use std::fs;

    use migwire::container;
    use migwire::dialect::Dialect;
    use migwire::multifd::{Framer, codec};
    use migwire::report::{Reading, prove_all};
    use migwire::wire::{Method, MultifdHello, RamBlock, RamFlags, SectionKind, Wire as _};
    use migwire::{ChannelId, Error, ErrorKind};

    use crate::common::small::{RAM, Small};

    /// Kind and offset of the first fault when `change` is done to the channel; every fault must be of it.
    pub(crate) fn refused(change: &dyn Fn(&mut Vec<u8>)) -> Option<(ErrorKind, u64)> {
        let flush = |small: Small| small.word(0, RamFlags::MULTIFD_FLUSH).eos().footer(RAM);
        let main = Small::begin().named(SectionKind::START, RAM, "ram", 4);
        let main = main.list(0x8000, &[RamBlock::new("ram".into(), 0x8000)]);
        let main = flush(flush(main).again(SectionKind::END, RAM)).eof();
        let mut channel = channel();
        change(&mut channel);
        let directory = tempfile::tempdir().expect("a directory can be made");
        for (name, bytes) in [("conn00", &main.0), ("conn01", &channel)] {
            let path = directory.path().join(name).with_extension("src-to-dst.bin");
            fs::write(path, bytes).expect("a file can be written");
        }
        let mut contents = container::open(directory.path(), false).expect("it is a migration");
        let mut faults: Vec<Error> = Vec::new();
        let whole =
            prove_all(&mut contents.parts, &Reading::default(), |_, found| faults.extend(found.error));
        faults.extend(whole.expect("there is a multifd channel").faults);
        for fault in &faults {
            assert_eq!(fault.channel(), ChannelId::Multifd(0), "{fault}");
        }
        faults.first().map(|fault| (fault.kind(), fault.offset().expect("it has a place")))
    }

    /// Hello, SYNC, a packet with two pages and its payload, SYNC.
    fn channel() -> Vec<u8> {
        let mut framer = Framer::new(Dialect::ANY, 4096);
        let mut bytes = Vec::new();
        MultifdHello::new(0, [0; 16]).emit(&mut bytes);
        bytes.extend_from_slice(framer.sync(0));
        let mut payload = Vec::new();
        let pages: Vec<u8> = (0..8192u32).map(|i| (i / 4096) as u8 + 1).collect();
        let encoded =
            codec::open(Method::ZLIB, Some(1)).and_then(|mut codec| codec.encode(&pages, 4096, &mut payload));
        encoded.expect("zlib is there");
        bytes.extend_from_slice(framer.pages(
            b"ram",
            &[0, 0x3000],
            &[],
            Method::ZLIB,
            payload.len() as u32,
            1,
        ));
        bytes.extend_from_slice(&payload);
        bytes.extend_from_slice(framer.sync(2));
        bytes
    }
}
