//! What the tensors of a checkpoint mean: config, names, logical weights.
//!
//! The only layer that knows a dialect of names and layouts. Commands and everything above talk about logical weights.

pub mod config;
mod decode;
mod expected;
mod find;
pub mod gguf;
mod joined;
pub mod memory;
mod meta;
pub mod names;
mod parts;
mod pieces;
mod ranks;
pub mod shards;
mod stored;
pub mod tiktoken;
pub mod tokenizer;
mod values;
mod view;

pub use expected::{Expected, expected};
pub use names::Role;
pub use pieces::{Axis, Elements, Piece, Pieces, Scales};
pub use stored::Expectation;
pub use values::{Values, block_rows};
pub use view::{Coding, Dialect, Llama4, Plane, Problem, ProblemKind, TensorId, Weight};
