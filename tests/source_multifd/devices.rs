//! Devices that are made up: their state arrives, on the channels that it should take.

use std::thread;
use std::time::Duration;

use migwire::device_state::{Arrangement, SyntheticVerdict};
use migwire::endpoint::{Arrival, Departure, Destination, Devices, Limits, Multifd, Source};
use migwire::guest::Memory;
use migwire::transport::{self, Address, Listener, memory};
use migwire::wire::Method;
use migwire::{ChannelId, ErrorKind};

use super::stage::{Said, play};
use super::{patient, source};

fn devices(arrangement: Arrangement) -> Devices {
    Devices::new(3, 500_000, 40_000, arrangement).unwrap()
}

/// Migrates into our own destination.
fn migrate(source: Source) -> (Departure, Arrival) {
    let listener = Listener::bind(&Address::Tcp { host: "127.0.0.1".into(), port: 0 }).unwrap();
    let address = listener.local_address().clone();
    let destination = Destination::new().with_limits(patient());
    let destination = thread::spawn(move || destination.listen(&listener, |_| {}).unwrap());
    let connect = || transport::connect(&address, Duration::from_secs(20));
    let departure = source.with_return_path(true).send_over(connect().unwrap(), |_| connect(), |_| {});
    (departure, destination.join().unwrap())
}

#[test]
fn all_of_the_state_arrives_in_every_arrangement() {
    use Arrangement::{Downtime, Live, Main};
    for (dialect, channels, arrangement) in [
        ("5.2", 0, Main),
        ("5.2", 2, Main),
        ("9.1", 1, Main),
        ("any", 0, Main),
        ("any", 2, Main),
        ("any", 1, Downtime),
        ("10.0", 3, Downtime),
        ("11.1", 2, Downtime),
        ("11.1", 3, Live),
        ("any", 2, Live),
    ] {
        for dedicated in [false, true].into_iter().take(if channels > 1 { 2 } else { 1 }) {
            let place = format!("{dialect} with {channels}: {arrangement:?} {dedicated}");
            let devices = Devices { dedicated, ..devices(arrangement) };
            let source = source(Multifd::new(channels)).with_rounds(3).with_devices(devices);
            let (departure, arrival) = migrate(source.with_dialect(dialect.parse().unwrap()));
            assert!(departure.error.is_none(), "{place}: {:?} {:?}", departure.error, arrival.error);
            assert!(arrival.error.is_none(), "{place}: {:?}", arrival.error);
            assert_eq!((departure.devices.len(), arrival.devices.len()), (3, 3), "{place}");
            for (sent, report) in departure.devices.iter().zip(&arrival.devices) {
                assert_eq!(sent.name.as_bytes(), &*report.name, "{place}");
                assert_eq!(report.incomplete, None, "{place}");
                assert_eq!(report.synthetic, SyntheticVerdict::Equal, "{place}");
                assert_eq!(sent.packets, report.packets, "{place}");
                assert_eq!(report.main_bytes + report.multifd_bytes, 500_000, "{place}");
                let on_main = match arrangement {
                    Main => 500_000,
                    // Half of it, in whole chunks.
                    Downtime => 240_000,
                    Live => 0,
                };
                assert_eq!(report.main_bytes, on_main, "{place}");
            }
        }
    }
}

#[test]
fn devices_can_have_channels_of_their_own() {
    for (channels, lower) in [(2, 1), (3, 2), (5, 3)] {
        let devices = Devices { dedicated: true, ..devices(Arrangement::Live) };
        let source = source(Multifd::new(channels)).with_rounds(2).with_devices(devices);
        let (departure, seen) = play(source, "11.1", Memory::new());
        assert!(departure.error.is_none() && seen.errors.is_empty(), "{:?}", departure.error);
        for (id, track) in seen.channels.iter().enumerate() {
            assert!(matches!(track.said[0], Said::Sync(_)), "nothing comes before the setup");
            let has = |device: bool| {
                track.said.iter().any(|said| match said {
                    Said::Sync(_) => false,
                    said => matches!(said, Said::Device { .. }) == device,
                })
            };
            assert!(!has(id < lower), "channel {id} of {channels}");
        }
        let packets = seen.said().filter(|said| matches!(said, Said::Device { .. })).count();
        assert_eq!(packets, 3 * 14, "13 with data and the config, from each");
    }
}

#[test]
fn a_channel_that_stalls_ends_the_threads_of_devices() {
    let limits = Limits { silence: Duration::from_millis(300), total: None };
    let devices = Devices { dedicated: true, ..devices(Arrangement::Live) };
    let source = source(Multifd::new(2)).with_devices(devices).with_limits(limits);
    let (ours, theirs) = memory::pair();
    let mut open = vec![theirs];
    let connect = |_| {
        let (ours, theirs) = memory::pair();
        open.push(theirs);
        Ok(ours)
    };
    let departure = source.send_over(ours, connect, |_| {});
    let error = departure.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(matches!(error.channel(), ChannelId::Multifd(_)), "{error}");
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |channels, devices: Devices, dialect: &str| {
        let source = source(Multifd::new(channels)).with_devices(devices);
        let error = source.with_dialect(dialect.parse().unwrap()).check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misuse);
        error.message().to_owned()
    };
    assert!(refused(0, devices(Arrangement::Downtime), "any").contains("there are none"));
    assert!(refused(2, devices(Arrangement::Live), "9.2").contains("9.2"));
    assert!(refused(2, devices(Arrangement::Downtime), "9.2-on-9.2").contains("9.2-on-9.2"));
    let forced = source(Multifd::new(2)).with_devices(devices(Arrangement::Downtime));
    let forced = forced.with_dialect("11.1-on-9.2".parse().unwrap());
    assert!(forced.check().is_ok(), "a property on an older machine type can be forced");
    let dedicated = |arrangement| Devices { dedicated: true, ..devices(arrangement) };
    assert!(refused(1, dedicated(Arrangement::Live), "any").contains("two channels"));
    assert!(refused(0, dedicated(Arrangement::Main), "any").contains("two channels"));
    assert!(Devices::new(100_000, 1 << 20, 1 << 20, Arrangement::Main).is_err());
    assert!(Devices::new(1, 1 << 20, 0, Arrangement::Main).is_err());
    let zlib = Multifd { method: Method::ZLIB, ..Multifd::new(2) };
    assert!(
        source(zlib).with_devices(devices(Arrangement::Live)).check().is_ok(),
        "no rule of the wire is against it"
    );
}
