//! What a recording is told about itself: which cell it is of, which builds, and what they were told.
//!
//! Who finds a recording without its cell should not have to guess. Nothing here is believed by whoever reads the bytes.

use serde_json::{Value, json};

use super::Bench;
use crate::variant::Settings;

impl Bench<'_> {
    /// Options for whoever records between the two ends of this cell.
    pub(super) fn about(&self) -> Vec<String> {
        let (cell, variant) = (self.cell, &self.cell.case.variant);
        let end = |build: &str, side: &Settings| {
            let mut end = told(&variant.both, side);
            end["build"] = json!(build);
            let probe = self.env.inventory.builds.get(build).and_then(|build| build.probe.as_ref().ok());
            if let Some(probe) = probe {
                end["qemu"] = json!(probe.version_text());
            }
            end
        };
        facts(&[
            ("cell", json!(cell.id())),
            ("memory", json!(self.setup.machine.ram_bytes)),
            ("source", end(&cell.source, &variant.source)),
            ("destination", end(&cell.destination, &variant.destination)),
        ])
    }
}

/// Capabilities and parameters of an end.
fn told(both: &Settings, side: &Settings) -> Value {
    let capabilities: Vec<&String> = both.capabilities.iter().chain(&side.capabilities).collect();
    let mut parameters = both.parameters.clone();
    parameters.extend(side.parameters.clone());
    json!({"capabilities": capabilities, "parameters": parameters})
}

/// As options. Every value is JSON, or a release would be a number.
fn facts(facts: &[(&str, Value)]) -> Vec<String> {
    facts.iter().flat_map(|(key, value)| [String::from("--about"), format!("{key}={value}")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_stays_a_word() {
        assert_eq!(facts(&[("build", json!("5.2"))]), ["--about", "build=\"5.2\""]);
    }

    #[test]
    fn what_one_end_is_told_comes_on_top_of_what_both_are() {
        let settings = |text: &str| toml::from_str::<Settings>(text).unwrap();
        let both = settings("capabilities = ['multifd']\nparameters = { multifd-channels = 2 }");
        let side = settings("capabilities = ['xbzrle']\nparameters = { multifd-channels = 3 }");
        let told = told(&both, &side);
        assert_eq!(told["capabilities"], json!(["multifd", "xbzrle"]));
        assert_eq!(told["parameters"]["multifd-channels"], 3);
    }
}
