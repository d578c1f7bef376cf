//! Two models in lockstep: residual stream, routing, next-token distributions.
//!
//! Logits of all tokens would take more memory than the rest together (a vocabulary of 202,048), so they are made for a
//! block of the vocabulary at a time, in both models, and only sums are kept.

use std::time::Instant;

use anyhow::Result;
use rayon::prelude::*;

use super::Options;
use super::report::{LayerReport, LogitsReport, Perplexity, Report};
use crate::dtype::Dtype;
use crate::error::{Interrupted, hint};
use crate::llama4::Llama4;
use crate::model::forward::Forward;
use crate::model::moe::chosen;
use crate::model::weights;
use crate::output::tensor_file::TensorFile;
use crate::progress::{Control, Unit};

/// Resident memory besides activations and weights: code, catalogue, tokenizer.
const BASE_BYTES: u64 = 64 << 20;

/// What a run needs, and what can refuse it before anything is read.
pub(super) struct Prepared {
    tokens: Vec<u32>,
    logits: Option<TensorFile>,
}

/// Prepares to run `tokens`, through two models if `twice`.
pub(super) fn prepare(
    options: &Options,
    model: &Llama4,
    twice: bool,
    tokens: Vec<u32>,
    control: &Control<'_>,
) -> Result<Prepared> {
    check_memory(model, twice, tokens.len(), control)?;
    let logits = options.logits.as_ref().map(|path| logits_file(path, model, &tokens)).transpose()?;
    Ok(Prepared { tokens, logits })
}

/// Runs the tokens through `model`, and through `reference` if there is one.
pub(super) fn run(
    prepared: Prepared,
    model: &Llama4,
    reference: Option<&Llama4>,
    control: &Control<'_>,
    report: &mut Report,
) -> Result<()> {
    let Prepared { tokens, logits: file } = prepared;
    let began = Instant::now();
    let candidate = Forward::new(model, &[tokens.len()])?;
    let reference = reference.map(|model| Forward::new(model, &[tokens.len()])).transpose()?;
    let mut hidden = candidate.embed(&tokens)?;
    let mut wanted = reference.as_ref().map(|reference| reference.embed(&tokens)).transpose()?;
    control.progress.start("running the model", candidate.layers() as u64 + 1, 0, Unit::Layers);
    for layer in 0..candidate.layers() {
        if control.stop_requested() {
            return Err(Interrupted.into());
        }
        let router = candidate.layer(layer, &mut hidden);
        if let (Some(reference), Some(wanted)) = (&reference, &mut wanted) {
            let wanted_router = reference.layer(layer, wanted);
            let text = &model.config.text;
            let agreement = router
                .zip(wanted_router)
                .map(|(is, wanted)| router_agreement(&is, &wanted, text.num_local_experts, text.num_experts_per_tok));
            let (rel_rms_error, cosine) = distance(&hidden, wanted);
            report.layers.push(LayerReport { layer, rel_rms_error, cosine, router_agreement: agreement });
        }
        control.progress.advance(1);
    }
    let stats =
        logits(&candidate, &hidden, reference.as_ref().zip(wanted.as_deref()), &tokens, file.as_ref(), control)?;
    control.progress.finish();
    if let Some(file) = file {
        file.finish()?;
    }
    report.tokens = tokens.len();
    report.tokens_per_second = Some(tokens.len() as f64 / began.elapsed().as_secs_f64().max(1e-9));
    summarize(&stats, reference.is_some(), report);
    Ok(())
}

/// Refuses more tokens than fit the memory bound: activations grow with them. The estimate counts what the largest step of
/// a layer holds, the largest matrix, and a block of logits.
fn check_memory(model: &Llama4, twice: bool, tokens: usize, control: &Control<'_>) -> Result<()> {
    let text = &model.config.text;
    let inner = text.intermediate_size.max(text.intermediate_size_mlp);
    let models = if twice { 2 } else { 1 };
    let logits = models * weights::block_outputs(text.hidden_size);
    let width = (6 + models) * text.hidden_size + 3 * inner + 4 * text.num_attention_heads * text.head_dim + logits;
    let activations = (tokens as u64).saturating_mul(width as u64 * size_of::<f32>() as u64);
    // A fused matrix is resident with the one that lies in the same rows.
    let matrix = 2 * text.intermediate_size as u64 * text.hidden_size as u64 * size_of::<f32>() as u64;
    let needed = activations.saturating_add(matrix).saturating_add(BASE_BYTES);
    if needed <= control.memory {
        return Ok(());
    }
    Err(hint(
        format!("{tokens} tokens need about {needed} bytes of memory, the bound is {}", control.memory),
        "run fewer `--tokens`, or allow more `--memory`",
    ))
}

/// Relative root mean square error and cosine of two residual streams.
fn distance(is: &[f32], wanted: &[f32]) -> (f64, f64) {
    let (mut error, mut square_is, mut square_wanted, mut product) = (0.0, 0.0, 0.0, 0.0);
    for (&a, &b) in is.iter().zip(wanted) {
        let (a, b) = (f64::from(a), f64::from(b));
        error += (a - b) * (a - b);
        square_is += a * a;
        square_wanted += b * b;
        product += a * b;
    }
    ((error / square_wanted).sqrt(), product / (square_is * square_wanted).sqrt())
}

/// Share of tokens whose chosen experts are the same.
fn router_agreement(is: &[f32], wanted: &[f32], experts: usize, top_k: usize) -> f64 {
    let rows = is.chunks_exact(experts).zip(wanted.chunks_exact(experts));
    let total = rows.len();
    rows.filter(|(is, wanted)| chosen(is, top_k) == chosen(wanted, top_k)).count() as f64 / total as f64
}

/// What is kept of one token's logits while the vocabulary passes block by block.
#[derive(Clone, Debug)]
struct Token {
    is: Softmax,
    wanted: Softmax,
    /// Sum of `exp(wanted - wanted.max) * (wanted - is)`.
    weighted_difference: f64,
    max_abs_diff: f64,
}

/// A softmax in the making, of logits that come in blocks.
#[derive(Clone, Debug)]
struct Softmax {
    max: f64,
    argmax: usize,
    /// Sum of `exp(logit - max)`.
    sum: f64,
    /// Logit of the token that follows in the text.
    next: f64,
}

impl Softmax {
    const EMPTY: Self = Self { max: f64::NEG_INFINITY, argmax: 0, sum: 0.0, next: f64::NAN };

    /// Takes in a block; gives the factor by which earlier sums shrink because the maximum has grown.
    fn add(&mut self, first: usize, block: &[f32], next: Option<usize>) -> f64 {
        let before = self.max;
        for (index, &logit) in block.iter().enumerate() {
            if f64::from(logit) > self.max {
                (self.max, self.argmax) = (logit.into(), first + index);
            }
        }
        let shrink = if before == f64::NEG_INFINITY { 0.0 } else { (before - self.max).exp() };
        self.sum = self.sum * shrink + block.iter().map(|&logit| (f64::from(logit) - self.max).exp()).sum::<f64>();
        if let Some(logit) = next.and_then(|next| block.get(next.checked_sub(first)?)) {
            self.next = (*logit).into();
        }
        shrink
    }

    /// Logarithm of the sum of all exponentials.
    fn log_sum(&self) -> f64 {
        self.max + self.sum.ln()
    }
}

impl Token {
    const EMPTY: Self =
        Self { is: Softmax::EMPTY, wanted: Softmax::EMPTY, weighted_difference: 0.0, max_abs_diff: 0.0 };

    fn add(&mut self, first: usize, is: &[f32], wanted: Option<&[f32]>, next: Option<usize>) {
        self.is.add(first, is, next);
        let Some(wanted) = wanted else { return };
        let shrink = self.wanted.add(first, wanted, next);
        self.weighted_difference *= shrink;
        for (&a, &b) in is.iter().zip(wanted) {
            let (a, b) = (f64::from(a), f64::from(b));
            self.weighted_difference += (b - self.wanted.max).exp() * (b - a);
            self.max_abs_diff = max_or_nan(self.max_abs_diff, (b - a).abs());
        }
    }

    /// Divergence of the checkpoint's distribution from the reference's, in nats. Rounding can leave it a little below 0.
    fn kl(&self) -> f64 {
        let kl = self.weighted_difference / self.wanted.sum - self.wanted.log_sum() + self.is.log_sum();
        if kl < 0.0 { 0.0 } else { kl }
    }
}

/// The larger one; NaN as soon as one of them is, which `f64::max` would pass over.
fn max_or_nan(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Makes the logits of all tokens, block by block, and writes the checkpoint's to `file`.
fn logits(
    candidate: &Forward<'_>,
    hidden: &[f32],
    reference: Option<(&Forward<'_>, &[f32])>,
    tokens: &[u32],
    file: Option<&TensorFile>,
    control: &Control<'_>,
) -> Result<Vec<Token>> {
    let hidden = candidate.final_norm(hidden);
    let reference = reference.map(|(forward, hidden)| (forward, forward.final_norm(hidden)));
    let vocab = candidate.head().matrix().0;
    let mut stats = vec![Token::EMPTY; tokens.len()];
    for outs in weights::blocks(candidate.head()) {
        if control.stop_requested() {
            return Err(Interrupted.into());
        }
        let width = outs.len();
        let is = weights::apply_outputs(candidate.model(), candidate.head(), &outs, &hidden);
        let wanted = reference
            .as_ref()
            .map(|(forward, hidden)| weights::apply_outputs(forward.model(), forward.head(), &outs, hidden));
        if let Some(file) = file {
            for (row, logits) in is.chunks_exact(width).enumerate() {
                file.write(1, ((row * vocab + outs.start) * size_of::<f32>()) as u64, bytemuck::cast_slice(logits))?;
            }
        }
        stats.par_iter_mut().enumerate().for_each(|(row, token)| {
            let block = row * width..(row + 1) * width;
            let next = tokens.get(row + 1).map(|&token| token as usize);
            let wanted = wanted.as_ref().map(|wanted| &wanted[block.clone()]);
            token.add(outs.start, &is[block], wanted, next);
        });
    }
    control.progress.advance(1);
    Ok(stats)
}

fn logits_file(path: &std::path::Path, model: &Llama4, tokens: &[u32]) -> Result<TensorFile> {
    let count = tokens.len() as u64;
    let shape = [count, model.config.text.vocab_size as u64];
    let file = TensorFile::create(path, &[("input_ids", Dtype::I64, &[count]), ("logits", Dtype::F32, &shape)])?;
    let ids: Vec<u8> = tokens.iter().flat_map(|&token| i64::from(token).to_le_bytes()).collect();
    file.write(0, 0, &ids)?;
    Ok(file)
}

fn summarize(stats: &[Token], compared: bool, report: &mut Report) {
    let perplexity = |softmax: fn(&Token) -> &Softmax| {
        // The last token has none after it.
        let scored = &stats[..stats.len() - 1];
        let loss: f64 = scored.iter().map(|token| softmax(token).log_sum() - softmax(token).next).sum();
        (loss / scored.len() as f64).exp()
    };
    let candidate = perplexity(|token| &token.is);
    let reference = compared.then(|| perplexity(|token| &token.wanted));
    report.perplexity = Some(Perplexity { reference, candidate });
    if !candidate.is_finite() {
        report.problem("value", "logits", "the forward pass gives values that are not finite");
    }
    if !compared {
        return;
    }
    let mut divergences: Vec<f64> = stats.iter().map(Token::kl).collect();
    divergences.sort_by(f64::total_cmp);
    let count = divergences.len();
    let same = stats.iter().filter(|token| token.is.argmax == token.wanted.argmax).count();
    report.logits = Some(LogitsReport {
        kl_mean: divergences.iter().sum::<f64>() / count as f64,
        kl_p99: divergences[(count * 99).div_ceil(100) - 1],
        kl_max: divergences[count - 1],
        top1_agreement: same as f64 / count as f64,
        max_abs_diff: stats.iter().map(|token| token.max_abs_diff).fold(0.0, max_or_nan),
    });
}
