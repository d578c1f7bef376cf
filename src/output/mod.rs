//! From logical weights to a published checkpoint: plan, execute, check, describe, publish.
//!
//! A [`plan::Plan`] is made from headers alone and says everything about the output; [`executor`] fills it; [`gate`] opens
//! the result again; [`partial`] makes it appear in one step; [`job`] is all of that in order. This layer knows no
//! command: `quantize`, `convert` and `repack` are ways to make a plan. Only this layer creates files.

pub mod assembling;
pub mod casting;
pub mod companions;
pub mod converting;
pub mod encoding;
pub mod evidence;
pub mod executor;
pub mod gate;
pub mod gathering;
pub mod gguf;
pub mod hash;
mod header;
pub mod job;
pub mod journal;
pub mod manifest;
pub mod modules;
pub mod origin;
pub mod partial;
pub mod plan;
pub mod preflight;
pub mod quantization_config;
mod quantizing;
pub mod repacking;
pub mod sharding;
pub mod tensor_file;
pub mod whole_file;
pub mod work;
pub mod written;

#[cfg(test)]
mod tests;
