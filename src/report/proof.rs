//! The proof for a channel of a file, with everything that the file says about it.

use super::reading::{Chapter, Reading, unsupported};
use super::verify::{self, Verification};
use crate::container::{self, Access, Part};
use crate::error::{ChannelId, Result};
use crate::stream::Mode;

/// Verifies a channel of a file, and the description in it: that it is JSON, and says what the sections are.
pub fn prove(part: &mut Part, reading: &Reading) -> Verification {
    let outcome = match part.channel {
        ChannelId::Main => described(part, reading),
        ChannelId::ReturnPath => reading
            .return_path(part)
            .map(|(mut feed, mut parser)| verify::channel(&mut feed, &mut parser, |_, _| {})),
        other => Err(unsupported(other)),
    };
    let mut found =
        outcome.unwrap_or_else(|error| Verification { error: Some(error), ..Verification::default() });
    found.error = found.error.map(container::unwrap_error);
    found
}

fn described(part: &mut Part, reading: &Reading) -> Result<Verification> {
    let (mut feed, mut parser) = reading.main_channel(part, Access::Whole)?;
    let mut chapter = Chapter::default();
    let mut found = verify::main_channel_with(&mut feed, &mut parser, |located| {
        chapter.note(&located.event, located.range.end);
    });
    // A stream that ended early has its fault already, and a part of a description is none.
    if found.error.is_none() {
        match chapter.description() {
            Some(Ok(description)) => found.notes = chapter.disagreements(&description),
            Some(Err(error)) if reading.mode == Mode::Lenient => found.complaints.push(error),
            Some(Err(error)) => found.error = Some(error),
            None if reading.schema.is_some() => {
                found.notes = reading.schema.iter().flat_map(|schema| chapter.strangers(schema)).collect();
            }
            None if parser.grammar().footers() == Some(false) => {
                found.notes.push("no footers and no VM description: where payloads end is a guess, confirmed by what follows".into());
            }
            None => {}
        }
    }
    Ok(found)
}
