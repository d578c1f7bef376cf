//! dtype
pub mod fp8;
pub mod int4;
