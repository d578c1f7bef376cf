//! llama4

pub mod config;
