//! Destinations that say what they may not say.

use std::time::Duration;

use migwire::ErrorKind;
use migwire::endpoint::Postcopy;
use migwire::limits::MAX_PAGE_REQUESTS;
use migwire::wire::{Message, Name};

use super::peer::{Say, Script, ask, message, play};
use super::{PAGES, PATTERN, source, with_preempt};

/// Says something at a moment, once.
struct Saying {
    when: When,
    what: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Opened,
    Listening,
    Running,
    Ended,
}

impl Saying {
    fn now(&mut self, when: When) -> Say {
        Some(if when == self.when { std::mem::take(&mut self.what) } else { Vec::new() })
    }
}

impl Script for Saying {
    fn opened(&mut self) -> Say {
        self.now(When::Opened)
    }

    fn listening(&mut self) -> Say {
        self.now(When::Listening)
    }

    fn running(&mut self) -> Say {
        self.now(When::Running)
    }

    fn ended(&mut self) -> Say {
        let said = self.now(When::Ended)?;
        Some(if said.is_empty() { message(Message::Shut(0)) } else { said })
    }
}

fn id(start: u64, length: u32, block: &'static [u8]) -> Vec<u8> {
    message(Message::ReqPagesId { start, length, block: Name(block) })
}

#[test]
fn a_bad_request_pauses_and_its_reason_is_told() {
    for preempt in [false, true] {
        for (what, why) in [
            (id(0, 4096, b"tape"), "which there is not"),
            (id(100, 4096, b"ram"), "no whole pages"),
            (id(0, 100, b"ram"), "no whole pages"),
            (id(0, 0, b"ram"), "no whole pages"),
            (id((PAGES - 1) * 4096, 8192, b"ram"), "past the end"),
            (id(u64::MAX - 4095, 4096, b"ram"), "past the end"),
            (message(Message::ReqPages { start: 0, length: 4096 }), "no request before it has named a block"),
            (b"\0\x09\0\0".to_vec(), "invalid message type"),
            (b"\0\x03\xff\xff".to_vec(), "at most 512"),
            (b"\0\x05\0\x04\x03ram".to_vec(), "not asked for"),
            (message(Message::Pong(77)), "answers no PING"),
        ] {
            let postcopy = if preempt { with_preempt(0) } else { Postcopy::at(0) };
            let script = Saying { when: When::Running, what };
            let (departure, seen, turns) = play(source(postcopy), PATTERN, script);
            assert!(departure.error.is_none(), "{why}: {:?} {turns:?}", departure.error);
            assert_eq!(
                (seen.missing(), seen.wrong, departure.postcopy.pauses),
                (0, 0, 1),
                "{why}: {turns:?}"
            );
            assert!(turns[0].contains(why) && turns[0].contains("return path"), "{why}: {turns:?}");
        }
    }
}

#[test]
fn a_request_that_comes_too_early_is_the_end() {
    let (departure, _, turns) =
        play(source(Postcopy::at(50)), PATTERN, Saying { when: When::Opened, what: ask(0, 4096) });
    let e = departure.error.unwrap();
    assert!(e.kind() == ErrorKind::OutOfOrder && e.message().contains("nobody listens"), "{e}");
    assert!(turns.is_empty() && !departure.postcopy.switched);
    // From LISTEN on it is not too early.
    let script = Saying { when: When::Listening, what: ask((PAGES - 1) * 4096, 4096) };
    let (departure, seen, turns) = play(source(Postcopy::at(0)), PATTERN, script);
    assert!(departure.error.is_none() && turns.is_empty(), "{:?}", departure.error);
    assert_eq!((seen.missing(), departure.postcopy.requests.pages), (0, 1));
}

#[test]
fn a_last_word_is_the_last_word() {
    for (when, status, why) in [
        (When::Running, 1, "reports that it failed (SHUT 1)"),
        (When::Running, 0, "says that it is done"),
        (When::Ended, 1, "reports that it failed (SHUT 1)"),
    ] {
        let script = Saying { when, what: message(Message::Shut(status)) };
        let (departure, _, turns) = play(source(Postcopy::at(0)), PATTERN, script);
        let e = departure.error.unwrap();
        assert!(e.kind() == ErrorKind::Peer && e.message().contains(why), "{why}: {e}");
        assert!(turns.is_empty() && departure.peer_status == Some(status), "{why}: {turns:?}");
    }
}

#[test]
fn a_flood_of_requests_is_answered_and_takes_no_more_room() {
    for preempt in [false, true] {
        let postcopy = if preempt { with_preempt(0) } else { Postcopy::at(0) };
        let count = MAX_PAGE_REQUESTS + 5000;
        let whole = (PAGES * 4096) as u32;
        let mut what = ask(4096 * 7, 4096);
        for i in 0..count {
            let length = if i % 1000 == 0 { whole } else { 4096 };
            what.extend(message(Message::ReqPages { start: 0, length }));
        }
        // The destination writes all of it before it reads on.
        let script = Saying { when: When::Running, what };
        let limits = migwire::endpoint::Limits { silence: Duration::from_secs(20), total: None };
        let (departure, seen, turns) = play(source(postcopy).with_limits(limits), PATTERN, script);
        assert!(departure.error.is_none() && turns.is_empty(), "{:?} {turns:?}", departure.error);
        assert_eq!((seen.missing(), seen.repeated, seen.wrong), (0, 0, 0));
        let requests = departure.postcopy.requests;
        assert_eq!(requests.received, count as u64 + 1);
        assert!(requests.pages <= PAGES && requests.unneeded > 60_000, "{requests:?}");
    }
}
