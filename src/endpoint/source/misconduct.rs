//! Rules of multifd that a source can break on purpose, to see what a destination makes of it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

macro_rules! misconduct {
    ($($(#[$doc:meta])* $variant:ident: $name:literal, $what:literal;)*) => {
        /// A rule to break. Some destinations refuse what follows, others hang, take it or crash.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Misconduct {
            $($(#[$doc])* $variant,)*
        }

        impl Misconduct {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What the source does then.
            pub fn what(self) -> &'static str {
                match self { $(Self::$variant => $what,)* }
            }
        }
    };
}

misconduct! {
    /// SYNC packets that the main channel does not answer.
    NoFlush: "no-flush", "after setup, SYNC on the channels and no FLUSH on the main channel";
    /// A word of the main channel that the channels do not answer.
    FlushWithoutSync: "flush-without-sync", "after setup, FLUSH (or EOS) on the main channel and no SYNC on the channels";
    /// Pages that come before there is anything to put them into.
    PageBeforeSetup: "page-before-setup", "a packet of pages on channel 0, before the first SYNC";
    /// An id that is just too large.
    IdEqualCount: "id-equal-count", "the last channel says that its id is the number of channels";
    /// Two channels of one id.
    DuplicateId: "duplicate-id", "the last channel says the id of the one before";
    /// Pages that are not encoded as they say.
    WrongCodec: "wrong-codec", "packets of pages name another compression than they have";
    /// A channel that is gone when it is needed.
    CloseChannelEarly: "close-channel-early", "the last channel is closed before the SYNC of the first round";
    /// A packet that does not begin as packets do.
    BadMagic: "bad-magic", "another magic in the first packet of pages of channel 0";
    /// A packet of a version that does not exist.
    BadVersion: "bad-version", "version 2 in the first packet of pages of channel 0";
    /// The same page on two channels.
    SamePageTwice: "same-page-twice", "the first pages go over two channels, without a SYNC between";
    /// A channel that is there and does nothing.
    SilentChannel: "silent-channel", "the last channel says hello, and then nothing";
    /// A channel that is not there.
    FewerChannels: "fewer-channels", "one channel fewer";
    /// A channel that nobody expects.
    MoreChannels: "more-channels", "one channel more";
    /// A channel of another virtual machine.
    WrongUuid: "wrong-uuid", "the last channel says another UUID";
    /// State of a device that is not there.
    DeviceState: "device-state", "device state on channel 0 for a device that nobody has";
    /// A packet with more in it than can be.
    BigPayload: "big-payload", "the first packet of pages of channel 0 claims a payload of 2 GiB";
}

impl fmt::Display for Misconduct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Misconduct {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|rule| rule.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|rule| rule.name()).collect();
            let message = format!("{text:?} is none of {}", names.join(", "));
            Error::nowhere(ErrorKind::Misuse, "rules to break", message)
        })
    }
}

/// Some rules to break; none, as a rule.
#[derive(Clone, Debug, Default)]
pub(super) struct Misdeeds(Vec<Misconduct>);

impl Misdeeds {
    pub(super) fn new(rules: impl IntoIterator<Item = Misconduct>) -> Self {
        Self(rules.into_iter().collect())
    }

    pub(super) fn has(&self, rule: Misconduct) -> bool {
        self.0.contains(&rule)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
