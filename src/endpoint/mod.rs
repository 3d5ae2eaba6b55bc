//! Both ends of a migration, without a virtual machine: threads and clocks around the sans-I/O parts.
//!
//! ```text
//! stock source -> Destination: Connection -> Feed -> Parser -> Event -> guest::Memory
//!                                   ^---- PONG, SHUT ----'
//! Source: Template, images -> Event -> Emitter -> Connection -> stock destination
//! Proxy: source <-> Connection <-> Connection <-> destination, and a recording of it
//! ```

mod destination;
mod fault;
mod notice;
mod pace;
mod proxy;
mod replay;
mod source;

pub use destination::{
    Acknowledge, Arrival, ChannelArrival, Destination, Expected, PreemptArrival, Progress, RequestReport,
};
pub use fault::{Cut, Cuts};
pub use notice::Notice;
pub use pace::Limits;
pub use proxy::{Passage, Passed, Proxy, Trouble, Troubled};
pub use replay::{Answers, Deviation, Outcome, Performance, Played, Replay, Timing};
pub use source::{
    Blank, ChannelDeparture, Departure, DeviceDeparture, Devices, Misconduct, Multifd, PageRequests,
    Postcopy, PostcopyDeparture, PreemptDeparture, RunState, Source, Template, Turn,
};
