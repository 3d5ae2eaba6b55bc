//! `results.json`, out and in. Its shape is described in [`crate::results`].

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::results::{Results, SCHEMA};

pub(super) fn text(results: &Results) -> Result<String> {
    Ok(serde_json::to_string_pretty(results)? + "\n")
}

/// Reads the results of an earlier run.
pub(crate) fn read(path: &Path) -> Result<Results> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let results: Results = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    ensure!(results.schema == SCHEMA, "{}: schema {}, not {SCHEMA}", path.display(), results.schema);
    Ok(results)
}
