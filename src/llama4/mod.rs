//! What the tensors of a checkpoint mean: config, names, logical weights.
//!
//! The only layer that knows a dialect of names and layouts. Commands and everything above talk about logical weights.

pub mod config;
mod decode;
mod expected;
pub mod memory;
pub mod names;
mod parts;
mod stored;
pub mod tokenizer;
mod values;
mod view;

pub use expected::{Expected, expected};
pub use names::Role;
pub use stored::Expectation;
pub use values::{Values, block_rows};
pub use view::{Coding, Llama4, Plane, Problem, ProblemKind, TensorId, Weight};
