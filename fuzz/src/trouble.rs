//! Trouble: any script on any bytes of any channel. Without a rule that applies everything passes as it came; with one, the same is done
//! however the bytes come.

use std::sync::{Arc, Mutex, PoisonError};

use migwire::channel::Tail;
use migwire::trouble::{Channel, Done, Saboteur, Script, Step, random};

/// Longest script.
const TEXT: usize = 200;

/// The body: which channel, how large the pieces are, how long the script is, the script (or what chance makes of its bytes), the channel.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let Some(([channel, piece, length], rest)) = bytes.split_first_chunk::<3>() else { return };
    let channel = match channel % 6 {
        0 => Channel::Main,
        1 => Channel::ReturnPath,
        2 => Channel::Preempt,
        id => Channel::Multifd(id - 3),
    };
    let (text, bytes) = rest.split_at(usize::from(*length).min(TEXT).min(rest.len()));
    let text = String::from_utf8_lossy(text);
    let script = text.parse::<Script>().unwrap_or_else(|_| {
        random(text.bytes().fold(0, |sum, byte| sum.wrapping_mul(257).wrapping_add(byte.into())))
    });
    let written = script.to_string();
    assert_eq!(written.parse::<Script>().ok(), Some(script.clone()), "{written}");

    let piece = usize::from(*piece) + 1;
    let nothing = outcome(&Script::default(), channel, bytes, piece);
    assert!(nothing == (steps(bytes), Vec::new()), "without a rule bytes have changed");

    let whole = outcome(&script, channel, bytes, usize::MAX);
    assert!(
        outcome(&script, channel, bytes, piece) == whole,
        "pieces of {piece} make a difference: {written}"
    );
    let passed: usize =
        whole.0.iter().map(|step| if let Step::Write(bytes) = step { bytes.len() } else { 0 }).sum();
    assert!(passed <= bytes.len() * (1 + script.rules.len()), "{passed} of {}: {written}", bytes.len());
    let has_ended = matches!(whole.0.last(), Some(Step::Cut | Step::Reset));
    if whole.1.is_empty() && !has_ended {
        assert!(whole.0 == steps(bytes), "nothing was done, and bytes have changed: {written}");
    }

    let at = bytes.len() / 2;
    let cut = format!("cut at byte {at} of {channel}").parse().expect("this is a rule");
    let (steps, _) = outcome(&cut, channel, bytes, piece);
    let ends = steps.iter().position(|step| *step == Step::Cut);
    assert!(ends.is_some(), "there is no end at {at}");
    let before: Vec<u8> = steps[..ends.unwrap_or(0)]
        .iter()
        .flat_map(|step| if let Step::Write(bytes) = step { &bytes[..] } else { &[] })
        .copied()
        .collect();
    assert!(before == bytes[..at], "what came before the cut");
}

fn steps(bytes: &[u8]) -> Vec<Step> {
    if bytes.is_empty() { Vec::new() } else { vec![Step::Write(bytes.to_vec())] }
}

/// What is done, up to the end of the connection; neighbouring writes are put together.
fn outcome(script: &Script, channel: Channel, bytes: &[u8], piece: usize) -> (Vec<Step>, Vec<Done>) {
    let done: Arc<Mutex<Vec<Done>>> = Arc::default();
    let mut saboteur = Saboteur::new(Arc::new(script.clone()), channel, Arc::clone(&done));
    let mut steps: Vec<Step> = Vec::new();
    let pieces = bytes.chunks(piece).map(|piece| (piece, Tail::Open));
    'all: for (piece, tail) in pieces.chain([(&[][..], Tail::Closed)]) {
        for step in saboteur.handle(piece, tail) {
            let is_end = matches!(step, Step::Cut | Step::Reset);
            match (steps.last_mut(), step) {
                (_, Step::Write(bytes)) if bytes.is_empty() => {}
                (Some(Step::Write(before)), Step::Write(bytes)) => before.extend(bytes),
                (_, step) => steps.push(step),
            }
            if is_end {
                break 'all;
            }
        }
    }
    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if matches!(steps.last(), Some(Step::Cut | Step::Reset)) {
        // Of what stands behind the end, more or less has been looked at.
        done.clear();
    }
    (steps, done)
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("trouble", 2000, super::run);
    }
}
