//! GGUF as the output: which tensors a file of llama.cpp has, of which types, under which keys, and the plan that fills it.
//!
//! Everything about llama.cpp's conventions of writing is here; the executor knows none of it.

pub mod gate;
pub mod keys;
pub mod limits;
pub mod mix;
pub mod plan;
mod template;
pub mod tensors;
pub mod tokenizer;
pub mod vision;
