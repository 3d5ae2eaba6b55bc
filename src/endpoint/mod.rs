//! Both ends of a migration, without a virtual machine: threads and clocks around the sans-I/O parts.
//!
//! ```text
//! stock source -> Destination: Connection -> Feed -> Parser -> Event -> guest::Memory
//!                                   ^---- PONG, SHUT ----'
//! ```

mod destination;
mod pace;

pub use destination::{Acknowledge, Arrival, Destination, Progress};
pub use pace::Limits;
