//! The reference forward pass of Llama 4, in float32 over weights of any stored precision.
//!
//! Follows `transformers`' `modeling_llama4.py` (5.17) step by step. The parts here work on plain slices; they know no checkpoint.

pub mod attention;
pub mod forward;
pub mod linear;
pub mod moe;
pub mod ops;
pub mod rope;
pub mod weights;

#[cfg(test)]
mod tests;
