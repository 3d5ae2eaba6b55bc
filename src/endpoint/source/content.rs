//! What a RAM block holds: pages of the template, of an image, or of a pattern.

use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, preadv};

use super::outlet::Outlet;
use super::output::Output;
use super::team::Team;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::{Pattern, file_name, is_zero};
use crate::wire::MULTIFD_PACKET_SIZE;

/// Where the pages of a block come from.
#[derive(Debug)]
pub(super) enum Content {
    /// From the template, as they stand in it.
    Kept,
    /// From a rule.
    Pattern(Pattern),
    /// From a file.
    Image(Image),
}

/// A block's image.
#[derive(Debug)]
pub(super) struct Image {
    path: PathBuf,
    file: File,
}

impl Image {
    /// The image of a block in `directory`; `None` if there is none.
    pub(super) fn find(directory: &Path, block: &[u8], length: u64) -> Result<Option<Self>> {
        const DOING: &str = "opening a RAM image";
        let path = directory.join(file_name(block));
        let failed = |e| Error::io(DOING, path.display().to_string(), e);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let size = file.metadata().map_err(failed)?.len();
        if size != length {
            let message = format!("{} has {size} bytes, its block has {length}", path.display());
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
        Ok(Some(Self { path, file }))
    }

    /// The next stretch of data from `at`; what is in front of it is a hole, and zero.
    fn data(&self, at: u64, length: u64) -> (u64, u64) {
        // A file system that knows no holes says that everything is data.
        match seek(&self.file, SeekFrom::Data(at)) {
            Ok(start) => (start, seek(&self.file, SeekFrom::Hole(start)).unwrap_or(length)),
            Err(Errno::NXIO) => (length, length),
            Err(_) => (at, length),
        }
    }
}

/// A stretch of a block, with its place in the list.
pub(super) struct Stretch {
    pub(super) index: usize,
    /// Bytes of the block; it begins with a page, and ends with one or with the block.
    pub(super) range: Range<u64>,
    /// Length of the block.
    pub(super) length: u64,
    pub(super) page_size: u64,
}

impl Content {
    /// Sends every page of the stretch.
    pub(super) fn send(&self, block: &Stretch, out: &mut Outlet<'_, '_>) -> Result<()> {
        match &mut out.team {
            Some(team) => self.deal(block, team, &mut out.main),
            None => self.send_on_main(block, &mut out.main),
        }
    }

    /// Fills `pages` with those at `offsets` of a block of that length.
    pub(super) fn find(&self, offsets: &[u64], length: u64, size: usize, pages: &mut [u8]) -> Result<()> {
        match self {
            // Whoever sends pages of the template gives their content as well.
            Self::Kept => Err(Error::nowhere(ErrorKind::Misuse, "sending", "pages without content")),
            Self::Pattern(pattern) => {
                for (offset, page) in offsets.iter().zip(pages.chunks_exact_mut(size)) {
                    pattern.fill(*offset, page);
                }
                Ok(())
            }
            Self::Image(image) => {
                // Neighbours are read at once.
                let is_next = |a: &u64, b: &u64| a + size as u64 == *b;
                let mut rest = pages;
                for run in offsets.chunk_by(is_next) {
                    let (these, others) = rest.split_at_mut(run.len() * size);
                    image.read_at(run[0], length, these)?;
                    rest = others;
                }
                Ok(())
            }
        }
    }

    /// Sends the few pages of the stretch on the main channel, without looking for holes in front of them.
    pub(super) fn send_few(&self, block: &Stretch, out: &mut Output<'_>) -> Result<()> {
        match self {
            Self::Image(image) => image.send_data(block, out),
            _ => self.send_on_main(block, out),
        }
    }

    /// Has the multifd channels send every page of the stretch.
    fn deal(&self, block: &Stretch, team: &mut Team<'_>, main: &mut Output<'_>) -> Result<()> {
        match self {
            Self::Kept => Ok(()),
            Self::Pattern(pattern) if team.wants_zero_pages_on_main() => {
                block.offsets(block.range.clone()).try_for_each(|offset| match pattern.is_zero(offset) {
                    true => main.zero_page(block.index, offset),
                    false => team.add(block.index, offset),
                })
            }
            Self::Image(image) if team.wants_zero_pages_on_main() => image.deal(block, team, main),
            _ => block.offsets(block.range.clone()).try_for_each(|offset| team.add(block.index, offset)),
        }?;
        main.tell();
        team.deal()
    }

    fn send_on_main(&self, block: &Stretch, out: &mut Output<'_>) -> Result<()> {
        match self {
            Self::Kept => Ok(()),
            Self::Pattern(pattern) => {
                block.offsets(block.range.clone()).try_for_each(|offset| match pattern {
                    Pattern::Zero => out.zero_page(block.index, offset),
                    _ => {
                        let early = out.rounds_left;
                        out.page(block.index, offset, |page| {
                            pattern.fill(offset, page);
                            disturb(page, offset, early);
                        })
                    }
                })
            }
            Self::Image(image) => image.send(block, out),
        }
    }
}

/// Makes a page of an early round differ from what it is in the last one, in a few bytes: a guest that was at work.
fn disturb(page: &mut [u8], offset: u64, rounds_left: u64) {
    let len = page.len() as u64;
    for i in 0..rounds_left {
        page[((offset / len * 31 + i * 977) % len) as usize] ^= 0x5a;
    }
}

impl Stretch {
    fn offsets(&self, range: Range<u64>) -> impl Iterator<Item = u64> + use<> {
        range.step_by(self.page_size as usize)
    }
}

impl Image {
    fn send(&self, block: &Stretch, out: &mut Output<'_>) -> Result<()> {
        let size = block.page_size;
        let mut at = block.range.start;
        while at < block.range.end {
            let (start, end) = self.data(at, block.length);
            let start = (start & !(size - 1)).min(block.range.end);
            block.offsets(at..start).try_for_each(|offset| out.zero_page(block.index, offset))?;
            let range = at.max(start)..end.next_multiple_of(size).min(block.range.end);
            at = range.end;
            self.send_data(&Stretch { range, ..*block }, out)?;
        }
        Ok(())
    }

    fn send_data(&self, block: &Stretch, out: &mut Output<'_>) -> Result<()> {
        let size = block.page_size;
        let Range { start: mut at, end } = block.range;
        while at < end {
            at += match (end - at) / size {
                // Only the last page of a block of odd length is short.
                0 => self.send_short(at, block, out)?,
                whole => size * out.pages(block.index, at, whole, |pages| self.read(at, pages))?,
            };
        }
        Ok(())
    }

    /// Sends zero pages on the main channel, and has the others sent. They are read once, here.
    fn deal(&self, block: &Stretch, team: &mut Team<'_>, main: &mut Output<'_>) -> Result<()> {
        let size = block.page_size;
        let (mut at, mut hole) = (block.range.start, 0);
        let mut pages = Vec::new();
        while at < block.range.end {
            if at >= hole {
                let (start, end) = self.data(at, block.length);
                let start = (start & !(size - 1)).min(block.range.end);
                block.offsets(at..start).try_for_each(|offset| main.zero_page(block.index, offset))?;
                (at, hole) = (at.max(start), end.next_multiple_of(size));
                continue;
            }
            let end = hole.min(block.range.end).min(at + MULTIFD_PACKET_SIZE);
            pages.resize((end - at).next_multiple_of(size) as usize, 0);
            self.read_at(at, block.length, &mut pages)?;
            for page in pages.chunks_exact(size as usize) {
                match is_zero(page) {
                    true => main.zero_page(block.index, at)?,
                    false => team.add_page(block.index, at, page)?,
                }
                at += size;
            }
            main.tell();
        }
        Ok(())
    }

    /// Fills whole pages from `at` on; behind the end of the block there are zeros.
    fn read_at(&self, at: u64, length: u64, pages: &mut [u8]) -> Result<()> {
        let there = usize::try_from(length.saturating_sub(at)).unwrap_or(usize::MAX).min(pages.len());
        let (pages, rest) = pages.split_at_mut(there);
        rest.fill(0);
        self.read(at, &mut [IoSliceMut::new(pages)])
    }

    fn send_short(&self, at: u64, block: &Stretch, out: &mut Output<'_>) -> Result<u64> {
        let mut rest = vec![0; (block.length - at) as usize];
        self.read(at, &mut [IoSliceMut::new(&mut rest)])?;
        out.page(block.index, at, |page| {
            page[..rest.len()].copy_from_slice(&rest);
            page[rest.len()..].fill(0);
        })?;
        Ok(rest.len() as u64)
    }

    /// Fills all of `parts` from `at` on.
    fn read(&self, mut at: u64, mut parts: &mut [IoSliceMut<'_>]) -> Result<()> {
        let failed = |e| Error::io("reading a RAM image", self.path.display().to_string(), e);
        while !parts.is_empty() {
            match preadv(&self.file, parts, at) {
                Ok(0) => return Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    at += count as u64;
                    IoSliceMut::advance_slices(&mut parts, count);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(failed(e.into())),
            }
        }
        Ok(())
    }
}
