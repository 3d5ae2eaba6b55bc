//! What people and programs are told about a migration.

pub mod verify;
