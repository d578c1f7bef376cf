//! What can be wrong with the files of a checkpoint, in words that name file, tensor and value.
//!
//! Everything here comes from outside, so names are printed through [`shown`]: no file can write control characters to a terminal.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::{gguf, remote};
use crate::dtype::Dtype;

/// Why a checkpoint cannot be opened, or can no longer be trusted.
#[derive(Debug)]
pub struct FormatError {
    /// The file or folder at fault.
    pub file: PathBuf,
    /// The tensor at fault, where it is one.
    pub tensor: Option<String>,
    /// What is wrong with it.
    pub kind: Kind,
}

/// One way in which a file can be wrong. Sizes and offsets are in bytes.
#[allow(missing_docs)]
#[derive(Debug)]
#[non_exhaustive]
pub enum Kind {
    /// The operating system refused.
    Io { doing: &'static str, source: io::Error },
    /// A folder, a pipe or a device where a file should be.
    NotAFile,
    /// A folder without any file of weights.
    NoWeights,
    /// A folder with several safetensors files and no index.
    NoIndex { files: usize },
    /// A JSON file or a header that is larger than anything real.
    TooLarge { bytes: u64, cap: u64 },
    /// Not even the 8 bytes that hold the header's length.
    TooShort { bytes: u64 },
    /// The header does not end inside the file.
    HeaderPastEnd { header: u64, file: u64 },
    /// The header, index or config is not UTF-8; `at` is the first wrong byte.
    NotUtf8 { at: u64 },
    /// The header does not begin with `{`.
    NotAnObject,
    /// JSON that cannot be read, or that has another form than the format says.
    Json { message: String },
    /// A JSON object that has a key twice.
    DuplicateKey { key: String },
    /// A tensor name that one header has twice.
    DuplicateTensor,
    /// A dtype that safetensors 0.8 does not have.
    UnknownDtype { dtype: String },
    /// A shape whose size passes 2^64.
    SizeOverflow { dtype: Dtype, shape: Vec<u64> },
    /// A 4- or 6-bit tensor that ends inside a byte.
    PartialByte { dtype: Dtype, shape: Vec<u64> },
    /// Data offsets whose end lies before their begin.
    Backwards { begin: u64, end: u64 },
    /// Data offsets that give another number of bytes than dtype and shape.
    WrongLength { dtype: Dtype, shape: Vec<u64>, expected: u64, actual: u64 },
    /// Bytes between two tensors that belong to none.
    Gap { expected: u64, begin: u64 },
    /// A tensor that begins inside the one before it.
    Overlap { other: String, end: u64, begin: u64 },
    /// The file ends before the last tensor does.
    Truncated { expected: u64, actual: u64 },
    /// The file goes on behind the last tensor.
    TrailingBytes { expected: u64, actual: u64 },
    /// An index that names no tensor.
    EmptyIndex,
    /// A file name in the index that is more than a name.
    ShardName { name: String },
    /// A file that is a symbolic link out of the folder.
    LeavesFolder { target: PathBuf },
    /// Files that the index names and the folder does not have; `file` is the first of them.
    ShardMissing { others: usize },
    /// A tensor that two files have.
    InTwoFiles { other: String },
    /// A tensor that the index promises in this file, and that the file does not have.
    NotInShard,
    /// A tensor of this file that the index does not name.
    NotInIndex,
    /// A tensor that the index expects in another file.
    WrongShard { listed: String },
    /// An address of the hub where files of this machine are needed.
    Elsewhere,
    /// A GGUF file that breaks a rule of its format.
    Malformed { what: String },
    /// A folder with several GGUF models of a kind.
    SeveralModels { what: &'static str, count: usize, first: String, second: String },
    /// A folder whose GGUF files hold no text model.
    NoTextModel,
    /// Parts of a split GGUF model that are not there; `file` is the first of them.
    PartMissing { count: u32, others: usize },
    /// A part of a split GGUF model that does not belong to the others, or is called as another one.
    WrongPart { what: String },
    /// A torch file that is no zip archive, or not one that torch writes.
    Archive { what: String },
    /// A pickle that is damaged, or holds more than tensors and plain containers; `at` is a byte of it.
    Pickle { what: String, at: u64 },
    /// A name in a pickle that stands for no tensor and no plain container: code, possibly.
    ForbiddenGlobal { name: String },
    /// A view whose elements do not follow each other.
    NotContiguous { shape: Vec<u64>, stride: Vec<u64> },
    /// Files of ranks of which one is not there; `file` is the folder.
    RankMissing { rank: usize, last: usize },
    /// The file is not what it was at opening.
    Changed { was_bytes: u64, bytes: u64 },
}

impl FormatError {
    pub(crate) fn new(file: &Path, kind: Kind) -> Self {
        Self { file: file.to_path_buf(), tensor: None, kind }
    }

    pub(crate) fn tensor(file: &Path, tensor: impl Into<String>, kind: Kind) -> Self {
        Self { file: file.to_path_buf(), tensor: Some(tensor.into()), kind }
    }

    /// For `map_err`: an error of the operating system while `doing` ("open", "read") this file.
    pub(crate) fn io(file: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::new(file, Kind::Io { doing, source })
    }

    /// What the user can do about it, where there is something: lower case, no full stop.
    pub fn hint(&self) -> Option<String> {
        let hint = match &self.kind {
            Kind::TooShort { .. } | Kind::HeaderPastEnd { .. } | Kind::Truncated { .. } => {
                "the download or copy did not finish; fetch the file again"
            }
            Kind::TrailingBytes { .. } | Kind::Gap { .. } | Kind::Overlap { .. } | Kind::WrongLength { .. } => {
                "the file is damaged or was written by a faulty tool; fetch it again"
            }
            Kind::NotAnObject | Kind::NotUtf8 { .. } => {
                "this is not the content that the name promises (a Git LFS pointer or an error page, perhaps); fetch the file again"
            }
            Kind::ShardMissing { .. } => "fetch the missing files from where the others came from",
            Kind::NoIndex { .. } => {
                "fetch `model.safetensors.index.json` from the same repository, or name one of the files"
            }
            Kind::NoWeights => {
                "a checkpoint is a folder with `model.safetensors.index.json`, a folder with one `.safetensors` file, such a file, a GGUF file, or a folder with Meta's `consolidated.*.pth`"
            }
            Kind::NotInShard | Kind::NotInIndex | Kind::WrongShard { .. } | Kind::InTwoFiles { .. } => {
                "the index and the files are not from the same checkpoint; fetch both from the same revision"
            }
            Kind::Elsewhere => {
                let address = self.file.to_string_lossy();
                let name = address.trim_start_matches("hf:").trim_start_matches('/');
                // A revision that is called `refs/pr/1` has slashes of its own.
                let slashes = if name.split('/').nth(1).is_some_and(|name| name.ends_with("@refs")) { 3 } else { 1 };
                return Some(match name.match_indices('/').nth(slashes).filter(|_| name.ends_with(".gguf")) {
                    Some((end, _)) => {
                        let (repository, file) = (&name[..end], &name[end + 1..]);
                        let all = match gguf::model_of(file) {
                            (prefix, Some(count)) => format!("{prefix}-*-of-{count:05}.gguf"),
                            (name, None) => name.to_owned(),
                        };
                        format!("fetch it first: `l4tool download {repository} --include '{all}' -o FOLDER`")
                    }
                    None => format!("fetch it first: `l4tool download {name} -o FOLDER`"),
                });
            }
            Kind::SeveralModels { first, .. } if remote::is_address(&self.file) => {
                let address = self.file.join(first);
                return Some(format!("name a file of one of them, such as `{}`", shown(&address.to_string_lossy())));
            }
            Kind::LeavesFolder { .. } => "copy the file into the folder in place of the link",
            Kind::SeveralModels { .. } => "name the file of one text model, or move the others out of the folder",
            Kind::NoTextModel => {
                "a vision part (mmproj) or an importance matrix is no model: put the text model's file beside it"
            }
            Kind::PartMissing { .. } => "fetch the missing files from where the others came from",
            Kind::WrongPart { .. } => {
                "the parts are not from the same model, or were renamed; fetch all of them from the same revision"
            }
            Kind::Archive { .. } => {
                "the download did not finish, or the file is from before PyTorch 1.6: load it and save it again with torch"
            }
            Kind::ForbiddenGlobal { .. } => {
                "a checkpoint needs no such thing, and loading it with Python could run code; get the weights from a source that you trust"
            }
            Kind::NotContiguous { .. } => "save the tensor again with `.contiguous()`",
            Kind::RankMissing { .. } => "fetch the missing file from where the others came from",
            Kind::Changed { .. } => "something is writing to the source; wait until it is done and start again",
            Kind::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "make the file readable for this user"
            }
            _ => return None,
        };
        Some(hint.to_string())
    }
}

impl std::error::Error for FormatError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            Kind::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", shown_path(&self.file))?;
        if let Some(tensor) = &self.tensor {
            write!(f, ", tensor `{}`", shown(tensor))?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The reason is the error's `source`, which the reader of an error chain prints.
            Self::Io { doing, .. } => write!(f, "cannot {doing}"),
            Self::NotAFile => write!(f, "not a regular file"),
            Self::NoWeights => write!(f, "no `.safetensors` file in this folder"),
            Self::NoIndex { files } => {
                write!(f, "{files} `.safetensors` files and no index that says which belong together")
            }
            Self::TooLarge { bytes, cap } => write!(f, "header or JSON of {bytes} bytes, the limit is {cap}"),
            Self::TooShort { bytes: 0 } => write!(f, "the file is empty"),
            Self::TooShort { bytes } => write!(f, "the file has {bytes} bytes, a safetensors file has 8 or more"),
            Self::HeaderPastEnd { header, file } => {
                write!(f, "the header should be {header} bytes long and the whole file has {file}")
            }
            Self::NotUtf8 { at } => write!(f, "not UTF-8 at byte {at} of the text"),
            Self::NotAnObject => write!(f, "the header does not begin with `{{`"),
            Self::Json { message } => write!(f, "{}", shown(message)),
            Self::DuplicateKey { key } => write!(f, "the key `{}` is there twice", shown(key)),
            Self::DuplicateTensor => write!(f, "the name is there twice in the header"),
            Self::UnknownDtype { dtype } => write!(f, "unknown dtype `{}`", shown(dtype)),
            Self::SizeOverflow { dtype, shape } => write!(f, "{dtype} {shape:?} has more than 2^64 elements or bits"),
            Self::PartialByte { dtype, shape } => write!(f, "{dtype} {shape:?} does not fill a whole number of bytes"),
            Self::Backwards { begin, end } => write!(f, "data offsets [{begin}, {end}] run backwards"),
            Self::WrongLength { dtype, shape, expected, actual } => {
                write!(f, "{dtype} {shape:?} takes {expected} bytes, the data offsets give it {actual}")
            }
            Self::Gap { expected, begin } => {
                write!(f, "begins at data offset {begin}, the tensor before it ends at {expected}")
            }
            Self::Overlap { other, end, begin } => {
                write!(f, "begins at data offset {begin}, inside `{}` which ends at {end}", shown(other))
            }
            Self::Truncated { expected, actual } => {
                write!(f, "truncated: the header promises {expected} bytes, the file has {actual}")
            }
            Self::TrailingBytes { expected, actual } => {
                let more = actual - expected;
                write!(f, "{more} trailing bytes: the header promises {expected} bytes, the file has {actual}")
            }
            Self::EmptyIndex => write!(f, "the index names no tensor"),
            Self::ShardName { name } => write!(f, "`{}` is not a plain file name", shown(name)),
            Self::LeavesFolder { target } => {
                write!(f, "a symbolic link out of the folder, to `{}`", shown_path(target))
            }
            Self::ShardMissing { others: 0 } => write!(f, "named in the index, and missing"),
            Self::ShardMissing { others } => write!(f, "named in the index, and missing (with {others} more)"),
            Self::InTwoFiles { other } => write!(f, "also in `{}`", shown(other)),
            Self::NotInShard => write!(f, "the index promises it here, and the file does not have it"),
            Self::NotInIndex => write!(f, "the file has it, and the index does not name it"),
            Self::WrongShard { listed } => write!(f, "the index expects it in `{}`", shown(listed)),
            Self::Elsewhere => write!(f, "this needs the weights, and they lie on the hub"),
            Self::Malformed { what } => write!(f, "{what}"),
            Self::SeveralModels { what, count, first, second } => {
                let (first, second) = (shown(first), shown(second));
                write!(f, "{count} {what} in GGUF in this folder, such as `{first}` and `{second}`")
            }
            Self::NoTextModel => write!(f, "no text model among the GGUF files of this folder"),
            Self::PartMissing { count, others: 0 } => write!(f, "one of {count} parts, and missing"),
            Self::PartMissing { count, others } => write!(f, "one of {count} parts, and missing (with {others} more)"),
            Self::WrongPart { what } => write!(f, "{what}"),
            Self::Archive { what } => write!(f, "{}", shown(what)),
            Self::Pickle { what, at } => write!(f, "the pickle is damaged or unusual at byte {at}: {}", shown(what)),
            Self::ForbiddenGlobal { name } => {
                write!(f, "the pickle asks for `{}`, which is neither a tensor nor a plain container", shown(name))
            }
            Self::NotContiguous { shape, stride } => {
                write!(f, "a view of shape {shape:?} with strides {stride:?}, whose elements do not follow each other")
            }
            Self::RankMissing { rank, last } => {
                write!(f, "rank {rank} of ranks 0 to {last} has no file here")
            }
            Self::Changed { was_bytes, bytes } if was_bytes != bytes => {
                write!(f, "changed since it was opened: {was_bytes} bytes then, {bytes} now")
            }
            Self::Changed { .. } => write!(f, "changed since it was opened: its modification time is another"),
        }
    }
}

/// A name from a file, fit for a terminal: control characters and invisible or direction-changing ones as `\u{..}`, and cut at
/// 200 characters.
pub fn shown(name: &str) -> String {
    const LONGEST: usize = 200;
    let mut text = String::with_capacity(name.len().min(LONGEST));
    for (count, c) in name.chars().enumerate() {
        if count == LONGEST {
            text.push('…');
            break;
        }
        let hidden =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || hidden {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}

/// A path, fit for a terminal. Never cut: the whole path is needed to find the file.
fn shown_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.chars().any(char::is_control) {
        text.chars().flat_map(char::escape_default).collect()
    } else {
        text.into_owned()
    }
}
