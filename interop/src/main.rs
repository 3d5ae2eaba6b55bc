//! `migwire-interop`, the judge: runs stock QEMU builds against migwire and against each other, and writes the matrix.
//!
//! ```text
//! peers.toml --peer   -> peers -> probe ----+
//! cases/*.toml        -> cases -> select ---+-> run (qemu, tool, ram) -> expected.toml -> results -> report, baseline
//!                                             shard 1/2, shard 2/2 -> merge --------------^
//! ```
//!
//! It sees the command from outside, as any user would: command lines, JSON, files, exit codes. Both ends of a
//! migration are asked how it went, memory is compared byte for byte, and what was recorded is taken apart and put
//! together again. A cell is unsupported only because a build declared so before anything ran.

mod baseline;
mod bench;
mod capture;
mod cases;
mod cli;
mod disk;
mod expected;
mod failure;
mod guest;
mod merge;
mod outcome;
mod peers;
mod probe;
mod process;
mod qemu;
mod qmp;
mod ram;
mod relay;
mod report;
mod results;
mod run;
mod select;
mod spread;
mod support;
mod tool;
mod variant;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
