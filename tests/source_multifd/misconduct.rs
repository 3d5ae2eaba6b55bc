//! Every rule that can be broken leaves the trace that it should, and no other.

use migwire::ErrorKind;
use migwire::endpoint::{Departure, Misconduct, Multifd};
use migwire::guest::Memory;
use migwire::wire::Method;

use super::source;
use super::stage::{Said, Seen, play_with};

fn broken(rule: Misconduct) -> (Departure, Seen) {
    play_with(source(Multifd::new(3)).with_misconduct([rule]), "10.0", Memory::new(), false)
}

fn flushes(seen: &Seen) -> usize {
    seen.main.iter().filter(|word| *word == "FLUSH").count()
}

/// What a strict destination says of it, first of all.
fn complaint(rule: Misconduct) -> (ErrorKind, String) {
    let (_, seen) = broken(rule);
    // Whatever else goes wrong is a consequence.
    let error = seen.errors.iter().find(|error| error.doing().starts_with("multifd")).unwrap();
    (error.kind(), error.message().to_owned())
}

#[test]
fn the_names_of_rules_are_their_own() {
    for rule in Misconduct::ALL {
        assert_eq!(rule.name().parse::<Misconduct>().unwrap(), *rule);
        assert!(!rule.what().is_empty());
    }
    assert!("no-rule".parse::<Misconduct>().unwrap_err().message().contains("no-flush"));
}

#[test]
fn synchronisation() {
    let (departure, seen) = broken(Misconduct::NoFlush);
    assert!(departure.error.is_none(), "{:?}", departure.error);
    assert_eq!((flushes(&seen), seen.syncs()), (1, vec![3; 3]));

    let (_, seen) = broken(Misconduct::FlushWithoutSync);
    assert_eq!((flushes(&seen), seen.syncs()), (3, vec![1; 3]));

    let (_, seen) = broken(Misconduct::CloseChannelEarly);
    assert_eq!((flushes(&seen), seen.syncs()), (3, vec![3, 3, 1]));
    assert!(seen.errors.is_empty(), "it ends between two packets");

    let (_, seen) = broken(Misconduct::SilentChannel);
    assert_eq!((flushes(&seen), seen.syncs()), (3, vec![3, 3, 0]));
    assert!(seen.channels[2].hello.is_some() && seen.channels[2].said.is_empty());
}

#[test]
fn hellos() {
    let ids = |rule| {
        let (_, seen) = broken(rule);
        seen.channels.iter().map(|track| track.hello.unwrap().id).collect::<Vec<_>>()
    };
    assert_eq!(ids(Misconduct::IdEqualCount), [0, 1, 3]);
    assert_eq!(ids(Misconduct::DuplicateId), [0, 1, 1]);
    assert_eq!(ids(Misconduct::FewerChannels), [0, 1]);
    assert_eq!(ids(Misconduct::MoreChannels), [0, 1, 2, 3]);
    let (_, seen) = broken(Misconduct::WrongUuid);
    let uuids: Vec<_> = seen.channels.iter().map(|track| track.hello.unwrap().uuid).collect();
    assert_eq!(uuids, [[0; 16], [0; 16], [0xff; 16]]);
}

#[test]
fn packets() {
    let (kind, message) = complaint(Misconduct::BadMagic);
    assert!(kind == ErrorKind::Malformed && message.contains("44332211"), "{message}");
    let (kind, message) = complaint(Misconduct::BadVersion);
    assert!(kind == ErrorKind::Malformed && message.contains("version 2"), "{message}");

    let (_, seen) = broken(Misconduct::WrongCodec);
    let method = |said: &Said| matches!(said, Said::Pages { method: Method::ZLIB, .. });
    assert!(seen.said().any(method));

    // The size counts where pages are encoded only.
    let zlib = Multifd { method: Method::ZLIB, ..Multifd::new(3) };
    let (_, seen) =
        play_with(source(zlib).with_misconduct([Misconduct::BigPayload]), "10.0", Memory::new(), false);
    assert!(seen.errors.iter().any(|error| error.kind() == ErrorKind::TooLarge), "{:?}", seen.errors);
}

#[test]
fn pages_and_devices() {
    let (departure, seen) = broken(Misconduct::PageBeforeSetup);
    assert!(departure.error.is_none(), "{:?}", departure.error);
    assert!(matches!(seen.channels[0].said[0], Said::Pages { normal: 1, .. }));

    let (departure, seen) = broken(Misconduct::SamePageTwice);
    assert!(departure.error.is_none());
    assert_eq!(seen.repeated, 128);
    let with_pages =
        |track: &&super::stage::Track| track.said.iter().any(|said| matches!(said, Said::Pages { .. }));
    assert!(seen.channels.iter().filter(with_pages).count() > 1);

    let (departure, seen) = broken(Misconduct::DeviceState);
    assert!(departure.error.is_none());
    let device = |said: &Said| matches!(said, Said::Device { bytes: 64, .. });
    assert_eq!(seen.channels[0].said.iter().filter(|said| device(said)).count(), 1);
    assert_eq!(departure.channels[0].device_packets, 1);
}
