//! The `migwire` command.
fn main() {}
