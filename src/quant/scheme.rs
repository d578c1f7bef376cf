//! The schemes a weight can be stored in, by the names that users type and reports print.
//!
//! A scheme says what the numbers are; it knows no container and no tensor name.

use std::fmt;

use serde::Serialize;

use super::Method;
use crate::dtype::Dtype;

/// How one quantized matrix is stored. All shapes are of the logical `[out, in]` matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// INT4 codes with one BF16 scale for every `group_size` inputs of a row; activations stay as they are.
    W4A16 {
        /// Inputs that share a scale.
        group_size: usize,
        /// Codes are centred on zero; otherwise every group has a zero point too.
        symmetric: bool,
    },
    /// FP8 E4M3 codes with one scale per output; activations are quantized per token while serving.
    Fp8Dynamic,
    /// FP8 E4M3 codes with one scale per `rows x cols` block; activations are quantized in groups while serving.
    Fp8Block {
        /// Outputs of a block.
        rows: usize,
        /// Inputs of a block.
        cols: usize,
    },
    /// FP8 E4M3 codes with one scale for the matrix. `static_input`: the checkpoint carries the activations' scale too.
    Fp8Tensor {
        /// Whether an `input_scale` is stored beside the weight.
        static_input: bool,
    },
    /// Blocks of ggml, in one of its formats for them: codes with their scales inside, along the inputs.
    Blocks(Dtype),
}

/// What is known about the inputs of weights while they are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// Nothing.
    Nothing,
    /// How large each input is on average, from a file.
    Statistics,
    /// Second moments, from a file.
    Hessians,
    /// The inputs themselves: calibration data run through the model.
    Inputs,
}

/// Group size that every engine serves, used where the user names none.
pub const DEFAULT_GROUP_SIZE: usize = 128;

impl Scheme {
    /// The schemes `quantize` can write, as the user spells them.
    pub const WRITABLE: [&'static str; 5] = ["w4a16", "w4a16-asym", "fp8-dynamic", "fp8-block", "fp8-static"];

    /// The scheme that a user calls `name`, with `group_size` where it has groups.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the name, or that the group size does not apply.
    pub fn parse(name: &str, group_size: Option<usize>) -> Result<Self, String> {
        let grouped = group_size.unwrap_or(DEFAULT_GROUP_SIZE);
        if grouped == 0 {
            return Err("a group size of 0 makes no groups".into());
        }
        let scheme = match name {
            "w4a16" => Self::W4A16 { group_size: grouped, symmetric: true },
            "w4a16-asym" => Self::W4A16 { group_size: grouped, symmetric: false },
            "fp8-dynamic" => Self::Fp8Dynamic,
            "fp8-block" => Self::Fp8Block { rows: 128, cols: 128 },
            "fp8-static" => Self::Fp8Tensor { static_input: true },
            _ => return Err(format!("unknown scheme `{name}`; there are {}", Self::WRITABLE.join(", "))),
        };
        match (scheme, group_size) {
            (Self::W4A16 { .. }, _) | (_, None) => Ok(scheme),
            (_, Some(size)) => Err(format!("`{name}` has no groups, so a group size of {size} does not apply")),
        }
    }

    /// The method to use where the user asked for `asked`; `None` is the best one with what is known.
    ///
    /// # Errors
    /// A sentence that says why the method does not apply.
    pub fn method(self, asked: Option<Method>, known: Knowledge) -> Result<Method, String> {
        let (int4, blocks) = (matches!(self, Self::W4A16 { .. }), matches!(self, Self::Fp8Block { .. }));
        match asked {
            None if self.is_fp8() => Ok(Method::Rtn),
            None if int4 && matches!(known, Knowledge::Inputs | Knowledge::Hessians) => Ok(Method::Gptq),
            None => Ok(Method::Search),
            Some(Method::Search) if blocks => Err(format!("`{self}` knows the method rtn only")),
            // It gains 1 to 3 % of an error of 2.6 %, for eight times the work, unless some inputs matter more: see `quant::fp8`.
            Some(Method::Search) if self.is_fp8() && known == Knowledge::Nothing => Err(format!(
                "without data `{self}` knows the method rtn only: FP8 scales are searched by what inputs matter"
            )),
            Some(method @ (Method::Gptq | Method::Awq)) if !int4 => Err(format!(
                "the method {method} is for INT4; without data `{self}` knows rtn only, with data search too"
            )),
            Some(asked) => Ok(asked),
        }
    }

    /// Whether it stores scales of activations, which come from calibration alone.
    pub fn needs_data(self) -> bool {
        self == Self::Fp8Tensor { static_input: true }
    }

    /// Whether the codes are FP8.
    pub fn is_fp8(self) -> bool {
        matches!(self, Self::Fp8Dynamic | Self::Fp8Block { .. } | Self::Fp8Tensor { .. })
    }

    /// Whether it is a format of GGUF files alone, which no checkpoint in safetensors has.
    pub fn is_blocks(self) -> bool {
        matches!(self, Self::Blocks(_))
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::W4A16 { group_size, symmetric } => {
                f.write_str(if symmetric { "w4a16" } else { "w4a16-asym" })?;
                if group_size != DEFAULT_GROUP_SIZE {
                    write!(f, "-g{group_size}")?;
                }
                Ok(())
            }
            Self::Fp8Dynamic => f.write_str("fp8-dynamic"),
            Self::Fp8Block { rows: 128, cols: 128 } => f.write_str("fp8-block"),
            Self::Fp8Block { rows, cols } => write!(f, "fp8-block-{rows}x{cols}"),
            Self::Fp8Tensor { static_input: false } => f.write_str("fp8-tensor"),
            Self::Fp8Tensor { static_input: true } => f.write_str("fp8-static"),
            // ggml's name as llama.cpp prints it.
            Self::Blocks(dtype) => f.write_str(&dtype.name().to_ascii_lowercase()),
        }
    }
}

impl Serialize for Scheme {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
