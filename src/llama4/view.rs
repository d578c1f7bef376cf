//! The Llama 4 view of a checkpoint: logical weights, each with where its bytes are and how they are coded.
//!
//! This is the only layer that knows how a dialect names and lays out tensors. It reads headers and the config, never a
//! weight. What does not fit is not an error here but a [`Problem`]: `inspect` shows it, commands that need the weights refuse.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::config::Config;
use super::expected::{Expected, expected};
use super::find::{Finder, Parts};
use super::gguf::names::ROPE_FACTORS;
use super::names::{Part, Prefixes, Role, logical_name};
use super::pieces::Pieces;
use super::ranks;
use super::shards::Cut;
use crate::checkpoint::{Checkpoint, Remote, TensorInfo, shown};
use crate::dtype::Dtype;
use crate::kernels::Float;
use crate::quant::scheme::Scheme;
use crate::quant::{Layout, ggml};

/// Index of a tensor in [`Checkpoint::tensors`].
pub type TensorId = usize;

/// A plain matrix or vector inside a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// Tensor that holds it.
    pub tensor: TensorId,
    /// Number format of the elements.
    pub float: Float,
    /// Which way the matrix lies; a vector is one `OutIn` row.
    pub layout: Layout,
    /// Bytes from the tensor's start to element (0, 0).
    pub offset: u64,
    /// Elements between the starts of consecutive stored rows.
    pub stride: usize,
}

/// How a weight's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Floating point numbers as they are.
    Plain(Plane),
    /// compressed-tensors `pack-quantized` with 4 bits.
    Int4 {
        /// Codes, I32 `[out, ceil(in / 8)]`.
        packed: TensorId,
        /// Scales, `[out, in / group_size]`.
        scale: TensorId,
        /// Zero points, I32 `[ceil(out / 8), in / group_size]`; asymmetric only.
        zero_point: Option<TensorId>,
        /// The logical shape, I64 or I32 `[2]`.
        shape: TensorId,
        /// Inputs that share a scale.
        group_size: usize,
    },
    /// compressed-tensors `float-quantized` E4M3.
    Fp8 {
        /// Codes, `[out, in]`.
        weight: TensorId,
        /// Scales, whose shape the scheme gives.
        scale: TensorId,
        /// Scale of the activations, with static quantization.
        input_scale: Option<TensorId>,
        /// Channel, block or tensor.
        scheme: Scheme,
    },
    /// Blocks of ggml, row after row: codes with their scales inside.
    Blocks {
        /// Tensor that holds them.
        tensor: TensorId,
        /// Their format, along the inputs.
        dtype: Dtype,
        /// Bytes from the tensor's start to the first block.
        offset: u64,
    },
    /// In pieces that no engine reads as they are: an index into [`Llama4::pieces`].
    Pieces(usize),
    /// In equal parts, one for each rank of tensor parallelism, each coded as a matrix of its own.
    Split {
        /// How they lie; never [`Cut::Whole`].
        cut: Cut,
        /// The first part, an index into [`Llama4::shards`].
        first: usize,
        /// Number of parts.
        count: usize,
        /// The scheme of the parts; `None` if they are plain.
        scheme: Option<Scheme>,
        /// The format of plain parts.
        float: Option<Float>,
    },
}

impl Coding {
    /// The scheme of a quantized weight; `None` for a plain one, and for one in pieces.
    pub fn scheme(&self) -> Option<Scheme> {
        match *self {
            Self::Plain(_) | Self::Pieces(_) => None,
            Self::Int4 { group_size, zero_point, .. } => {
                Some(Scheme::W4A16 { group_size, symmetric: zero_point.is_none() })
            }
            Self::Fp8 { scheme, .. } => Some(scheme),
            Self::Blocks { dtype, .. } => Some(Scheme::Blocks(dtype)),
            Self::Split { scheme, .. } => scheme,
        }
    }
}

/// One logical weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Logical name, `layers.7.feed_forward.experts.3.gate_proj`.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Decoder layer, for weights of one.
    pub layer: Option<usize>,
    /// Expert, for routed experts.
    pub expert: Option<usize>,
    /// Logical shape; `[out, in]` for matrices.
    pub shape: Vec<usize>,
    /// Where and how it is stored.
    pub coding: Coding,
}

impl Weight {
    /// Number of parameters.
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// Outputs and inputs; a vector is one row.
    pub fn matrix(&self) -> (usize, usize) {
        match *self.shape.as_slice() {
            [out, input] => (out, input),
            _ => (1, self.shape.iter().product()),
        }
    }
}

/// Something about a checkpoint that is not as its config promises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What kind of problem.
    pub kind: ProblemKind,
    /// Logical or physical name, as far as it has one.
    pub name: String,
    /// What is wrong, in words, without the name.
    pub message: String,
}

/// Kinds of [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The config promises the weight, and no tensor holds it.
    Missing,
    /// The tensor is no part of a Llama 4 model with this config.
    Unexpected,
    /// Shape, dtype or parts do not fit what the config promises.
    Mismatch,
    /// A name by which an engine takes the tensor for another one; it is read here for what it is.
    Misnamed,
}

/// Whose names and layouts a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Hugging Face's, which engines read.
    HuggingFace,
    /// Meta's own, in files of ranks.
    Meta,
    /// llama.cpp's, in GGUF files.
    Gguf,
}

/// A checkpoint and what its tensors mean.
#[derive(Debug)]
pub struct Llama4 {
    /// The container.
    pub checkpoint: Checkpoint,
    /// The parsed config.
    pub config: Config,
    /// Every weight that is there, in the order of a forward pass.
    pub weights: Vec<Weight>,
    /// What is missing, unexpected or of the wrong shape.
    pub problems: Vec<Problem>,
    /// What each tensor was found to be: an index into `weights` (the first, for a fused tensor), or `None`.
    pub owner: Vec<Option<usize>>,
    /// Whose names and layouts it has.
    pub dialect: Dialect,
    /// The weights that lie in pieces.
    pub pieces: Vec<Pieces>,
    /// The parts of weights that lie in rank shards, rank by rank.
    pub shards: Vec<Coding>,
    by_name: HashMap<String, usize>,
}

impl Llama4 {
    /// Opens the checkpoint at `path` and reads its config and headers.
    ///
    /// # Errors
    /// The container is malformed, or its config is not a Llama 4 one. Missing or odd weights are in
    /// [`Llama4::problems`] instead.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(path, Checkpoint::open(path)?)
    }

    /// Says what the tensors of an open checkpoint mean, whoever's it is.
    fn of(path: &Path, checkpoint: Checkpoint) -> Result<Self> {
        let config = Config::of(&checkpoint).with_context(|| format!("opening `{}`", path.display()))?;
        Ok(match checkpoint.config() {
            _ if super::gguf::is_gguf(&checkpoint) => super::gguf::view::assign(checkpoint, config),
            Some(("params.json", _)) => super::meta::assign(checkpoint, config),
            _ if ranks::is_sharded(&checkpoint) => ranks::assign(checkpoint, config)?,
            _ => Self::assign(checkpoint, config),
        })
    }

    /// Puts the view together from what a dialect found.
    pub(super) fn assemble(
        checkpoint: Checkpoint,
        config: Config,
        dialect: Dialect,
        weights: Vec<Weight>,
        pieces: Vec<Pieces>,
        mut problems: Vec<Problem>,
        owner: Vec<Option<usize>>,
    ) -> Self {
        problems.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        let by_name = weights.iter().enumerate().map(|(index, weight)| (weight.name.clone(), index)).collect();
        Self { checkpoint, config, weights, problems, owner, dialect, pieces, shards: Vec::new(), by_name }
    }

    /// As [`Llama4::open`], for a folder that lies elsewhere and that messages call `path`, or for the model in it that the GGUF file
    /// called `file` belongs to; weights cannot be read.
    ///
    /// # Errors
    /// As [`Llama4::open`], or the headers cannot be fetched.
    pub fn open_remote(path: &Path, file: Option<&str>, remote: &dyn Remote) -> Result<Self> {
        Self::of(path, Checkpoint::open_remote(path, file, remote, ROPE_FACTORS)?)
    }

    /// The weight of that role; `layer` and `expert` as the role has them.
    pub fn weight(&self, role: Role, layer: Option<usize>, expert: Option<usize>) -> Option<&Weight> {
        self.named(&logical_name(role, layer, expert))
    }

    /// The weight with that logical name.
    pub fn named(&self, name: &str) -> Option<&Weight> {
        self.position(name).map(|index| &self.weights[index])
    }

    /// The index of the weight with that logical name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Refuses a checkpoint whose weights are not all there as promised, or lie in pieces.
    ///
    /// # Errors
    /// Names the first problems and says how many there are. Unexpected tensors are no reason to refuse.
    pub fn require_complete(&self) -> Result<()> {
        self.require_converted()?;
        self.require_weights()
    }

    /// Refuses a checkpoint that has to be converted before anything else can be done with it.
    ///
    /// # Errors
    /// Says what it is and how to convert it.
    pub fn require_converted(&self) -> Result<()> {
        let what = match (self.dialect, self.pieces.is_empty()) {
            (Dialect::Gguf, _) => return Ok(()),
            (Dialect::Meta, _) => "holds weights in Meta's own layout",
            (_, false) => "holds fused experts in FP8",
            (_, true) => return Ok(()),
        };
        Err(crate::error::hint(
            format!("`{}` {what}, which only `convert` and `inspect` read", self.checkpoint.folder().display()),
            "make an ordinary checkpoint of it first: `l4tool convert CHECKPOINT -o OUT --to hf`",
        ))
    }

    /// Refuses a checkpoint in rank shards, for commands that read whole tensors.
    ///
    /// # Errors
    /// Says how to join it.
    pub fn require_joined(&self) -> Result<()> {
        if self.shards.is_empty() {
            return Ok(());
        }
        Err(crate::error::hint(
            format!("`{}` holds rank shards", self.checkpoint.folder().display()),
            "join them first: `l4tool repack CHECKPOINT -o OUT --layout hf`",
        ))
    }

    /// The parts of a weight in rank shards, rank by rank; nothing for any other weight.
    pub fn shards_of(&self, weight: &Weight) -> &[Coding] {
        match weight.coding {
            Coding::Split { first, count, .. } => &self.shards[first..first + count],
            _ => &[],
        }
    }

    /// Refuses a checkpoint whose weights are not all there as promised.
    ///
    /// # Errors
    /// As [`Llama4::require_complete`].
    pub fn require_weights(&self) -> Result<()> {
        let prevents = |problem: &&Problem| matches!(problem.kind, ProblemKind::Missing | ProblemKind::Mismatch);
        let bad: Vec<_> = self.problems.iter().filter(prevents).collect();
        let Some(first) = bad.first() else { return self.require_decoded() };
        let more = if bad.len() > 1 { format!(" (and {} more)", bad.len() - 1) } else { String::new() };
        Err(crate::error::hint(
            format!("`{}`: `{}` {}{more}", self.checkpoint.folder().display(), first.name, first.message),
            "`l4tool inspect` lists everything that is missing or does not fit",
        ))
    }

    /// Refuses a checkpoint with weights in a format whose numbers cannot be read.
    ///
    /// # Errors
    /// Names the first.
    pub fn require_decoded(&self) -> Result<()> {
        let unknown = |weight: &&Weight| matches!(weight.coding, Coding::Blocks { dtype, .. } if !ggml::decodes(dtype));
        let Some(weight) = self.weights.iter().find(unknown) else { return Ok(()) };
        let tensor = self.coding_tensor_name(weight);
        Err(crate::error::hint(
            format!("`{tensor}` is {}, a format of ggml that is listed and not decoded", self.label(weight)),
            "`l4tool inspect` shows what is in it; use a file in one of the formats from Q2_K to Q8_0, IQ4 or MXFP4",
        ))
    }

    /// The name of the first tensor that a weight is stored in.
    fn coding_tensor_name(&self, weight: &Weight) -> String {
        let tensor = weight.coding.tensors().next().map(|id| shown(&self.checkpoint.tensors()[id].name));
        tensor.unwrap_or_else(|| weight.name.clone())
    }

    /// Refuses a checkpoint in GGUF, for commands that move tensors of Hugging Face's layouts.
    ///
    /// # Errors
    /// Says how to convert it.
    pub fn require_safetensors(&self) -> Result<()> {
        if self.dialect != Dialect::Gguf {
            return Ok(());
        }
        Err(crate::error::hint(
            format!("`{}` is in GGUF, which this command does not read", self.checkpoint.folder().display()),
            "make an ordinary checkpoint of it first: `l4tool convert CHECKPOINT -o OUT --to hf`",
        ))
    }

    fn assign(checkpoint: Checkpoint, config: Config) -> Self {
        let prefixes = Prefixes::of(config.model);
        let mut modules: HashMap<&str, Parts> = HashMap::new();
        let mut problems = Vec::new();
        for (id, tensor) in checkpoint.tensors().iter().enumerate() {
            match prefixes.split(&tensor.name) {
                Some((_, Part::CacheScale)) => {}
                Some((module, part)) => {
                    if let Some(first) = modules.entry(module).or_default().insert(part, id) {
                        let message = format!("is there twice: also as `{}`", checkpoint.tensors()[first].name);
                        problems.push(Problem { kind: ProblemKind::Mismatch, name: tensor.name.clone(), message });
                    }
                }
                None => problems.push(unexpected(tensor)),
            }
        }
        let mut owner = vec![None; checkpoint.tensors().len()];
        let (mut weights, mut pieces) = (Vec::new(), Vec::new());
        for wanted in expected(&config) {
            let finder = Finder { tensors: checkpoint.tensors(), modules: &modules, config: &config };
            match finder.find(&wanted, &mut pieces) {
                Ok((coding, parts)) => {
                    for id in parts {
                        owner[id] = owner[id].or(Some(weights.len()));
                    }
                    let Expected { name, role, layer, expert, shape } = wanted;
                    weights.push(Weight { name, role, layer, expert, shape, coding });
                }
                Err(problem) => {
                    // Its tensors are accounted for by this problem; they are not unexpected on top of it.
                    for &id in modules.get(wanted.name.as_str()).into_iter().flat_map(BTreeMap::values) {
                        owner[id] = owner[id].or(Some(usize::MAX));
                    }
                    problems.push(problem);
                }
            }
        }
        for (id, tensor) in checkpoint.tensors().iter().enumerate() {
            let known = prefixes.split(&tensor.name).is_some_and(|(_, part)| part != Part::CacheScale);
            if owner[id].is_none() && known {
                problems.push(unexpected(tensor));
            }
        }
        for slot in &mut owner {
            *slot = slot.filter(|&index| index != usize::MAX);
        }
        problems.extend(config_disagrees(&config, &weights, &pieces));
        Self::assemble(checkpoint, config, Dialect::HuggingFace, weights, pieces, problems, owner)
    }
}

/// Whether config and weights agree on being quantized: an engine goes by the config alone.
pub(super) fn config_disagrees(config: &Config, weights: &[Weight], pieces: &[Pieces]) -> Option<Problem> {
    // What ModelOpt quantized may have its description in a file of its own; only `convert` reads it anyway.
    let quantized = match pieces.iter().any(Pieces::is_quantized) {
        true => return None,
        false => weights.iter().filter(|weight| weight.coding.scheme().is_some()).count(),
    };
    let message = match (&config.quantization, quantized) {
        (None, 1..) => format!("is missing in `config.json`, and {quantized} weights are quantized"),
        (Some(_), 0) => "is in `config.json`, and no weight is quantized".to_owned(),
        _ => return None,
    };
    Some(Problem { kind: ProblemKind::Mismatch, name: "quantization_config".to_owned(), message })
}

pub(super) fn unexpected(tensor: &TensorInfo) -> Problem {
    let message = format!("is not part of this model ({} {:?})", tensor.dtype, tensor.shape);
    Problem { kind: ProblemKind::Unexpected, name: tensor.name.clone(), message }
}
