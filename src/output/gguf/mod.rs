//! GGUF as the output: which tensors a file of llama.cpp has, of which types, under which keys, and the plan that fills it.

pub mod mix;
