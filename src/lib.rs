//! Llama 4 checkpoints from where they are published to where they run: open, inspect, quantize and verify,
//! streaming, in bounded memory, without a GPU.
//!
//! The modules are listed bottom-up. A module imports only from modules listed before it; `docs/architecture.md` says what
//! each layer must not know, and a test holds the tree to it. The library never prints, never exits and never reads the
//! environment: results are plain data, progress goes through [`progress::Progress`].

pub mod error;
pub mod progress;

pub mod files;
pub mod parallel;

pub mod dtype;
pub mod kernels;
pub mod quant;

pub mod checkpoint;
pub mod hub;
pub mod llama4;

pub mod model;

pub mod calibration;
pub mod output;

pub mod tasks;
