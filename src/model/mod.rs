//! The reference forward pass of Llama 4, in float32 over weights of any stored precision.
//!
//! Follows `transformers`' `modeling_llama4.py` (5.17) step by step. Its parts work on plain slices;
//! `weights` and `forward` alone know a checkpoint.

pub mod attention;
pub mod forward;
pub mod moe;
pub mod ops;
pub mod rope;
pub mod weights;
