//! Jobs of the multifd channels, and the pages of a packet.
//!
//! ```text
//! offsets  a b c d e     page c is zero     a b e d c     normal: the first four, zero: the last
//! buffer   A B 0 D E     ------------->     A B E D
//! ```
//! That is the order in which stock sources have them. Source: `migration/multifd-zero-page.c`, `multifd_send_zero_page_detect`.

use std::sync::Arc;

use crate::device_state::Plan;
use crate::guest::is_zero;
use crate::wire::DevicePacket;

/// Something to write on one multifd channel.
pub(super) enum Job {
    /// Pages of block `block`, at most as many as a packet holds.
    Pages {
        block: usize,
        offsets: Vec<u64>,
        /// Their content; otherwise the channel makes or reads it.
        given: Option<Vec<u8>>,
    },
    /// SYNC.
    Sync,
    /// Device state that is there already.
    Device { head: Box<[u8; DevicePacket::LEN]>, payload: Vec<u8> },
    /// A packet of device state, which the channel makes.
    State { plan: Arc<Plan>, idx: u32 },
    /// The end of the channel.
    Close,
}

/// Moves zero pages behind the others, which stay contiguous in `buffer`; returns the number of the others.
pub(super) fn partition(offsets: &mut [u64], buffer: &mut [u8], page_size: usize) -> usize {
    let (mut normal, mut end) = (0, offsets.len());
    while normal < end {
        let at = normal * page_size;
        if !is_zero(&buffer[at..at + page_size]) {
            normal += 1;
            continue;
        }
        end -= 1;
        offsets.swap(normal, end);
        if normal < end {
            buffer.copy_within(end * page_size..(end + 1) * page_size, at);
        }
    }
    normal
}

/// Pages that wait until they make up a packet.
#[derive(Default)]
pub(super) struct Gather {
    pub(super) block: usize,
    pub(super) offsets: Vec<u64>,
    /// Their content, if the channel cannot find it by itself.
    pub(super) bytes: Option<Vec<u8>>,
}

impl Gather {
    /// Whether a page of `block` that comes with or without content fits to those that wait.
    pub(super) fn fits(&self, block: usize, is_given: bool) -> bool {
        self.offsets.is_empty() || (self.block == block && self.bytes.is_some() == is_given)
    }

    /// The job, if there is anything to do.
    pub(super) fn take(&mut self) -> Option<Job> {
        if self.offsets.is_empty() {
            return None;
        }
        let offsets = std::mem::take(&mut self.offsets);
        Some(Job::Pages { block: self.block, offsets, given: self.bytes.take() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitioned(pages: &[u8]) -> (usize, Vec<u64>, Vec<u8>) {
        let mut offsets: Vec<u64> = (0..pages.len() as u64).collect();
        let mut buffer: Vec<u8> = pages.iter().flat_map(|page| [*page; 16]).collect();
        let normal = partition(&mut offsets, &mut buffer, 16);
        let kept = buffer[..normal * 16].chunks(16).map(|page| page[0]).collect();
        (normal, offsets, kept)
    }

    #[test]
    fn zero_pages_go_behind_the_others_as_stock_sources_have_it() {
        assert_eq!(partitioned(&[1, 2, 0, 4, 5]), (4, vec![0, 1, 4, 3, 2], vec![1, 2, 5, 4]));
        assert_eq!(partitioned(&[0, 0, 3, 0]), (1, vec![2, 1, 3, 0], vec![3]));
        assert_eq!(partitioned(&[0, 2, 0, 4, 0]), (2, vec![3, 1, 2, 4, 0], vec![4, 2]));
        assert_eq!(partitioned(&[0, 0]), (0, vec![1, 0], vec![]));
        assert_eq!(partitioned(&[1, 2]), (2, vec![0, 1], vec![1, 2]));
        assert_eq!(partitioned(&[]), (0, vec![], vec![]));
    }

    #[test]
    fn pages_of_another_block_do_not_fit() {
        let mut gather = Gather::default();
        assert!(gather.fits(7, true) && gather.take().is_none());
        gather.block = 7;
        gather.offsets.push(0);
        assert!(gather.fits(7, false) && !gather.fits(7, true) && !gather.fits(6, false));
        assert!(matches!(gather.take(), Some(Job::Pages { block: 7, given: None, .. })));
    }
}
