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
use super::names::{Part, Prefixes, Role, logical_name};
use crate::checkpoint::{Checkpoint, Remote, TensorInfo};
use crate::dtype::Dtype;
use crate::kernels::Float;
use crate::quant::Layout;
use crate::quant::scheme::Scheme;

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
}

impl Coding {
    /// The scheme of a quantized weight; `None` for a plain one.
    pub fn scheme(&self) -> Option<Scheme> {
        match *self {
            Self::Plain(_) => None,
            Self::Int4 { group_size, zero_point, .. } => {
                Some(Scheme::W4A16 { group_size, symmetric: zero_point.is_none() })
            }
            Self::Fp8 { scheme, .. } => Some(scheme),
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
    by_name: HashMap<String, usize>,
}

/// The tensors of one module, by part.
type Parts = BTreeMap<Part, TensorId>;

impl Llama4 {
    /// Opens the checkpoint at `path` and reads its config and headers.
    ///
    /// # Errors
    /// The container is malformed, or its config is not a Llama 4 one. Missing or odd weights are in
    /// [`Llama4::problems`] instead.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let config = Config::of(&checkpoint).with_context(|| format!("opening `{}`", path.display()))?;
        Ok(Self::assign(checkpoint, config))
    }

    /// As [`Llama4::open`], for a checkpoint that lies elsewhere and that messages call `path`; its weights cannot be read.
    ///
    /// # Errors
    /// As [`Llama4::open`], or the headers cannot be fetched.
    pub fn open_remote(path: &Path, remote: &dyn Remote) -> Result<Self> {
        let checkpoint = Checkpoint::open_remote(path, remote)?;
        let config = Config::of(&checkpoint).with_context(|| format!("opening `{}`", path.display()))?;
        Ok(Self::assign(checkpoint, config))
    }

    /// The weight of that role; `layer` and `expert` as the role has them.
    pub fn weight(&self, role: Role, layer: Option<usize>, expert: Option<usize>) -> Option<&Weight> {
        self.named(&logical_name(role, layer, expert))
    }

    /// The weight with that logical name.
    pub fn named(&self, name: &str) -> Option<&Weight> {
        self.by_name.get(name).map(|&index| &self.weights[index])
    }

    /// Refuses a checkpoint whose weights are not all there as promised.
    ///
    /// # Errors
    /// Names the first problems and says how many there are. Unexpected tensors are no reason to refuse.
    pub fn require_complete(&self) -> Result<()> {
        let bad: Vec<_> = self.problems.iter().filter(|problem| problem.kind != ProblemKind::Unexpected).collect();
        let Some(first) = bad.first() else { return Ok(()) };
        let more = if bad.len() > 1 { format!(" (and {} more)", bad.len() - 1) } else { String::new() };
        Err(crate::error::hint(
            format!("`{}`: `{}` {}{more}", self.checkpoint.folder().display(), first.name, first.message),
            "`l4tool inspect` lists everything that is missing or does not fit",
        ))
    }

    fn assign(checkpoint: Checkpoint, config: Config) -> Self {
        let prefixes = Prefixes::of(config.model);
        let mut modules: HashMap<&str, Parts> = HashMap::new();
        let mut problems = Vec::new();
        for (id, tensor) in checkpoint.tensors().iter().enumerate() {
            match prefixes.split(&tensor.name) {
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
        let mut weights = Vec::new();
        for wanted in expected(&config) {
            let found = Finder { tensors: checkpoint.tensors(), modules: &modules, config: &config }.find(&wanted);
            match found {
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
            if owner[id].is_none() && prefixes.split(&tensor.name).is_some() {
                problems.push(unexpected(tensor));
            }
        }
        for slot in &mut owner {
            *slot = slot.filter(|&index| index != usize::MAX);
        }
        problems.extend(config_disagrees(&config, &weights));
        problems.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        let by_name = weights.iter().enumerate().map(|(index, weight)| (weight.name.clone(), index)).collect();
        Self { checkpoint, config, weights, problems, owner, by_name }
    }
}

/// Whether config and weights agree on being quantized: an engine goes by the config alone.
fn config_disagrees(config: &Config, weights: &[Weight]) -> Option<Problem> {
    let quantized = weights.iter().filter(|weight| weight.coding.scheme().is_some()).count();
    let message = match (&config.quantization, quantized) {
        (None, 1..) => format!("is missing in `config.json`, and {quantized} weights are quantized"),
        (Some(_), 0) => "is in `config.json`, and no weight is quantized".to_owned(),
        _ => return None,
    };
    Some(Problem { kind: ProblemKind::Mismatch, name: "quantization_config".to_owned(), message })
}

fn unexpected(tensor: &TensorInfo) -> Problem {
    let message = format!("is not part of this model ({} {:?})", tensor.dtype, tensor.shape);
    Problem { kind: ProblemKind::Unexpected, name: tensor.name.clone(), message }
}

/// Finds the tensors of one expected weight and says how they code it.
struct Finder<'a> {
    tensors: &'a [TensorInfo],
    modules: &'a HashMap<&'a str, Parts>,
    config: &'a Config,
}

impl Finder<'_> {
    fn find(&self, wanted: &Expected) -> Result<(Coding, Vec<TensorId>), Problem> {
        let own = self.modules.get(wanted.name.as_str());
        let fused = wanted.expert.and_then(|_| self.fused(wanted));
        match (own, fused) {
            (Some(_), Some((tensor, _))) => Err(mismatch(
                wanted,
                format!("is there twice: as a module of its own and inside `{}`", self.tensors[tensor].name),
            )),
            (None, Some((tensor, columns))) => self.slice(wanted, tensor, columns),
            (Some(parts), None) => self.module(wanted, parts),
            (None, None) => {
                let message = format!("is missing (shape {:?})", wanted.shape);
                Err(Problem { kind: ProblemKind::Missing, name: wanted.name.clone(), message })
            }
        }
    }

    /// The fused tensor that holds an expert's matrix, and how many of its column halves come before it.
    fn fused(&self, wanted: &Expected) -> Option<(TensorId, Columns)> {
        let (part, columns) = match wanted.role {
            Role::ExpertGate => (Part::FusedGateUp, Columns::FirstHalf),
            Role::ExpertUp => (Part::FusedGateUp, Columns::SecondHalf),
            _ => (Part::FusedDown, Columns::All),
        };
        let module = format!("layers.{}.feed_forward.experts", wanted.layer?);
        Some((*self.modules.get(module.as_str())?.get(&part)?, columns))
    }

    /// One expert's matrix as a slice of a fused `[E, in, out]` tensor.
    fn slice(&self, wanted: &Expected, id: TensorId, columns: Columns) -> Result<(Coding, Vec<TensorId>), Problem> {
        let tensor = &self.tensors[id];
        let (out, input) = (wanted.shape[0], wanted.shape[1]);
        let stride = if columns == Columns::All { out } else { 2 * out };
        let experts = self.config.text.num_local_experts;
        let shape = [experts as u64, input as u64, stride as u64];
        if tensor.shape != shape {
            return Err(wrong_shape(wanted, tensor, &shape));
        }
        let float = plain_float(wanted, tensor)?;
        let first = if columns == Columns::SecondHalf { out } else { 0 };
        let expert = wanted.expert.expect("only experts are fused");
        // The tensor's byte count was checked to fit u64 when the container was opened; this is inside it.
        let offset = (expert as u64 * input as u64 * stride as u64 + first as u64) * float.bytes() as u64;
        Ok((Coding::Plain(Plane { tensor: id, float, layout: Layout::InOut, offset, stride }), vec![id]))
    }

    fn module(&self, wanted: &Expected, parts: &Parts) -> Result<(Coding, Vec<TensorId>), Problem> {
        let ids = parts.values().copied().collect();
        if parts.contains_key(&Part::GroupIndex) {
            return Err(mismatch(
                wanted,
                "has its groups in activation order (`weight_g_idx`), which is not supported".into(),
            ));
        }
        if let Some(&packed) = parts.get(&Part::Packed) {
            return Ok((self.int4(wanted, parts, packed)?, ids));
        }
        let Some(&weight) = parts.get(&Part::Weight) else {
            return Err(mismatch(wanted, "has scales but no weight".into()));
        };
        let tensor = &self.tensors[weight];
        let shape: Vec<u64> = wanted.shape.iter().map(|&n| n as u64).collect();
        if tensor.shape != shape {
            return Err(wrong_shape(wanted, tensor, &shape));
        }
        if tensor.dtype == Dtype::F8_E4M3 {
            return Ok((self.fp8(wanted, parts, weight)?, ids));
        }
        let float = plain_float(wanted, tensor)?;
        if parts.len() > 1 {
            return Err(mismatch(wanted, format!("is {} but comes with scales", tensor.dtype)));
        }
        let stride = *wanted.shape.last().expect("every weight has a dimension");
        Ok((Coding::Plain(Plane { tensor: weight, float, layout: Layout::OutIn, offset: 0, stride }), ids))
    }

    fn int4(&self, wanted: &Expected, parts: &Parts, packed: TensorId) -> Result<Coding, Problem> {
        let (out, input) = matrix_shape(wanted)?;
        let part = |part: Part| parts.get(&part).copied();
        let Some(scale) = part(Part::Scale) else {
            return Err(mismatch(wanted, "has packed codes but no `weight_scale`".into()));
        };
        let Some(shape) = part(Part::Shape) else {
            return Err(mismatch(wanted, "has packed codes but no `weight_shape`".into()));
        };
        self.expect(wanted, packed, &[Dtype::I32], &[out as u64, input.div_ceil(8) as u64])?;
        self.expect(wanted, shape, &[Dtype::I64, Dtype::I32], &[2])?;
        let groups = match *self.tensors[scale].shape {
            [rows, groups] if rows == out as u64 && groups > 0 && (input as u64).is_multiple_of(groups) => groups,
            _ => {
                let shape = &self.tensors[scale].shape;
                return Err(mismatch(
                    wanted,
                    format!("has scales of shape {shape:?}, which do not divide [{out}, {input}]"),
                ));
            }
        };
        self.expect(wanted, scale, &FLOATS, &[out as u64, groups])?;
        let zero_point = part(Part::ZeroPoint);
        if let Some(zero_point) = zero_point {
            self.expect(wanted, zero_point, &[Dtype::I32], &[out.div_ceil(8) as u64, groups])?;
        }
        let group_size = input / usize::try_from(groups).expect("at most as many groups as inputs");
        Ok(Coding::Int4 { packed, scale, zero_point, shape, group_size })
    }

    fn fp8(&self, wanted: &Expected, parts: &Parts, weight: TensorId) -> Result<Coding, Problem> {
        let (out, input) = matrix_shape(wanted)?;
        let Some(&scale) = parts.get(&Part::Scale) else {
            return Err(mismatch(wanted, "has FP8 codes but no `weight_scale`".into()));
        };
        let input_scale = parts.get(&Part::InputScale).copied();
        let shape = &self.tensors[scale].shape;
        let blocks = self.fp8_block();
        let scheme = match **shape {
            [] | [1] => Scheme::Fp8Tensor { static_input: input_scale.is_some() },
            [rows, 1] if rows == out as u64 => Scheme::Fp8Dynamic,
            [rows, cols] => {
                let (high, wide) = blocks.unwrap_or((128, 128));
                if (rows, cols) != (out.div_ceil(high) as u64, input.div_ceil(wide) as u64) {
                    let what = format!(
                        "has FP8 scales of shape {shape:?}, which fit neither channels nor blocks of {high}x{wide}"
                    );
                    return Err(mismatch(wanted, what));
                }
                Scheme::Fp8Block { rows: high, cols: wide }
            }
            _ => return Err(mismatch(wanted, format!("has FP8 scales of shape {shape:?}"))),
        };
        self.expect(wanted, scale, &FLOATS, &shape.clone())?;
        Ok(Coding::Fp8 { weight, scale, input_scale, scheme })
    }

    /// The block size that the config's first scheme with blocks names.
    fn fp8_block(&self) -> Option<(usize, usize)> {
        let groups = self.config.quantization.as_ref()?.get("config_groups")?.as_object()?;
        groups.values().find_map(|group| {
            let block = group.get("weights")?.get("block_structure")?.as_array()?;
            let side = |index: usize| usize::try_from(block.get(index)?.as_u64()?).ok().filter(|&side| side > 0);
            Some((side(0)?, side(1)?))
        })
    }

    fn expect(&self, wanted: &Expected, id: TensorId, dtypes: &[Dtype], shape: &[u64]) -> Result<(), Problem> {
        let tensor = &self.tensors[id];
        if !dtypes.contains(&tensor.dtype) {
            let what = format!("is stored with `{}` as {}, not {}", tensor.name, tensor.dtype, dtypes[0]);
            return Err(mismatch(wanted, what));
        }
        if *tensor.shape != *shape {
            return Err(wrong_shape(wanted, tensor, shape));
        }
        Ok(())
    }
}

/// Dtypes that scales come in.
const FLOATS: [Dtype; 3] = [Dtype::BF16, Dtype::F32, Dtype::F16];

/// Which columns of a fused tensor a matrix takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Columns {
    All,
    FirstHalf,
    SecondHalf,
}

fn matrix_shape(wanted: &Expected) -> Result<(usize, usize), Problem> {
    match *wanted.shape.as_slice() {
        [out, input] => Ok((out, input)),
        _ => Err(mismatch(wanted, "is quantized, but is not a matrix".into())),
    }
}

fn plain_float(wanted: &Expected, tensor: &TensorInfo) -> Result<Float, Problem> {
    let what = || format!("is {}, which is neither a float nor a known quantized format", tensor.dtype);
    Float::of(tensor.dtype).ok_or_else(|| mismatch(wanted, what()))
}

fn mismatch(wanted: &Expected, message: String) -> Problem {
    Problem { kind: ProblemKind::Mismatch, name: wanted.name.clone(), message }
}

fn wrong_shape(wanted: &Expected, tensor: &TensorInfo, shape: &[u64]) -> Problem {
    mismatch(
        wanted,
        format!("has the wrong shape: `{}` is {:?}, the config asks for {shape:?}", tensor.name, tensor.shape),
    )
}
