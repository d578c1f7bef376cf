//! Opening a GGUF file: every key and every tensor, checked against the file's size.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::super::error::{FormatError, Kind, shown};
use super::super::mmap::{Edges, Map};
use super::super::modified_ns;
use super::keys::{Head, Keys};
use super::value::{Cursor, Value, malformed};
use super::{ALIGNMENT, ALIGNMENT_KEY, DIMENSIONS_MAX, MAGIC, NAME_BYTES_MAX};
use crate::dtype::{Dtype, ggml};

/// An open file.
#[derive(Debug)]
pub struct Gguf {
    /// Where it is.
    pub path: PathBuf,
    /// Keys and values.
    pub head: Head,
    /// The tensors, in the order of their data; no name is there twice.
    pub tensors: Vec<GgufTensor>,
    /// Size of the file in bytes.
    pub(super) bytes: u64,
    /// When it was modified, in nanoseconds since 1970.
    pub(super) modified_ns: i64,
    pub(super) map: Map,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its extents, the fastest-varying first.
    pub extents: Vec<u64>,
    /// What its elements are.
    pub dtype: Dtype,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Gguf {
    /// Opens a file.
    ///
    /// # Errors
    /// [`FormatError`] names the file, the tensor and the value.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        Self::open_real(path, path)
    }

    /// Opens the file at `real` (symbolic links resolved), which messages call `path`.
    pub(super) fn open_real(path: &Path, real: &Path) -> Result<Self, FormatError> {
        // Asked before opening: opening a pipe would wait for a writer for ever.
        let found = std::fs::metadata(real).map_err(FormatError::io(path, "open"))?;
        if !found.is_file() {
            return Err(FormatError::new(path, Kind::NotAFile));
        }
        let file = File::open(real).map_err(FormatError::io(path, "open"))?;
        let found = file.metadata().map_err(FormatError::io(path, "open"))?;
        let bytes = found.len();
        if bytes == 0 {
            return Err(FormatError::new(path, malformed("the file is empty")));
        }
        let map = Map::new(&file, bytes).map_err(FormatError::io(path, "map"))?;
        let (head, tensors) =
            parse(&mut Cursor::new(map.range(0..bytes), 0), bytes).map_err(|fault| at_fault(path, fault))?;
        map.release(0..head.bytes, Edges::Drop);
        Ok(Self { path: path.to_path_buf(), head, tensors, bytes, modified_ns: modified_ns(&found), map })
    }

    /// Describes a file of `bytes` bytes that lies elsewhere, from its beginning. If that is not enough, it is given back with how many
    /// bytes are needed at least.
    pub(in crate::checkpoint) fn describe(path: &Path, mut beginning: Vec<u8>, bytes: u64) -> Described {
        let mut cursor = Cursor::at_beginning(&beginning, bytes);
        let (head, tensors) = match (parse(&mut cursor, bytes), cursor.wants) {
            (_, Some(least)) => return Ok(Err((beginning, least))),
            (Ok(found), None) => found,
            (Err(fault), None) => return Err(at_fault(path, fault)),
        };
        let padding = head.bytes - cursor.at as u64;
        if padding > PADDING_BYTES_MAX {
            let what = format!("`{ALIGNMENT_KEY}` leaves {padding} bytes between keys and data");
            return Err(FormatError::new(path, malformed(what)));
        }
        // Padding may be missing, which nobody reads.
        beginning.resize(head.bytes as usize, 0);
        let map = Map::fetched(vec![(0, beginning)]);
        Ok(Ok(Self { path: path.to_path_buf(), head, tensors, bytes, modified_ns: 0, map }))
    }

    /// Adds a tensor's bytes to what is here of a file that lies elsewhere.
    pub(in crate::checkpoint) fn with_bytes(mut self, tensor: &GgufTensor, bytes: Vec<u8>) -> Self {
        let head = self.map.range(0..self.head.bytes).to_vec();
        self.map = Map::fetched(vec![(0, head), (tensor.offset, bytes)]);
        self
    }

    /// The keys.
    pub fn keys(&self) -> Keys<'_> {
        Keys { head: &self.head, bytes: self.map.range(0..self.head.bytes) }
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// A tensor's bytes.
    pub fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        self.map.range(tensor.offset..tensor.offset + tensor.bytes)
    }

    /// Gives the memory of a tensor back to the operating system.
    pub fn release(&self, tensor: &GgufTensor) {
        self.map.release(tensor.offset..tensor.offset + tensor.bytes, Edges::Drop);
    }
}

/// Most bytes between the head of a file that lies elsewhere and its data; the usual alignment is 32.
const PADDING_BYTES_MAX: u64 = 1 << 20;

/// What [`Gguf::describe`] gives: a file, or its beginning again with the number of bytes that are needed.
type Described = Result<Result<Gguf, (Vec<u8>, u64)>, FormatError>;

type Fault = (Option<String>, Kind);

fn at_fault(path: &Path, (tensor, kind): Fault) -> FormatError {
    FormatError { file: path.to_path_buf(), tensor, kind }
}

/// The head and the tensors of a file of `file` bytes.
fn parse(cursor: &mut Cursor<'_>, file: u64) -> Result<(Head, Vec<GgufTensor>), Fault> {
    let plain = |kind: Kind| (None, kind);
    let magic = cursor.take(MAGIC.len() as u64);
    if magic.map_err(plain)? != MAGIC {
        return Err(plain(malformed("the file does not begin with `GGUF`")));
    }
    let version = cursor.u32().map_err(plain)?;
    if version.trailing_zeros() >= 16 && version != 0 {
        return Err(plain(malformed("a big-endian GGUF file")));
    }
    if !(2..=3).contains(&version) {
        return Err(plain(malformed(format!("GGUF of version {version}; 2 and 3 are known"))));
    }
    let (tensor_count, value_count) = (cursor.u64().map_err(plain)?, cursor.u64().map_err(plain)?);
    let values = parse_values(cursor, value_count).map_err(plain)?;
    let alignment = match values.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => ALIGNMENT,
        Some((_, Value::U32(alignment))) if alignment.is_power_of_two() => u64::from(*alignment),
        Some((_, value)) => {
            let value = shown(&format!("{value:?}"));
            return Err(plain(malformed(format!("`{ALIGNMENT_KEY}` is {value}, no power of two"))));
        }
    };
    let mut tensors = parse_tensors(cursor, tensor_count)?;
    let data = (cursor.at as u64).next_multiple_of(alignment);
    place(&mut tensors, data, alignment, file)?;
    // A file without tensors may end before its data would begin.
    Ok((Head { version, values, bytes: data.min(file) }, tensors))
}

/// Each key takes twelve bytes at least, so the file's size bounds the loop, whatever the count says.
fn parse_values(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<(String, Value)>, Kind> {
    let (mut values, mut seen) = (Vec::new(), HashSet::new());
    for _ in 0..count {
        let key = cursor.string()?;
        if key.is_empty() || !seen.insert(key) {
            return Err(malformed(format!("the key `{}` is empty or there twice", shown(key))));
        }
        values.push((key.to_owned(), cursor.value()?));
    }
    Ok(values)
}

/// Tensors with offsets as in the file: from the beginning of the data.
fn parse_tensors(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<GgufTensor>, Fault> {
    let (mut tensors, mut seen) = (Vec::new(), HashSet::new());
    for _ in 0..count {
        let name = cursor.string().map_err(|kind| (None, kind))?;
        let fault = |kind: Kind| (Some(name.to_owned()), kind);
        if name.len() > NAME_BYTES_MAX {
            return Err(fault(malformed(format!("a name of {} bytes; {NAME_BYTES_MAX} are allowed", name.len()))));
        }
        if !seen.insert(name) {
            return Err(fault(malformed("the name is there twice")));
        }
        let dimensions = cursor.u32().map_err(fault)?;
        if dimensions > DIMENSIONS_MAX {
            return Err(fault(malformed(format!("{dimensions} dimensions; {DIMENSIONS_MAX} are allowed"))));
        }
        let extents = (0..dimensions).map(|_| cursor.u64()).collect::<Result<Vec<u64>, Kind>>().map_err(fault)?;
        let id = cursor.u32().map_err(fault)?;
        let dtype = ggml::dtype_of(id).ok_or_else(|| fault(malformed(format!("unknown ggml type {id}"))))?;
        let offset = cursor.u64().map_err(fault)?;
        let shape: Vec<u64> = extents.iter().rev().copied().collect();
        let bytes = dtype.bytes_of(&shape).ok_or_else(|| {
            fault(malformed(format!("extents {extents:?} of {dtype} are no whole blocks, or too many")))
        })?;
        tensors.push(GgufTensor { name: name.to_owned(), extents, dtype, offset, bytes });
    }
    Ok(tensors)
}

/// Checks that tensors follow one another, and makes their offsets count from the start of the file.
fn place(tensors: &mut [GgufTensor], data: u64, alignment: u64, file: u64) -> Result<(), Fault> {
    let mut expected = 0_u64;
    for tensor in tensors {
        let fault = |kind: Kind| (Some(tensor.name.clone()), kind);
        if tensor.offset != expected {
            let offset = tensor.offset;
            return Err(fault(malformed(format!(
                "begins at data offset {offset}, the one before it ends at {expected}"
            ))));
        }
        let end = data.checked_add(expected).and_then(|start| start.checked_add(tensor.bytes));
        match end {
            Some(end) if end <= file => tensor.offset = end - tensor.bytes,
            _ => return Err(fault(Kind::Truncated { expected: end.unwrap_or(u64::MAX), actual: file })),
        }
        // No overflow: what has been added up so far ends inside the file.
        expected = (expected + tensor.bytes).next_multiple_of(alignment);
    }
    Ok(())
}
