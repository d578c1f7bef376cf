//! `verify`: is a checkpoint whole, and does it compute what another one computes.
//!
//! Alone, it reads every byte once: structure, values and the manifest's checksums in one pass. With a text it runs the
//! reference forward pass; against a reference it runs both models in lockstep, layer by layer. Memory: the activations of
//! both models, and one matrix.

mod compare;
mod files;
mod report;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::error::hint;
use crate::llama4::Llama4;
use crate::llama4::tokenizer::Tokenizer;
use crate::progress::Control;

pub use report::{Finding, LayerReport, LogitsReport, Perplexity, Report};

/// The text that models are compared on if the user names none: several languages, mathematics and code.
const SAMPLE: &str = include_str!("../../../testdata/text/eval.txt");

/// Tokens that are run if the user names no number.
pub const DEFAULT_TOKENS: usize = 512;

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// A checkpoint that it should compute the same as.
    pub against: Option<PathBuf>,
    /// Text to run, instead of the sample.
    pub text: Option<String>,
    /// Most tokens of the text to run; 0 stands for [`DEFAULT_TOKENS`].
    pub tokens: usize,
    /// Where to write the checkpoint's logits.
    pub logits: Option<PathBuf>,
    /// What must not be exceeded.
    pub thresholds: Thresholds,
}

/// Limits on how far a checkpoint may be from its reference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Thresholds {
    /// Largest mean Kullback-Leibler divergence, in nats.
    pub max_kl: Option<f64>,
    /// Smallest share of tokens on which both prefer the same next token.
    pub min_top1: Option<f64>,
    /// Largest relative increase of perplexity: 0.01 is one percent.
    pub max_ppl_increase: Option<f64>,
}

impl Thresholds {
    /// Refuses limits that would say nothing.
    fn check(&self, compared: bool) -> Result<()> {
        let limits = [self.max_kl, self.min_top1, self.max_ppl_increase];
        if !compared && limits.iter().any(Option::is_some) {
            return Err(hint("there is nothing to hold the thresholds against", "name a reference with `--against`"));
        }
        if limits.iter().flatten().any(|limit| limit.is_nan()) {
            return Err(hint("a threshold is not a number", "everything would be within it; give a number"));
        }
        match self.min_top1 {
            Some(share) if !(0.0..=1.0).contains(&share) => Err(hint(
                format!("the threshold {share} is no share of tokens"),
                "`--min-top1` goes from 0 to 1: 0.9 stands for 90 %",
            )),
            _ => Ok(()),
        }
    }
}

/// Verifies a checkpoint.
///
/// # Errors
/// It cannot be opened or read, or not be compared with the reference; a problem that is found is in the report instead.
pub fn run(options: &Options, control: &Control<'_>) -> Result<Report> {
    let began = Instant::now();
    options.thresholds.check(options.against.is_some())?;
    let model = Llama4::open(&options.checkpoint)?;
    model.require_converted()?;
    // What can be refused is refused before hours of reading.
    let reference = options.against.as_deref().map(Llama4::open).transpose()?;
    if let Some(reference) = &reference {
        check_comparable(&model, reference)?;
        reference.require_complete()?;
    }
    let runs = reference.is_some() || options.text.is_some() || options.logits.is_some();
    if runs {
        model.require_decoded()?;
    }
    let prepared = match runs && model.require_complete().is_ok() {
        true => {
            let tokens = tokens(options, &model, reference.as_ref())?;
            Some(compare::prepare(options, &model, reference.is_some(), tokens, control)?)
        }
        false => None,
    };
    let mut report = Report::new(options);
    files::check(&model, control, &mut report)?;
    if let Some(prepared) = prepared {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(control.threads).build().context("starting threads")?;
        pool.install(|| compare::run(prepared, &model, reference.as_ref(), control, &mut report))?;
        report.hold_against(&options.thresholds);
    }
    report.finish(began.elapsed());
    Ok(report)
}

fn check_comparable(model: &Llama4, reference: &Llama4) -> Result<()> {
    let [ours, theirs] = [model, reference].map(|model| &model.config.text);
    for (field, a, b) in [
        ("vocab_size", ours.vocab_size, theirs.vocab_size),
        ("hidden_size", ours.hidden_size, theirs.hidden_size),
        ("num_hidden_layers", ours.num_hidden_layers, theirs.num_hidden_layers),
        ("num_local_experts", ours.num_local_experts, theirs.num_local_experts),
    ] {
        if a != b {
            bail!("the two cannot be compared: `{field}` is {a}, and {b} in the reference");
        }
    }
    Ok(())
}

/// The tokens to run: by the checkpoint's tokenizer, or by the reference's if it has none.
fn tokens(options: &Options, model: &Llama4, reference: Option<&Llama4>) -> Result<Vec<u32>> {
    let own = Tokenizer::of(&model.checkpoint);
    let tokenizer = match (own, reference) {
        (Err(error), Some(reference)) => Tokenizer::of(&reference.checkpoint).map_err(|_| error)?,
        (own, _) => own?,
    };
    let count = if options.tokens == 0 { DEFAULT_TOKENS } else { options.tokens };
    let tokens = tokenizer.first_tokens(options.text.as_deref().unwrap_or(SAMPLE), count)?;
    if tokens.len() < 2 {
        return Err(hint("the text has fewer than two tokens", "use a longer text, or more `--tokens`"));
    }
    Ok(tokens)
}
