//! A zip archive whose entries are stored as they are: where each one's bytes lie in the file.
//!
//! Reads the central directory at the end of the file (PKWARE's APPNOTE 6.3, sections 4.3 and 4.5.3: also with 64-bit
//! sizes), never a byte of an entry that nobody asked for. Compressed entries are refused: they could not be mapped.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::error::{FormatError, Kind};

/// The largest central directory that is read: room for 400,000 entries. A rank of Maverick has about 1,000.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;

const END: [u8; 4] = *b"PK\x05\x06";
const END_BYTES: usize = 22;
const END64: [u8; 4] = *b"PK\x06\x06";
const END64_BYTES: usize = 56;
const LOCATOR64: [u8; 4] = *b"PK\x06\x07";
const LOCATOR64_BYTES: usize = 20;
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const CENTRAL_BYTES: usize = 46;
const LOCAL: [u8; 4] = *b"PK\x03\x04";
const LOCAL_BYTES: usize = 30;

/// An open archive.
pub(super) struct Archive<'a> {
    file: &'a File,
    path: &'a Path,
    /// Bytes before the central directory: entries lie there.
    data_end: u64,
    directory: Vec<u8>,
    /// By name, without the folder that all entries lie in.
    entries: HashMap<String, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    header: u64,
    bytes: u64,
    /// Not 0: compressed or encrypted.
    method: u16,
}

/// Little-endian numbers at fixed places of a record that has been read.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl<'a> Archive<'a> {
    /// Reads the directory of an archive of `size` bytes.
    pub(super) fn open(file: &'a File, path: &'a Path, size: u64) -> Result<Self, FormatError> {
        let mut archive = Self { file, path, data_end: 0, directory: Vec::new(), entries: HashMap::new() };
        let (start, bytes) = archive.find_directory(size)?;
        if bytes > DIRECTORY_BYTES_MAX {
            return Err(FormatError::new(path, Kind::TooLarge { bytes, cap: DIRECTORY_BYTES_MAX }));
        }
        archive.data_end = start;
        archive.directory = archive.read(start, bytes as usize)?;
        archive.entries = archive.list()?;
        Ok(archive)
    }

    /// The central directory, as it stands in the file.
    pub(super) fn directory(&self) -> &[u8] {
        &self.directory
    }

    /// Whether there is an entry of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The content of a small entry.
    pub(super) fn content(&self, name: &str, cap: u64) -> Result<Vec<u8>, FormatError> {
        let (start, bytes) = self.locate(name)?;
        if bytes > cap {
            return Err(FormatError::new(self.path, Kind::TooLarge { bytes, cap }));
        }
        self.read(start, bytes as usize)
    }

    /// First byte and length of an entry.
    pub(super) fn locate(&self, name: &str) -> Result<(u64, u64), FormatError> {
        let Some(entry) = self.entries.get(name) else {
            return Err(self.wrong(format!("the archive has no entry `{name}`")));
        };
        if entry.method != 0 {
            return Err(self.wrong(format!("the entry `{name}` is compressed, and is not what torch writes")));
        }
        let header = self.read(entry.header, LOCAL_BYTES)?;
        if header[..4] != LOCAL {
            return Err(self.wrong(format!("the entry `{name}` has no header at byte {}", entry.header)));
        }
        // The lengths in this header, not those of the directory: writers pad here to align the data.
        let skipped = LOCAL_BYTES as u64 + u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let start = entry.header.saturating_add(skipped);
        match start.checked_add(entry.bytes) {
            Some(end) if end <= self.data_end => Ok((start, entry.bytes)),
            end => Err(FormatError::new(
                self.path,
                Kind::Truncated { expected: end.unwrap_or(u64::MAX), actual: self.data_end },
            )),
        }
    }

    /// An error on the archive as a whole.
    pub(super) fn wrong(&self, what: String) -> FormatError {
        FormatError::new(self.path, Kind::Archive { what })
    }

    fn read(&self, at: u64, bytes: usize) -> Result<Vec<u8>, FormatError> {
        let mut content = vec![0; bytes];
        match self.file.read_exact_at(&mut content, at) {
            Ok(()) => Ok(content),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.wrong(format!("{bytes} bytes should follow byte {at}, and the file ends before")))
            }
            Err(error) => Err(FormatError::io(self.path, "read")(error)),
        }
    }

    /// First byte and length of the central directory.
    fn find_directory(&self, size: u64) -> Result<(u64, u64), FormatError> {
        let tail_bytes = size.min(END_BYTES as u64 + u64::from(u16::MAX) + LOCATOR64_BYTES as u64);
        let tail_start = size - tail_bytes;
        let tail = self.read(tail_start, tail_bytes as usize)?;
        let last = tail.len().checked_sub(END_BYTES);
        let found = last.and_then(|last| (0..=last).rev().find(|&at| tail[at..at + 4] == END));
        let Some(end) = found else {
            return Err(self.wrong("not a whole zip archive: its directory is missing at the end".into()));
        };
        let (mut bytes, mut start) = (u64::from(u32_at(&tail, end + 12)), u64::from(u32_at(&tail, end + 16)));
        let mut directory_end = tail_start + end as u64;
        if let Some(locator) = end.checked_sub(LOCATOR64_BYTES).filter(|&at| tail[at..at + 4] == LOCATOR64) {
            let at = u64_at(&tail, locator + 8);
            let record = self.read(at, END64_BYTES)?;
            if record[..4] != END64 {
                return Err(self.wrong(format!("the end of the directory is not at byte {at}")));
            }
            (bytes, start) = (u64_at(&record, 40), u64_at(&record, 48));
            directory_end = at;
        }
        match start.checked_add(bytes) {
            Some(end) if end <= directory_end => Ok((start, bytes)),
            _ => Err(self.wrong(format!("the directory of {bytes} bytes at byte {start} does not lie in the file"))),
        }
    }

    /// The entries of the directory.
    fn list(&self) -> Result<HashMap<String, Entry>, FormatError> {
        let mut entries = HashMap::new();
        let mut rest = self.directory.as_slice();
        let torn = || self.wrong("the directory is damaged".into());
        while !rest.is_empty() {
            if rest.len() < CENTRAL_BYTES || rest[..4] != CENTRAL {
                return Err(torn());
            }
            let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(rest, at)));
            let end = CENTRAL_BYTES + name + extra + comment;
            if rest.len() < end {
                return Err(torn());
            }
            let Ok(full_name) = std::str::from_utf8(&rest[CENTRAL_BYTES..CENTRAL_BYTES + name]) else {
                return Err(torn());
            };
            let entry = read_entry(rest, &rest[CENTRAL_BYTES + name..CENTRAL_BYTES + name + extra]).ok_or_else(torn)?;
            // Everything lies in one folder, whose name is that of the file when it was written.
            let short = full_name.split_once('/').map_or(full_name, |(_, short)| short);
            if entries.insert(short.to_owned(), entry).is_some() {
                return Err(self.wrong(format!("the entry `{short}` is there twice")));
            }
            rest = &rest[end..];
        }
        Ok(entries)
    }
}

/// One record of the directory; sizes and offset that are all ones stand in the 64-bit field of `extra`.
fn read_entry(record: &[u8], mut extra: &[u8]) -> Option<Entry> {
    let encrypted = u16_at(record, 8) & 1;
    let method = u16_at(record, 10) | encrypted;
    let mut numbers = [20, 24, 42].map(|at| u64::from(u32_at(record, at)));
    // In the extra field the order is: whole size, stored size, offset.
    let order = [1, 0, 2];
    while extra.len() >= 4 {
        let (tag, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let mut field = extra.get(4..4 + length)?;
        if tag == 1 {
            for index in order.into_iter().filter(|&index| numbers[index] == u64::from(u32::MAX)).collect::<Vec<_>>() {
                numbers[index] = u64_at(field.get(..8)?, 0);
                field = &field[8..];
            }
        }
        extra = &extra[4 + length..];
    }
    let [stored, whole, header] = numbers;
    (stored == whole || method != 0).then_some(Entry { header, bytes: stored, method })
}
