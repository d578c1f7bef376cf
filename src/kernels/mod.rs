//! kernels

pub mod gemm;
