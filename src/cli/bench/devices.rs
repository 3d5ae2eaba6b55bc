//! State of devices that are made up, from stand-in to stand-in, against as many plain writers and readers.
//!
//! ```text
//! ours     made, written --loopback--> read, put in order, compared
//! plain         written  --loopback--> read                             how much of the connection is left
//! touched  made, written --loopback--> read, added up                   what it takes to make bytes, and to look at each
//! ```

use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Instant;

use migwire::device_state::{Arrangement, Settings, SyntheticVerdict};
use migwire::endpoint::{Blank, Destination, Devices, Expected, Multifd, Source, Template};
use migwire::guest::Pattern;
use migwire::transport::{self, Listener};

use super::wire::{PATIENCE, loopback, peer};
use super::{Conditions, Found, Rate, multifd, stream};

/// Devices and channels.
const COUNT: u8 = 4;

/// What a stock source moves at once.
const CHUNK: u32 = 1 << 20;

/// What the devices are measured against.
#[derive(Clone, Copy)]
pub(super) enum Beside {
    /// Writers that have their bytes already, and readers that discard.
    Plain,
    /// Writers that make every byte, and readers that look at each.
    Touched,
}

/// All of it checked by the destination, and of each device `live` bytes while the guest would still run.
pub(super) fn move_all(
    arrangement: Arrangement,
    live: u64,
    beside: Beside,
    conditions: &Conditions,
) -> anyhow::Result<Found> {
    let each = conditions.size / u64::from(COUNT);
    let source = || {
        let machine = Template::blank(&Blank::new("none", "ram", 1 << 20))?;
        let source = Source::new(machine).with_pattern(None, Pattern::Zero)?;
        let devices = Devices::new(COUNT.into(), each, CHUNK, arrangement)?;
        anyhow::Ok(
            source.with_multifd(Multifd::new(COUNT)).with_devices(Devices { live: Some(live), ..devices }),
        )
    };
    conditions.compare(
        || ours(source()?, live),
        || match beside {
            Beside::Plain => multifd::plain(conditions.size, COUNT),
            Beside::Touched => multifd::between(conditions.size, COUNT, make_and_pour, add_up),
        },
    )
}

fn ours(source: Source, live: u64) -> anyhow::Result<Rate> {
    let listener = Listener::bind(&loopback(0))?;
    let to = loopback(peer(listener.local_address()).port());
    thread::scope(|scope| {
        let begin = Instant::now();
        let receiver = scope.spawn(|| {
            // Packets of the live phase wait for the word that no more data comes before them, and count as long as they do.
            let memory = (64 << 20) + u64::from(COUNT) * live;
            let settings = Settings { memory, ..Settings::default() };
            let destination =
                Destination::new().with_channels(Expected::Exactly(COUNT)).with_devices(settings);
            destination.listen(&listener, |_| {})
        });
        let connect = || transport::connect(&to, PATIENCE);
        let departure = source.send_over(connect()?, |_| connect(), |_| {});
        let arrival = receiver.join().map_err(|_| anyhow::anyhow!("the receiver has panicked"))??;
        arrival.error.or(departure.error).map_or(Ok(()), Err)?;
        anyhow::ensure!(
            arrival.devices.iter().all(|device| device.synthetic == SyntheticVerdict::Equal),
            "state has arrived that was not sent"
        );
        let bytes = arrival.devices.iter().map(|device| device.multifd_bytes).sum();
        Ok(Rate { bytes, elapsed: begin.elapsed() })
    })
}

/// Writes numbers, each buffer anew.
fn make_and_pour(size: u64, to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let mut buffer = vec![0; stream::CHUNK];
    let (mut left, mut next) = (size, 0_u64);
    while left > 0 {
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        for word in buffer[..count].as_chunks_mut().0 {
            *word = next.to_le_bytes();
            next = next.wrapping_add(1);
        }
        stream.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    stream.shutdown(Shutdown::Write)
}

/// Reads numbers, and adds them up.
fn add_up(mut input: TcpStream) -> io::Result<u64> {
    let mut buffer = vec![0; stream::CHUNK];
    let (mut total, mut sum) = (0, 0_u64);
    loop {
        match input.read(&mut buffer)? {
            0 => break,
            count => {
                // Where words are cut off at the end does not matter: it is as much to look at.
                let words = buffer[..count].as_chunks().0.iter();
                sum = words.fold(sum, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
                total += count as u64;
            }
        }
    }
    black_box(sum);
    Ok(total)
}
