//! One module for each thing that a user can ask for: options in, a report out. Tasks do not know each other.

pub mod calibrate;
pub mod convert;
pub mod diff;
pub mod download;
pub mod gguf;
pub mod inspect;
mod made;
pub mod quantize;
pub mod repack;
pub mod routing;
pub mod verify;

pub use made::Made;

/// The most memory that this process had resident at any time, where the system tells (Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
