//! How much each input of a weight matters, for the block formats: from a statistics file or an importance matrix.
//!
//! Numbers are those that `llama-quantize` takes from an importance matrix: mean squares of inputs. Experts that saw no token get
//! the mean of their layer's others, weighted by tokens, or ones, as llama.cpp has it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

use crate::calibration::evidence;
use crate::llama4::{Llama4, Role, Weight};
use crate::output::evidence::{Evidence, Inputs};
use crate::output::origin;
use crate::progress::Control;

/// What experts without data get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// What the experts of their layer see on average.
    #[default]
    Pooled,
    /// Ones, as `llama-quantize` has it.
    Ones,
}

/// On what a weight's importances rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    /// Its own inputs.
    Own,
    /// Those of the layer's other experts.
    Pooled,
    /// Nothing: all inputs count the same.
    Ones,
    /// The file says nothing, and the format's own weights are taken.
    Nothing,
}

impl Basis {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Own => "importance",
            Self::Pooled => "importance of the layer",
            Self::Ones => "ones",
            Self::Nothing => "plain",
        }
    }
}

/// An open file of statistics.
#[derive(Debug)]
pub(super) struct Importance {
    file: evidence::Evidence,
    fallback: Fallback,
    /// Tokens that each expert saw, by layer, as far as the file tells.
    loads: HashMap<usize, Vec<u64>>,
    pooled: Mutex<HashMap<(usize, Role), Pooled>>,
    /// SHA-256 of the file.
    pub(super) sha256: String,
    /// Its name.
    pub(super) name: String,
}

/// The layer's mean; none if no expert has data.
type Pooled = Option<Arc<Vec<f32>>>;

impl Importance {
    pub(super) fn open(path: &Path, fallback: Fallback, model: &Llama4, control: &Control<'_>) -> Result<Self> {
        let file = evidence::Evidence::open(path)?;
        file.check_model(model)?;
        let loads = file.loads(model)?.into_iter().collect();
        let sha256 = origin::hash_file(path, control)?;
        let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        Ok(Self { file, fallback, loads, pooled: Mutex::default(), sha256, name })
    }

    /// Tokens that a routed expert saw.
    pub(super) fn tokens(&self, weight: &Weight) -> Option<u64> {
        self.loads.get(&weight.layer?)?.get(weight.expert?).copied()
    }

    /// The importances of a weight's inputs, and what they rest on.
    pub(super) fn of(&self, model: &Llama4, weight: &Weight) -> Result<(Option<Cow<'_, [f32]>>, Basis)> {
        if let Some(own) = self.file.importance(weight)? {
            return Ok((Some(Cow::Owned(own)), Basis::Own));
        }
        let Some(layer) = weight.layer.filter(|layer| weight.expert.is_some() && self.loads.contains_key(layer)) else {
            return Ok((None, Basis::Nothing));
        };
        if self.fallback == Fallback::Pooled
            && let Some(pooled) = self.pooled(model, layer, weight.role)?
        {
            return Ok((Some(Cow::Owned(pooled.to_vec())), Basis::Pooled));
        }
        Ok((Some(Cow::Owned(vec![1.0; weight.matrix().1])), Basis::Ones))
    }

    fn pooled(&self, model: &Llama4, layer: usize, role: Role) -> Result<Pooled> {
        let known = |pooled: &HashMap<(usize, Role), Pooled>| pooled.get(&(layer, role)).cloned();
        if let Some(pooled) = known(&self.lock()) {
            return Ok(pooled);
        }
        let loads = &self.loads[&layer];
        let (mut sum, mut total) = (Vec::new(), 0_u64);
        for (expert, &tokens) in loads.iter().enumerate().filter(|(_, tokens)| **tokens > 0) {
            let weight = model.weight(role, Some(layer), Some(expert)).context("a complete model has every expert")?;
            let Some(own) = self.file.importance(weight)? else { continue };
            sum.resize(own.len(), 0.0_f64);
            sum.iter_mut().zip(&own).for_each(|(sum, &value)| *sum += tokens as f64 * f64::from(value));
            total += tokens;
        }
        let mean = (total > 0).then(|| Arc::new(sum.iter().map(|&sum| (sum / total as f64) as f32).collect()));
        self.lock().insert((layer, role), mean.clone());
        Ok(mean)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(usize, Role), Pooled>> {
        self.pooled.lock().expect("no thread panics while it holds the lock")
    }
}

/// Importances, asked by the index of a weight.
pub(super) struct Known<'a> {
    pub(super) importance: &'a Importance,
    pub(super) model: &'a Llama4,
}

impl Evidence for Known<'_> {
    fn of(&self, weight: usize) -> Result<Inputs<'_>> {
        let (importance, _) = self.importance.of(self.model, &self.model.weights[weight])?;
        Ok(Inputs { importance, ..Inputs::default() })
    }
}
