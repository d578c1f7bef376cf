//! Quantizing with what an earlier calibration has written down, instead of text.

use std::borrow::Cow;
use std::path::Path;

use anyhow::Result;

use super::policy::{Basis, Policy, Seen};
use crate::calibration::{evidence, statistics};
use crate::error::hint;
use crate::llama4::Llama4;
use crate::output::evidence::{Evidence, Inputs};
use crate::output::modules::Target;
use crate::quant::Method;
use crate::quant::scheme::Knowledge;

/// What is known of a model's inputs from a file, before it is held against the model.
///
/// # Errors
/// It is neither a statistics file nor an importance matrix.
pub fn knowledge(path: &Path) -> Result<Knowledge> {
    let file = evidence::Evidence::open(path)?;
    let hessians = file.statistics().is_some_and(|statistics| statistics.meta.hessians);
    Ok(if hessians { Knowledge::Hessians } else { Knowledge::Statistics })
}

/// Statistics of a model's inputs, opened.
#[derive(Debug)]
pub(super) struct Statistics {
    file: evidence::Evidence,
    /// Tokens that each expert saw, by layer, as far as the file tells.
    loads: Vec<(usize, Vec<u64>)>,
}

impl Statistics {
    /// Opens a statistics file or an importance matrix of `model`.
    ///
    /// # Errors
    /// It is neither, or of another model.
    pub(super) fn open(path: &Path, model: &Llama4) -> Result<Self> {
        let file = evidence::Evidence::open(path)?;
        file.check_model(model)?;
        Ok(Self { loads: file.loads(model)?, file })
    }

    /// The file, if it can take the place of text for weights that need more than importances: it is l4tool's own, and holds what
    /// the targets need.
    pub(super) fn in_place_of_text(&self, targets: &[Option<Target>]) -> Option<&statistics::Statistics> {
        let targets = || targets.iter().flatten();
        let wanted = targets().any(|target| target.method == Method::Gptq || target.scheme.needs_data());
        self.file.statistics().filter(|_| wanted && targets().all(|target| self.serves(target)))
    }

    /// Whether it holds what quantizing a weight like this needs.
    pub(super) fn serves(&self, target: &Target) -> bool {
        let statistics = self.file.statistics();
        match target.method {
            Method::Gptq => statistics.is_some_and(|statistics| statistics.meta.hessians),
            Method::Awq => false,
            Method::Rtn | Method::Search => statistics.is_some() || !target.scheme.needs_data(),
        }
    }

    /// What the file knows of every weight that is to be quantized.
    ///
    /// # Errors
    /// The file knows nothing of any of them, or holds values that squares cannot have.
    pub(super) fn seen(&self, model: &Llama4, targets: &[Option<Target>]) -> Result<Vec<Option<Seen>>> {
        let mut seen = vec![None; targets.len()];
        let mut of_use = false;
        for ((weight, target), seen) in model.weights.iter().zip(targets).zip(&mut seen) {
            let Some(target) = target.filter(|target| target.method == Method::Search) else { continue };
            let known = self.file.importance(weight)?.is_some();
            of_use |= known;
            let layer = self.loads.iter().find(|(layer, _)| weight.layer == Some(*layer));
            let tokens = layer.zip(weight.expert).and_then(|((_, loads), expert)| loads.get(expert).copied());
            let basis = if known { Basis::Own } else { Basis::Nothing };
            *seen = Some(Seen { tokens: tokens.unwrap_or(0), policy: Policy { method: target.method, basis } });
        }
        if of_use {
            return Ok(seen);
        }
        Err(hint(
            "the statistics say nothing about the weights that are to be searched",
            "they serve `--method search`; leave `--stats` out otherwise",
        ))
    }
}

/// Statistics, asked by the index of a weight.
pub(super) struct Known<'a> {
    pub(super) statistics: &'a Statistics,
    pub(super) model: &'a Llama4,
}

impl Evidence for Known<'_> {
    fn of(&self, weight: usize) -> Result<Inputs<'_>> {
        let importance = self.statistics.file.importance(&self.model.weights[weight])?;
        // All zeros would say that nothing matters.
        let importance = importance.filter(|values| values.iter().any(|&value| value > 0.0));
        Ok(Inputs { importance: importance.map(Cow::Owned), ..Inputs::default() })
    }
}
