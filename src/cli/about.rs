//! What is known about a migration beside its bytes: written into recordings, and shown by `inspect`.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Map, Value, json};

/// What the user knows.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct About {
    /// Say more about the migration, in the recording (VALUE may be JSON); may be given several times
    #[arg(long = "about", value_name = "KEY=VALUE", value_parser = parse)]
    facts: Vec<(String, Value)>,
}

impl About {
    /// All that is known, as a recording keeps it. `facts` is an object with what the verb knows; what is null is left out.
    pub(crate) fn text(&self, role: &str, facts: &Value) -> String {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut all = Map::new();
        all.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
        all.insert("role".into(), json!(role));
        all.insert("started".into(), json!(started));
        let facts = facts.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        all.extend(facts.map(|(key, value)| (key.clone(), value.clone())));
        all.extend(self.facts.iter().cloned());
        Value::Object(all).to_string()
    }
}

fn parse(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE, as in machine=q35")?;
    if key.is_empty() {
        return Err("a key in front of the `=`".into());
    }
    // What is no JSON is the text as it stands.
    Ok((key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| Value::from(value))))
}

/// What a recording says about itself, as data; what is no JSON as text.
pub(crate) fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}

/// The same for people, a line each.
pub(crate) fn lines(text: &str) -> String {
    let mut lines = String::new();
    let Value::Object(all) = value(text) else { return format!("  about         {}\n", text.escape_debug()) };
    for (key, value) in &all {
        let value = match value {
            Value::String(text) => text.escape_debug().to_string(),
            other => other.to_string(),
        };
        let _ = writeln!(lines, "  {:<14}{value}", key.escape_debug().to_string());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_json_or_text() {
        let facts = ["machine=q35", "capabilities=[\"multifd\"]", "channels=4", "empty="];
        let facts = facts.map(|text| parse(text).expect("a fact")).to_vec();
        let text =
            About { facts }.text("proxy", &json!({ "addresses": { "listen": "tcp::1" }, "dialect": null }));
        let back = value(&text);
        assert_eq!(back["role"], "proxy");
        assert_eq!(back["machine"], "q35");
        assert_eq!(back["capabilities"][0], "multifd");
        assert_eq!(back["channels"], 4);
        assert_eq!(back["empty"], "");
        assert_eq!(back["addresses"]["listen"], "tcp::1");
        assert!(back.get("dialect").is_none() && back["started"].as_u64() > Some(1_700_000_000));
        assert!(parse("machine").is_err() && parse("=x").is_err());
    }

    #[test]
    fn lines_show_no_control_characters() {
        assert_eq!(
            lines(r#"{"a":"\u001b[2J","b":[1]}"#),
            "  a             \\u{1b}[2J\n  b             [1]\n"
        );
        assert_eq!(lines("\u{7}"), "  about         \\u{7}\n");
    }
}
