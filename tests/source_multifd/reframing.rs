//! Recorded multifd channels as templates: their pages go on over other channels, in other encodings, or over none.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use migwire::ErrorKind;
use migwire::capture::{Recorder, RecorderOptions};
use migwire::container::{self, Pages, Together, TogetherOptions};
use migwire::endpoint::{Devices, Multifd, Source, Template};
use migwire::guest::Memory;
use migwire::multifd::ZeroPages;
use migwire::wire::Method;

use super::stage::play;
use super::{digesting, digests, patient, source};

const METHODS: [Method; 6] =
    [Method::NONE, Method::ZLIB, Method::ZSTD, Method::QPL, Method::UADK, Method::QATZIP];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/multifd")
}

/// What a destination has in its memory after all channels in `path`.
fn digests_of(path: &Path) -> Vec<(String, String)> {
    let mut memory = digesting();
    let mut pages = Pages::default();
    let mut parts = container::open(path, false).unwrap().parts;
    let mut together = Together::open(&mut parts, &TogetherOptions::default()).unwrap();
    together
        .run(|item| {
            if let container::Item::Main(located, grammar) = item {
                memory.handle(&located.event, grammar, located.range.start)?;
            }
            pages.take(item, |page| match page.content {
                Some(content) => memory.set_page(page.block.unwrap(), page.offset, content, page.page_size),
                None => memory.set_zero_page(page.block.unwrap(), page.offset, page.page_size),
            })?;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    assert!(together.faults().is_empty() && pages.faults().is_empty() && pages.payloads() > 0);
    digests(&memory)
}

#[test]
fn recorded_channels_of_stock_sources_change_over() {
    let mut found = 0;
    for release in ["5.2", "7.2", "10.0", "11.1"] {
        let mut places: Vec<_> = std::fs::read_dir(fixtures().join(format!("qemu-{release}")))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        places.sort();
        for path in places {
            found += 1;
            let expected = digests_of(&path);
            let ways: [(Option<Multifd>, &str); 4] = [
                (None, "any"),
                (Some(Multifd::new(3)), "any"),
                (Some(Multifd { method: METHODS[found % 6], ..Multifd::new(2) }), "11.1"),
                (Some(Multifd { method: Method::ZLIB, ..Multifd::new(1) }), "7.2"),
            ];
            for (multifd, dialect) in ways {
                let place = format!("{} as {dialect}: {multifd:?}", path.display());
                let source = Source::new(Template::open(&path).unwrap()).with_limits(patient());
                let source = multifd.into_iter().fold(source, Source::with_multifd);
                source.check().unwrap();
                let (departure, seen) = play(source.with_rounds(2), dialect, digesting());
                assert!(departure.error.is_none(), "{place}: {:?} {:?}", departure.error, seen.errors);
                assert_eq!(digests(&seen.memory), expected, "{place}");
                let on_main = seen.main.contains(&"page".to_owned());
                assert_eq!(on_main, multifd.is_none(), "{place}");
                assert!(seen.repeated == 0 || multifd.is_none(), "{place}");
            }
        }
    }
    assert!(found >= 8, "{found}");
}

#[test]
fn over_and_over_the_same_pages() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = None;
    let mut last: Option<PathBuf> = None;
    // From nothing to channels, to the main channel alone, and to channels again, each from the recording before.
    for (i, multifd) in [
        Multifd { method: Method::ZSTD, ..Multifd::new(3) },
        Multifd::new(0),
        Multifd { zero_pages: Some(ZeroPages::Legacy), ..Multifd::new(2) },
        Multifd { method: Method::ZLIB, zero_pages: Some(ZeroPages::None), ..Multifd::new(2) },
        Multifd::new(0),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("{i}.pcapng"));
        let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
        let source = match &last {
            None => source(multifd).with_rounds(2),
            Some(last) => {
                Source::new(Template::open(last).unwrap()).with_multifd(multifd).with_limits(patient())
            }
        };
        let (departure, seen) = play(source.with_recorder(recorder.clone()), "11.1", digesting());
        recorder.finish().unwrap();
        assert!(departure.error.is_none() && seen.errors.is_empty(), "{i}: {:?}", departure.error);
        let arrived = digests(&seen.memory);
        assert_eq!(arrived, *expected.get_or_insert(arrived.clone()), "{i}");
        last = Some(path);
    }
}

#[test]
fn channels_that_are_missing_or_hold_more_are_refused() {
    let copied = |but: &str| {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixtures().join("qemu-10.0/zlib")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != but {
                std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
            }
        }
        dir
    };
    assert!(Template::open(copied("").path()).is_ok());
    let without_main = copied("conn00.src-to-dst.bin");
    let e = Template::open(without_main.path()).unwrap_err();
    assert!(e.kind() == ErrorKind::Unsupported && e.message().contains("no main channel"), "{e}");

    // One that breaks off in the middle of a packet.
    let cut = copied("");
    let path = cut.path().join("conn01.src-to-dst.bin");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    assert_eq!(Template::open(cut.path()).unwrap_err().kind(), ErrorKind::Truncated);

    // Pages that cannot be decoded show when they are wanted.
    let spoilt = copied("");
    let path = spoilt.path().join("conn01.src-to-dst.bin");
    let mut bytes = std::fs::read(&path).unwrap();
    // Where a zlib stream begins.
    let payload = bytes.windows(2).position(|pair| pair == b"\x78\x01").unwrap();
    bytes[payload + 2..payload + 10].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    let source = Source::new(Template::open(spoilt.path()).unwrap()).with_limits(patient());
    let (departure, _) = play(source, "any", Memory::new());
    let e = departure.error.unwrap();
    assert!(e.kind() == ErrorKind::Malformed, "{e}");

    // Without the other channels, nobody has the pages.
    let dir = copied("conn01.src-to-dst.bin");
    std::fs::remove_file(dir.path().join("conn02.src-to-dst.bin")).unwrap();
    let source = Source::new(Template::open(dir.path()).unwrap());
    assert!(source.check().unwrap_err().message().contains("has no pages of block"));
}

#[test]
fn device_state_on_channels_cannot_be_sent_again() {
    let e = Template::open(&fixtures().join("vfio/a3-10to10-on-2dev-4ch")).unwrap_err();
    assert!(e.kind() == ErrorKind::Unsupported && e.message().contains("device state"), "{e}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("devices.pcapng");
    let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
    let devices = Devices::new(1, 1000, 1000, migwire::device_state::Arrangement::Downtime).unwrap();
    let source = source(Multifd::new(1)).with_devices(devices).with_recorder(recorder.clone());
    let (departure, _) = play(source, "any", Memory::new());
    assert!(departure.error.is_none());
    recorder.finish().unwrap();
    assert!(Template::open(&path).unwrap_err().message().contains("device state"));
}
