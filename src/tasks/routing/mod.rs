//! `routing`: which tokens go to which experts, from a statistics file or straight from a model and some text.

mod numbers;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::calibration::data::{self, DataOptions};
use crate::calibration::look::look;
use crate::calibration::statistics::{Meta, ModelKey, Statistics};
use crate::error::hint;
use crate::llama4::Llama4;
use crate::progress::Control;

pub use report::{ExpertReport, LabelReport, LayerReport, Report, Transition};

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// Layer, then expert.
    #[default]
    Layer,
    /// Expert, then layer.
    Expert,
    /// Most tokens of the layer's first.
    Share,
    /// Most tokens first.
    Tokens,
    /// Highest mean gate score first.
    Score,
}

/// What to show of what.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A statistics file or a checkpoint.
    pub source: PathBuf,
    /// Text for a checkpoint; `None` if the user named none.
    pub data: Option<DataOptions>,
    /// Layers to show; empty for all.
    pub layers: Vec<usize>,
    /// Experts to show; empty for all.
    pub experts: Vec<usize>,
    /// What the experts are sorted by.
    pub sort: Sort,
    /// Most experts to show.
    pub top: Option<usize>,
    /// Give every count of transitions, not only the most frequent ones.
    pub transitions: bool,
    /// Where activations may lie that do not fit memory.
    pub temporary: PathBuf,
}

/// Reports routing.
///
/// # Errors
/// The source cannot be read or run; layers or experts that the model does not have.
pub fn run(options: &Options, control: &Control<'_>) -> Result<Report> {
    let (meta, routing, notes) = if Statistics::is_one(&options.source) {
        if options.data.is_some() {
            return Err(hint(
                format!("`{}` is a statistics file: its text has been run already", options.source.display()),
                "leave `--data` out, or name a checkpoint",
            ));
        }
        let statistics = Statistics::open(&options.source)?;
        (statistics.meta, statistics.routing, Vec::new())
    } else {
        let model = Llama4::open(&options.source)
            .with_context(|| format!("`{}` is neither statistics nor a checkpoint", options.source.display()))?;
        model.require_complete()?;
        let key = ModelKey::of(&model)?;
        let wanted = options.data.clone().unwrap_or_default();
        let drawn = data::load(&wanted, &model.checkpoint, &model.config.text, control)?;
        let mut notes = drawn.notes.clone();
        if wanted.data.is_empty() {
            notes.push("no `--data`: the built-in text was run; text of your own says more about your use".into());
        }
        let routing = look(&model, &key, &drawn, None, &options.temporary, control)?;
        model.checkpoint.unchanged()?;
        (Meta::of(key, &drawn, false), routing, notes)
    };
    check(options, &meta)?;
    Ok(Report::new(options, &meta, &routing, notes))
}

fn check(options: &Options, meta: &Meta) -> Result<()> {
    let layers = &meta.model.moe_layers;
    if !layers.contains(&true) {
        bail!("no layer of this model has routed experts");
    }
    for &layer in &options.layers {
        ensure!(layer < layers.len(), "there is no layer {layer}: the model has {}, from 0 on", layers.len());
        ensure!(layers[layer], "layer {layer} has no routed experts");
    }
    let experts = meta.model.num_local_experts;
    match options.experts.iter().find(|&&expert| expert >= experts) {
        Some(expert) => bail!("there is no expert {expert}: a layer has {experts}, from 0 on"),
        None => Ok(()),
    }
}
