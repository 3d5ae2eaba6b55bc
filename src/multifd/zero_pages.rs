//! Where pages of zeros go (`zero-page-detection`).

use std::fmt;
use std::str::FromStr;

use crate::dialect::{Dialect, Difference};
use crate::error::{Error, ErrorKind, Result};

/// Where pages of zeros go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPages {
    /// To the main channel, as records of one byte. The only way up to 8.2.
    Legacy,
    /// To the lists of packets. Destinations up to 8.2 do not see them there.
    Multifd,
    /// Into packets, as if they held something.
    None,
}

impl ZeroPages {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Legacy, Self::Multifd, Self::None];

    /// What a source of that dialect does by itself; the newest one for `any`.
    pub fn of(dialect: Dialect) -> Self {
        match dialect.has(Difference::MultifdZeroPages) {
            true => Self::Multifd,
            false => Self::Legacy,
        }
    }

    /// QEMU's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Multifd => "multifd",
            Self::None => "none",
        }
    }
}

impl fmt::Display for ZeroPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ZeroPages {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|way| way.name() == text).ok_or_else(|| {
            let message = format!("{text:?} is none of legacy, multifd, none");
            Error::nowhere(ErrorKind::Misuse, "zero pages", message)
        })
    }
}
