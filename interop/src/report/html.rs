//! `index.html`: the whole run on one page that needs nothing but itself. No script, no font, no server.
//!
//! Verdicts are letters with a colour and a tooltip, so the page can be read in black and white and by a screen reader.

use std::fmt::Write as _;

use super::outcomes::word;
use super::terminal::reasons;
use super::{Tally, ends, tally};
use crate::results::{CellResult, PeerResult, Results, Verdict};

pub(crate) use super::cell_page::write_cell_page;

/// Colours of both modes; the page of a cell uses the same.
pub(super) const STYLE: &str = "
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --dim: #59636e; --line: #d0d7de; --code: #f3f5f7;
  --P: #d4f4dc; --F: #ffc9c7; --X: #ffe7b3; --U: #e3e7ec; --N: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --bg: #0f1318; --fg: #e2e6ea; --dim: #97a1ab; --line: #343b44;
  --code: #181d24; --P: #17492a; --F: #7d2422; --X: #66490b; --U: #2b323b; --N: #171b21; } }
body { background: var(--bg); color: var(--fg); font: 15px/1.45 system-ui, sans-serif; margin: 2em auto;
  max-width: 78em; padding: 0 1em; }
a { color: inherit; } h2 { margin-top: 2em; } .dim { color: var(--dim); }
table { border-collapse: collapse; margin: .7em 0; } td, th { border: 1px solid var(--line); padding: .2em .6em; }
th { text-align: left; font-weight: 600; } td.n { text-align: center; } .wide { overflow-x: auto; }
.P { background: var(--P); } .F { background: var(--F); } .X { background: var(--X); } .U { background: var(--U); }
.N { background: var(--N); color: var(--dim); }
td a { display: block; text-decoration: none; } code, pre { font: 13px/1.4 ui-monospace, monospace; }
pre { background: var(--code); border: 1px solid var(--line); padding: .6em; overflow-x: auto; max-height: 40em; }
.bad { border-left: .4em solid var(--F); padding-left: .8em; margin: .8em 0; }
";

/// The page of the whole run.
pub(super) fn index(results: &Results) -> String {
    let mut page = head("migwire interop");
    page.push_str("<h1>migwire interop</h1>\n");
    overview(&mut page, results);
    problems(&mut page, results);
    matrix(&mut page, results);
    failures(&mut page, results);
    grids(&mut page, results);
    peers(&mut page, results);
    skipped(&mut page, results);
    pairs(&mut page, results);
    page.push_str("</body>\n</html>\n");
    page
}

/// Everything up to the body's first element.
pub(super) fn head(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
        escape(title)
    )
}

/// Text as it may stand between tags and inside attributes. Peers choose much of it, so none goes in unescaped.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            // Control characters would make the page ill-formed, and a terminal's colours say nothing here.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The class in the style sheet; `-` is none.
pub(super) fn class(verdict: Verdict) -> char {
    if verdict == Verdict::NotRun { 'N' } else { verdict.letter() }
}

fn overview(page: &mut String, results: &Results) {
    let _ = write!(
        page,
        "<p>{} cells in {:.0} s, {} at a time on {} cores",
        results.cells.len(),
        results.seconds,
        results.jobs,
        results.cores
    );
    match (&results.migwire.version, &results.migwire.reason) {
        (Some(version), _) => {
            let _ = write!(page, "; migwire {}", escape(version));
        }
        (None, reason) => {
            let _ = write!(page, "; <b>{}</b>", escape(reason.as_deref().unwrap_or("no migwire")));
        }
    }
    if results.filtered {
        page.push_str("; a selection, not everything");
    }
    if let Some(shard) = results.shard {
        let _ = write!(page, "; shard {} of {}", shard.index, shard.count);
    }
    if let Some(words) = super::replayed(results) {
        let _ = write!(page, "; {words}");
    }
    page.push_str(".</p>\n<p>");
    for verdict in
        [Verdict::Pass, Verdict::Fail, Verdict::ExpectedFail, Verdict::Unsupported, Verdict::NotRun]
    {
        let _ = write!(
            page,
            "<span class=\"{}\">&nbsp;{}&nbsp;</span> {verdict}: {} &nbsp; ",
            class(verdict),
            verdict.letter(),
            results.count(verdict)
        );
    }
    page.push_str("</p>\n");
}

fn problems(page: &mut String, results: &Results) {
    for problem in &results.problems {
        let _ = writeln!(page, "<p class=\"bad\"><b>Problem:</b> {}</p>", escape(problem));
    }
}

fn matrix(page: &mut String, results: &Results) {
    let names = ends(results);
    page.push_str("<h2>From row to column: passed / run</h2>\n<div class=\"wide\"><table>\n<tr><th></th>");
    for name in &names {
        let _ = write!(page, "<th>{}</th>", escape(name));
    }
    page.push_str("</tr>\n");
    for source in &names {
        let _ = write!(page, "<tr><th>{}</th>", escape(source));
        for destination in &names {
            let tally = tally(results, source, destination);
            if tally.is_empty() {
                page.push_str("<td></td>");
                continue;
            }
            let _ = write!(
                page,
                "<td class=\"n {}\" title=\"{}\"><a href=\"#{}\">{}</a></td>",
                worst(tally),
                escape(&details(tally)),
                escape(&anchor(source, destination)),
                escape(&tally.text())
            );
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

fn worst(tally: Tally) -> char {
    match tally {
        Tally { fail: 1.., .. } => 'F',
        Tally { expected_fail: 1.., .. } => 'X',
        Tally { pass: 1.., .. } => 'P',
        Tally { not_run: 1.., .. } => 'N',
        _ => 'U',
    }
}

fn details(tally: Tally) -> String {
    let Tally { pass, fail, expected_fail, unsupported, not_run } = tally;
    format!(
        "{pass} pass, {fail} fail, {expected_fail} expected-fail, {unsupported} unsupported, {not_run} not-run"
    )
}

fn failures(page: &mut String, results: &Results) {
    let bad: Vec<&CellResult> = results
        .cells
        .iter()
        .filter(|cell| matches!(cell.verdict, Verdict::Fail | Verdict::ExpectedFail))
        .collect();
    if bad.is_empty() {
        return;
    }
    page.push_str("<h2>Failures</h2>\n");
    for cell in bad {
        let _ = write!(
            page,
            "<div class=\"bad\"><b>{}</b> {}<br>{}",
            cell.verdict,
            link(cell, &cell.id),
            escape(&reason(cell))
        );
        if let Some(entry) = &cell.expected {
            let _ = write!(page, "<br><span class=\"dim\">expected: {}", escape(&entry.reason));
            // Only a web address becomes a link; `javascript:` has no business here.
            if let Some(link) = entry.link.as_deref().filter(|link| link.starts_with("https://")) {
                let _ = write!(page, " <a href=\"{0}\">{0}</a>", escape(link));
            }
            page.push_str("</span>");
        }
        let _ = writeln!(page, "<br><code>{}</code></div>", escape(&cell.reproduce));
    }
}

/// For each kind of case a grid: cases down, pairs of peers across, a letter in each square.
fn grids(page: &mut String, results: &Results) {
    let mut groups: Vec<String> = Vec::new();
    for cell in &results.cells {
        let group = group(cell);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    page.push_str("<h2>Every cell</h2>\n");
    for name in groups {
        let cells: Vec<&CellResult> = results.cells.iter().filter(|cell| group(cell) == name).collect();
        let mut columns: Vec<(&str, &str)> = Vec::new();
        let mut rows: Vec<&str> = Vec::new();
        for cell in &cells {
            let pair = (&*cell.source, &*cell.destination);
            if !columns.contains(&pair) {
                columns.push(pair);
            }
            if !rows.contains(&&*cell.case) {
                rows.push(&cell.case);
            }
        }
        let order = |name: &str| ends(results).iter().position(|known| *known == name);
        columns.sort_by_key(|(source, destination)| (order(source), order(destination)));
        let _ = write!(page, "<h3>{}</h3>\n<div class=\"wide\"><table>\n<tr><th></th>", escape(&name));
        for (source, destination) in &columns {
            let _ = write!(page, "<th>{}<br>{}</th>", escape(source), escape(destination));
        }
        page.push_str("</tr>\n");
        for row in rows {
            let _ =
                write!(page, "<tr><th>{}</th>", escape(row.strip_prefix(&format!("{name}/")).unwrap_or(row)));
            for pair in &columns {
                let here =
                    |cell: &&&CellResult| cell.case == row && (&*cell.source, &*cell.destination) == *pair;
                match cells.iter().find(here) {
                    Some(cell) => square(page, cell),
                    None => page.push_str("<td></td>"),
                }
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</table></div>\n");
    }
}

fn square(page: &mut String, cell: &CellResult) {
    let tooltip = format!("{}: {} {}", cell.id, cell.verdict, reason(cell));
    // What has cost somebody a guest stands out, also where it had to.
    let colour = if cell.is_harmed() && cell.verdict == Verdict::Pass { 'X' } else { class(cell.verdict) };
    let _ = write!(
        page,
        "<td class=\"n {}\" title=\"{}\">{}</td>",
        colour,
        escape(tooltip.trim_end()),
        link(cell, &word(cell).unwrap_or_else(|| cell.verdict.letter().to_string()))
    );
}

fn peers(page: &mut String, results: &Results) {
    page.push_str("<h2>Peers</h2>\n<div class=\"wide\"><table>\n<tr><th>name</th><th>version</th><th>what</th><th>says about itself</th></tr>\n");
    for peer in &results.peers {
        let version = match (&peer.version, &peer.package) {
            (Some(version), Some(package)) => format!("{version} {package}"),
            (Some(version), None) => version.clone(),
            (None, _) => String::from("–"),
        };
        let _ = writeln!(
            page,
            "<tr><th>{}</th><td>{}</td><td>{}<br><code>{}</code></td><td>{}</td></tr>",
            escape(&peer.name),
            escape(&version),
            escape(&peer.about),
            escape(&peer.path),
            escape(&declared(peer))
        );
    }
    page.push_str("</table></div>\n");
}

fn declared(peer: &PeerResult) -> String {
    if let Some(reason) = &peer.reason {
        return format!("NOT RUN: {reason}");
    }
    let refused: Vec<String> =
        peer.refused.iter().map(|(name, words)| format!("; refuses {name} here: {words}")).collect();
    format!(
        "{} machine types; transports {}; capabilities {}{}",
        peer.machines.len(),
        peer.transports.join(", "),
        peer.capabilities.join(", "),
        refused.concat()
    )
}

fn skipped(page: &mut String, results: &Results) {
    for (verdict, title) in [(Verdict::NotRun, "Not run"), (Verdict::Unsupported, "Unsupported, as declared")]
    {
        let reasons = reasons(results, verdict);
        if reasons.is_empty() {
            continue;
        }
        let _ = writeln!(page, "<h2>{title}</h2>\n<ul>");
        for (reason, count) in reasons {
            let _ = writeln!(page, "<li>{count} cells: {}</li>", escape(reason));
        }
        page.push_str("</ul>\n");
    }
}

/// The target of every link of the matrix: what ran between two ends, a line each.
fn pairs(page: &mut String, results: &Results) {
    page.push_str("<h2>By pair</h2>\n");
    let names = ends(results);
    for source in &names {
        for destination in &names {
            let cells: Vec<&CellResult> = results
                .cells
                .iter()
                .filter(|c| c.source == *source && c.destination == *destination)
                .collect();
            if cells.is_empty() {
                continue;
            }
            let _ = write!(
                page,
                "<h3 id=\"{}\">{} → {}</h3>\n<div class=\"wide\"><table>\n",
                escape(&anchor(source, destination)),
                escape(source),
                escape(destination)
            );
            for cell in cells {
                let _ = writeln!(
                    page,
                    "<tr><td class=\"n {}\">{}</td><td>{}</td><td>{:.1} s</td><td>{}</td></tr>",
                    class(cell.verdict),
                    cell.verdict.letter(),
                    link(cell, &cell.case),
                    cell.seconds,
                    escape(&reason(cell))
                );
            }
            page.push_str("</table></div>\n");
        }
    }
}

/// Text that leads to the page of its cell, if the cell has one.
fn link(cell: &CellResult, text: &str) -> String {
    match &cell.dir {
        Some(dir) => format!("<a href=\"{}/index.html\">{}</a>", escape(dir), escape(text)),
        None => escape(text),
    }
}

fn reason(cell: &CellResult) -> String {
    let text = cell.reason.as_deref().unwrap_or_default();
    cell.class.map_or_else(|| text.to_owned(), |class| format!("[{class}] {text}"))
}

fn group(cell: &CellResult) -> String {
    cell.case.splitn(3, '/').take(2).collect::<Vec<_>>().join("/")
}

fn anchor(source: &str, destination: &str) -> String {
    format!("{source}-to-{destination}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expected::Entry;
    use crate::report::tests::sample;

    #[test]
    fn nothing_reaches_the_page_unescaped() {
        assert_eq!(
            escape("<a href=\"x\">'&\u{1b}[31m\n"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;\u{fffd}[31m\n"
        );
        let mut results = sample();
        results.migwire.version = Some("<script>".into());
        results.peers[0].about = "<script>".into();
        results.peers[0].package = Some("<script>".into());
        results.peers[0].capabilities = vec!["<script>".into()];
        results.peers[0].refused.insert("<script>".into(), "<script>".into());
        results.cells[1].id = "<script>".into();
        results.cells[1].reproduce = "<script>".into();
        results.cells[1].dir = Some("\"><script>".into());
        let page = index(&results);
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains("<b>bad"), "{page}");
        assert!(!page.contains("<x>"), "{page}");
    }

    #[test]
    fn a_link_is_a_web_address_or_nothing() {
        let mut results = sample();
        let entry = |link: &str| {
            Some(Entry {
                cell: "x".into(),
                source: None,
                destination: None,
                reason: "known".into(),
                link: Some(link.into()),
            })
        };
        results.cells[1].expected = entry("javascript:alert(1)");
        assert!(!index(&results).contains("javascript:"));
        results.cells[1].expected = entry("https://example.org/1");
        assert!(index(&results).contains("<a href=\"https://example.org/1\">"));
    }

    #[test]
    fn the_page_needs_nothing_but_itself() {
        let page = index(&sample());
        for word in ["<script", "src=", "@import", "url(", "http://", "https://"] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn every_cell_and_every_link_target_is_there() {
        let results = sample();
        let page = index(&results);
        for cell in &results.cells {
            assert!(page.contains(&format!("{}/index.html", cell.dir.as_deref().unwrap())), "{}", cell.id);
        }
        for target in page.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(page.contains(&format!("id=\"{target}\"")), "{target}");
        }
    }
}
