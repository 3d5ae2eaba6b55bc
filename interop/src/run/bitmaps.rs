//! A disk that nobody uses, with dirty bitmaps on it: what they hold at the source must be what they hold at the destination.

use serde_json::json;

use super::Bench;
use crate::failure::{Class, Failure, Run};
use crate::qemu::Vm;

/// A disk without anything behind it: what is written to it is noted in its bitmaps and forgotten.
const DISK: &str = "driver=null-co,node-name=disk0,size=67108864,read-zeroes=on";

/// Name and granularity.
const BITMAPS: [(&str, u32); 2] = [("coarse", 1 << 16), ("fine", 1 << 9)];

/// Words for the command line of both ends.
pub(super) fn arguments() -> [String; 2] {
    ["-blockdev", DISK].map(String::from)
}

impl Bench<'_> {
    /// Puts bitmaps on the disk of a source, and something into them.
    pub(super) fn make_bitmaps(&self, vm: &mut Vm) -> Run<()> {
        for (name, granularity) in BITMAPS {
            vm.command(
                "block-dirty-bitmap-add",
                json!({"node": "disk0", "name": name, "granularity": granularity}),
            )?;
        }
        let empty = digests(vm)?;
        vm.chat("qemu-io disk0 \"write 1M 3M\"")?;
        vm.chat("qemu-io disk0 \"write 33554944 512\"")?;
        if digests(vm)?.iter().zip(&empty).any(|(now, before)| now == before) {
            return Err(
                Failure::new(Class::Environment, "writing to the disk left a bitmap empty").of(vm.label())
            );
        }
        Ok(())
    }

    /// Looks whether both ends have the same in their bitmaps.
    pub(super) fn compare_bitmaps(&self, source: &mut Vm, destination: &mut Vm) -> Run<()> {
        if !self.cell.case.variant.bitmaps {
            return Ok(());
        }
        let (sent, arrived) = (digests(source)?, digests(destination)?);
        if sent != arrived {
            let text =
                format!("dirty bitmaps differ: {sent:?} at the source, {arrived:?} at the destination");
            return Err(Failure::new(Class::Mismatch, text));
        }
        Ok(())
    }
}

fn digests(vm: &mut Vm) -> Run<Vec<String>> {
    let digest = |(name, _): (&str, u32)| {
        let reply =
            vm.command("x-debug-block-dirty-bitmap-sha256", json!({"node": "disk0", "name": name}))?;
        Ok(reply["sha256"].as_str().unwrap_or_default().to_owned())
    };
    BITMAPS.into_iter().map(digest).collect()
}
