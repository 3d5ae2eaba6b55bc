//! What the reading verbs are given: files, and how to read them.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use migwire::capture::FileKind;
use migwire::container::{self, Contents};
use migwire::dialect::Dialect;
use migwire::report::{Legs, Reading};
use migwire::stream::Mode;
use migwire::vmstate::Description;
use migwire::{ChannelId, Error, ErrorKind};

use super::output;

/// Files, and how to read them.
#[derive(Debug, Args)]
pub(crate) struct Given {
    /// Recording (pcapng), raw stream, dumps of channels (a file each, or a directory of `connNN.src-to-dst.bin`), qcow2 image with
    /// snapshots, or `-` for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Release whose bytes these are: 5.2 .. 11.1
    #[arg(long, default_value = "any", value_name = "NAME")]
    dialect: Dialect,
    /// Go on where a stock destination would refuse, as far as the bytes make sense
    #[arg(long)]
    lenient: bool,
    /// Sizes of device payloads for streams that do not describe themselves: another stream of the same build and
    /// machine, or the text of its description
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Snapshot of a qcow2 image, by name or id; all that have VM state otherwise
    #[arg(long, value_name = "NAME")]
    snapshot: Option<String>,
    /// One JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// A file that was opened, or why there is nothing in it to be read.
pub(crate) struct Opened {
    pub(crate) name: String,
    pub(crate) outcome: Result<Contents, Error>,
}

impl Given {
    /// How to read the files.
    pub(crate) fn reading(&self) -> anyhow::Result<Reading> {
        let mode = if self.lenient { Mode::Lenient } else { Mode::Strict };
        let schema = self.schema.as_deref().map(learn).transpose()?;
        Ok(Reading { mode, dialect: self.dialect, schema, page_size: None, legs: Legs::default() })
    }

    /// Opens all files; channels in files of their own become one migration. A file that is not there ends everything; one that
    /// holds nothing to read is a finding.
    pub(crate) fn open(&self) -> anyhow::Result<Vec<Opened>> {
        let (mut contents, mut bad) = (Vec::new(), Vec::new());
        for (index, path) in self.files.iter().enumerate() {
            let opened = self.open_one(path)?;
            match opened.outcome {
                Ok(found) => contents.push(found),
                Err(_) => bad.push((index, opened)),
            }
        }
        let opened = |contents: Contents| Opened { name: contents.name.clone(), outcome: Ok(contents) };
        if bad.is_empty() {
            return Ok(container::join(contents).into_iter().map(opened).collect());
        }
        // With something missing, what there is stays as it was given.
        let mut all: Vec<_> = contents.into_iter().map(opened).collect();
        for (index, opened) in bad {
            all.insert(index, opened);
        }
        Ok(all)
    }

    fn open_one(&self, path: &Path) -> anyhow::Result<Opened> {
        let name = path.display().to_string();
        // One direction of a channel is empty as a rule; alone, an empty file is a mistake.
        let is_empty = |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0);
        if self.files.len() > 1 && name != "-" && is_empty(path) {
            let notes = vec![format!("empty, and left out: {name}")];
            let empty = Contents {
                name: name.clone(),
                kind: FileKind::Empty,
                parts: Vec::new(),
                fault: None,
                notes,
                about: None,
            };
            return Ok(Opened { name, outcome: Ok(empty) });
        }
        let outcome = match name.as_str() {
            "-" => container::open_once(Box::new(io::stdin()), "standard input".into(), self.lenient),
            _ => container::open(path, self.lenient),
        };
        let outcome = match outcome {
            // No such file, a directory: the environment's fault, not the stream's.
            Err(error) if error.kind() == ErrorKind::Io => return Err(error.into()),
            Ok(contents) => Ok(self.choose(contents)?),
            Err(error) => Err(error),
        };
        Ok(Opened { name, outcome })
    }

    /// Leaves the snapshot that was asked for.
    fn choose(&self, mut contents: Contents) -> Result<Contents, Error> {
        if let Some(wanted) = &self.snapshot {
            let Some(at) = contents.parts.iter().position(|part| part.is_snapshot(wanted)) else {
                let message = format!("{} has no snapshot {wanted:?} with VM state", contents.name);
                return Err(Error::nowhere(ErrorKind::Misuse, "opening", message).on(ChannelId::Container));
            };
            contents.parts = vec![contents.parts.swap_remove(at)];
        }
        Ok(contents)
    }
}

/// Reads a schema: the text of a description, or a file with a stream that has one.
fn learn(path: &Path) -> anyhow::Result<Description> {
    /// Longer than any description.
    const LIMIT: u64 = 64 << 20;
    let mut first = [0; 1];
    let mut file =
        std::fs::File::open(path).map_err(|e| Error::io("schema", path.display().to_string(), e))?;
    let count = io::Read::read(&mut file, &mut first)?;
    if first[..count] == *b"{" {
        let mut text = first.to_vec();
        io::Read::read_to_end(&mut io::Read::take(file, LIMIT), &mut text)?;
        return Ok(Description::parse(&text, 0).map_err(|e| e.on(ChannelId::Container))?);
    }
    let mut contents = container::open(path, false)?;
    Ok(Reading::learn(&mut contents.parts)?)
}

/// Tells on standard error what was left out.
pub(crate) fn note(notes: &[String]) {
    use std::io::Write as _;
    for note in notes {
        let _ = writeln!(io::stderr(), "note: {note}");
    }
}

/// Tells of an error on standard error, on one line.
pub(crate) fn complain(what: &str, error: &Error) {
    use std::io::Write as _;
    // Standard error may be closed; there is nobody left to tell then.
    let _ = writeln!(io::stderr(), "{what}: {}", output::whole_text(error));
}
