//! Which builds meet in a case.
//!
//! ```text
//! "all"                every build, or every ordered pair of builds
//! "same"               every build with itself
//! "ring+1"             every build with the one after it: each is source once and destination once
//! "11.1:7.2 7.2:11.1"  these pairs, as far as both are there
//! ```

use anyhow::{Result, bail, ensure};

use crate::cases::Kind;
use crate::peers::STANDIN;

/// Which peers meet in a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Every build, or every ordered pair of builds.
    All,
    /// Every build with itself.
    Same,
    /// Every build with the n-th after it: each is source once and destination once.
    Ring(usize),
    /// These, by name: for what has to do with what two releases do differently.
    Pairs(Vec<(String, String)>),
}

impl Spread {
    pub(crate) fn parse(word: &str, kind: Kind) -> Result<Self> {
        let spread = match word {
            "all" => Self::All,
            "same" => Self::Same,
            _ if word.contains(':') => Self::Pairs(named(word)?),
            _ => match word.strip_prefix("ring+").and_then(|steps| steps.parse().ok()) {
                Some(steps) => Self::Ring(steps),
                None => bail!("peers {word:?}: all, same, ring+N or SOURCE:DESTINATION .."),
            },
        };
        let alone = matches!(kind, Kind::StockToStandin | Kind::StandinToStock | Kind::StandinToStandin);
        ensure!(
            !alone || spread == Self::All,
            "{} has at most one stock peer: peers = \"all\"",
            kind.short()
        );
        Ok(spread)
    }

    pub(crate) fn pairs(&self, kind: Kind, builds: &[String]) -> Vec<(String, String)> {
        let standin = || STANDIN.to_owned();
        let each = builds.iter().cloned();
        match (kind, self) {
            (Kind::StockToStandin, _) => each.map(|build| (build, standin())).collect(),
            (Kind::StandinToStock, _) => each.map(|build| (standin(), build)).collect(),
            (Kind::StandinToStandin, _) => vec![(standin(), standin())],
            (_, Self::Same) => each.map(|build| (build.clone(), build)).collect(),
            (_, Self::Ring(steps)) => each
                .enumerate()
                .map(|(at, build)| (build, builds[(at + steps) % builds.len()].clone()))
                .collect(),
            (_, Self::All) => {
                each.flat_map(|from| builds.iter().map(move |to| (from.clone(), to.clone()))).collect()
            }
            (_, Self::Pairs(pairs)) => {
                let are_there = |(from, to): &&(String, String)| builds.contains(from) && builds.contains(to);
                pairs.iter().filter(are_there).cloned().collect()
            }
        }
    }
}

fn named(words: &str) -> Result<Vec<(String, String)>> {
    let pair = |word: &str| match word.split_once(':') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.to_owned(), to.to_owned())),
        _ => bail!("{word:?}: not SOURCE:DESTINATION"),
    };
    words.split_whitespace().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_pairs_meet_where_both_are_there() {
        let spread = Spread::parse("b:a a:c a:a", Kind::Direct).unwrap();
        let builds = ["a", "b"].map(String::from);
        let pairs = spread.pairs(Kind::Direct, &builds);
        assert_eq!(pairs, [("b", "a"), ("a", "a")].map(|(from, to)| (from.to_owned(), to.to_owned())));
        for bad in ["a:", ":b", "a:b c", "ring+", "some"] {
            assert!(Spread::parse(bad, Kind::Direct).is_err(), "{bad}");
        }
        assert!(Spread::parse("a:b", Kind::StockToStandin).is_err());
    }
}
