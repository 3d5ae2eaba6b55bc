//! State of devices that are made up, from stand-in to stand-in, against as many plain writers and readers.

use std::thread;
use std::time::Instant;

use migwire::device_state::{Arrangement, Settings, SyntheticVerdict};
use migwire::endpoint::{Blank, Destination, Devices, Expected, Multifd, Source, Template};
use migwire::guest::Pattern;
use migwire::transport::{self, Listener};

use super::wire::{PATIENCE, loopback, peer};
use super::{Conditions, Found, Rate, multifd};

/// Devices and channels.
const COUNT: u8 = 4;

/// What a stock source moves at once.
const CHUNK: u32 = 1 << 20;

/// All of it checked by the destination, and of each device `live` bytes while the guest would still run.
pub(super) fn move_all(
    arrangement: Arrangement,
    live: u64,
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
    conditions.compare(|| ours(source()?, live), || multifd::plain(conditions.size, COUNT))
}

fn ours(source: Source, live: u64) -> anyhow::Result<Rate> {
    let listener = Listener::bind(&loopback(0))?;
    let to = loopback(peer(listener.local_address()).port());
    thread::scope(|scope| {
        let begin = Instant::now();
        let receiver = scope.spawn(|| {
            // Packets of the live phase wait for the word that no more data comes before them.
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
