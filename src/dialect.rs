//! Dialects: what QEMU releases do differently on the wire, as data.
//!
//! QEMU negotiates nothing: what a source writes follows from its release, its machine type and its settings. This
//! file is the only place that compares releases. Everybody else asks [`Dialect::has`] for a [`Difference`].
//!
//! ```text
//!               since    gone    since machine
//! difference    (release of the binary)  (version of the machine type, through hw_compat arrays)
//! ```

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// A QEMU release or machine version: `10.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Release {
    /// Major number, once a year.
    pub major: u16,
    /// Minor number: 0, 1 or 2.
    pub minor: u16,
}

impl Release {
    /// Shorthand.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// The releases whose bytes this library knows, oldest first.
    pub const KNOWN: &'static [Self] = &[
        Self::new(5, 2),
        Self::new(6, 0),
        Self::new(6, 1),
        Self::new(6, 2),
        Self::new(7, 0),
        Self::new(7, 1),
        Self::new(7, 2),
        Self::new(8, 0),
        Self::new(8, 1),
        Self::new(8, 2),
        Self::new(9, 0),
        Self::new(9, 1),
        Self::new(9, 2),
        Self::new(10, 0),
        Self::new(10, 1),
        Self::new(10, 2),
        Self::new(11, 0),
        Self::new(11, 1),
    ];

    /// The known releases that can have machine types of version `machine`.
    pub fn with_machine(machine: Self) -> impl Iterator<Item = Self> {
        Self::KNOWN.iter().copied().filter(move |release| *release >= machine)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Release {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let mut parts = text.split('.');
            let release = Self::new(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            parts.all(|part| part.parse::<u16>().is_ok()).then_some(release)
        };
        parse().ok_or_else(|| {
            let message = format!("{text:?} is not a QEMU release; write 7.2 or 10.0.3");
            Error::nowhere(ErrorKind::Misuse, "release", message)
        })
    }
}

/// One row: a difference in bytes, and where it holds.
struct Row {
    difference: Difference,
    /// First release that does it; `None`: all that are known.
    since: Option<Release>,
    /// First release that no longer does it.
    gone: Option<Release>,
    /// Oldest machine type on which a release that can do it does it.
    machine: Option<Release>,
    /// What it is and where it is decided.
    what: &'static str,
}

macro_rules! differences {
    ($($(#[$doc:meta])* $name:ident: $since:expr, $gone:expr, $machine:expr, $what:literal;)*) => {
        /// Something that some releases put on the wire, or accept there, and others do not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Difference {
            $($(#[$doc])* $name,)*
        }

        impl Difference {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }

        const TABLE: &[Row] = &[
            $(Row { difference: Difference::$name, since: $since, gone: $gone, machine: $machine, what: $what },)*
        ];
    };
}

const fn at(major: u16, minor: u16) -> Option<Release> {
    Some(Release::new(major, minor))
}

differences! {
    /// Pages as zlib streams on the main channel.
    CompressPage: None, at(9, 1), None,
        "RAM_SAVE_FLAG_COMPRESS_PAGE with capability compress (migration/ram.c)";
    /// Explicit synchronisation words with multifd.
    MultifdFlush: at(8, 1), None, at(8, 1),
        "RAM_SAVE_FLAG_MULTIFD_FLUSH unless multifd-flush-after-each-section (migration/ram.c)";
    /// Zero pages with another fill byte are accepted.
    NonZeroFill: None, at(8, 2), None,
        "ram_handle_zero takes any fill byte (migration/ram.c)";
    /// Zero pages in multifd packets.
    MultifdZeroPages: at(9, 0), None, at(9, 0),
        "zero-page-detection=multifd (migration/multifd-zero-page.c)";
    /// Pages together with the SYNC flag in one multifd packet.
    MultifdDataWithSync: None, at(9, 0), None,
        "SYNC packets carry pages (migration/multifd.c)";
    /// A multifd packet shows what earlier ones of its channel have left in the buffer.
    MultifdStaleFields: None, at(9, 0), None,
        "multifd_send_fill_packet does not clear the packet (migration/multifd.c)";
    /// A multifd packet without pages shows the payload size of the one before.
    MultifdStaleSize: None, at(8, 2), None,
        "next_packet_size is not reset (migration/multifd.c)";
    /// The method field of multifd flags has five bits instead of three.
    MultifdWideMethod: at(9, 1), None, None,
        "MULTIFD_FLAG_COMPRESSION_MASK, compared in multifd_ram_recv (migration/multifd-nocomp.c)";
    /// One more synchronisation, with its word, in the section that completes RAM.
    MultifdCompletionFlush: at(8, 1), at(9, 1), at(8, 1),
        "ram_save_complete synchronises and writes the flush word (migration/ram.c)";
    /// SYNC packets in the section that completes RAM, which no word of the main channel answers.
    MultifdTrailingSync: at(9, 1), at(10, 0), at(8, 1),
        "ram_save_complete synchronises and writes no word (migration/ram.c)";
    /// A destination in postcopy waits for SYNC packets at every marker, as before.
    MultifdPostcopySync: None, at(10, 0), None,
        "ram_load_postcopy calls multifd_recv_sync_main (migration/ram.c)";
    /// Multifd and postcopy are refused together.
    MultifdWithoutPostcopy: at(8, 1), at(10, 1), None,
        "migrate_caps_check: Postcopy is not yet compatible with multifd (migration/options.c)";
    /// A destination tells the kinds of connections apart by their first bytes.
    MultifdPeek: at(8, 0), None, None,
        "migration_ioc_process_incoming peeks at the magic (migration/migration.c)";
    /// A destination looks at the first bytes even if it expects no multifd channel.
    MultifdPeekAlways: at(10, 1), None, None,
        "migration_channel_identify, before 11.0 in another file (migration/channel.c)";
    /// All multifd channels are connected before the first byte of the main channel is written.
    MultifdBeforeMain: at(9, 0), None, None,
        "multifd_send_setup waits for its channels (migration/multifd.c)";
    /// Multifd packets of device state are told from packets of pages.
    MultifdDevicePackets: at(10, 0), None, None,
        "multifd_recv_unfill_packet_header (migration/multifd.c)";
    /// Disks may travel as sections of the main channel.
    BlockMigration: None, at(9, 1), None,
        "section block, with capability block (migration/block.c)";
    /// Header and pages of mapped-ram files.
    MappedRam: at(9, 0), None, None,
        "capability mapped-ram (migration/ram.c)";
    /// Command 11 at switchover.
    SwitchoverStart: at(10, 0), None, at(10, 0),
        "MIG_CMD_SWITCHOVER_START unless send-switchover-start is off (migration/savevm.c)";
    /// Command 11 also in snapshots.
    SwitchoverStartInSnapshots: at(10, 0), at(11, 0), at(10, 0),
        "MIG_CMD_SWITCHOVER_START from qemu_savevm_state (migration/savevm.c)";
    /// Command 8 turns COLO on.
    EnableColo: None, at(11, 0), None,
        "MIG_CMD_ENABLE_COLO with capability x-colo (migration/savevm.c)";
    /// The destination acknowledges that the source may switch over.
    SwitchoverAck: at(8, 1), None, None,
        "MIG_RP_MSG_SWITCHOVER_ACK with capability switchover-ack (migration/migration.c)";
    /// The source counts which of its devices want an acknowledgement, and takes no more than that.
    SwitchoverAckCounted: at(11, 1), None, at(11, 1),
        "switchover-ack-legacy is off (migration/migration.c)";
    /// The description has blanks around braces, colons and commas, and escapes nothing.
    DescriptionSpaced: None, at(6, 0), None,
        "migration's own JSON writer (migration/vmstate.c)";
    /// The description begins with the configuration record.
    DescriptionConfiguration: at(8, 2), None, None,
        "key \"configuration\" (migration/savevm.c)";
    /// Elements of an uncompressed array carry an index in the description.
    DescriptionIndex: None, at(11, 1), None,
        "key \"index\" (migration/vmstate.c)";
    /// The global state has two flags behind the run state.
    GlobalStateSuspended: at(9, 0), None, None,
        "has_vm_was_suspended, vm_was_suspended (migration/global_state.c)";
    /// A PING of 0x42 in the postcopy package, whose PONG the source waits for.
    PackageLoadedPing: at(10, 2), None, None,
        "QEMU_VM_PING_PACKAGED_LOADED (migration/savevm.c)";
    /// A PART in front of the postcopy switch for the page source's last flush.
    PostcopyPrepare: at(10, 2), None, None,
        "save_postcopy_prepare (migration/ram.c)";
    /// Pages that are asked for in postcopy may have a channel of their own.
    PostcopyPreempt: at(7, 1), None, None,
        "capability postcopy-preempt (migration/postcopy-ram.c)";
    /// The preempt channel is opened at set-up and ends with an EOS word.
    PreemptAtSetup: at(7, 1), at(8, 0), None,
        "postcopy-preempt before 8.0, or x-preempt-pre-7-2 (migration/postcopy-ram.c)";
    /// The preempt channel is opened at the postcopy switch.
    PreemptAtSwitch: at(8, 0), None, at(8, 0),
        "postcopy_preempt_establish_channel (migration/postcopy-ram.c)";
    /// A VM's memory is copied while it runs, behind write protection.
    BackgroundSnapshot: at(6, 0), None, None,
        "capability background-snapshot (migration/migration.c)";
    /// Device state may travel on multifd channels.
    MultifdDeviceState: at(10, 0), None, at(10, 0),
        "MULTIFD_FLAG_DEVICE_STATE (migration/multifd-device-state.c)";
    /// The config of a VFIO device is part of its END section, and does not end it.
    VfioConfigInEnd: None, at(6, 0), None,
        "vfio_save_complete_precopy writes DEV_CONFIG_STATE (hw/vfio/migration.c)";
    /// The config of a VFIO device is a FULL section, and ends it.
    VfioConfigInFull: at(6, 0), None, None,
        "vfio_save_state writes DEV_CONFIG_STATE (hw/vfio/migration.c)";
    /// A VFIO device tells that its initial data is sent.
    VfioInitDataSent: at(8, 1), None, None,
        "VFIO_MIG_FLAG_DEV_INIT_DATA_SENT with capability switchover-ack (hw/vfio/migration.c)";
    /// A VFIO device's config packet may have to wait for a word on the main channel.
    VfioLoadReady: at(10, 1), None, None,
        "VFIO_MIG_FLAG_DEV_CONFIG_LOAD_READY with x-migration-load-config-after-iter (hw/vfio/migration.c)";
}

/// What one side writes and accepts: a release, perhaps lowered by an older machine type, or any of them.
///
/// ```
/// use migwire::dialect::{Dialect, Difference};
/// let old: Dialect = "7.2".parse()?;
/// assert!(!old.has(Difference::SwitchoverStart));
/// let new: Dialect = "11.1".parse()?;
/// assert!(new.has(Difference::SwitchoverStart));
/// assert!(!new.on_machine("5.2".parse()?).has(Difference::SwitchoverStart));
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Dialect {
    release: Option<Release>,
    machine: Option<Release>,
}

impl Dialect {
    /// Whatever any release does: for reading streams of unknown origin.
    pub const ANY: Self = Self { release: None, machine: None };

    /// A release on its newest machine type. Releases between and beyond the known ones behave as their predecessor.
    pub const fn release(release: Release) -> Self {
        Self { release: Some(release), machine: None }
    }

    /// The release, if it is one.
    pub const fn release_number(self) -> Option<Release> {
        self.release
    }

    /// Whether a machine type of that version is too new for the release, rather than too old.
    pub fn is_before(self, machine: Release) -> bool {
        self.release.is_some_and(|release| release < machine)
    }

    /// The same release on an older machine type.
    #[must_use]
    pub const fn on_machine(self, machine: Release) -> Self {
        Self { machine: Some(machine), ..self }
    }

    /// The same release whatever the machine type: what its destinations accept, rather than what its sources write.
    #[must_use]
    pub const fn on_any_machine(self) -> Self {
        Self { machine: None, ..self }
    }

    /// The same, where no machine type was named, on those of version `machine`.
    #[must_use]
    pub fn or_on_machine(self, machine: Option<Release>) -> Self {
        Self { machine: self.machine.or(machine), ..self }
    }

    /// Whether the release has machine types of version `machine`: not yet, or (from 10.1 on) no longer. `any` has all of them.
    pub fn has_machine(self, machine: Release) -> bool {
        const DELETED: Release = Release::new(10, 1);
        self.release.is_none_or(|release| {
            let age = release.major.saturating_sub(machine.major);
            let is_gone = age > 6 || (age == 6 && release.minor >= machine.minor);
            machine <= release && (release < DELETED || !is_gone)
        })
    }

    /// The newest known release on its newest machine type.
    pub fn newest() -> Self {
        Self { release: Release::KNOWN.last().copied(), machine: None }
    }

    /// Whether `difference` holds.
    pub fn has(self, difference: Difference) -> bool {
        let Some(row) = TABLE.iter().find(|row| row.difference == difference) else { return false };
        let release =
            self.release.is_none_or(|r| row.since.is_none_or(|s| r >= s) && row.gone.is_none_or(|g| r < g));
        let machine = self.machine.is_none_or(|m| row.machine.is_none_or(|s| m >= s));
        release && machine
    }
}

impl Difference {
    /// What it is and where QEMU decides it.
    pub fn what(self) -> &'static str {
        TABLE.iter().find(|row| row.difference == self).map_or("", |row| row.what)
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.release {
            Some(release) => write!(f, "{release}")?,
            None => f.write_str("any")?,
        }
        self.machine.map_or(Ok(()), |machine| write!(f, "-on-{machine}"))
    }
}

impl FromStr for Dialect {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (release, machine) = match text.split_once("-on-") {
            Some((release, machine)) => (release, Some(machine.parse()?)),
            None => (text, None),
        };
        let release = if release == "any" { None } else { Some(release.parse()?) };
        Ok(Self { release, machine })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(text: &str) -> Dialect {
        text.parse().unwrap()
    }

    #[test]
    fn every_difference_has_exactly_one_row_that_makes_a_difference() {
        for difference in Difference::ALL {
            let rows: Vec<_> = TABLE.iter().filter(|row| row.difference == *difference).collect();
            assert_eq!(rows.len(), 1, "{difference:?}");
            assert!(rows[0].since.is_some() || rows[0].gone.is_some(), "{difference:?} holds everywhere");
            assert!(rows[0].what.contains(".c)"), "{difference:?} names no source");
        }
    }

    #[test]
    fn any_accepts_what_any_release_does() {
        assert!(Difference::ALL.iter().all(|d| Dialect::ANY.has(*d)));
    }

    #[test]
    fn the_four_stock_builds() {
        use Difference::*;
        let has = |d| ["5.2", "7.2", "10.0", "11.1"].map(|r| dialect(r).has(d));
        assert_eq!(has(CompressPage), [true, true, false, false]);
        assert_eq!(has(MultifdFlush), [false, false, true, true]);
        assert_eq!(has(SwitchoverStart), [false, false, true, true]);
        assert_eq!(has(SwitchoverStartInSnapshots), [false, false, true, false]);
        assert_eq!(has(SwitchoverAckCounted), [false, false, false, true]);
        assert_eq!(has(DescriptionSpaced), [true, false, false, false]);
        assert!(!dialect("11.1-on-5.2").has(SwitchoverStart));
    }

    #[test]
    fn machine_types_come_and_go() {
        let has = |release, machine: &str| dialect(release).has_machine(machine.parse().unwrap());
        assert!(has("7.2", "7.2") && has("7.2", "5.2") && !has("7.2", "8.0"));
        assert!(has("10.1", "4.2") && !has("10.1", "4.1") && has("10.0", "2.4"));
        assert!(has("11.0", "5.1") && !has("11.0", "5.0") && has("11.1", "5.2") && !has("11.1", "5.1"));
        assert!(has("any", "1.0"));
        let old = dialect("11.1").or_on_machine(Some(Release::new(5, 2)));
        assert_eq!(old, dialect("11.1-on-5.2"));
        assert_eq!(old.or_on_machine(Some(Release::new(8, 0))), old);
        assert_eq!(old.on_any_machine(), dialect("11.1"));
    }

    #[test]
    fn names_round_trip_and_bad_ones_are_refused() {
        for name in ["any", "5.2", "11.1", "10.0-on-5.2"] {
            assert_eq!(dialect(name).to_string(), name);
        }
        assert_eq!(dialect("7.2.22").to_string(), "7.2");
        for bad in ["", "x", "7", "7.x", "7.2-on-", "7.2.y"] {
            assert!(bad.parse::<Dialect>().is_err(), "{bad}");
        }
    }
}
