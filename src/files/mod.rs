//! What several layers do with files: write large ones in parts, take one for this process alone, write digests as text. It must not know what a file holds.

mod output;

pub use output::{Aligned, BOUNCE_BYTES, Bounce, OutputFile};

use std::fs::{File, TryLockError};
use std::io;

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
