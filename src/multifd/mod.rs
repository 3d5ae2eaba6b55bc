//! Multifd channels.

pub mod codec;
