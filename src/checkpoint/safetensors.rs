//! One safetensors file: open, read the header, check it against the file's size, map the rest.
//!
//! The header's own rules are in [`header`](super::header). Reads the header with plain reads, so that opening maps no page of the data in.

use std::fs::{self, File};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::error::{FormatError, Kind};
use super::header::{self, HEADER_BYTES_MAX};
use super::json::read_capped;
use super::mmap::Map;
use super::{Part, SourceFile, TensorInfo, modified_ns};

/// Bytes of the length that precedes the header.
const LENGTH_BYTES: u64 = 8;

/// Opens the regular file at `real` (symbolic links resolved), which messages and the catalogue call `path`.
pub(super) fn open(path: &Path, real: &Path) -> Result<Part, FormatError> {
    // Asked before opening: opening a pipe would wait for a writer for ever.
    let found = fs::metadata(real).map_err(FormatError::io(path, "open"))?;
    if !found.is_file() {
        return Err(FormatError::new(path, Kind::NotAFile));
    }
    let mut file = File::open(real).map_err(FormatError::io(path, "open"))?;
    let found = file.metadata().map_err(FormatError::io(path, "open"))?;
    let bytes = found.len();

    let head = read_head(&mut file, path, bytes)?;
    describe(path, &head, bytes, modified_ns(&found), || Map::new(&file, bytes).map_err(FormatError::io(path, "map")))
}

/// What `head` (the length field and the header) says of the file at `path` that has `bytes`.
pub(super) fn describe(
    path: &Path,
    head: &[u8],
    bytes: u64,
    modified_ns: i64,
    map: impl FnOnce() -> Result<Map, FormatError>,
) -> Result<Part, FormatError> {
    let header = header::parse(&head[LENGTH_BYTES as usize..]).map_err(|fault| FormatError {
        file: path.to_path_buf(),
        tensor: fault.tensor,
        kind: fault.kind,
    })?;
    let data_start = head.len() as u64;
    check_file_size(data_start, header.data_bytes, bytes).map_err(|kind| {
        // The first tensor that the file does not hold completely is the most useful one to name.
        let cut = header.entries.iter().find(|entry| data_start.saturating_add(entry.end) > bytes);
        FormatError { file: path.to_path_buf(), tensor: cut.map(|entry| entry.name.clone()), kind }
    })?;

    let tensors = header.entries.into_iter().map(|entry| TensorInfo {
        name: entry.name,
        dtype: entry.dtype,
        shape: entry.shape,
        file: 0,
        // In bounds: the sum of both is the file's size.
        offset: data_start + entry.begin,
        bytes: entry.end - entry.begin,
    });
    Ok(Part {
        tensors: tensors.collect(),
        map: map()?,
        head: None,
        file: SourceFile {
            name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            path: path.to_path_buf(),
            bytes,
            modified_ns,
            header_bytes: data_start,
            header_digest: format!("{:032x}", xxh3_128(head)),
            metadata: header.metadata,
        },
    })
}

/// The length field and the header, as they stand in the file.
fn read_head(file: &mut File, path: &Path, bytes: u64) -> Result<Vec<u8>, FormatError> {
    if bytes < LENGTH_BYTES {
        return Err(FormatError::new(path, Kind::TooShort { bytes }));
    }
    let mut head = read_capped(file, path, LENGTH_BYTES, LENGTH_BYTES)?;
    let header = head_bytes(path, &head, bytes)? - LENGTH_BYTES;
    let text = read_capped(file, path, header, header)?;
    if (text.len() as u64) < header {
        let file = LENGTH_BYTES + text.len() as u64;
        return Err(FormatError::new(path, Kind::HeaderPastEnd { header, file }));
    }
    head.extend_from_slice(&text);
    Ok(head)
}

/// How many bytes the length field and the header of a file of `bytes` take; `first` are its first bytes, at least 8.
pub(super) fn head_bytes(path: &Path, first: &[u8], bytes: u64) -> Result<u64, FormatError> {
    let error = |kind| FormatError::new(path, kind);
    let Some(length) = first.first_chunk::<{ LENGTH_BYTES as usize }>() else {
        return Err(error(Kind::TooShort { bytes: first.len() as u64 }));
    };
    let header = u64::from_le_bytes(*length);
    if header > bytes.saturating_sub(LENGTH_BYTES) {
        // A text or archive file shows here, because its first bytes make an absurd length.
        return Err(error(Kind::HeaderPastEnd { header, file: bytes }));
    }
    if header > HEADER_BYTES_MAX {
        return Err(error(Kind::TooLarge { bytes: header, cap: HEADER_BYTES_MAX }));
    }
    Ok(LENGTH_BYTES + header)
}

/// The file has exactly the bytes that its header promises.
fn check_file_size(data_start: u64, data_bytes: u64, actual: u64) -> Result<(), Kind> {
    // A saturated sum is more than any file has, and so is reported as what it is: truncated.
    let expected = data_start.saturating_add(data_bytes);
    match actual {
        _ if actual < expected => Err(Kind::Truncated { expected, actual }),
        _ if actual > expected => Err(Kind::TrailingBytes { expected, actual }),
        _ => Ok(()),
    }
}
