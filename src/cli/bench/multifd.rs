//! The stand-in source with multifd channels, against as many plain writers with a socket each.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use migwire::endpoint::{Multifd, Source};
use migwire::guest::Pattern;
use migwire::transport;

use super::stream::discard;
use super::wire::{PATIENCE, joined, loopback, machine, pour};
use super::{Conditions, Found, Rate};

pub(super) fn send(pattern: Pattern, channels: u8, conditions: &Conditions) -> anyhow::Result<Found> {
    let source = || {
        let source = Source::new(machine(conditions)?).with_pattern(None, pattern)?;
        anyhow::Ok(source.with_multifd(Multifd::new(channels)))
    };
    conditions.compare(|| ours(source()?, channels), || plain(conditions.size, channels))
}

fn ours(source: Source, channels: u8) -> anyhow::Result<Rate> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::scope(|scope| {
        let readers = readers(scope, listener, usize::from(channels) + 1, discard);
        let connect = || transport::connect(&loopback(port), PATIENCE);
        let main = connect()?;
        let begin = Instant::now();
        let departure = source.with_return_path(false).send_over(main, |_| connect(), |_| {});
        departure.error.map_or(Ok(()), Err)?;
        let bytes = joined(readers)?;
        Ok(Rate { bytes, elapsed: begin.elapsed() })
    })
}

/// Writers and readers, and nothing between them.
pub(super) fn plain(size: u64, channels: u8) -> anyhow::Result<Rate> {
    between(size, channels, pour, discard)
}

/// Writers of any kind, each of its share of `size`, and readers of any kind.
pub(super) fn between(
    size: u64,
    channels: u8,
    write: fn(u64, SocketAddr) -> io::Result<()>,
    read: fn(TcpStream) -> io::Result<u64>,
) -> anyhow::Result<Rate> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to = listener.local_addr()?;
    thread::scope(|scope| {
        let readers = readers(scope, listener, channels.into(), read);
        let begin = Instant::now();
        let writers: Vec<_> =
            (0..channels).map(|_| scope.spawn(move || write(size / u64::from(channels), to))).collect();
        for writer in writers {
            joined(writer)?;
        }
        Ok(Rate { bytes: joined(readers)?, elapsed: begin.elapsed() })
    })
}

/// As many readers; all that they have read.
fn readers<'s>(
    scope: &'s thread::Scope<'s, '_>,
    listener: TcpListener,
    count: usize,
    read: fn(TcpStream) -> io::Result<u64>,
) -> thread::ScopedJoinHandle<'s, io::Result<u64>> {
    scope.spawn(move || {
        let mut readers = Vec::new();
        for _ in 0..count {
            let stream = listener.accept()?.0;
            readers.push(scope.spawn(move || read(stream)));
        }
        let panicked = |_| io::Error::other("a reader has panicked");
        readers.into_iter().try_fold(0, |sum, reader| Ok(sum + reader.join().map_err(panicked)??))
    })
}
