//! Which tensors of a Hugging Face checkpoint hold an expected weight, and how they code it.
//!
//! Decides by headers and the config alone. What does not fit is a [`Problem`] of the weight.

use std::collections::{BTreeMap, HashMap};

use super::config::Config;
use super::expected::Expected;
use super::names::{Part, Role};
use super::pieces::{Axis, Elements, Piece, Pieces, Scales};
use super::view::{Coding, Plane, Problem, ProblemKind, TensorId};
use crate::checkpoint::TensorInfo;
use crate::dtype::Dtype;
use crate::kernels::Float;
use crate::quant::Layout;
use crate::quant::scheme::Scheme;

/// The tensors of one module, by part.
pub(super) type Parts = BTreeMap<Part, TensorId>;

/// Finds the tensors of one expected weight and says how they code it.
pub(super) struct Finder<'a> {
    pub(super) tensors: &'a [TensorInfo],
    pub(super) modules: &'a HashMap<&'a str, Parts>,
    pub(super) config: &'a Config,
}

impl Finder<'_> {
    pub(super) fn find(&self, wanted: &Expected, pieces: &mut Vec<Pieces>) -> Result<(Coding, Vec<TensorId>), Problem> {
        let own = self.modules.get(wanted.name.as_str());
        let fused = wanted.expert.and_then(|_| self.fused(wanted));
        match (own, fused) {
            (Some(_), Some((tensor, _))) => Err(mismatch(
                wanted,
                format!("is there twice: as a module of its own and inside `{}`", self.tensors[tensor].name),
            )),
            (None, Some((tensor, columns))) => self.slice(wanted, tensor, columns, pieces),
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
    fn slice(
        &self,
        wanted: &Expected,
        id: TensorId,
        columns: Columns,
        pieces: &mut Vec<Pieces>,
    ) -> Result<(Coding, Vec<TensorId>), Problem> {
        let tensor = &self.tensors[id];
        let (out, input) = (wanted.shape[0], wanted.shape[1]);
        let stride = if columns == Columns::All { out } else { 2 * out };
        let experts = self.config.text.num_local_experts;
        let shape = [experts as u64, input as u64, stride as u64];
        if tensor.shape != shape {
            return Err(wrong_shape(wanted, tensor, &shape));
        }
        let first = if columns == Columns::SecondHalf { out } else { 0 };
        let expert = wanted.expert.expect("only experts are fused");
        // The tensor's byte count was checked to fit u64 when the container was opened; this is inside it.
        let before = expert as u64 * input as u64 * stride as u64 + first as u64;
        if tensor.dtype == Dtype::F8_E4M3 {
            let (scales, mut ids) = self.fused_scales(wanted, columns)?;
            ids.push(id);
            let layout = Layout::InOut;
            let piece =
                Piece { tensor: id, elements: Elements::Fp8, layout, offset: before, stride, scales: Some(scales) };
            pieces.push(Pieces { axis: Axis::Outs, pieces: vec![piece] });
            return Ok((Coding::Pieces(pieces.len() - 1), ids));
        }
        let float = plain_float(wanted, tensor)?;
        let offset = before * float.bytes() as u64;
        Ok((Coding::Plain(Plane { tensor: id, float, layout: Layout::InOut, offset, stride }), vec![id]))
    }

    /// The one scale of a fused FP8 tensor, as ModelOpt stores it; also gives the tensors that belong to it.
    fn fused_scales(&self, wanted: &Expected, columns: Columns) -> Result<(Scales, Vec<TensorId>), Problem> {
        let [scale, input_scale] = match columns {
            Columns::All => [Part::FusedDownScale, Part::FusedDownInputScale],
            _ => [Part::FusedGateUpScale, Part::FusedGateUpInputScale],
        };
        let module = format!("layers.{}.feed_forward.experts", wanted.layer.unwrap_or(0));
        let parts = &self.modules[module.as_str()];
        let Some(&id) = parts.get(&scale) else {
            return Err(mismatch(wanted, "is in fused FP8 codes that have no scale".into()));
        };
        let tensor = &self.tensors[id];
        if !matches!(*tensor.shape, [] | [1]) {
            return Err(mismatch(wanted, format!("has FP8 scales of shape {:?}, not one for all", tensor.shape)));
        }
        let float = plain_float(wanted, tensor)?;
        let ids = [Some(id), parts.get(&input_scale).copied()].into_iter().flatten().collect();
        Ok((Scales { tensor: id, float, offset: 0, per_output: false }, ids))
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
