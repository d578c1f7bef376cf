//! Which GGUF files are one checkpoint: the parts of a split one, and a text model with the vision part beside it.
//!
//! Splits as `llama-gguf-split` and the converter write them (`gguf-py/gguf/gguf_writer.py`, `src/llama.cpp`): names end in
//! `-00001-of-00003.gguf`; `split.no` counts from 0, `split.count` is the number of parts and `split.tensors.count` that of all
//! their tensors. The first part alone has the model's keys.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::super::error::{FormatError, Kind, shown};
use super::super::folder::Folder;
use super::super::mmap::Edges;
use super::super::{Part, SourceFile, TensorInfo};
use super::value::malformed;
use super::{Gguf, MAGIC};

const NUMBER_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSORS_KEY: &str = "split.tensors.count";

/// Most parts of a model: llama.cpp counts them in 16 bits.
const PARTS_MAX: u64 = u16::MAX as u64;

/// Whether a file's name says that it is one. Names with a leading dot are what downloads and editors leave behind.
pub(in crate::checkpoint) fn is_name(name: &str) -> bool {
    name.ends_with(".gguf") && !name.starts_with('.')
}

/// Whether a file begins as one.
pub(in crate::checkpoint) fn is_gguf(path: &Path) -> Result<bool, FormatError> {
    let found = std::fs::metadata(path).map_err(FormatError::io(path, "open"))?;
    if !found.is_file() {
        return Ok(false);
    }
    let mut first = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut first));
    match read {
        Ok(()) => Ok(first == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(FormatError::io(path, "open")(error)),
    }
}

/// Opens a file by its name; one that is not there is an error of the system's kind `NotFound`.
pub(in crate::checkpoint) type Opener<'a> = dyn Fn(&str) -> Result<Gguf, FormatError> + 'a;

/// Opens files of a folder.
pub(in crate::checkpoint) fn from_folder(folder: &Folder) -> impl Fn(&str) -> Result<Gguf, FormatError> {
    |name| {
        let (path, real) = folder.file(name)?;
        Gguf::open_real(&path, &real)
    }
}

/// The file at `path` with the other parts of its model, if it is split.
pub(in crate::checkpoint) fn open_file(path: &Path, others: &Opener<'_>) -> Result<Vec<Part>, FormatError> {
    with_parts(Gguf::open(path)?, others)
}

/// What the parts of a model have in common in their names, with their number; of a file that is no part, its whole name.
pub(in crate::checkpoint) fn model_of(name: &str) -> (&str, Option<u32>) {
    split_name(name).map_or((name, None), |(prefix, _, count)| (prefix, Some(count)))
}

/// Whether a file is a vision part, by its name.
pub(in crate::checkpoint) fn is_vision_name(name: &str) -> bool {
    name.contains("mmproj")
}

/// Whether a file is an importance matrix, by its name.
pub(in crate::checkpoint) fn is_imatrix_name(name: &str) -> bool {
    name.contains("imatrix")
}

/// The model of a folder, from its GGUF files called `names`: one text model, and the vision part if there is one. Also gives
/// the names of files that are neither.
pub(in crate::checkpoint) fn open_folder(
    path: &Path,
    names: &[String],
    open: &Opener<'_>,
) -> Result<(Vec<Part>, Vec<String>), FormatError> {
    let (mut models, mut visions, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        // Of a split model, the first part that is there stands for all.
        let is_first = |prefix: &str, count: u32, number: u32| {
            !(1..number).any(|before| names.binary_search(&part_name(prefix, before, count)).is_ok())
        };
        if split_name(name).is_some_and(|(prefix, number, count)| !is_first(prefix, count, number)) {
            continue;
        }
        let file = open(name)?;
        match (file.keys().text("general.type"), file.keys().text("general.architecture")) {
            (Some("mmproj"), _) | (_, Some("clip")) => visions.push(file),
            (Some("imatrix" | "adapter"), _) => others.push(name.clone()),
            _ => models.push(file),
        }
    }
    for (files, what) in [(&models, "text models"), (&visions, "vision parts")] {
        if let [first, second, ..] = files.as_slice() {
            let name = |file: &Gguf| file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (first, second, count) = (name(first), name(second), files.len());
            return Err(FormatError::new(path, Kind::SeveralModels { what, count, first, second }));
        }
    }
    let Some(model) = models.pop() else {
        return Err(FormatError::new(path, Kind::NoTextModel));
    };
    let mut parts = with_parts(model, open)?;
    if let Some(vision) = visions.pop() {
        parts.extend(with_parts(vision, open)?);
    }
    parts.sort_by(|a, b| a.file.name.cmp(&b.file.name));
    Ok((parts, others))
}

/// What a part of a split model says of the whole.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Split {
    number: u64,
    count: u64,
    tensors: Option<u64>,
}

impl Split {
    /// `None` for a model in one file.
    fn of(file: &Gguf) -> Result<Option<Self>, FormatError> {
        let key = |key: &str| match file.keys().value(key) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| {
                let value = shown(&format!("{value:?}"));
                FormatError::new(&file.path, malformed(format!("`{key}` is {value}, no number of parts")))
            }),
        };
        let (number, count, tensors) = (key(NUMBER_KEY)?.unwrap_or(0), key(COUNT_KEY)?, key(TENSORS_KEY)?);
        match count {
            None | Some(0 | 1) if number == 0 => Ok(None),
            Some(count) if count > PARTS_MAX => Err(FormatError::new(
                &file.path,
                malformed(format!("`{COUNT_KEY}` is {count}, and {PARTS_MAX} are allowed")),
            )),
            Some(count) if number < count => Ok(Some(Self { number, count, tensors })),
            _ => {
                let count = count.unwrap_or(0);
                let what = format!("`{NUMBER_KEY}` is {number}, and `{COUNT_KEY}` {count}: parts are counted from 0");
                Err(FormatError::new(&file.path, malformed(what)))
            }
        }
    }
}

/// A file and, if it is a part, all the others.
fn with_parts(file: Gguf, open: &Opener<'_>) -> Result<Vec<Part>, FormatError> {
    let Some(split) = Split::of(&file)? else { return Ok(vec![part(file)]) };
    let own = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let number = u32::try_from(split.number + 1).unwrap_or(u32::MAX);
    let prefix = match split_name(&own) {
        Some((prefix, named, count)) if named == number && u64::from(count) == split.count => prefix.to_owned(),
        _ => {
            let (number, count) = (split.number + 1, split.count);
            let what = format!(
                "it is part {number} of {count}, and its name does not end in `-{number:05}-of-{count:05}.gguf`"
            );
            return Err(FormatError::new(&file.path, Kind::WrongPart { what }));
        }
    };
    let count = u32::try_from(split.count).expect("the count is in the name, which was parsed");
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for other in (1..=count).filter(|other| *other != number) {
        match open(&part_name(&prefix, other, count)) {
            Ok(file) => found.push((other, file)),
            Err(FormatError { file, kind: Kind::Io { source, .. }, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                missing.push(file);
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(first) = missing.first() {
        return Err(FormatError::new(first, Kind::PartMissing { count, others: missing.len() - 1 }));
    }
    let mut tensors = file.tensors.len() as u64;
    let mut parts = vec![part(file)];
    for (other, file) in found {
        let expected = Split { number: u64::from(other - 1), ..split };
        if Split::of(&file)? != Some(expected) {
            let what =
                format!("its keys do not say that it is part {other} of the {count} that `{}` belongs to", shown(&own));
            return Err(FormatError::new(&file.path, Kind::WrongPart { what }));
        }
        tensors += file.tensors.len() as u64;
        parts.push(part(file));
    }
    parts.sort_by(|a, b| a.file.name.cmp(&b.file.name));
    match split.tensors {
        Some(wanted) if wanted != tensors => {
            let what = format!("`{TENSORS_KEY}` is {wanted}, and the parts have {tensors} tensors together");
            Err(FormatError::new(&parts[0].file.path, Kind::WrongPart { what }))
        }
        _ => Ok(parts),
    }
}

/// Prefix, number and count of a part's file name.
fn split_name(name: &str) -> Option<(&str, u32, u32)> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| digits.parse::<u32>().ok().filter(|number| format!("{number:05}") == digits);
    let (number, count) = (parse(number)?, parse(count)?);
    (1..=count).contains(&number).then_some((prefix, number, count)).filter(|_| u64::from(count) <= PARTS_MAX)
}

fn part_name(prefix: &str, number: u32, count: u32) -> String {
    format!("{prefix}-{number:05}-of-{count:05}.gguf")
}

/// A file as the catalogue takes it: extents the other way round, outermost first.
fn part(file: Gguf) -> Part {
    let Gguf { path, head, tensors, bytes, modified_ns, map } = file;
    let header_digest = format!("{:032x}", xxh3_128(map.range(0..head.bytes)));
    map.release(0..head.bytes, Edges::Drop);
    let tensors = tensors.into_iter().map(|tensor| TensorInfo {
        name: tensor.name,
        dtype: tensor.dtype,
        shape: tensor.extents.into_iter().rev().collect(),
        file: 0,
        offset: tensor.offset,
        bytes: tensor.bytes,
    });
    let tensors = tensors.collect();
    let file = SourceFile {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        path,
        bytes,
        modified_ns,
        header_bytes: head.bytes,
        header_digest,
        metadata: std::collections::BTreeMap::new(),
    };
    Part { file, map, tensors, head: Some(head) }
}
