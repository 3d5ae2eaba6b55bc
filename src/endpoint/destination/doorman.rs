//! Lets connections in, and finds out what each of them is.

use std::io::{self, Read as _};
use std::thread::{self, Scope};
use std::time::Duration;

use crossbeam_channel::Sender;

use super::channel;
use super::channels::{Channels, Expected};
use super::preempt;
use super::recovery::RETURN;
use crate::capture::interface_name;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::transport::{Connection, Listener};
use crate::wire::{FileHeader, MULTIFD_MAGIC, SectionKind};

const DOING: &str = "accepting";

/// How long the doorman waits for a knock before it looks whether it is wanted any more.
const TICK: Duration = Duration::from_millis(10);

/// How long a connection without a magic waits for the main channel, if there are others that may be it.
const QUICK: Duration = Duration::from_secs(1);

/// First byte of a TLS record with a handshake, and the major number of its version.
const TLS: [u8; 2] = [0x16, 0x03];

/// A main channel whose first bytes have been read.
pub(super) struct Front {
    pub(super) connection: Connection,
    pub(super) first: Vec<u8>,
}

/// Accepts until everything is over. Each connection gets a thread of its own, so that a silent one keeps nobody waiting.
pub(super) fn attend<'scope>(
    scope: &'scope Scope<'scope, '_>,
    channels: &'scope Channels,
    listener: &'scope Listener,
    main: Sender<Front>,
) {
    let mut refused = 0;
    while !channels.is_over() {
        let asked = channels.asked();
        match listener.accept(Some(TICK)) {
            Ok(Some(connection)) => {
                let Some(number) = channels.admit(&connection) else {
                    refused += 1;
                    if refused == 1 {
                        let message = "connections that say nothing are refused, there are too many of them";
                        channels.complain(Error::nowhere(ErrorKind::TooLarge, DOING, message));
                    }
                    continue;
                };
                let main = main.clone();
                let guest = move || {
                    if let Err(error) = meet(channels, connection, number, &main) {
                        channels.fail(error);
                    }
                };
                let name = format!("connection-{number}");
                if let Err(e) = thread::Builder::new().name(name).spawn_scoped(scope, guest) {
                    channels.fail(Error::io(DOING, "a thread cannot be started", e));
                }
            }
            Ok(None) => return,
            Err(e) if e.kind() == ErrorKind::Timeout => channels.note_looked(asked),
            Err(e) => channels.fail(e),
        }
    }
}

/// Finds out what a connection is, and serves it. An error fails the migration.
fn meet(channels: &Channels, connection: Connection, number: u32, main: &Sender<Front>) -> Result<()> {
    let here = ChannelId::Connection(number);
    let dismiss = |kind, message: String| {
        channels.dismiss(&connection);
        channels.complain(Error::new(kind, 0, DOING, message).on(here));
        Ok(())
    };
    let leg = channels.pauses();
    let first = match first_bytes(channels, &connection) {
        // Where nobody asks for a page, nothing comes on a preempt channel.
        Ok(first) if first.is_empty() && channels.may_have_preempt() => {
            channels.note_known(&connection);
            let channel = channels.begin_preempt();
            if let Some(recorder) = &channels.settings.recorder {
                recorder.channel(interface_name(channel)).announce();
            }
            return Ok(());
        }
        Ok(first) if first.is_empty() => {
            return dismiss(ErrorKind::Truncated, "a connection ended without a byte".to_owned());
        }
        Ok(first) => first,
        Err(e) => {
            let message = format!("a connection does not say what it is: {e}");
            return dismiss(ErrorKind::Timeout, message);
        }
    };
    let magic = first.first_chunk().copied().map(u32::from_be_bytes);
    if magic == Some(MULTIFD_MAGIC) {
        if channels.settings.expected == Expected::Exactly(0) {
            let message = "a multifd channel has connected, and none is expected: capability multifd must be the same on \
                           both ends";
            return Err(Error::new(ErrorKind::OutOfOrder, 0, DOING, message).on(here));
        }
        return channel::serve(channels, &connection, first);
    }
    if first.starts_with(&TLS) {
        let message = "the source speaks TLS: which channel this is cannot be known before the handshake, and there is none \
                       here; switch it off (tls-creds), or terminate it in front of this end";
        return Err(Error::new(ErrorKind::Unsupported, 0, DOING, message).on(here));
    }
    // A page cannot begin like this, since no block is that large.
    let is_command = first.first() == Some(&SectionKind::COMMAND.0);
    let comes_back = is_command && channels.has_begun(RETURN) && channels.may_have_preempt();
    // A preempt channel may be quicker than the main one that was opened before it.
    if magic != Some(FileHeader::MAGIC) && channels.accepted() > 1 {
        channels.has_begun(QUICK);
    }
    if comes_back && !channels.await_pause() {
        return dismiss(ErrorKind::OutOfOrder, "a source that came back, and nothing was paused".to_owned());
    }
    // A preempt channel that had said nothing when the connections broke belongs to those.
    if !comes_back && channels.pauses() > leg {
        channels.dismiss(&connection);
        return Ok(());
    }
    if channels.may_have_preempt() && !comes_back && !channels.is_paused() {
        channels.note_known(&connection);
        return preempt::serve(channels, &connection, first);
    }
    if channels.is_paused() && !comes_back && magic != Some(FileHeader::MAGIC) {
        let message =
            format!("a connection beginning with {first:02x?} while postcopy is paused was dropped");
        return dismiss(ErrorKind::OutOfOrder, message);
    }
    if channels.is_paused() && magic == Some(FileHeader::MAGIC) {
        let message = "another migration begins, where a paused one was expected to go on".to_owned();
        return dismiss(ErrorKind::OutOfOrder, message);
    }
    if !channels.claim_main(&connection) {
        let what = match magic {
            Some(FileHeader::MAGIC) => "a second main channel",
            _ => "a connection of no known kind",
        };
        return dismiss(ErrorKind::OutOfOrder, format!("{what}, beginning with {first:02x?}, was dropped"));
    }
    channels.note_known(&connection);
    // The receiver waits for it, unless it is over.
    let _ = main.send(Front { connection, first });
    Ok(())
}

/// Up to four bytes; fewer only if the connection ends.
fn first_bytes(channels: &Channels, mut connection: &Connection) -> io::Result<Vec<u8>> {
    let mut first = vec![0; 4];
    let mut have = 0;
    connection.set_read_timeout(Some(channels.settings.limits.silence)).map_err(io::Error::other)?;
    while have < first.len() {
        match connection.read(&mut first[have..]) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::TimedOut && channels.may_have_preempt() => {}
            // Cut off like all others, or at the end.
            Err(_) if channels.is_over() || channels.is_paused() => break,
            Err(e) => return Err(e),
        }
    }
    first.truncate(have);
    Ok(first)
}
