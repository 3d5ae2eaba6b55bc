//! Devices with state of their own: their sections on the main channel, and a thread each for their packets.
//!
//! ```text
//! main      START  START  PART   PART    SWITCHOVER_START  END   END     FULL ..  FULL    EOF
//!           ram    vfio   ram    vfio                      ram   vfio    others   vfio
//! channels                 live packets ..                 packets ..
//!                         |-- Arrangement::Live --|        |-- not Main --|
//! ```
//! As in stock sources, the threads run beside the pages, and have handed over everything before the first FULL.

use std::sync::Arc;
use std::thread::{self, Scope, ScopedJoinHandle};

use super::batch::Job;
use super::output::Output;
use super::shared::Shared;
use super::team::Dealer;
use crate::device_state::{Arrangement, Plan, Record, SyntheticDevice};
use crate::dialect::Dialect;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_DEVICES, PIECE};
use crate::stream::Event;
use crate::wire::{Bulk, SectionFooter, SectionHead, SectionIdentity, SectionKind};

/// `vfio_migration_init` registers its sections with this version.
const VERSION: u32 = 1;

/// Devices that a source makes up.
#[derive(Clone, Debug)]
pub struct Devices {
    /// The devices; their names differ.
    pub devices: Vec<SyntheticDevice>,
    /// Where their state travels.
    pub arrangement: Arrangement,
    /// Whether they have the upper half of the multifd channels for themselves, and pages the lower one.
    pub dedicated: bool,
    /// Bytes of each that move while the guest runs, the same for all; a share that the device chooses otherwise.
    pub live: Option<u64>,
}

impl Devices {
    /// So many devices with `size` bytes of state each, which moves in pieces of `chunk` bytes; pages use the same channels.
    ///
    /// # Errors
    /// For more devices than a guest can have, and for sizes that cannot be.
    pub fn new(count: u32, size: u64, chunk: u32, arrangement: Arrangement) -> Result<Self> {
        if count as usize > MAX_DEVICES {
            let message = format!("{count} devices; a guest has {MAX_DEVICES} at most");
            return Err(Error::nowhere(ErrorKind::Misuse, "synthetic devices", message));
        }
        // A bus has 32 slots, of which the first are taken on every machine.
        let name = |i| format!("0000:{:02x}:{:02x}.0/vfio", i / 28, i % 28 + 4);
        let device = |i| SyntheticDevice::new(&name(i), 0, size, chunk, u64::from(i) + 1);
        let devices = (0..count).map(device).collect::<Result<_>>()?;
        Ok(Self { devices, arrangement, dedicated: false, live: None })
    }
}

/// What was sent of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDeparture {
    /// Name of its section.
    pub name: String,
    /// Bytes of its sections and of the payloads of its packets.
    pub bytes: u64,
    /// Packets on multifd channels.
    pub packets: u64,
}

/// All devices of a migration.
pub(super) struct Fleet<'s, 'a> {
    scope: &'s Scope<'s, 'a>,
    shared: &'s Shared<'s>,
    members: Vec<Member>,
    footers: bool,
    threads: Vec<(usize, ScopedJoinHandle<'s, Result<Packets>>)>,
    body: Vec<u8>,
}

struct Member {
    plan: Arc<Plan>,
    section_id: u32,
    /// PARTs that were sent.
    parts: u64,
    departure: DeviceDeparture,
}

impl Member {
    /// PARTs that have something to say.
    fn wanted_parts(&self) -> u64 {
        match self.plan.arrangement() {
            Arrangement::Main | Arrangement::Downtime => self.plan.parts(),
            Arrangement::Live => 0,
        }
    }
}

/// What a thread has handed over.
#[derive(Default)]
struct Packets {
    count: u64,
    bytes: u64,
}

/// When packets are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// While the guest runs.
    Live,
    /// When it is stopped.
    Stop,
}

impl<'s, 'a> Fleet<'s, 'a> {
    /// The devices with sections from number `first` on.
    pub(super) fn new(
        scope: &'s Scope<'s, 'a>,
        shared: &'s Shared<'s>,
        devices: &Devices,
        dialect: Dialect,
        (first, footers): (u32, bool),
    ) -> Self {
        let members = (first..).zip(&devices.devices).map(|(section_id, device)| Member {
            plan: Arc::new(match devices.live {
                Some(bytes) => device.plan(devices.arrangement, dialect).with_live_share(bytes),
                None => device.plan(devices.arrangement, dialect),
            }),
            section_id,
            parts: 0,
            departure: DeviceDeparture { name: device.name().to_owned(), bytes: 0, packets: 0 },
        });
        Self { scope, shared, members: members.collect(), footers, threads: Vec::new(), body: Vec::new() }
    }

    /// START sections.
    pub(super) fn start(&mut self, main: &mut Output<'_>) -> Result<()> {
        self.sections(main, SectionKind::START, |member| Some(Box::new(member.plan.start())))
    }

    /// PART sections: one a device and round, and in the last one all that have something to say.
    pub(super) fn parts(&mut self, main: &mut Output<'_>, is_last: bool) -> Result<()> {
        self.part(main)?;
        while is_last && self.members.iter().any(|member| member.parts < member.wanted_parts()) {
            self.part(main)?;
        }
        Ok(())
    }

    fn part(&mut self, main: &mut Output<'_>) -> Result<()> {
        self.sections(main, SectionKind::PART, |member| {
            member.parts += 1;
            Some(Box::new(member.plan.part(member.parts - 1)))
        })
    }

    /// END sections.
    pub(super) fn end(&mut self, main: &mut Output<'_>) -> Result<()> {
        self.sections(main, SectionKind::END, |member| Some(Box::new(member.plan.end())))
    }

    /// FULL sections, of devices that have any.
    pub(super) fn full(&mut self, main: &mut Output<'_>) -> Result<()> {
        self.sections(main, SectionKind::FULL, |member| {
            let mut records = member.plan.full().peekable();
            records.peek().is_some().then(|| Box::new(records) as Records)
        })
    }

    /// Starts a thread for each device that has packets to send.
    pub(super) fn launch(&mut self, stage: Stage, dealer: &Arc<Dealer>) -> Result<()> {
        for (number, member) in self.members.iter().enumerate() {
            let plan = Arc::clone(&member.plan);
            let packets = match stage {
                Stage::Live => plan.live_packets(),
                Stage::Stop => plan.stop_packets(),
            };
            if packets.is_empty() {
                continue;
            }
            let (shared, dealer) = (self.shared, Arc::clone(dealer));
            let work = move || send(&plan, packets, shared, &dealer);
            let thread = thread::Builder::new().name(format!("device-{number}"));
            let thread = thread.spawn_scoped(self.scope, work);
            let thread = thread.map_err(|e| Error::io("sending", "a thread cannot be started", e))?;
            self.threads.push((number, thread));
        }
        Ok(())
    }

    /// Waits until all packets are handed over.
    pub(super) fn join(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for (number, thread) in self.threads.drain(..) {
            let joined = thread.join().unwrap_or_else(|_| {
                let message = "the thread of a device has panicked";
                Err(Error::nowhere(ErrorKind::Misuse, "sending", message))
            });
            match joined {
                Ok(Packets { count, bytes }) => {
                    let departure = &mut self.members[number].departure;
                    departure.packets += count;
                    departure.bytes += bytes;
                }
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// What was sent of each device.
    pub(super) fn departures(self) -> Vec<DeviceDeparture> {
        self.members.into_iter().map(|member| member.departure).collect()
    }

    /// Writes a section a device, of those that have one.
    fn sections(
        &mut self,
        main: &mut Output<'_>,
        kind: SectionKind,
        mut records: impl FnMut(&mut Member) -> Option<Records>,
    ) -> Result<()> {
        for member in &mut self.members {
            let Some(records) = records(member) else { continue };
            let section_id = member.section_id;
            let identity = matches!(kind, SectionKind::START | SectionKind::FULL).then(|| SectionIdentity {
                idstr: member.plan.device().name().into(),
                instance_id: member.plan.device().instance(),
                version_id: VERSION,
            });
            main.emit(&Event::Section(SectionHead { kind, section_id, identity }))?;
            self.body.clear();
            for record in records {
                member.plan.emit(record, &mut self.body);
                member.departure.bytes += member.plan.record_len(record);
                let whole = self.body.len() / PIECE * PIECE;
                for piece in self.body[..whole].chunks(PIECE) {
                    main.emit(&Event::Payload(Bulk::Bytes(piece)))?;
                }
                self.body.drain(..whole);
            }
            if !self.body.is_empty() {
                main.emit(&Event::Payload(Bulk::Bytes(&self.body)))?;
            }
            if self.footers {
                main.emit(&Event::Footer(SectionFooter { section_id }))?;
            }
        }
        Ok(())
    }
}

type Records = Box<dyn Iterator<Item = Record>>;

/// The thread of a device.
fn send(
    plan: &Arc<Plan>,
    packets: std::ops::Range<u32>,
    shared: &Shared<'_>,
    dealer: &Dealer,
) -> Result<Packets> {
    let mut sent = Packets::default();
    for idx in packets {
        if shared.is_over() {
            break;
        }
        sent.count += 1;
        sent.bytes += u64::from(plan.packet_len(idx));
        dealer.deal(Job::State { plan: Arc::clone(plan), idx }).map_err(|_| shared.reason())?;
    }
    Ok(sent)
}
