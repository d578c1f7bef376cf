//! A read-only memory map of one file, and the advice that keeps resident memory bounded.
//!
//! The only `unsafe` outside the kernels lives here. Knows bytes and ranges; knows no tensor and no format.
//!
//! # The file must not change while it is mapped
//!
//! The operating system gives no protection against that. A file that another process *rewrites* changes under our eyes; a file
//! that it *shortens* kills this process with SIGBUS at the first access behind the new end. Neither can be prevented from here:
//! [`Checkpoint::unchanged`](super::Checkpoint::unchanged) lets long tasks notice a change between their steps.

use std::fs::File;
use std::io;
use std::ops::Range;

// Offsets in files are `u64` and slices are indexed by `usize`: this library needs a 64-bit machine (one tensor has 20 GiB).
const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// What to do with a page that a released range covers only in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edges {
    /// Keep it: somebody is working on the neighbouring bytes.
    Keep,
    /// Give it back too. Always correct (a neighbour that still needs the page takes a page fault and finds the same bytes), and the
    /// right choice for whoever walks through a file in stripes: kept edges add up, one page per stripe.
    Drop,
}

/// A mapped file, or pieces of one that lies elsewhere.
#[derive(Debug)]
pub(crate) struct Map {
    content: Content,
    page: u64,
}

#[derive(Debug)]
enum Content {
    Mapped(memmap2::Mmap),
    /// Bytes with the position of the first of them.
    Fetched(Vec<(u64, Vec<u8>)>),
}

impl Map {
    /// Maps the first `bytes` of a file, which must be all of it at this moment. Touches no page of it.
    pub(crate) fn new(file: &File, bytes: u64) -> io::Result<Self> {
        // SAFETY: the map is read-only. That nobody changes the file meanwhile cannot be proved, only documented and watched
        // (see the module header); the bytes are plain data for which every bit pattern is valid.
        let map = unsafe { memmap2::MmapOptions::new().len(bytes as usize).map(file)? };
        Ok(Self { content: Content::Mapped(map), page: rustix::param::page_size() as u64 })
    }

    /// Stands for a file that is not on this machine, of which these pieces are, each with the position of its first byte.
    pub(crate) fn fetched(pieces: Vec<(u64, Vec<u8>)>) -> Self {
        Self { content: Content::Fetched(pieces), page: rustix::param::page_size() as u64 }
    }

    /// Bytes of the file.
    ///
    /// # Panics
    /// If they are not inside the file, or were not fetched.
    pub(crate) fn range(&self, range: Range<u64>) -> &[u8] {
        let within = |bytes: &[u8], start: u64| range.start >= start && range.end - start <= bytes.len() as u64;
        let (start, bytes) = match &self.content {
            Content::Mapped(map) => (0, &map[..]),
            Content::Fetched(pieces) => {
                let found = pieces.iter().find(|(start, bytes)| within(bytes, *start));
                let (start, bytes) = found.expect("who reads weights asks `Checkpoint::require_here` first");
                (*start, &bytes[..])
            }
        };
        &bytes[(range.start - start) as usize..(range.end - start) as usize]
    }

    /// Gives the pages of a byte range back to the operating system (they stay in its page cache).
    ///
    /// This is advice: where the system declines it, memory stays resident and nothing else changes.
    pub(crate) fn release(&self, range: Range<u64>, edges: Edges) {
        let Content::Mapped(map) = &self.content else { return };
        let range = rounded(range, self.page, map.len() as u64, edges);
        if range.is_empty() {
            return;
        }
        #[cfg(unix)]
        {
            let (start, length) = (range.start as usize, (range.end - range.start) as usize);
            // SAFETY: `MADV_DONTNEED` on a read-only map of a file drops page table entries only; the next access, also through a
            // slice that is alive now, reads the same bytes of the same file again.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length) };
        }
    }

    /// Asks the operating system to read a byte range ahead. Returns at once; advice, like [`Map::release`].
    pub(crate) fn will_need(&self, range: Range<u64>) {
        let Content::Mapped(map) = &self.content else { return };
        let range = rounded(range, self.page, map.len() as u64, Edges::Drop);
        if !range.is_empty() {
            #[cfg(unix)]
            let _ =
                map.advise_range(memmap2::Advice::WillNeed, range.start as usize, (range.end - range.start) as usize);
        }
    }
}

/// A byte range in whole pages: shrunk (`Keep`) or grown (`Drop`). The end of the file counts as the end of a page.
fn rounded(range: Range<u64>, page: u64, file_bytes: u64, edges: Edges) -> Range<u64> {
    let end = range.end.min(file_bytes);
    match edges {
        Edges::Keep if end == file_bytes => range.start.next_multiple_of(page)..end,
        Edges::Keep => range.start.next_multiple_of(page)..end - end % page,
        Edges::Drop => range.start - range.start % page..end.next_multiple_of(page).min(file_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_round_to_pages() {
        let cases = [
            (4096..4096 * 2, Edges::Keep, 4096..8192),
            (4097..8191, Edges::Drop, 4096..8192),
            (1..10_000, Edges::Keep, 4096..10_000),
            (1..10_000, Edges::Drop, 0..10_000),
            (9_000..99_999, Edges::Drop, 8192..10_000),
        ];
        for (range, edges, expected) in cases {
            assert_eq!(rounded(range.clone(), 4096, 10_000, edges), expected, "{range:?} {edges:?}");
        }
        assert!(rounded(4097..8191, 4096, 10_000, Edges::Keep).is_empty());
    }
}
