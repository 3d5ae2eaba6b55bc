//! The control: stock to stock, without us. When it fails, nobody needs to look for the reason in migwire.

use super::{Bench, pair};
use crate::cases::Transport;
use crate::failure::Run;
use crate::process::quote;

pub(super) fn run(bench: &Bench<'_>) -> Run<()> {
    let file = bench.word("stream");
    match bench.cell.case.transport {
        Transport::Exec => {
            let file = quote(&file);
            pair::stored(bench, &format!("exec:cat > {file}"), || Ok(()), &format!("exec:cat {file}"))
        }
        Transport::File => {
            let address = format!("file:{file}");
            pair::stored(bench, &address, || Ok(()), &address)
        }
        _ => pair::live(bench, pair::Ends::of(bench)?, |target, _| Ok(target.to_owned()), || Ok(())),
    }
}
