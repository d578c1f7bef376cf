//! llama4
