//! Trouble on purpose, for all verbs that move bytes.

use clap::Args;
use migwire::endpoint::{Limits, Proxy, Trouble, Troubled};
use migwire::transport::{Address, Listener};
use migwire::trouble::{Script, random};
use serde_json::{Value, json};

/// What trouble to make.
#[derive(Debug, Default, Args)]
pub(crate) struct TroubleOptions {
    /// Make trouble on the way: rules, or a file with rules, such as `cut after packet 3 of channel 1; delay SYNC 2s; flip bit 5 of flags in
    /// page 100`
    #[arg(long, value_name = "SCRIPT|FILE", value_parser = parse)]
    trouble: Option<Script>,

    /// Make trouble by chance; the same number makes the same, which is printed
    #[arg(long, value_name = "N")]
    trouble_seed: Option<u64>,
}

impl TroubleOptions {
    /// The rules that were asked for; what chance has chosen is printed.
    pub(crate) fn script(&self) -> Script {
        let mut script = self.trouble.clone().unwrap_or_default();
        if let Some(seed) = self.trouble_seed {
            let chance = random(seed);
            eprintln!("trouble: {chance}");
            script.rules.extend(chance.rules);
        }
        script
    }

    /// Something in front of a source that connects to `target`, if there is to be trouble.
    pub(crate) fn in_front_of_source(
        &self,
        target: &Address,
        limits: Limits,
    ) -> migwire::Result<Option<Troubled>> {
        let script = self.script();
        if script.rules.is_empty() {
            return Ok(None);
        }
        let proxy = Proxy::new(target.clone()).with_limits(limits).with_trouble(script);
        Troubled::in_front_of_source(proxy).map(Some)
    }

    /// Something in front of a destination that was to listen on `listener`, if there is to be trouble; what it listens on then.
    pub(crate) fn in_front_of_destination(
        &self,
        listener: Listener,
        limits: Limits,
    ) -> migwire::Result<(Option<Troubled>, Listener)> {
        let script = self.script();
        if script.rules.is_empty() {
            return Ok((None, listener));
        }
        let proxy = |target| Proxy::new(target).with_limits(limits).with_trouble(script);
        let (troubled, inner) = Troubled::in_front_of_destination(listener, proxy)?;
        Ok((Some(troubled), inner))
    }
}

/// What was done, on standard error.
pub(crate) fn tell(troubles: &[Trouble]) {
    for trouble in troubles {
        match &trouble.done[..] {
            [] => eprintln!("trouble: {}: there was no such place", trouble.rule),
            done => done.iter().for_each(|(channel, offset)| {
                eprintln!("trouble: {}: on {channel} at byte {offset}", trouble.rule);
            }),
        }
    }
}

/// What was done, as data.
pub(crate) fn as_json(troubles: &[Trouble]) -> Value {
    let one = |trouble: &Trouble| {
        let first = trouble.done.first();
        json!({
            "rule": trouble.rule,
            "done": first.is_some(),
            "channel": first.map(|(channel, _)| channel.to_string()),
            "offset": first.map(|(_, offset)| offset),
        })
    };
    troubles.iter().map(one).collect()
}

fn parse(text: &str) -> Result<Script, String> {
    match std::fs::read_to_string(text) {
        Ok(rules) => rules.parse().map_err(|e: migwire::Error| format!("{text}: {e}")),
        Err(_) => text.parse().map_err(|e: migwire::Error| e.to_string()),
    }
}
