//! The Llama 4 view over GGUF files: what llama.cpp calls the weights.
//!
//! Sources: `src/models/llama4.cpp`, `conversion/llama.py` and `gguf-py/gguf/tensor_mapping.py` of llama.cpp at 0c1e57098.

pub(super) mod config;
mod keys;
pub mod names;
mod rope;
pub mod tokenizer;
pub(super) mod view;

pub(super) use keys::is_gguf;
