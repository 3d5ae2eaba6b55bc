//! Every kind of connection does the same things: carry bytes both ways, end one way, and complain of silence.

use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;

use super::*;
use crate::ErrorKind;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(80);

/// Tests that start children or hold inheritable descriptors keep out of each other's way: a child that starts while
/// another test has an inheritable pipe would keep that pipe open.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes in which no two neighbouring places look the same.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed).collect()
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

fn unix(dir: &Path) -> Address {
    Address::Unix(dir.join("socket"))
}

/// A connected pair over `address`, the connecting end first.
fn joined(address: &Address) -> Result<(Connection, Connection)> {
    let listener = Listener::bind(address)?;
    let one = connect(listener.local_address(), LONG)?;
    let other = listener.accept(Some(LONG))?.unwrap();
    assert!(one.label().starts_with(&address.to_string()[..3]), "{one:?}");
    Ok((one, other))
}

fn received(connection: &Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut reader = connection;
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Several buffers' worth both ways at once, half-close one way, more on the other way, end.
fn exercise((one, other): (Connection, Connection)) {
    assert!(one.is_bidirectional() && other.is_bidirectional());
    for connection in [&one, &other] {
        connection.set_read_timeout(Some(LONG)).unwrap();
        connection.set_write_timeout(Some(LONG)).unwrap();
    }
    let (there, back) = (pattern(3_000_001, 1), pattern(2_000_003, 2));
    thread::scope(|scope| {
        let mut writer = one.clone();
        let there = &there;
        scope.spawn(move || {
            writer.write_all(there).unwrap();
            writer.shutdown_write().unwrap();
            writer.shutdown_write().unwrap();
            assert!(writer.write_all(&[0; 1 << 20]).is_err(), "half-closed");
        });
        let mut answering = other.clone();
        let back = &back;
        scope.spawn(move || answering.write_all(back).unwrap());
        assert!(received(&other) == *there);
        let mut reader = &one;
        let mut answer = vec![0; back.len()];
        reader.read_exact(&mut answer).unwrap();
        assert!(answer == *back);
        // The other direction goes on after the half-close.
        let mut writer = &other;
        let n = writer.write_vectored(&[IoSlice::new(b"still "), IoSlice::new(b"here")]).unwrap();
        assert_eq!(n, 10);
        other.shutdown_write().unwrap();
        assert_eq!(received(&one), b"still here");
    });
}

/// A reader and a writer whose peer does nothing are told so in time, and can be asked again.
fn falls_silent((one, other): (Connection, Connection)) {
    one.set_read_timeout(Some(SHORT)).unwrap();
    one.set_write_timeout(Some(SHORT)).unwrap();
    for _ in 0..2 {
        let start = Instant::now();
        let mut reader = &one;
        let e = reader.read(&mut [0; 10]).unwrap_err();
        assert!((SHORT / 2..LONG).contains(&start.elapsed()), "{:?}", start.elapsed());
        let e = one.error("waiting for an answer", e);
        assert_eq!(e.kind(), ErrorKind::Timeout);
        assert!(e.message().starts_with(one.label()), "{e}");
    }
    let start = Instant::now();
    let mut writer = &one;
    let e = writer.write_all(&vec![0; 64 << 20]).unwrap_err();
    assert!((SHORT / 2..LONG).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(one.error("sending", e).kind(), ErrorKind::Timeout);
    let mut answer = &other;
    answer.write_all(b"late").unwrap();
    let mut late = [0; 4];
    reader_of(&one).read_exact(&mut late).unwrap();
    assert_eq!(&late, b"late");
}

fn reader_of(connection: &Connection) -> &Connection {
    connection
}

/// `shutdown` ends a read that waits on another thread.
fn wakes((one, other): (Connection, Connection)) {
    thread::scope(|scope| {
        let waiting = scope.spawn(|| reader_of(&one).read(&mut [0; 10]));
        thread::sleep(SHORT);
        assert!(!waiting.is_finished());
        one.shutdown().unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), 0);
    });
    assert!(received(&other).is_empty(), "the peer sees the end");
}

#[test]
fn tcp_over_ipv4() {
    let any = address("tcp:127.0.0.1:0");
    exercise(joined(&any).unwrap());
    falls_silent(joined(&any).unwrap());
    wakes(joined(&any).unwrap());
    exercise(joined(&address("tcp:localhost:0")).unwrap());
    // Without a host: listening everywhere, connecting to the loopback address.
    let listener = Listener::bind(&address("tcp::0")).unwrap();
    let Address::Tcp { port, .. } = *listener.local_address() else { panic!("{listener:?}") };
    assert_ne!(port, 0);
    let _one = connect(&Address::Tcp { host: String::new(), port }, LONG).unwrap();
    let other = listener.accept(Some(LONG)).unwrap().unwrap();
    assert!(other.peer().starts_with("tcp:"), "{other:?}");
}

#[test]
fn tcp_over_ipv6() {
    let any = address("tcp:[::1]:0");
    if let Err(e) = Listener::bind(&any) {
        eprintln!("SKIPPED tcp_over_ipv6: this host has no ::1 ({e})");
        return;
    }
    let (one, other) = joined(&any).unwrap();
    assert!(
        one.peer().starts_with("tcp:[::1]:") && other.peer().starts_with("tcp:[::1]:"),
        "{one:?} {other:?}"
    );
    exercise((one, other));
    falls_silent(joined(&any).unwrap());
}

#[test]
fn unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = unix(dir.path());
    exercise(joined(&path).unwrap());
    falls_silent(joined(&path).unwrap());
    wakes(joined(&path).unwrap());
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "the socket file is removed");
}

#[test]
fn vsock_where_there_is_one() {
    // 1 is this machine; any free port.
    match joined(&address("vsock:1:4294967295")) {
        Ok(pair) => exercise(pair),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}: {:?}", std::error::Error::source(&e));
            eprintln!("SKIPPED vsock_where_there_is_one: ({e})");
        }
    }
}

#[test]
fn memory_twins() {
    exercise(memory::pair());
    exercise(memory::pair_with_capacity(1_000_000));
    falls_silent(memory::pair());
    wakes(memory::pair());
    let (one, other) = memory::pair_with_capacity(0);
    drop(other);
    assert_eq!(reader_of(&one).write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(received(&one).is_empty());
}

#[test]
fn nobody_there() {
    let dir = tempfile::tempdir().unwrap();
    let free = Listener::bind(&address("tcp:127.0.0.1:0")).unwrap().local_address().clone();
    for nobody in [free, unix(dir.path())] {
        let start = Instant::now();
        let error = connect(&nobody, LONG).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.message().contains(&nobody.to_string()), "{error}");
        assert!(start.elapsed() < LONG / 2, "one try");
        assert!(connect_within(&nobody, SHORT).is_err());
    }
    let listener = Listener::bind(&unix(dir.path())).unwrap();
    assert_eq!(listener.accept(Some(SHORT)).unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(connect(&address("tcp:no.such.host.invalid:1"), LONG).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn a_late_listener_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = unix(dir.path());
    thread::scope(|scope| {
        let late = scope.spawn(|| {
            thread::sleep(3 * SHORT);
            Listener::bind(&path).and_then(|listener| listener.accept(Some(LONG)))
        });
        connect_within(&path, LONG).unwrap();
        late.join().unwrap().unwrap().unwrap();
    });
}

#[test]
fn only_a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let address = unix(dir.path());
    // Rust's own listener leaves its file behind, as a killed process does.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&address).unwrap();

    let error = Listener::bind(&address).unwrap_err();
    assert!(error.message().contains("another process listens"), "{error}");
    assert_eq!(
        listener.accept(Some(SHORT)).unwrap_err().kind(),
        ErrorKind::Timeout,
        "no trial connection was made"
    );

    // Another one took the name: it is not ours to remove.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "no socket").unwrap();
    drop(listener);
    assert_eq!(fs::read(&path).unwrap(), b"no socket");
    let error = Listener::bind(&address).unwrap_err();
    assert!(error.message().contains("no socket"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"no socket");
}

#[test]
fn files_start_at_their_offset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.mig");
    let at = |offset| Address::File { path: path.clone(), offset };
    let data = pattern(300_000, 3);

    let error = Listener::bind(&at(0)).unwrap().accept(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.message().contains("vm.mig"), "{error}");

    fs::write(&path, pattern(1_000_000, 4)).unwrap();
    let mut file = connect(&at(4096), LONG).unwrap();
    assert!(file.can_write() && !file.can_read() && !file.is_bidirectional());
    assert!(file.read(&mut [0]).is_err());
    file.write_all(&data).unwrap();
    file.close(LONG).unwrap();
    assert!(file.write_all(b"x").is_err());
    // QEMU keeps what stands in front of the offset and cuts the rest off.
    let all = fs::read(&path).unwrap();
    assert!(all[..4096] == pattern(4096, 4) && all[4096..] == data);

    let listener = Listener::bind(&at(4096)).unwrap();
    assert!(!listener.is_socket());
    let mut file = listener.accept(Some(SHORT)).unwrap().unwrap();
    assert!(file.can_read() && !file.can_write());
    file.set_read_timeout(Some(SHORT)).unwrap();
    assert!(received(&file) == data);
    assert!(file.write(&[0]).is_err());
    assert!(listener.accept(None).unwrap().is_none(), "a file is one connection");
}

#[test]
fn commands_are_read_and_written() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let data = pattern(3_000_001, 5);

    let mut writer = connect(&Address::Exec(format!("cat > {}", path.display())), LONG).unwrap();
    writer.set_write_timeout(Some(LONG)).unwrap();
    writer.write_all(&data).unwrap();
    writer.close(LONG).unwrap();
    assert!(fs::read(&path).unwrap() == data);

    let listener = Listener::bind(&Address::Exec(format!("cat {}", path.display()))).unwrap();
    let reader = listener.accept(None).unwrap().unwrap();
    assert!(received(&reader) == data);
    reader.close(LONG).unwrap();

    let both = connect(&address("exec:cat"), LONG).unwrap();
    assert!(both.is_bidirectional());
    thread::scope(|scope| {
        scope.spawn(|| {
            reader_of(&both).write_all(&data).unwrap();
            both.shutdown_write().unwrap();
        });
        assert!(received(&both) == data);
    });
    both.close(LONG).unwrap();
}

#[test]
fn silent_commands_are_noticed() {
    let _alone = alone();
    let silent = connect(&address("exec:sleep 100"), LONG).unwrap();
    silent.set_read_timeout(Some(SHORT)).unwrap();
    silent.set_write_timeout(Some(SHORT)).unwrap();
    let e = reader_of(&silent).read(&mut [0; 10]).unwrap_err();
    assert_eq!(silent.error("reading", e).kind(), ErrorKind::Timeout);
    let e = reader_of(&silent).write_all(&vec![0; 8 << 20]).unwrap_err();
    assert_eq!(silent.error("writing", e).kind(), ErrorKind::Timeout);
    assert_eq!(silent.close(SHORT).unwrap_err().kind(), ErrorKind::Timeout);
    thread::scope(|scope| {
        silent.set_read_timeout(None).unwrap();
        let waiting = scope.spawn(|| reader_of(&silent).read(&mut [0; 10]));
        thread::sleep(SHORT);
        silent.shutdown().unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), 0);
    });
}

#[test]
fn failing_commands_say_why() {
    let _alone = alone();
    let failing = connect(&address("exec:printf half; echo no such disk >&2; exit 3"), LONG).unwrap();
    let mut bytes = Vec::new();
    let e = reader_of(&failing).read_to_end(&mut bytes).unwrap_err();
    assert_eq!(bytes, b"half", "what came before the failure is delivered");
    let error = failing.error("reading the stream", e);
    assert_eq!(error.kind(), ErrorKind::Peer);
    assert!(error.message().contains("status 3") && error.message().contains("no such disk"), "{error}");
    assert_eq!(failing.close(LONG).unwrap_err().kind(), ErrorKind::Peer);

    let missing = connect(&address("exec:exec /no/such/program"), LONG).unwrap();
    let e = loop {
        // Until the shell has failed, the pipe takes bytes.
        if let Err(e) = reader_of(&missing).write_all(&[0; 100_000]) {
            break e;
        }
    };
    let error = missing.error("writing the stream", e);
    assert_eq!(error.kind(), ErrorKind::Peer);
    assert!(error.message().contains("status 127"), "{error}");

    let killed = connect(&address("exec:kill -9 $$"), LONG).unwrap();
    let error = killed.close(LONG).unwrap_err();
    assert!(error.message().contains("signal 9"), "{error}");
}

#[test]
fn a_command_ends_with_its_connection() {
    let _alone = alone();
    let mut both = connect(&address("exec:sleep 100 & echo $$ $!; wait"), LONG).unwrap();
    both.set_read_timeout(Some(LONG)).unwrap();
    let mut line = String::new();
    while !line.ends_with('\n') {
        let mut byte = [0];
        both.read_exact(&mut byte).unwrap();
        line.push(byte[0].into());
    }
    let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|&pid| is_running(pid)));
    let start = Instant::now();
    drop(both);
    assert!(start.elapsed() < Duration::from_secs(5));
    // The grandchild is reaped by init, which may take a moment.
    let deadline = Instant::now() + LONG;
    while pids.iter().any(|&pid| is_running(pid)) {
        assert!(Instant::now() < deadline, "{pids:?} are still there");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A zombie that nobody has reaped does not run any more.
fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A descriptor as a parent process leaves it to us: open in some number, inheritable, owned by nobody.
fn inherited(fd: impl Into<OwnedFd>) -> Address {
    let fd: OwnedFd = fd.into();
    rustix::io::fcntl_setfd(&fd, FdFlags::empty()).unwrap();
    Address::Fd(fd.into_raw_fd().unsigned_abs())
}

#[test]
fn inherited_sockets() {
    let _alone = alone();
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    let (a, b) = (inherited(a), inherited(b));
    let one = connect(&a, LONG).unwrap();
    let listener = Listener::bind(&b).unwrap();
    let other = listener.accept(None).unwrap().unwrap();
    assert!(listener.accept(None).unwrap().is_none());
    exercise((one, other));

    let socket = inherited(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let error = connect(&socket, LONG).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misuse, "a source does not accept: {error}");
    let std_listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = std_listener.local_addr().unwrap().port();
    let listener = Listener::bind(&inherited(std_listener)).unwrap();
    assert!(listener.is_socket());
    let one = connect(&Address::Tcp { host: "127.0.0.1".into(), port }, LONG).unwrap();
    exercise((one, listener.accept(Some(LONG)).unwrap().unwrap()));
}

#[test]
fn inherited_pipes() {
    let _alone = alone();
    let (reading, writing) = io::pipe().unwrap();
    let (reading, writing) = (inherited(reading), inherited(writing));
    let wrong = connect(&reading, LONG).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Misuse, "{wrong}");
    // That took it over, and closed it: there is no reader now.
    let mut writer = connect(&writing, LONG).unwrap();
    assert_eq!(writer.write(&[1]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);

    let (reading, writing) = io::pipe().unwrap();
    let shared = writing.try_clone().unwrap();
    let (reading, writing) = (inherited(reading), inherited(writing));
    let reader = Listener::bind(&reading).unwrap().accept(None).unwrap().unwrap();
    let mut writer = connect(&writing, LONG).unwrap();
    for connection in [&reader, &writer] {
        connection.set_read_timeout(Some(SHORT)).unwrap();
        connection.set_write_timeout(Some(SHORT)).unwrap();
    }
    assert_eq!(reader_of(&reader).read(&mut [0]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(writer.write_all(&vec![0; 8 << 20]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    let flags = rustix::fs::fcntl_getfl(&shared).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "the parent's end still blocks");
    drop(shared);
    drop(writer);
    let rest = received(&reader);
    assert!(!rest.is_empty() && rest.iter().all(|&b| b == 0));
}

#[test]
fn inherited_files_and_strangers() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut writer = connect(&inherited(File::create(&path).unwrap()), LONG).unwrap();
    writer.write_all(b"stream").unwrap();
    drop(writer);
    let reader = Listener::bind(&inherited(File::open(&path).unwrap())).unwrap();
    assert_eq!(received(&reader.accept(None).unwrap().unwrap()), b"stream");

    // What this process has opened for itself is not up for grabs, nor what was taken over already.
    let own = File::open(&path).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&own).unsigned_abs();
    let error = connect(&Address::Fd(number), LONG).unwrap_err();
    assert!(error.message().contains("not inherited"), "{error}");
    assert!(own.metadata().is_ok());
    let address = inherited(File::open(&path).unwrap());
    let taken = Listener::bind(&address).unwrap();
    assert_eq!(Listener::bind(&address).unwrap_err().kind(), ErrorKind::Misuse);
    drop(taken);
    assert!(Listener::bind(&Address::Fd(987_654)).unwrap_err().message().contains("no such descriptor"));
}

#[test]
fn a_blocking_pipe_is_written_in_small_pieces() {
    let (reading, writing) = io::pipe().unwrap();
    let end = pipe::End::writing_blocking(writing.into());
    let pipes = pipe::Pipes::new(None, Some(end), None);
    let mut writer = Connection::new(connection::Io::Pipes(pipes), "pipe".into(), "pipe".into());
    writer.set_write_timeout(Some(SHORT)).unwrap();
    let e = writer.write_all(&vec![7; 8 << 20]).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    drop(writer);
    let mut rest = Vec::new();
    let mut reading = reading;
    reading.read_to_end(&mut rest).unwrap();
    assert!(rest.len() >= 4096 && rest.iter().all(|&b| b == 7));
}

#[cfg(feature = "capture")]
#[test]
fn a_tap_records_both_directions() {
    use crate::capture::{ChannelBytes, Direction, Reader, Recorder, RecorderOptions};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pcapng");
    let recorder =
        Recorder::create(&path, RecorderOptions { strict: true, ..RecorderOptions::default() }).unwrap();
    let (one, mut other) = memory::pair();
    let (there, back) = (pattern(1_000_000, 6), pattern(700_000, 7));
    let mut tapped = Tap::new(one, recorder.channel("main"), Direction::ToSource);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut all = vec![0; there.len()];
            other.read_exact(&mut all).unwrap();
            assert!(all == there, "a tap changes nothing");
            other.write_all(&back).unwrap();
            other.shutdown_write().unwrap();
        });
        let mut slices =
            [IoSlice::new(&there[..10]), IoSlice::new(&there[10..20]), IoSlice::new(&there[20..])];
        let mut slices = &mut slices[..];
        while !slices.is_empty() {
            let n = tapped.write_vectored(slices).unwrap();
            IoSlice::advance_slices(&mut slices, n);
        }
        tapped.flush().unwrap();
        let mut all = Vec::new();
        tapped.read_to_end(&mut all).unwrap();
        assert!(all == back);
        assert_eq!(tapped.get_ref().label(), "memory:a");
    });
    recorder.finish().unwrap();
    for (direction, sent) in [(Direction::ToDestination, &there), (Direction::ToSource, &back)] {
        let reader = Reader::new(File::open(&path).unwrap()).unwrap();
        let mut recorded = Vec::new();
        ChannelBytes::new(reader, 0, direction).read_to_end(&mut recorded).unwrap();
        assert!(recorded == *sent, "{direction}");
    }
}

#[test]
fn one_way_addresses_do_not_connect_as_sockets() {
    assert_eq!(open(&address("tcp:localhost:1"), Side::Source).unwrap_err().kind(), ErrorKind::Misuse);
    assert!(Listener::bind(&address("tcp:192.0.2.1:1")).is_err(), "not an address of this host");
}
