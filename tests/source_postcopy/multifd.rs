//! Pages over multifd channels before the switch, against the stand-in destination.

use std::thread;
use std::time::Duration;

use migwire::endpoint::{Arrival, Cut, Departure, Destination, Limits, Multifd, Postcopy};
use migwire::guest::Memory;
use migwire::postcopy::RequestPattern;
use migwire::transport::{self, Address, Listener};
use migwire::wire::Method;
use migwire::{ChannelId, ErrorKind};

use super::{source, with_preempt};

/// Sends to a destination that asks for pages at random, and listens again behind a pause.
fn migrate(dialect: &str, postcopy: Postcopy, method: Method, cuts: &[Cut]) -> (Departure, Arrival) {
    let address: Address = "tcp:127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&address).unwrap();
    let to = listener.local_address().clone();
    let patience = Duration::from_secs(20);
    let limits = Limits { silence: patience, total: Some(2 * patience) };
    // Who comes back comes at once.
    let recovery = if dialect == "7.2" { Duration::from_millis(200) } else { patience };
    let destination = Destination::new()
        .with_limits(limits)
        .with_memory(Memory::new().with_digest())
        .with_recovery(recovery)
        .with_requests(RequestPattern::Random(1), 4);
    let receiver = thread::spawn(move || destination.listen(&listener, |_| {}).unwrap());
    let multifd = Multifd { method, ..Multifd::new(3) };
    let source = source(postcopy).with_multifd(multifd).with_dialect(dialect.parse().unwrap());
    let source = source.with_copy(Memory::new().with_digest()).with_cuts(cuts.iter().copied());
    let connect = |_| transport::connect(&to, patience);
    let departure = source.send_over(connect(ChannelId::Main).unwrap(), connect, |_| {});
    (departure, receiver.join().unwrap())
}

fn assert_equal(place: &str, departure: &Departure, arrival: &Arrival) {
    assert!(departure.error.is_none(), "{place}: {:?}", departure.error);
    assert!(arrival.error.is_none(), "{place}: {:?}", arrival.error);
    let digest = |memory: &Memory| {
        memory.blocks().iter().map(|block| block.digest().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(digest(&departure.memory), digest(&arrival.memory), "{place}");
    assert_eq!((arrival.postcopy, arrival.missing_pages), (true, Some(0)), "{place}");
}

#[test]
fn every_page_arrives_and_the_channels_are_synchronised_as_the_release_does() {
    // START, one round and, from 10.2 on, another look before the switch; then, before 8.1, behind every EOS.
    for (dialect, preempt, syncs) in
        [("5.2", false, 4), ("7.2", false, 4), ("11.1", true, 3), ("11.1-on-7.2", false, 3), ("any", true, 3)]
    {
        for (percent, method) in [(0, Method::NONE), (40, Method::ZLIB), (100, Method::NONE)] {
            let options = if preempt { with_preempt(percent) } else { Postcopy::at(percent) };
            let place = format!("{dialect}, {percent} %");
            let (departure, arrival) = migrate(dialect, options, method, &[]);
            assert_equal(&place, &departure, &arrival);
            let found: Vec<_> = departure.channels.iter().map(|channel| channel.syncs).collect();
            assert_eq!(found, [syncs; 3], "{place}");
            let early: u64 = departure.channels.iter().map(|channel| channel.pages).sum();
            assert_eq!(early > 0, percent > 0, "{place}");
        }
    }
}

#[test]
fn a_pause_ends_channels_that_nobody_needs_any_more() {
    let cuts = [Cut::Run(100_000), Cut::Resume(200_000)];
    let (departure, arrival) = migrate("11.1", Postcopy::at(30), Method::NONE, &cuts);
    assert_equal("11.1", &departure, &arrival);
    assert_eq!((departure.postcopy.pauses, arrival.pauses), (2, 2));

    // Its destination would wait for SYNC at the next EOS.
    let (departure, _) = migrate("7.2", Postcopy::at(30), Method::NONE, &cuts);
    assert!(departure.error.is_some() && departure.postcopy.pauses == 0, "{:?}", departure.error);
}

#[test]
fn releases_that_refuse_the_two_together_are_not_imitated() {
    let source = || source(Postcopy::at(50)).with_multifd(Multifd::new(2));
    for dialect in ["8.1", "10.0"] {
        let e = source().with_dialect(dialect.parse().unwrap()).check().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Misuse);
        assert_eq!(e.message(), format!("QEMU {dialect} refuses postcopy together with multifd channels"));
    }
    assert!(source().check().is_ok());
}
