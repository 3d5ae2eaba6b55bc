//! What an endpoint has to say while a migration is under way.

use std::fmt;
use std::sync::Arc;

use crate::error::Error;

/// Something that happened on the way.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// The connections of a postcopy migration broke, for that reason; it waits for new ones.
    Paused(Error),
    /// It goes on, after so many pauses.
    Resumed(u32),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(error) => match std::error::Error::source(error) {
                Some(reason) => write!(f, "paused: {error}: {reason}"),
                None => write!(f, "paused: {error}"),
            },
            Self::Resumed(_) => f.write_str("resumed"),
        }
    }
}

/// Who is told.
pub(super) type Listener = Arc<dyn Fn(&Notice) + Send + Sync>;
