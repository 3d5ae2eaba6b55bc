//! Which cells of all are meant: patterns, the quick selection, shards.

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cases::Cell;

/// A cell or case id, a prefix of one that ends where a part ends, or a glob with `*` and `?` over the whole id.
///
/// `precopy/recv` means everything below it and not `precopy/recv-later`; `*@5.2:*` means everything that leaves 5.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern(String);

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(crate) fn matches(&self, id: &str) -> bool {
        if self.0.contains(['*', '?']) {
            return glob(self.0.as_bytes(), id.as_bytes());
        }
        id.strip_prefix(&self.0)
            .is_some_and(|rest| rest.is_empty() || self.0.ends_with('/') || rest.starts_with(['/', '@', ':']))
    }
}

/// What the command line selects.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    pub(crate) only: Vec<Pattern>,
    pub(crate) exclude: Vec<Pattern>,
    pub(crate) short: bool,
    pub(crate) shard: Option<Shard>,
}

/// Part `index` of `count`, counted from one. Every cell is in exactly one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shard {
    pub(crate) index: usize,
    pub(crate) count: usize,
}

impl Selection {
    /// The selected cells, in their order.
    pub(crate) fn apply(&self, cells: Vec<Cell>) -> Vec<Cell> {
        let hit = |patterns: &[Pattern], id: &str| patterns.iter().any(|pattern| pattern.matches(id));
        let wanted = cells.into_iter().filter(|cell| {
            let id = cell.id();
            (self.only.is_empty() || hit(&self.only, &id))
                && !hit(&self.exclude, &id)
                && (cell.short || !self.short)
        });
        let mine = |at: usize| self.shard.is_none_or(|shard| at % shard.count == shard.index - 1);
        wanted.enumerate().filter(|(at, _)| mine(*at)).map(|(_, cell)| cell).collect()
    }

    /// Whether cells were left out by choice; a shard does not count, because its siblings have the rest.
    pub(crate) fn is_filtered(&self) -> bool {
        self.short || !self.only.is_empty() || !self.exclude.is_empty()
    }
}

impl std::str::FromStr for Shard {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (index, count) = text.split_once('/').context("not INDEX/COUNT")?;
        let shard = Self { index: index.parse()?, count: count.parse()? };
        ensure!(shard.index >= 1 && shard.index <= shard.count, "counted from 1 to COUNT");
        Ok(shard)
    }
}

/// Greedy match with one place to come back to, so no pattern can make it slow.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&b) if b == b'?' || b == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::tests::sample_cells;

    #[test]
    fn a_prefix_ends_where_a_part_ends() {
        let hits = |pattern: &str, id| Pattern::new(pattern).matches(id);
        let id = "precopy/recv/pc/tcp/rp/idle@10.0:migwire";
        for good in ["precopy", "precopy/", "precopy/recv/pc", "precopy/recv/pc/tcp/rp/idle", id] {
            assert!(hits(good, id), "{good}");
        }
        assert!(hits("precopy/recv/pc/tcp/rp/idle@10.0", id));
        for bad in ["prec", "precopy/recv/p", "precopy/recv/pc/tcp/rp/idle@10", "recv", "x"] {
            assert!(!hits(bad, id), "{bad}");
        }
    }

    #[test]
    fn globs_match_the_whole_id() {
        let hits = |pattern: &str, id: &str| Pattern::new(pattern).matches(id);
        assert!(hits("*@5.2:*", "a/b@5.2:11.1"));
        assert!(!hits("*@5.2:*", "a/b@11.1:5.2"));
        assert!(hits("*/pc/*", "precopy/recv/pc/tcp"));
        assert!(!hits("*/pc", "precopy/recv/pc/tcp"));
        assert!(hits("a*b*c", "a-b-b-c"));
        assert!(!hits("a*b*c", "a-b-b"));
        assert!(hits("??", "ab"));
        assert!(!hits("?", ""));
    }

    #[test]
    fn every_cell_is_in_exactly_one_shard() {
        let all = sample_cells();
        for count in 1..=all.len() + 1 {
            let mut seen: Vec<String> = Vec::new();
            for index in 1..=count {
                let selection = Selection { shard: Some(Shard { index, count }), ..Selection::default() };
                seen.extend(selection.apply(all.clone()).iter().map(Cell::id));
            }
            seen.sort();
            let mut expected: Vec<String> = all.iter().map(Cell::id).collect();
            expected.sort();
            assert_eq!(seen, expected, "{count} shards");
        }
    }

    #[test]
    fn only_exclude_and_short_combine() {
        let all = sample_cells();
        let selection = Selection {
            only: vec![Pattern::new("t/direct")],
            exclude: vec![Pattern::new("*@a:*")],
            ..Selection::default()
        };
        let ids: Vec<String> = selection.apply(all.clone()).iter().map(Cell::id).collect();
        assert!(!ids.is_empty());
        assert!(ids.iter().all(|id| id.starts_with("t/direct/") && !id.contains("@a:")), "{ids:?}");
        let short = Selection { short: true, ..Selection::default() }.apply(all);
        assert!(!short.is_empty() && short.iter().all(|cell| cell.short));
    }

    #[test]
    fn shards_are_counted_from_one() {
        assert_eq!("2/3".parse::<Shard>().unwrap(), Shard { index: 2, count: 3 });
        for bad in ["0/3", "4/3", "1", "a/b", "1/0", ""] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }
}
