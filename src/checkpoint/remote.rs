//! A checkpoint whose files lie elsewhere: opened from its headers, which somebody fetches. It must not know how they are fetched.
//!
//! The same checks as for files on the disk; what cannot be done is to read a weight. Headers are asked for in one go, with as many bytes as the
//! index lets expect, and the few that turn out longer in a second one: what counts is round trips. Nobody tells how long the header of a GGUF
//! file is, so that it is asked for in steps that grow.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use anyhow::Result;

use super::error::{FormatError, Kind};
use super::folder::is_weights;
use super::gguf::GgufTensor;
use super::index::{self, INDEX_NAME, Index};
use super::mmap::Map;
use super::{CONFIG_BYTES_MAX, CONFIG_NAMES, Checkpoint, Part, SideFile, gguf, safetensors, take_single};

/// Bytes that one tensor takes in a header besides its name: dtype, shape, offsets of up to 13 digits, and JSON's signs.
const ENTRY_BYTES: u64 = 112;

/// Fewest bytes of a file that are asked for.
const FIRST_BYTES: u64 = 8 << 10;

/// Bytes of a GGUF file that are asked for first; while they are not enough, three times as many as there are, up to a bound: Llama 4's
/// tokenizer makes 12 MB of keys.
const GGUF_FIRST_BYTES: u64 = 64 << 10;
const GGUF_MORE_BYTES_MAX: u64 = 8 << 20;

/// Most bytes of heads of GGUF files that are fetched.
const GGUF_BYTES_MAX: u64 = 256 << 20;

/// The largest tensor that is fetched with the headers.
const VALUE_BYTES_MAX: u64 = 1 << 20;

/// A folder that lies elsewhere.
pub trait Remote {
    /// Names and sizes of the files in it, sorted by name; no folders, and nothing below them.
    fn files(&self) -> Vec<(String, u64)>;

    /// The bytes of ranges of files, each as long as its range, in the order they were asked for.
    ///
    /// # Errors
    /// They cannot be fetched.
    fn read(&self, wanted: &[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>>;
}

/// Whether a path is an address rather than a file.
pub(super) fn is_address(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with("hf:"))
}

impl Checkpoint {
    /// Opens a folder that lies elsewhere and that messages call `path`: with an index, with one safetensors file, or with one model in
    /// GGUF; or only the model that the GGUF file called `file` belongs to. Fetches index, config and headers; of GGUF files also the
    /// tensor called `value`, which is a small one.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], or the folder cannot be read.
    pub fn open_remote(path: &Path, file: Option<&str>, remote: &dyn Remote, value: &str) -> Result<Self> {
        let mut files: BTreeMap<String, u64> = remote.files().into_iter().collect();
        if let Some(file) = file {
            if !files.contains_key(file) {
                return Err(not_found(&path.join(file)).into());
            }
            files.retain(|name, _| gguf::model_of(name) == gguf::model_of(file));
            return open_gguf(path, remote, files, value);
        }
        if !files.keys().any(|name| is_weights(name)) && files.keys().any(|name| gguf::is_name(name)) {
            return open_gguf(path, remote, files, value);
        }
        let mut sides = small_files(path, remote, &files)?;
        let config =
            CONFIG_NAMES.iter().find_map(|name| sides.remove(*name).map(|(side, content)| (*name, side, content)));
        let mut weights: Vec<String> = files.keys().filter(|name| is_weights(name)).cloned().collect();
        let (index, names) = match sides.remove(INDEX_NAME) {
            Some((side, text)) => {
                let index = Index::parse(&path.join(INDEX_NAME), &text)?;
                let names: Vec<String> = index.files().into_iter().map(str::to_owned).collect();
                weights.retain(|name| !names.contains(name));
                (Some((side, index)), names)
            }
            None => (None, vec![take_single(path, &mut weights)?]),
        };
        let missing: Vec<&String> = names.iter().filter(|name| !files.contains_key(*name)).collect();
        if let Some(first) = missing.first() {
            let kind = Kind::ShardMissing { others: missing.len() - 1 };
            return Err(FormatError::new(&path.join(first), kind).into());
        }
        let expected = index.as_ref().map(|(_, index)| index.name_bytes(ENTRY_BYTES)).unwrap_or_default();
        let sized =
            names.iter().map(|name| (name.clone(), files[name], expected.get(name.as_str()).copied().unwrap_or(0)));
        let sizes: Vec<(String, u64, u64)> = sized.collect();
        let parts = heads(path, remote, &sizes)?;
        let mut checkpoint = Self::assemble(path, config, parts)?;
        if let Some((side, index)) = index {
            index.check(&checkpoint.files, &checkpoint.tensors)?;
            checkpoint.sides.push(side);
        }
        checkpoint.unlisted = weights;
        checkpoint.elsewhere = Some(files.into_keys().collect());
        Ok(checkpoint)
    }

    /// Whether only headers are here, and no weight can be read.
    pub fn is_elsewhere(&self) -> bool {
        self.elsewhere.is_some()
    }

    /// Refuses a checkpoint of which only headers are here. Whoever reads weights asks this first.
    ///
    /// # Errors
    /// Says how to fetch it.
    pub fn require_here(&self) -> Result<(), FormatError> {
        if self.is_elsewhere() { Err(FormatError::new(&self.folder, Kind::Elsewhere)) } else { Ok(()) }
    }
}

/// Opens the one model in GGUF among `files`. What files are is judged by their names, so that no head is fetched in vain. A repository
/// may have its vision part in several formats, which are left out then.
fn open_gguf(path: &Path, remote: &dyn Remote, files: BTreeMap<String, u64>, value: &str) -> Result<Checkpoint> {
    let names = || files.keys().filter(|name| gguf::is_name(name));
    let mut left_out: Vec<String> = names().filter(|name| gguf::is_imatrix_name(name)).cloned().collect();
    let (mut visions, texts): (Vec<&String>, Vec<&String>) =
        names().filter(|name| !left_out.contains(name)).partition(|name| gguf::is_vision_name(name));
    let models: BTreeMap<_, &String> = texts.iter().rev().map(|name| (gguf::model_of(name), *name)).collect();
    let mut two = models.values();
    if let (count @ 2.., Some(&first), Some(&second)) = (models.len(), two.next(), two.next()) {
        let (first, second) = (first.clone(), second.clone());
        return Err(FormatError::new(path, Kind::SeveralModels { what: "text models", count, first, second }).into());
    }
    if visions.len() > 1 {
        left_out.extend(visions.drain(..).cloned());
    }
    let mut names: Vec<String> = texts.into_iter().chain(visions).cloned().collect();
    names.sort_unstable();
    let opened = RefCell::new(gguf_heads(path, remote, &files, &names, value)?);
    let open = |name: &str| opened.borrow_mut().remove(name).ok_or_else(|| not_found(&path.join(name)));
    let (parts, others) = gguf::open_folder(path, &names, &open)?;
    let mut checkpoint = Checkpoint::assemble(path, None, parts)?;
    checkpoint.unlisted = left_out.into_iter().chain(others).collect();
    checkpoint.elsewhere = Some(files.into_keys().collect());
    Ok(checkpoint)
}

fn not_found(path: &Path) -> FormatError {
    FormatError::io(path, "open")(io::Error::from(io::ErrorKind::NotFound))
}

/// The described files called `names`, with the bytes of the tensor called `value`.
fn gguf_heads(
    path: &Path,
    remote: &dyn Remote,
    files: &BTreeMap<String, u64>,
    names: &[String],
    value: &str,
) -> Result<BTreeMap<String, gguf::Gguf>> {
    let (mut opened, mut total) = (BTreeMap::new(), 0);
    let mut pending: Vec<(&String, Vec<u8>, u64)> =
        names.iter().map(|name| (name, Vec::new(), GGUF_FIRST_BYTES)).collect();
    while !pending.is_empty() {
        let range = |(name, here, least): &(&String, Vec<u8>, u64)| {
            let here = here.len() as u64;
            let end = (*least).max(here + (3 * here).min(GGUF_MORE_BYTES_MAX));
            ((*name).clone(), here..end.min(files[*name]))
        };
        let ranges: Vec<(String, Range<u64>)> = pending.iter().map(range).collect();
        total += ranges.iter().map(|(_, range)| range.end - range.start).sum::<u64>();
        if total > GGUF_BYTES_MAX {
            let kind = Kind::TooLarge { bytes: total, cap: GGUF_BYTES_MAX };
            return Err(FormatError::new(&path.join(&ranges[0].0), kind).into());
        }
        let fetched = remote.read(&ranges)?;
        let mut longer = Vec::new();
        for ((name, mut here, _), more) in pending.into_iter().zip(fetched) {
            here.extend_from_slice(&more);
            let path = path.join(name);
            match gguf::Gguf::describe(&path, here, files[name])? {
                Ok(file) => {
                    opened.insert(name.clone(), file);
                }
                Err((here, least)) => longer.push((name, here, least)),
            }
        }
        pending = longer;
    }
    with_value(remote, opened, value)
}

/// Fetches the tensor called `value`, where there is one.
fn with_value(
    remote: &dyn Remote,
    opened: BTreeMap<String, gguf::Gguf>,
    value: &str,
) -> Result<BTreeMap<String, gguf::Gguf>> {
    let mut with_value = BTreeMap::new();
    for (name, file) in opened {
        let file = match file.tensor(value).cloned() {
            None => file,
            Some(GgufTensor { name, bytes, .. }) if bytes > VALUE_BYTES_MAX => {
                let kind = Kind::TooLarge { bytes, cap: VALUE_BYTES_MAX };
                return Err(FormatError::tensor(&file.path, &name, kind).into());
            }
            Some(tensor) => {
                let range = tensor.offset..tensor.offset + tensor.bytes;
                let fetched = remote.read(&[(name.clone(), range)])?.into_iter().flatten().collect();
                file.with_bytes(&tensor, fetched)
            }
        };
        with_value.insert(name, file);
    }
    Ok(with_value)
}

/// Index and config, where the folder has them.
fn small_files(
    path: &Path,
    remote: &dyn Remote,
    files: &BTreeMap<String, u64>,
) -> Result<BTreeMap<String, (SideFile, Vec<u8>)>> {
    let mut wanted = Vec::new();
    let [config, params] = CONFIG_NAMES;
    for (name, cap) in [(INDEX_NAME, index::INDEX_BYTES_MAX), (config, CONFIG_BYTES_MAX), (params, CONFIG_BYTES_MAX)] {
        let Some(&bytes) = files.get(name) else { continue };
        if bytes > cap {
            return Err(FormatError::new(&path.join(name), Kind::TooLarge { bytes, cap }).into());
        }
        wanted.push((name.to_owned(), 0..bytes));
    }
    let contents = remote.read(&wanted)?;
    let named = wanted.into_iter().zip(contents).map(|((name, _), content)| {
        let side = SideFile::new(&name, path.join(&name), &content, 0);
        (name, (side, content))
    });
    Ok(named.collect())
}

/// The headers of files, given as name, size, and bytes that the header is expected to have.
fn heads(path: &Path, remote: &dyn Remote, files: &[(String, u64, u64)]) -> Result<Vec<Part>> {
    let first = |(name, bytes, expected): &(String, u64, u64)| {
        let length = (expected + FIRST_BYTES).min(super::HEADER_BYTES_MAX).min(*bytes);
        (name.clone(), 0..length)
    };
    let mut heads = remote.read(&files.iter().map(first).collect::<Vec<_>>())?;
    let mut rest = Vec::new();
    let mut longer = Vec::new();
    for (position, ((name, bytes, _), head)) in files.iter().zip(&mut heads).enumerate() {
        let length = safetensors::head_bytes(&path.join(name), head, *bytes)?;
        if length > head.len() as u64 {
            rest.push((name.clone(), head.len() as u64..length));
            longer.push(position);
        }
        head.truncate(usize::try_from(length)?);
    }
    for (position, more) in longer.into_iter().zip(remote.read(&rest)?) {
        heads[position].extend_from_slice(&more);
    }
    let described = files.iter().zip(&heads).map(|((name, bytes, _), head)| {
        safetensors::describe(&path.join(name), head, *bytes, 0, || Ok(Map::fetched(Vec::new())))
            .map_err(anyhow::Error::from)
    });
    described.collect()
}
