//! What several layers do with files: write large ones in parts, take one for this process alone, write digests as text. It must not know what a file holds.

mod output;

pub use output::{Aligned, BOUNCE_BYTES, Bounce, OutputFile};

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// Opens a file for reading, and says how many bytes it has. Refuses what is no regular file: opening a pipe would wait for a writer
/// for ever, and a device may have no end.
///
/// # Errors
/// There is none, it is something else, or it cannot be read.
pub fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok((File::open(path)?, found.len()))
}

/// Lower case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Somebody else has a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The process, where the system tells.
    pub by: Option<u32>,
}

/// Takes an open file for this process alone, until it is closed; or says who has it.
///
/// # Errors
/// The file system does not answer, or knows no locks.
pub fn lock(file: &File) -> io::Result<Result<(), Held>> {
    match file.try_lock() {
        Ok(()) => Ok(Ok(())),
        Err(TryLockError::WouldBlock) => Ok(Err(Held { by: holder(file) })),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The process that has a file locked, where the system tells: `1: FLOCK ADVISORY WRITE 4711 fe:00:131 0 EOF`
/// (`proc_locks(5)`), with the file's inode behind the device.
fn holder(file: &File) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let inode = file.metadata().ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else { return None };
        (place.rsplit(':').next() == Some(inode.as_str())).then(|| pid.parse().ok())?
    })
}
