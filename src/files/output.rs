//! A large file that is made in parts, written past the page cache where the file system can.
//!
//! Weights are written once and are larger than memory: pages of the page cache that hold them are allocated, copied to,
//! sent to the disk and evicted, and push out the input on the way. Direct I/O (`O_DIRECT`) skips all of that, but moves
//! only whole pages between aligned places. So bytes that are not [`Aligned`] pass through a buffer that is, and a page that
//! several parts share is read, changed and written back under a lock. A file is either wholly direct or wholly not: the
//! kernel does not promise that both views of a file agree. It must not know what the bytes mean.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What direct I/O is aligned to: the largest logical block of common disks, and a multiple of all others.
const PAGE: usize = 4096;

/// Bytes that pass through a buffer at once: enough to keep a fast disk busy, few enough to be still in a core's cache when they
/// are looked at a second time.
const CHUNK: usize = 1 << 20;

/// Memory that a thread needs to write: [`Bounce`].
pub const BOUNCE_BYTES: u64 = (CHUNK + PAGE) as u64;

/// Bytes at an address from which direct I/O takes them as they are.
#[derive(Debug)]
pub struct Aligned {
    room: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// That many bytes, all zero.
    pub fn new(length: usize) -> Self {
        let room = vec![0; length + PAGE];
        let start = room.as_ptr().align_offset(PAGE);
        Self { room, start, length }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.room[self.start..self.start + self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.room[self.start..self.start + self.length]
    }
}

/// The buffer of one thread for bytes that are not aligned, allocated when it is first used.
#[derive(Debug, Default)]
pub struct Bounce(Option<Aligned>);

impl Bounce {
    /// [`CHUNK`] bytes.
    fn get(&mut self) -> &mut [u8] {
        self.0.get_or_insert_with(|| Aligned::new(CHUNK))
    }
}

/// A file of a known size whose parts are written in any order by several threads.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    bytes: u64,
    /// Held while a shared page is changed. `None`: this file goes through the page cache.
    shared_page: Option<Mutex<()>>,
}

impl OutputFile {
    /// Opens or creates a file and reserves its full size, so that a full disk shows before the work and not in its last
    /// minute. What an earlier run wrote stays.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn create(path: &Path, bytes: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let buffered = options.open(path)?;
        buffered.set_len(bytes)?;
        if bytes > 0 {
            match rustix::fs::fallocate(&buffered, rustix::fs::FallocateFlags::empty(), 0, bytes) {
                // A file system that cannot reserve, or was interrupted, shows a full disk while it is written.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let flags = i32::try_from(OFlags::DIRECT.bits()).expect("flags of open(2) are an int");
        let direct = options.custom_flags(flags).open(path).ok().filter(|direct| {
            // Some file systems take the flag and refuse the reads and writes.
            direct.read_at(&mut Bounce::default().get()[..PAGE], 0).is_ok()
        });
        Ok(match direct {
            Some(file) => Self { file, bytes, shared_page: Some(Mutex::new(())) },
            None => Self { file: buffered, bytes, shared_page: None },
        })
    }

    /// Writes `bytes` from `offset` on, and shows them to `see` on the way, a piece at a time. Parts must not overlap.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn write_all_at(
        &self,
        mut bytes: &[u8],
        mut offset: u64,
        bounce: &mut Bounce,
        mut see: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let within = (offset % PAGE as u64) as usize;
            let whole_pages = bytes.len() / PAGE * PAGE;
            let is_part_of_page = within > 0 || whole_pages == 0;
            let length = match &self.shared_page {
                None => bytes.len(),
                Some(_) if is_part_of_page => bytes.len().min(PAGE - within),
                Some(_) => whole_pages.min(CHUNK),
            };
            let (piece, rest) = bytes.split_at(length);
            see(piece);
            match &self.shared_page {
                Some(shared_page) if is_part_of_page => {
                    let page = &mut bounce.get()[..PAGE];
                    let start = offset - within as u64;
                    let _held = shared_page.lock().expect("no thread panics while it holds the lock");
                    self.fill(page, start)?;
                    page[within..within + length].copy_from_slice(piece);
                    self.file.write_all_at(page, start)?;
                }
                Some(_) if piece.as_ptr().align_offset(PAGE) != 0 => {
                    let buffer = &mut bounce.get()[..length];
                    buffer.copy_from_slice(piece);
                    self.file.write_all_at(buffer, offset)?;
                }
                _ => self.file.write_all_at(piece, offset)?,
            }
            (bytes, offset) = (rest, offset + length as u64);
        }
        Ok(())
    }

    /// Reads the bytes from `start` to `end` and shows them to `see`, a piece at a time.
    ///
    /// # Errors
    /// What the disk refuses; the file is shorter than that.
    pub fn read(&self, start: u64, end: u64, bounce: &mut Bounce, mut see: impl FnMut(&[u8])) -> io::Result<()> {
        let buffer = bounce.get();
        let mut at = start;
        while at < end {
            let within = if self.shared_page.is_some() { at % PAGE as u64 } else { 0 };
            let length = (end - at).min(CHUNK as u64 - within);
            // Whole pages, beyond the end of the file if need be.
            let pages = ((within + length) as usize).next_multiple_of(PAGE);
            let asked = if self.shared_page.is_some() { pages } else { length as usize };
            let found = self.fill(&mut buffer[..asked], at - within)?;
            if (found as u64) < within + length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            see(&buffer[within as usize..(within + length) as usize]);
            at += length;
        }
        Ok(())
    }

    /// Fills `to` from `offset` on as far as the file goes; how many bytes that are.
    fn fill(&self, to: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut found = 0;
        while found < to.len() {
            match self.file.read_at(&mut to[found..], offset + found as u64) {
                Ok(0) => break,
                Ok(length) => found += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.shared_page.is_some() && !found.is_multiple_of(PAGE) {
                // Only the end of the file cuts a page short.
                break;
            }
        }
        Ok(found)
    }

    /// Sends what was written to the disk.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Sends everything to the disk. The last page was written whole; here the file gets its own size again.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn sync(&self) -> io::Result<()> {
        self.file.set_len(self.bytes)?;
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts that share pages, in an order that is not theirs, from three threads.
    fn filled(output: &OutputFile, content: &[u8]) {
        let cuts = [0, 1, 7, 4000, 4096, 9000, 9001, 50_000, 9_000_000, 9_000_003, content.len()];
        std::thread::scope(|scope| {
            for thread in 0..3 {
                scope.spawn(move || {
                    let mut bounce = Bounce::default();
                    for part in (0..cuts.len() - 1).rev().filter(|part| part % 3 == thread) {
                        let range = cuts[part]..cuts[part + 1];
                        output.write_all_at(&content[range.clone()], range.start as u64, &mut bounce, |_| ()).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn parts_meet_within_a_page_whatever_the_way_to_the_disk() {
        let content: Vec<u8> = (0..9_100_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        for direct in [true, false] {
            let path = folder.path().join(format!("{direct}"));
            let mut output = OutputFile::create(&path, content.len() as u64).unwrap();
            if !direct {
                output = OutputFile { file: File::options().read(true).write(true).open(&path).unwrap(), ..output };
                output.shared_page = None;
            }
            filled(&output, &content);
            output.sync().unwrap();
            for (start, end) in [(0, content.len()), (4095, 4097), (5000, 9_050_000), (9_100_000, 9_100_001), (3, 3)] {
                let mut found = Vec::new();
                let mut see = |piece: &[u8]| found.extend_from_slice(piece);
                output.read(start as u64, end as u64, &mut Bounce::default(), &mut see).unwrap();
                assert!(found == content[start..end], "{start}..{end} differ");
            }
            let beyond = output.read(0, content.len() as u64 + 1, &mut Bounce::default(), |_| ()).unwrap_err();
            assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
            assert!(std::fs::read(&path).unwrap() == content, "the file differs, direct: {direct}");
        }
    }

    #[test]
    fn opening_again_keeps_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("again");
        let mut bounce = Bounce::default();
        OutputFile::create(&path, 10_000).unwrap().write_all_at(b"first", 5000, &mut bounce, |_| ()).unwrap();
        let again = OutputFile::create(&path, 10_000).unwrap();
        again.write_all_at(b"second", 5005, &mut bounce, |_| ()).unwrap();
        again.sync().unwrap();
        let found = std::fs::read(&path).unwrap();
        assert_eq!((found.len(), &found[4999..5012]), (10_000, &b"\0firstsecond\0"[..]));
    }
}
