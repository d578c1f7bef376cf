//! Containers of tensors: what is in them and where its bytes are.
//!
//! [`Checkpoint::open`] reads headers only, checks everything that can be wrong with them once, and gives a catalogue in which no name,
//! dtype, shape, offset or length can be wrong. The bytes come from read-only memory maps. Knows no model: a tensor is a
//! name, a dtype, a shape and a range of a file.
//!
//! Another container is one more file here that fills [`Part`]s: `safetensors.rs` and `torch/` turn one file into one of them.
//!
//! [`mmap`] says what happens when somebody changes a file that is open here.

mod error;
mod fingerprint;
mod folder;
pub mod gguf;
mod header;
mod index;
mod json;
mod mmap;
mod rank_files;
mod ranks;
mod remote;
mod safetensors;
mod torch;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use error::{FormatError, Kind, shown};
pub use fingerprint::{FileFingerprint, Fingerprint};
pub use header::{DIMENSIONS_MAX, HEADER_BYTES_MAX};
pub use index::INDEX_NAME;
pub use mmap::Edges;
pub use rank_files::RANK_MARK;
pub use ranks::rank_of;
pub use remote::Remote;

use crate::dtype::Dtype;
use fingerprint::{SideFile, modified_ns};
use folder::Folder;
use index::Index;
use mmap::Map;

/// The largest `config.json` that is read. Real ones have 3 to 300 kB (long `ignore` lists of quantized models).
const CONFIG_BYTES_MAX: u64 = 64_000_000;

/// The files that may describe the model, in the order in which they are looked for: beside files of ranks it is Meta's.
const CONFIG_NAMES: [&str; 2] = ["config.json", "params.json"];
const CONFIG_NAMES_OF_RANKS: [&str; 2] = ["params.json", "config.json"];

/// The name under which transformers looks for the weights of a model in one file.
const SINGLE_NAME: &str = "model.safetensors";

/// A file that holds tensors.
#[derive(Debug)]
pub struct SourceFile {
    /// Where it is, as the user's path leads there.
    pub path: PathBuf,
    /// Its name in the folder.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was modified, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// Bytes before the data: in safetensors, the length field and the header.
    pub header_bytes: u64,
    /// XXH3-128 of these bytes, in hexadecimal.
    pub header_digest: String,
    /// The file's own notes on itself, such as `format`: `pt`.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor: what it is and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The physical name, exactly as in the file. Print it through [`shown`].
    pub name: String,
    /// Format of an element.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Which of [`Checkpoint::files`] has it.
    pub file: usize,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes: exactly `dtype.bytes_of(shape)`.
    pub bytes: u64,
}

/// The file that describes the model: its name, its identity, and its content.
type Described = (&'static str, SideFile, Vec<u8>);

/// What a container gives for one file: the file, its map, and its tensors (their `file` is set by [`Checkpoint`]).
struct Part {
    file: SourceFile,
    map: Map,
    tensors: Vec<TensorInfo>,
    /// Keys and values, of a GGUF file.
    head: Option<gguf::Head>,
}

/// An open checkpoint: files, tensors, and the bytes of both.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<SourceFile>,
    maps: Vec<Map>,
    heads: Vec<Option<gguf::Head>>,
    tensors: Vec<TensorInfo>,
    config: Option<(&'static str, Vec<u8>)>,
    sides: Vec<SideFile>,
    unlisted: Vec<String>,
    /// A file was opened by its own path, and not its folder.
    is_by_file: bool,
    /// The names of all files, if they lie elsewhere and only headers are here.
    elsewhere: Option<Vec<String>>,
}

impl Checkpoint {
    /// Opens a folder with an index, a folder with one safetensors file, a safetensors file, a folder with files of ranks
    /// (`consolidated.00.pth` and so on), a file that `torch.save` wrote, a GGUF file, or a folder with one model in GGUF.
    ///
    /// Without an index, a folder with several files is taken as the one named `model.safetensors`, as transformers does.
    /// Files of ranks hold tensors of the same names; where there is more than one, a tensor's name here begins with its
    /// file's: `consolidated.03.pth:norm.weight`.
    /// Costs a few system calls and one header per file, and no memory for data, whatever the size.
    ///
    /// # Errors
    /// [`FormatError`] names the file, the tensor and the value. Every fault that a header, an index or their sizes can show is found here.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        if remote::is_address(path) {
            return Err(FormatError::new(path, Kind::Elsewhere));
        }
        let found = fs::metadata(path).map_err(FormatError::io(path, "open"))?;
        if found.is_dir() {
            let folder = Folder::open(path)?;
            if folder.has_index() {
                Self::open_indexed(path, &folder)
            } else if rank_files::is_one(&folder)? {
                Self::open_rank_files(path, &folder)
            } else if !folder.safetensors_names()?.is_empty() {
                Self::open_single(path, &folder)
            } else if let names = folder.names(gguf::is_name)?
                && !names.is_empty()
            {
                let (parts, others) = gguf::open_folder(path, &names, &gguf::from_folder(&folder))?;
                let mut checkpoint = Self::assemble(path, None, parts)?;
                checkpoint.unlisted = others;
                Ok(checkpoint)
            } else {
                Self::open_ranks(path, &folder)
            }
        } else {
            // The user named this file, so a symbolic link may lead anywhere.
            if gguf::is_gguf(path)? {
                let parent = parent_of(path);
                let folder = Folder::open(parent)?;
                let checkpoint = Self::assemble(parent, None, gguf::open_file(path, &gguf::from_folder(&folder))?)?;
                return Ok(Self { is_by_file: true, ..checkpoint });
            }
            let part = if ranks::is_torch(path)? { torch::open(path, path)? } else { safetensors::open(path, path)? };
            let parent = parent_of(path);
            let config = Folder::open(parent)?.config(std::slice::from_ref(&part))?;
            Ok(Self { is_by_file: true, ..Self::assemble(parent, config, vec![part])? })
        }
    }

    fn open_indexed(path: &Path, folder: &Folder) -> Result<Self, FormatError> {
        let index_path = path.join(INDEX_NAME);
        let Some((side, text)) = folder.small_file(INDEX_NAME, index::INDEX_BYTES_MAX)? else {
            let kind = Kind::Io { doing: "open", source: io::Error::from(io::ErrorKind::NotFound) };
            return Err(FormatError::new(&index_path, kind));
        };
        let index = Index::parse(&index_path, &text)?;
        let parts = Self::open_shards(folder, &index.files())?;
        let mut checkpoint = Self::assemble(path, folder.config(&parts)?, parts)?;
        index.check(&checkpoint.files, &checkpoint.tensors)?;
        let names = folder.safetensors_names()?;
        checkpoint.unlisted = names.into_iter().filter(|name| checkpoint.file_named(name).is_none()).collect();
        checkpoint.sides.push(side);
        Ok(checkpoint)
    }

    /// Opens the files of an index; if some are missing, the error says how many.
    fn open_shards(folder: &Folder, names: &[&str]) -> Result<Vec<Part>, FormatError> {
        let mut found = Vec::with_capacity(names.len());
        let mut missing = Vec::new();
        for name in names {
            match folder.file(name) {
                Ok(paths) => found.push(paths),
                Err(FormatError { file, kind: Kind::Io { source, .. }, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    missing.push(file);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(first) = missing.first() {
            return Err(FormatError::new(first, Kind::ShardMissing { others: missing.len() - 1 }));
        }
        found.iter().map(|(path, real)| safetensors::open(path, real)).collect()
    }

    fn open_single(path: &Path, folder: &Folder) -> Result<Self, FormatError> {
        let mut names = folder.safetensors_names()?;
        let (file, real) = folder.file(&take_single(path, &mut names)?)?;
        let mut checkpoint = Self::assemble(path, folder.config(&[])?, vec![safetensors::open(&file, &real)?])?;
        checkpoint.unlisted = names;
        Ok(checkpoint)
    }

    /// One catalogue of all files' tensors; no name may be in two files.
    fn assemble(path: &Path, config: Option<Described>, parts: Vec<Part>) -> Result<Self, FormatError> {
        let (mut files, mut maps, mut heads, mut tensors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (file, part) in parts.into_iter().enumerate() {
            tensors.extend(part.tensors.into_iter().map(|tensor| TensorInfo { file, ..tensor }));
            files.push(part.file);
            maps.push(part.map);
            heads.push(part.head);
        }
        // By file among equals, so that the message below does not depend on the sort.
        tensors.sort_unstable_by(|a, b| (&a.name, a.file).cmp(&(&b.name, b.file)));
        if let Some(twice) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let kind = Kind::InTwoFiles { other: files[twice[0].file].name.clone() };
            return Err(FormatError::tensor(&files[twice[1].file].path, &twice[1].name, kind));
        }
        let (mut sides, unlisted) = (Vec::new(), Vec::new());
        let config = config.map(|(name, side, content)| {
            sides.push(side);
            (name, content)
        });
        let folder = path.to_path_buf();
        Ok(Self { folder, files, maps, heads, tensors, config, sides, unlisted, is_by_file: false, elsewhere: None })
    }

    /// The folder that the files lie in, as the user wrote it (`.` for a bare file name).
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the user named: the folder, or the files of a model of which one was opened by its own path.
    pub fn named(&self) -> Vec<&Path> {
        match self.is_by_file {
            true => self.files.iter().map(|file| file.path.as_path()).collect(),
            false => vec![&self.folder],
        }
    }

    /// The files with tensors, sorted by name.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// The file with this name.
    pub fn file_named(&self, name: &str) -> Option<usize> {
        self.files.binary_search_by(|file| file.name.as_str().cmp(name)).ok()
    }

    /// Every tensor, sorted by name (bytewise). The position is the tensor's id in the methods below.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The id of the tensor with this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()
    }

    /// Sum of the tensors' bytes.
    pub fn tensor_bytes(&self) -> u64 {
        // No overflow: each file's tensors fit in the file, and file sizes are below 2^63 on at most some thousand files.
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// `config.json` beside the weights, or where that is not there Meta's `params.json`: its name and its content, as it
    /// stands in the file; `None` if there is none.
    pub fn config(&self) -> Option<(&'static str, &[u8])> {
        self.config.as_ref().map(|(name, content)| (*name, content.as_slice()))
    }

    /// The keys of one of the files; `None` if it is no GGUF file.
    pub fn keys(&self, file: usize) -> Option<gguf::Keys<'_>> {
        let head = self.heads[file].as_ref()?;
        Some(gguf::Keys { head, bytes: self.maps[file].range(0..head.bytes) })
    }

    /// The names of all regular files in the folder, also behind links, sorted. Names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn side_names(&self) -> Result<Vec<String>, FormatError> {
        if let Some(names) = &self.elsewhere {
            return Ok(names.clone());
        }
        let list = || FormatError::io(&self.folder, "list");
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(list())? {
            let entry = entry.map_err(list())?;
            let is_file = fs::metadata(entry.path()).is_ok_and(|found| found.is_file());
            names.extend(entry.file_name().into_string().ok().filter(|_| is_file));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The content of a file beside the weights; `None` if there is none of that name.
    ///
    /// # Errors
    /// It has more than `cap` bytes, is no regular file, leads out of the folder, or cannot be read.
    pub fn side_file(&self, name: &str, cap: u64) -> Result<Option<Vec<u8>>, FormatError> {
        self.require_here()?;
        let found = Folder::open(&self.folder)?.small_file(name, cap)?;
        Ok(found.map(|(_, content)| content))
    }

    /// Names of weight files in the folder that are no part of this checkpoint (consolidated copies, adapters, importance matrices): worth a note.
    /// Empty when a file was opened by its own path.
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    /// All bytes of a tensor. Nothing is read until they are touched.
    pub fn bytes(&self, id: usize) -> &[u8] {
        self.range(id, 0..self.tensors[id].bytes)
    }

    /// Bytes of a tensor; the range counts from its first byte.
    ///
    /// # Panics
    /// If the range is not inside the tensor.
    pub fn range(&self, id: usize, range: Range<u64>) -> &[u8] {
        let (map, range) = self.locate(id, range);
        map.range(range)
    }

    /// Bytes of a file, whatever they belong to.
    ///
    /// # Panics
    /// If the range is not inside the file.
    pub fn file_range(&self, file: usize, range: Range<u64>) -> &[u8] {
        self.maps[file].range(range)
    }

    /// Gives the memory of a range of a tensor back to the operating system; what is still needed of it comes back when touched.
    ///
    /// Call it for each stripe that is done with: resident memory is bounded by this and nothing else. `edges` says what happens to the
    /// two pages that the range shares with its neighbours; walking in stripes wants [`Edges::Drop`].
    ///
    /// # Panics
    /// If the range is not inside the tensor.
    pub fn release(&self, id: usize, range: Range<u64>, edges: Edges) {
        let (map, range) = self.locate(id, range);
        map.release(range, edges);
    }

    /// Asks the operating system to begin reading a range of a tensor. Does not wait for it.
    ///
    /// # Panics
    /// If the range is not inside the tensor.
    pub fn will_need(&self, id: usize, range: Range<u64>) {
        let (map, range) = self.locate(id, range);
        map.will_need(range);
    }

    /// The map of a tensor's file and a range of the tensor in it.
    fn locate(&self, id: usize, range: Range<u64>) -> (&Map, Range<u64>) {
        let tensor = &self.tensors[id];
        assert!(
            range.start <= range.end && range.end <= tensor.bytes,
            "range {range:?} of tensor `{}`, which has {} bytes",
            tensor.name,
            tensor.bytes
        );
        (&self.maps[tensor.file], tensor.offset + range.start..tensor.offset + range.end)
    }
}

/// The folder that a file is in, as the user wrote it.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Takes the name of the file that a folder without an index is, out of all safetensors files of the folder.
fn take_single(path: &Path, names: &mut Vec<String>) -> Result<String, FormatError> {
    let chosen = match names.as_slice() {
        [] => return Err(FormatError::new(path, Kind::NoWeights)),
        [_] => 0,
        _ => match names.iter().position(|name| name == SINGLE_NAME) {
            Some(position) => position,
            None => return Err(FormatError::new(path, Kind::NoIndex { files: names.len() })),
        },
    };
    Ok(names.remove(chosen))
}
