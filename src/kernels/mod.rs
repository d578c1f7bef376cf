//! kernels

pub mod gemm;
pub mod rows;
