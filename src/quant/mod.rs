//! Quantizers: a view of a matrix in, codes and scales out. Numbers only.
//!
//! It must not know files, names, configurations or which weight a matrix is. All of it gives the same bits for every
//! instruction set, and for every way of cutting a matrix into stripes that the functions here allow:
//!
//! - A matrix may be quantized in stripes that are fed in order: stripes of outputs (for [`Layout::OutIn`]) or of inputs
//!   (for [`Layout::InOut`]). A stripe of inputs, except the last, is a multiple of [`STRIPE_INPUTS`] long, and of the
//!   group or block that is quantized together.
//! - Each stripe adds to [`ErrorSums`], which keeps sums per output so that the split does not show in them.

pub mod awq;
mod block;
pub mod fp8;
pub mod ggml;
pub mod gptq;
mod hessian;
pub mod int4;
mod quotient;
pub mod recipe;
pub mod scheme;
mod sums;
mod tally;
mod target;

#[cfg(test)]
mod tests;

pub use block::{Block, Layout};
pub use hessian::Hessian;
pub use sums::{ErrorRows, ErrorSums, Errors};
pub use target::Target;

use target::read_scale;

use std::fmt;
use std::str::FromStr;

/// A stripe of inputs that is not a matrix's last is a multiple of this many inputs.
pub const STRIPE_INPUTS: usize = 64;

/// How a scale is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// From the largest magnitude alone, as compressed-tensors does.
    Rtn,
    /// By search for the smallest squared error, never worse than [`Method::Rtn`] on any group. Errors are weighted by
    /// how large inputs are, where that is known.
    Search,
    /// Input after input, each making up for what rounding the ones before it has cost; needs second moments of the inputs.
    Gptq,
    /// [`Method::Search`] after inputs that matter were made larger, and what feeds them smaller; needs to know how large
    /// inputs are.
    Awq,
}

impl Method {
    /// Whether it is none without calibration data.
    pub fn needs_data(self) -> bool {
        matches!(self, Self::Gptq | Self::Awq)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rtn => "rtn",
            Self::Search => "search",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
        })
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "rtn" => Ok(Self::Rtn),
            "search" => Ok(Self::Search),
            "gptq" => Ok(Self::Gptq),
            "awq" => Ok(Self::Awq),
            _ => Err(format!("unknown method `{name}`; there are rtn, search, gptq and awq")),
        }
    }
}

/// A value that cannot be quantized: NaN, infinite, or so large that its quantized form would be infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NonFinite {
    /// The output (row of the weight) within the block.
    pub out: usize,
    /// The input (column of the weight) within the block.
    pub input: usize,
    /// The value.
    pub value: f32,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { out, input, value } = self;
        let what = if value.is_finite() { "too large to be quantized" } else { "not finite" };
        write!(f, "the value {value:e} at output {out}, input {input} is {what}")
    }
}

impl std::error::Error for NonFinite {}
