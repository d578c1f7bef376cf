//! An observer that counts and sums: what the routers choose, and the second moments of every weight's input.
//!
//! Holds one layer's sums; they go to a [`Sink`] when the layer is done. Rows are added in their order, whoever adds them, so
//! the sums are the same for any number of threads.

use std::ops::Range;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

use super::layout::{Layout, SCORE_BINS, place_name, router_name, score_bin};
use super::{LayerRouting, ModelKey};
use crate::calibration::store::Rows;
use crate::calibration::{Observer, Site};
use crate::kernels::gemm::{Threads, View};
use crate::model::moe::Routing;
use crate::quant::Hessian;

/// Columns that one thread sums up at a time.
const COLUMNS: usize = 64;

/// Where tensors of [`Layout`] are written.
pub trait Sink {
    /// Writes bytes of the tensor at `index`, from its byte `offset` on.
    ///
    /// # Errors
    /// The disk refuses.
    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()>;
}

/// What is to be written besides the routing, and where.
pub struct Output<'s> {
    /// The tensors.
    pub layout: &'s Layout,
    /// Whether Hessians are made.
    pub hessians: bool,
    /// Where they go.
    pub sink: &'s mut (dyn Sink + Send),
}

/// Counts and sums while a model runs.
pub struct Collector<'s> {
    key: ModelKey,
    /// For each label, the end of its tokens; they follow one another.
    label_ends: Vec<usize>,
    /// The layers with experts that are done, or under way.
    routing: Vec<LayerRouting>,
    /// The experts of every token in the layer before that had some, and in this one.
    chosen: [Vec<u32>; 2],
    output: Option<Output<'s>>,
    /// Sums of the site whose rows are coming.
    sum2: Vec<f64>,
    amax: f32,
    hessian: Option<Hessian>,
}

/// An expert's place in `chosen` that is not filled yet.
const NONE: u32 = u32::MAX;

impl<'s> Collector<'s> {
    /// `label_tokens` says how many tokens each label has; labels follow one another. Without `output` only routing is counted.
    pub fn new(key: ModelKey, label_tokens: &[usize], output: Option<Output<'s>>) -> Self {
        let mut end = 0;
        let ends = label_tokens.iter().map(|&tokens| {
            end += tokens;
            end
        });
        let label_ends = ends.collect();
        Self {
            key,
            label_ends,
            routing: Vec::new(),
            chosen: [Vec::new(), Vec::new()],
            output,
            sum2: Vec::new(),
            amax: 0.0,
            hessian: None,
        }
    }

    /// Bytes that a collector holds at most.
    pub fn bytes(key: &ModelKey, labels: usize, tokens: usize, hessians: bool) -> u64 {
        let experts = key.num_local_experts as u64;
        let routed = key.moe_layers.iter().filter(|&&has| has).count() as u64;
        let layer = experts * (16 * labels as u64 + 8 * SCORE_BINS as u64 + 8 * experts);
        let widths = [key.hidden_size, key.attention_size, key.intermediate_size, key.intermediate_size_mlp];
        let widest = widths.into_iter().max().unwrap_or(0);
        let hessian = if hessians { Hessian::bytes(widest) } else { 0 };
        routed * layer + 8 * tokens as u64 * key.num_experts_per_tok as u64 + 24 * widest as u64 + hessian
    }

    /// The routing of every layer that has experts.
    pub fn into_routing(self) -> Vec<LayerRouting> {
        self.routing
    }

    fn begin(&mut self, layer: usize) {
        let experts = self.key.num_local_experts;
        let labels = self.label_ends.len();
        let tokens = self.label_ends.last().copied().unwrap_or(0);
        self.chosen.swap(0, 1);
        self.chosen[1].clear();
        self.chosen[1].resize(tokens * self.key.num_experts_per_tok, NONE);
        self.routing.push(LayerRouting {
            layer,
            tokens: vec![0; labels * experts],
            score_sum: vec![0.0; labels * experts],
            histogram: vec![0; experts * SCORE_BINS],
            transitions: (!self.routing.is_empty()).then(|| vec![0; experts * experts]),
        });
    }

    fn write(&mut self, name: &str, item: usize, bytes: &[u8]) -> Result<()> {
        let Some(output) = &mut self.output else { return Ok(()) };
        let index = output.layout.find(name).with_context(|| format!("`{name}` is no tensor of the statistics"))?;
        output.sink.write(index, (item * bytes.len()) as u64, bytes)
    }
}

impl Observer for Collector<'_> {
    fn wants(&self, _site: Site) -> bool {
        self.output.is_some()
    }

    fn routing(&mut self, layer: usize, rows: Range<usize>, routing: &Routing, logits: &[f32]) -> Result<()> {
        if self.routing.last().is_none_or(|last| last.layer != layer) {
            self.begin(layer);
        }
        let (experts, top_k) = (self.key.num_local_experts, self.key.num_experts_per_tok);
        let counts = self.routing.last_mut().expect("the layer was begun above");
        let [before, now] = &mut self.chosen;
        for expert in 0..experts {
            let share = routing.share(expert);
            for (&token, &score) in share.tokens.iter().zip(share.scores) {
                let row = rows.start + token as usize;
                let label = self.label_ends.partition_point(|&end| end <= row);
                counts.tokens[label * experts + expert] += 1;
                counts.score_sum[label * experts + expert] += f64::from(score);
                let logit = logits[token as usize * experts + expert];
                counts.histogram[expert * SCORE_BINS + score_bin(logit)] += 1;
                let slots = row * top_k..(row + 1) * top_k;
                if let Some(transitions) = &mut counts.transitions {
                    for &from in &before[slots.clone()] {
                        transitions[from as usize * experts + expert] += 1;
                    }
                }
                let free = now[slots].iter_mut().find(|slot| **slot == NONE);
                *free.context("a token goes to more experts than the config says")? = expert as u32;
            }
        }
        Ok(())
    }

    fn inputs(&mut self, site: Site, rows: &[f32]) -> Result<()> {
        let width = super::layout::width(&self.key, site.place);
        self.sum2.resize(width, 0.0);
        let largest = self.sum2.par_chunks_mut(COLUMNS).enumerate().map(|(block, sums)| {
            let first = block * COLUMNS;
            let mut largest = 0.0_f32;
            for row in rows.chunks_exact(width) {
                for (sum, &x) in sums.iter_mut().zip(&row[first..]) {
                    *sum += f64::from(x) * f64::from(x);
                    largest = largest.max(x.abs());
                }
            }
            largest
        });
        self.amax = self.amax.max(largest.reduce(|| 0.0, f32::max));
        if self.output.as_ref().is_some_and(|output| output.hessians) {
            let rows = View::dense(rows, rows.len() / width, width);
            self.hessian.get_or_insert_with(|| Hessian::new(width)).add(Threads::Pool, rows);
        }
        Ok(())
    }

    fn seen(&mut self, site: Site, _rows: usize) -> Result<()> {
        if self.output.is_none() {
            return Ok(());
        }
        let width = super::layout::width(&self.key, site.place);
        let mut sums = std::mem::take(&mut self.sum2);
        sums.resize(width, 0.0);
        let amax = std::mem::take(&mut self.amax);
        if sums.iter().any(|sum| !sum.is_finite()) {
            let name = place_name(site.layer, site.place, "");
            bail!(
                "the input of `{}` is not finite; `l4tool verify` finds weights that are not",
                name.trim_end_matches('.')
            );
        }
        let expert = site.expert().unwrap_or(0);
        let sums2: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        self.write(&place_name(site.layer, site.place, "in_sum2"), expert, &sums2)?;
        self.write(&place_name(site.layer, site.place, "in_amax"), expert, &amax.to_le_bytes())?;
        sums.clear();
        self.sum2 = sums;
        // What no row reached stays zero in the file.
        if let Some(hessian) = self.hessian.take() {
            let name = place_name(site.layer, site.place, "in_hessian");
            self.write(&name, expert, bytemuck::cast_slice(hessian.sums()))?;
        }
        Ok(())
    }

    fn layer_done(&mut self, layer: usize, _hidden: &Rows) -> Result<()> {
        let Some(routing) = self.routing.last().filter(|last| last.layer == layer) else { return Ok(()) };
        if routing.score_sum.iter().any(|sum| !sum.is_finite()) {
            bail!(
                "the router of layer {layer} gives scores that are not finite; `l4tool verify` finds weights that are not"
            );
        }
        for (what, bytes) in routing.tensors() {
            self.write(&router_name(layer, what), 0, &bytes)?;
        }
        Ok(())
    }
}

impl LayerRouting {
    /// The tensors of a layer's routing, as bytes.
    fn tensors(&self) -> Vec<(&'static str, Vec<u8>)> {
        let whole = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let mut tensors = vec![
            ("tokens", whole(&self.tokens)),
            ("score_sum", self.score_sum.iter().flat_map(|value| value.to_le_bytes()).collect()),
            ("score_histogram", whole(&self.histogram)),
        ];
        tensors.extend(self.transitions.as_deref().map(|counts| ("transitions", whole(counts))));
        tensors
    }
}
