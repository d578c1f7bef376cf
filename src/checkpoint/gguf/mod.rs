//! GGUF, the container of llama.cpp: keys with values, and tensors.
//!
//! ```text
//! "GGUF", u32 version (2 or 3), u64 tensors, u64 keys, little-endian
//! keys:     string name (u64 length and bytes), u32 type, value; an array is u32 type, u64 count, elements
//! tensors:  string name, u32 dimensions, u64 extents (the fastest-varying first), u32 ggml type, u64 offset
//! data:     from the next multiple of `general.alignment` (32); offsets count from here
//! ```
//!
//! The rules are those of `gguf_init_from_file` in ggml 0.25 (`ggml/src/gguf.cpp`): no name twice, at most four dimensions, tensors
//! follow one another in the order of the table, each padded to the alignment. Everything is checked when a file is opened; arrays are
//! left where they are, so that a header costs memory in proportion to its keys. Knows no model.

mod files;
mod keys;
mod read;
mod value;
mod write;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub(super) use files::{
    from_folder, is_gguf, is_imatrix_name, is_name, is_vision_name, model_of, open_file, open_folder,
};
pub use keys::{Head, Keys};
pub use read::{Gguf, GgufTensor};
pub use value::{Array, Value};
pub use write::{Content, Layout, encode};

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is written.
const VERSION: u32 = 3;

/// The alignment where no key says otherwise (`GGUF_DEFAULT_ALIGNMENT`).
const ALIGNMENT: u64 = 32;

/// The key that does.
const ALIGNMENT_KEY: &str = "general.alignment";

/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
const DIMENSIONS_MAX: u32 = 4;

/// Most bytes of a tensor's name, without the zero that ggml puts behind it (`GGML_MAX_NAME`).
const NAME_BYTES_MAX: usize = 63;
