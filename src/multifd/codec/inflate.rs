//! Inflating a piece into a slice: what zlib, the containers and gzip members have in common.

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

/// How far one went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes of input that are used up.
    pub(super) consumed: usize,
    /// Bytes of output that are there.
    pub(super) produced: usize,
    /// Why it went no further.
    pub(super) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The output is full, or all input is used up.
    Between,
    /// The stream is over.
    Stream,
    /// The input is no such stream.
    Broken,
}

/// Inflates `input` into `output`, as far as both go.
pub(super) fn inflate(stream: &mut Decompress, input: &[u8], output: &mut [u8]) -> Progress {
    let (start_in, start_out) = (stream.total_in(), stream.total_out());
    let mut progress = Progress { consumed: 0, produced: 0, end: End::Between };
    while progress.produced < output.len() {
        let before = progress;
        let (rest, room) = (&input[progress.consumed..], &mut output[progress.produced..]);
        let status = stream.decompress(rest, room, FlushDecompress::None);
        // No more than what was given; both counts are of this call.
        progress.consumed = ((stream.total_in() - start_in) as usize).min(input.len());
        progress.produced = ((stream.total_out() - start_out) as usize).min(output.len());
        match status {
            Ok(Status::StreamEnd) => progress.end = End::Stream,
            Ok(Status::Ok | Status::BufError) if progress == before => {}
            Ok(Status::Ok | Status::BufError) => continue,
            Err(_) => progress.end = End::Broken,
        }
        break;
    }
    progress
}

/// What follows when all pages are there: the end of a block and the empty one of a flush are to be eaten, output is not to come
/// of it. If some does, `produced` is 1.
pub(super) fn drain(stream: &mut Decompress, input: &[u8]) -> Progress {
    inflate(stream, input, &mut [0])
}

/// Deflates `input`, all of it, up to a flush or the end of the stream, and appends what comes out of it to `out`.
pub(super) fn deflate(stream: &mut Compress, input: &[u8], flush: FlushCompress, out: &mut Vec<u8>) {
    let start = stream.total_in();
    // Random bytes grow by an eighth at the fastest level. With room for that and some marks all is done at the first attempt; a
    // second one would leave a second mark.
    out.reserve(input.len() + input.len() / 7 + 128);
    loop {
        let rest = &input[((stream.total_in() - start) as usize).min(input.len())..];
        // It fails only for a stream that is over, which callers reset.
        let status = stream.compress_vec(rest, out, flush);
        if out.len() < out.capacity() || !matches!(status, Ok(Status::Ok | Status::BufError)) {
            break;
        }
        out.reserve(input.len() / 8 + 128);
    }
}
