//! The logical weights of a checkpoint in GGUF: which tensor holds each, and how it codes it.
//!
//! A tensor of experts, `[experts, out, in]`, holds each expert's matrix as rows of inputs, so that it is a matrix of its own
//! that begins somewhere inside.

use super::names::{ROPE_FACTORS, is_misnamed, text_name, vision_name};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::kernels::Float;
use crate::llama4::config::Config;
use crate::llama4::view::{Coding, Dialect, Llama4, Plane, Problem, ProblemKind, TensorId, Weight, unexpected};
use crate::llama4::{Expected, Role, expected};
use crate::quant::Layout;

/// Says what the tensors of an open checkpoint mean.
pub(in crate::llama4) fn assign(checkpoint: Checkpoint, config: Config) -> Llama4 {
    let mut owner = vec![None; checkpoint.tensors().len()];
    let mut known = vec![false; checkpoint.tensors().len()];
    let (mut weights, mut problems) = (Vec::new(), Vec::new());
    for wanted in expected(&config) {
        let Some(id) = tensor_of(&checkpoint, &wanted) else {
            let message = format!("is missing (shape {:?})", wanted.shape);
            problems.push(Problem { kind: ProblemKind::Missing, name: wanted.name, message });
            continue;
        };
        known[id] = true;
        match coding(&checkpoint.tensors()[id], id, &wanted, config.text.num_local_experts) {
            Ok(coding) => {
                owner[id] = owner[id].or(Some(weights.len()));
                let Expected { name, role, layer, expert, shape } = wanted;
                weights.push(Weight { name, role, layer, expert, shape, coding });
            }
            Err(message) => problems.push(Problem { kind: ProblemKind::Mismatch, name: wanted.name, message }),
        }
    }
    for (id, tensor) in checkpoint.tensors().iter().enumerate() {
        if !known[id] && tensor.name != ROPE_FACTORS {
            problems.push(unexpected(tensor));
        }
    }
    problems.extend(misnamed(&checkpoint));
    Llama4::assemble(checkpoint, config, Dialect::Gguf, weights, Vec::new(), problems, owner)
}

/// The tensor that holds a weight.
fn tensor_of(checkpoint: &Checkpoint, wanted: &Expected) -> Option<TensorId> {
    match wanted.role {
        // llama.cpp's Llama 4 has no biases.
        Role::AttentionBias => None,
        Role::Vision | Role::Projector => {
            let name = vision_name(&wanted.name)?;
            let wrong = || checkpoint.find(&name.replace(".ln2.", ".attn_post_norm."));
            checkpoint.find(&name).or_else(wrong)
        }
        role => checkpoint.find(&text_name(role, wanted.layer)),
    }
}

/// How a tensor codes a weight.
///
/// # Errors
/// A sentence without the weight's name: the shape or the type does not fit.
fn coding(tensor: &TensorInfo, id: TensorId, wanted: &Expected, experts: usize) -> Result<Coding, String> {
    let mut shape: Vec<u64> = wanted.shape.iter().map(|&n| n as u64).collect();
    if wanted.expert.is_some() {
        shape.insert(0, experts as u64);
    }
    // ggml knows no number of dimensions: outer ones of a single element come and go.
    let inner = |shape: &[u64]| shape.iter().copied().skip_while(|&extent| extent == 1).collect::<Vec<_>>();
    if inner(&tensor.shape) != inner(&shape) {
        return Err(format!(
            "has the wrong shape: `{}` is {:?}, the keys ask for {shape:?}",
            tensor.name, tensor.shape
        ));
    }
    let before = wanted.expert.unwrap_or(0) as u64;
    // Inside the tensor, whose byte count was checked to fit 64 bits when the file was opened.
    let offset = before * (tensor.bytes / if wanted.expert.is_some() { experts as u64 } else { 1 });
    if let Some(float) = Float::of(tensor.dtype) {
        let stride = *wanted.shape.last().expect("every weight has a dimension");
        return Ok(Coding::Plain(Plane { tensor: id, float, layout: Layout::OutIn, offset, stride }));
    }
    if tensor.dtype.block_len() == 1 {
        return Err(format!("is {}, which is neither a float nor a block format", tensor.dtype));
    }
    // llama.cpp quantizes neither.
    if wanted.shape.len() != 2 || wanted.role == Role::Router {
        return Err(format!("is {}, and is no matrix that is quantized", tensor.dtype));
    }
    Ok(Coding::Blocks { tensor: id, dtype: tensor.dtype, offset })
}

/// Vision norms under the name that makes llama.cpp compute something else with them.
fn misnamed(checkpoint: &Checkpoint) -> Option<Problem> {
    let mut wrong = checkpoint.tensors().iter().filter(|tensor| is_misnamed(&tensor.name));
    let first = wrong.next()?;
    let more = match wrong.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let message = format!(
        "{more} should be called `ln2`: under this name llama.cpp normalizes the attention's output with it, and the \
         feed-forward's input with nothing; convert the vision part again with a converter that names it rightly"
    );
    Some(Problem { kind: ProblemKind::Misnamed, name: first.name.clone(), message: message.trim_start().to_owned() })
}
