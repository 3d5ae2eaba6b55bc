//! The page of one cell: verdict, how to see it again, and for every process its command line, its QMP log and what it
//! printed. It stands beside the files it quotes.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::html::{class, escape, head};
use crate::process::{Fate, ProcessRecord};
use crate::results::CellResult;

/// What is quoted of one log: its beginning and its end, this much of each. The whole is in the file.
const QUOTED: usize = 48 << 10;

pub(crate) fn write_cell_page(dir: &Path, cell: &CellResult) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    let path = dir.join("index.html");
    std::fs::write(&path, page(dir, cell)).with_context(|| format!("write {}", path.display()))
}

fn page(dir: &Path, cell: &CellResult) -> String {
    let mut page = head(&cell.id);
    let _ = write!(
        page,
        "<p><a href=\"../../index.html\">all cells</a></p>\n<h1>{}</h1>\n<p><span class=\"{}\">&nbsp;{}&nbsp;</span>",
        escape(&cell.id),
        class(cell.verdict),
        cell.verdict
    );
    if let Some(failure) = cell.class {
        let _ = write!(page, " ({failure})");
    }
    let machine = cell.machine_type.as_deref().unwrap_or("–");
    let _ = writeln!(page, " after {:.1} s, machine {}</p>", cell.seconds, escape(machine));
    if let Some(reason) = &cell.reason {
        let _ = writeln!(page, "<p class=\"bad\">{}</p>", escape(reason));
    }
    if let Some(encore) = &cell.replay {
        let words = match &encore.reason {
            None => String::from("it loads, and memory is equal"),
            Some(reason) => reason.clone(),
        };
        let _ =
            writeln!(page, "<p>The recording, played to {}: {}</p>", escape(&encore.build), escape(&words));
    }
    if let Some(entry) = &cell.expected {
        let _ = writeln!(page, "<p>Expected: {}</p>", escape(&entry.reason));
    }
    let _ = writeln!(page, "<h2>Again</h2>\n<pre>{}</pre>", escape(&cell.reproduce));
    if !cell.artifacts.is_empty() {
        page.push_str("<h2>Files</h2>\n<ul>\n");
        for name in &cell.artifacts {
            let _ = writeln!(page, "<li><a href=\"{0}\">{0}</a></li>", escape(name));
        }
        page.push_str("</ul>\n");
    }
    for process in &cell.processes {
        process_section(&mut page, dir, process);
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn process_section(page: &mut String, dir: &Path, process: &ProcessRecord) {
    let fate = match process.fate {
        Fate::Running => String::from("no end was seen"),
        Fate::Exited(code) => format!("exit status {code}"),
        Fate::Signalled(signal) => format!("died of signal {signal}"),
        Fate::Killed => String::from("killed by the judge"),
    };
    let _ = writeln!(page, "<h2>{}</h2>\n<p>{fate}</p>", escape(&process.name));
    let _ = writeln!(page, "<pre>{}</pre>", escape(&process.command));
    let logs =
        [("stderr", Some(&process.stderr)), ("stdout", Some(&process.stdout)), ("QMP", process.qmp.as_ref())];
    for (title, name) in logs {
        let Some(name) = name else { continue };
        let text = quote(&dir.join(name));
        if !text.is_empty() {
            let _ = writeln!(
                page,
                "<h3>{title} <a href=\"{0}\">{0}</a></h3>\n<pre>{1}</pre>",
                escape(name),
                escape(&text)
            );
        }
    }
}

/// The text of a log, its middle left out if it is long.
fn quote(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if bytes.len() <= 2 * QUOTED {
        return text(&bytes);
    }
    let left_out = bytes.len() - 2 * QUOTED;
    format!("{}\n[.. {left_out} bytes ..]\n{}", text(&bytes[..QUOTED]), text(&bytes[bytes.len() - QUOTED..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn a_page_quotes_every_log_escaped() {
        let dir = tempfile::tempdir().unwrap();
        let mut cell = sample().cells.swap_remove(1);
        cell.processes = vec![ProcessRecord {
            name: "source".into(),
            command: "qemu '<x>'".into(),
            stdout: "source.stdout".into(),
            stderr: "source.stderr".into(),
            qmp: Some("source.qmp".into()),
            fate: Fate::Signalled(6),
        }];
        cell.artifacts = vec!["capture.pcapng".into()];
        std::fs::write(dir.path().join("source.stderr"), "</pre><script>\u{1b}[0m").unwrap();
        std::fs::write(dir.path().join("source.qmp"), "-> query-status").unwrap();
        write_cell_page(dir.path(), &cell).unwrap();
        let page = std::fs::read_to_string(dir.path().join("index.html")).unwrap();
        for text in
            ["signal 6", "&lt;script&gt;", "query-status", "capture.pcapng", &cell.reproduce, "&lt;x&gt;"]
        {
            assert!(page.contains(text), "{text}: {page}");
        }
        assert!(!page.contains("<script"), "{page}");
    }

    #[test]
    fn a_long_log_keeps_both_its_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = format!("begin{}end", "x".repeat(3 * QUOTED));
        std::fs::write(&path, &log).unwrap();
        let text = quote(&path);
        assert!(text.starts_with("begin") && text.ends_with("end"));
        assert!(text.contains(&format!("[.. {} bytes ..]", log.len() - 2 * QUOTED)));
    }
}
