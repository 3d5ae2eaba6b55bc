//! One file a verb. Data goes to standard output, talk to standard error.
//!
//! Exit codes: 0 ok, 1 a negative finding (a peer failed, bytes differ, an error in a stream), 2 usage, 3 environment.
//! A reader that closes our standard output early is no error.

mod about;
mod behind;
mod bench;
mod channels;
mod convert;
mod dump;
mod export;
mod files;
mod given;
mod import;
mod inspect;
mod output;
mod record;
mod recv;
mod replay;
mod send;
mod trouble;
mod verify;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a verb found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is as it should be.
    Good,
    /// The answer is no, and has been printed.
    Bad,
}

/// Reads, writes and speaks QEMU's live-migration stream, byte for byte.
#[derive(Debug, Parser)]
#[command(name = "migwire", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Bench(bench::Bench),
    Export(export::Export),
    Import(import::Import),
    Convert(convert::Convert),
    Record(record::Record),
    Recv(recv::Recv),
    Replay(replay::Replay),
    Verify(verify::Verify),
    Send(Box<send::Send>),
    Inspect(inspect::Inspect),
    Dump(dump::Dump),
}

/// Parses the command line and carries it out.
pub(crate) fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome: anyhow::Result<Verdict> = match arguments.verb {
        Verb::Bench(bench) => bench.run(),
        Verb::Export(verb) => verb.run(),
        Verb::Import(verb) => verb.run(),
        Verb::Convert(convert) => convert.run(),
        Verb::Record(record) => record.run(),
        Verb::Recv(recv) => recv.run(),
        Verb::Replay(replay) => replay.run(),
        Verb::Verify(verb) => verb.run(),
        Verb::Send(send) => send.run(),
        Verb::Inspect(verb) => verb.run(),
        Verb::Dump(verb) => verb.run(),
    };
    match outcome {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed as well; there is nobody left to tell then.
            let _ = writeln!(io::stderr(), "migwire: {error:#}");
            ExitCode::from(code(&error))
        }
    }
}

/// Whether nobody reads the answer any more. A peer that is gone is another matter, and the library's errors tell of it.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    !error.is::<migwire::Error>()
        && error
            .chain()
            .filter_map(|e| e.downcast_ref::<io::Error>())
            .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// An error of the library that names a fault of the stream or the peer is a finding; anything else is the environment.
fn code(error: &anyhow::Error) -> u8 {
    use migwire::ErrorKind::{Io, Misuse};
    match error.downcast_ref::<migwire::Error>().map(migwire::Error::kind) {
        Some(Misuse) => 2,
        Some(Io) | None => 3,
        Some(_) => 1,
    }
}
