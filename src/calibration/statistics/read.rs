//! A statistics file, opened and checked. The file is as hostile as any other.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::layout::{Layout, SCORE_BINS, place_name, places, router_name, width};
use super::{LayerRouting, Meta, ModelKey};
use crate::calibration::{Place, Site};
use crate::checkpoint::{Checkpoint, Edges, TensorInfo};
use crate::llama4::Llama4;

/// Bytes of a Hessian that are read before their pages are given back.
const STRIPE_BYTES: usize = 4 << 20;

/// Statistics in a file. Routing is in memory; moments are read where they lie.
#[derive(Debug)]
pub struct Statistics {
    /// The file.
    pub path: PathBuf,
    /// What the file says about itself.
    pub meta: Meta,
    /// The routing of every layer that has experts, in order.
    pub routing: Vec<LayerRouting>,
    file: Checkpoint,
}

impl Statistics {
    /// Whether a file says that it is one. What cannot be opened is none.
    pub fn is_one(path: &Path) -> bool {
        let Ok(file) = Checkpoint::open(path) else { return false };
        path.is_file() && file.files().iter().any(|file| Meta::is_marked(&file.metadata))
    }

    /// Opens a file and checks that everything is there and agrees.
    ///
    /// # Errors
    /// It cannot be read, is no statistics file, or counts do not add up; names the file and the tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let context = || format!("the statistics `{}`", path.display());
        let [source] = file.files() else { bail!("`{}` is no single file", path.display()) };
        let meta = Meta::from_strings(&source.metadata).with_context(context)?;
        let layout = Layout::new(&meta.model, meta.labels.len(), meta.hessians);
        check_tensors(&layout, file.tensors()).with_context(context)?;
        let mut statistics = Self { path: path.to_owned(), meta, routing: Vec::new(), file };
        statistics.routing = statistics.read_routing().with_context(context)?;
        Ok(statistics)
    }

    /// Refuses a model that the statistics are not of.
    ///
    /// # Errors
    /// Names what is different.
    pub fn check_model(&self, model: &Llama4) -> Result<()> {
        let what = format!("`{}`", model.checkpoint.folder().display());
        let context = || format!("the statistics `{}`", self.path.display());
        self.meta.model.same_as(&ModelKey::of(model)?, &what).with_context(context)
    }

    /// For every layer that has experts, its number and the tokens that went to each expert, over all labels.
    pub fn loads(&self) -> Vec<(usize, Vec<u64>)> {
        let experts = self.meta.model.num_local_experts;
        let sum = |routing: &LayerRouting| {
            (0..experts).map(|expert| routing.tokens.iter().skip(expert).step_by(experts).sum()).collect()
        };
        self.routing.iter().map(|routing| (routing.layer, sum(routing))).collect()
    }

    /// How many rows the weights at a site saw.
    pub fn rows(&self, site: Site) -> u64 {
        let Some(expert) = site.expert() else { return self.meta.tokens() };
        let experts = self.meta.model.num_local_experts;
        let routing = self.routing.iter().find(|routing| routing.layer == site.layer);
        routing.map_or(0, |routing| routing.tokens.iter().skip(expert).step_by(experts).sum())
    }

    /// The site whose input a weight sees, by the weight's logical name; none for weights without statistics.
    pub fn site_of(&self, name: &str) -> Option<Site> {
        let (layer, module) = name.strip_prefix("layers.")?.split_once('.')?;
        let layer = layer.parse().ok().filter(|&layer: &usize| layer < self.meta.model.moe_layers.len())?;
        let place = match module {
            "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" => Place::AttentionInput,
            "self_attn.o_proj" => Place::AttentionOutput,
            "feed_forward.router" | "feed_forward.shared_expert.gate_proj" | "feed_forward.shared_expert.up_proj" => {
                Place::SharedGateUp
            }
            "feed_forward.shared_expert.down_proj" => Place::SharedDown,
            "feed_forward.gate_proj" | "feed_forward.up_proj" => Place::DenseGateUp,
            "feed_forward.down_proj" => Place::DenseDown,
            _ => {
                let (expert, matrix) = module.strip_prefix("feed_forward.experts.")?.split_once('.')?;
                let expert =
                    expert.parse().ok().filter(|&expert: &usize| expert < self.meta.model.num_local_experts)?;
                match matrix {
                    "gate_proj" | "up_proj" => Place::ExpertGateUp(expert),
                    "down_proj" => Place::ExpertDown(expert),
                    _ => return None,
                }
            }
        };
        let known =
            places(&self.meta.model, layer).iter().any(|known| place_name(0, *known, "") == place_name(0, place, ""));
        known.then_some(Site { layer, place })
    }

    /// Mean square of each input of a weight, by its logical name: what an error in that input's column costs. None for a weight without
    /// statistics, and for an expert that saw no token.
    ///
    /// # Errors
    /// The file holds values that squares cannot have.
    pub fn importance(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(site) = self.site_of(name) else { return Ok(None) };
        let rows = self.rows(site);
        if rows == 0 {
            return Ok(None);
        }
        let sums = self.sum2(site)?;
        Ok(Some(sums.iter().map(|sum| (sum / rows as f64) as f32).collect()))
    }

    /// Sum of squares of each input at a site.
    ///
    /// # Errors
    /// The file holds values that squares cannot have.
    pub fn sum2(&self, site: Site) -> Result<Vec<f64>> {
        let width = width(&self.meta.model, site.place);
        let sums = self.floats::<8>(site, "in_sum2", width)?.map(f64::from_le_bytes).collect::<Vec<f64>>();
        ensure!(
            sums.iter().all(|sum| sum.is_finite() && *sum >= 0.0),
            "`{}`: `{}` holds a value that is no sum of squares",
            self.path.display(),
            place_name(site.layer, site.place, "in_sum2")
        );
        Ok(sums)
    }

    /// Largest magnitude of any input at a site.
    ///
    /// # Errors
    /// The file holds a value that is none.
    pub fn amax(&self, site: Site) -> Result<f32> {
        let amax = self.floats::<4>(site, "in_amax", 1)?.map(f32::from_le_bytes).next().expect("there is one value");
        ensure!(amax.is_finite() && amax >= 0.0, "`{}`: `in_amax` of {site:?} is {amax}", self.path.display());
        Ok(amax)
    }

    /// The sum of `x xᵀ` over the inputs at a site, `[width, width]`, of which the lower triangle counts; none in a file without
    /// Hessians.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn hessian(&self, site: Site) -> Result<Option<Vec<f32>>> {
        if !self.meta.hessians {
            return Ok(None);
        }
        let width = width(&self.meta.model, site.place);
        let (id, bytes) = (self.tensor(site, "in_hessian")?, width * width * size_of::<f32>());
        let start = (site.expert().unwrap_or(0) * bytes) as u64;
        let end = start + bytes as u64;
        let mut sums = Vec::with_capacity(width * width);
        // It is large, and no second copy is wanted.
        for at in (start..end).step_by(STRIPE_BYTES) {
            let range = at..(at + STRIPE_BYTES as u64).min(end);
            let values = self.file.range(id, range.clone()).chunks_exact(size_of::<f32>());
            sums.extend(values.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("a chunk has four bytes"))));
            self.file.release(id, range, Edges::Drop);
        }
        Ok(Some(sums))
    }

    /// `count` values of a site's tensor; those of an expert are its own row.
    fn floats<const N: usize>(&self, site: Site, what: &str, count: usize) -> Result<impl Iterator<Item = [u8; N]>> {
        let id = self.tensor(site, what)?;
        let start = (site.expert().unwrap_or(0) * count * N) as u64;
        let range = start..start + (count * N) as u64;
        // Copied, because the map's pages go back at once.
        let bytes = self.file.range(id, range.clone()).to_vec();
        self.file.release(id, range, Edges::Drop);
        Ok((0..count).map(move |index| bytes[index * N..][..N].try_into().expect("a chunk has N bytes")))
    }

    /// The tensor of a site.
    fn tensor(&self, site: Site, what: &str) -> Result<usize> {
        let name = place_name(site.layer, site.place, what);
        self.file.find(&name).with_context(|| format!("`{}` has no `{name}`", self.path.display()))
    }

    /// The bytes of a tensor, for merging.
    pub(super) fn bytes(&self, name: &str) -> &[u8] {
        self.file.bytes(self.file.find(name).expect("every tensor of the layout was found when the file was opened"))
    }

    /// Gives back what [`Statistics::bytes`] touched.
    pub(super) fn release(&self, name: &str) {
        let id = self.file.find(name).expect("every tensor of the layout was found when the file was opened");
        self.file.release(id, 0..self.file.tensors()[id].bytes, Edges::Drop);
    }

    fn read_routing(&self) -> Result<Vec<LayerRouting>> {
        let model = &self.meta.model;
        let mut layers: Vec<LayerRouting> = Vec::new();
        for layer in (0..model.moe_layers.len()).filter(|&layer| model.moe_layers[layer]) {
            let words = |what: &str| -> Vec<u64> {
                let chunks = self.bytes(&router_name(layer, what)).chunks_exact(8);
                chunks.map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes"))).collect()
            };
            let routing = LayerRouting {
                layer,
                tokens: words("tokens"),
                score_sum: words("score_sum").into_iter().map(f64::from_bits).collect(),
                histogram: words("score_histogram"),
                transitions: (!layers.is_empty()).then(|| words("transitions")),
            };
            self.check_routing(&routing).with_context(|| format!("the routing of layer {layer}"))?;
            layers.push(routing);
        }
        Ok(layers)
    }

    /// Every token went to as many experts as the model says, and all counts are of the same tokens.
    fn check_routing(&self, routing: &LayerRouting) -> Result<()> {
        let (experts, top_k) = (self.meta.model.num_local_experts, self.meta.model.num_experts_per_tok as u64);
        let sum = |counts: &[u64]| counts.iter().try_fold(0_u64, |sum, &count| sum.checked_add(count));
        for (label, counts) in self.meta.labels.iter().zip(routing.tokens.chunks_exact(experts)) {
            ensure!(sum(counts) == Some(label.tokens * top_k), "`tokens` of `{}` do not add up", label.label);
        }
        for expert in 0..experts {
            // No overflow: the rows add up to what was checked above.
            let tokens: u64 = routing.tokens.iter().skip(expert).step_by(experts).sum();
            let bins = &routing.histogram[expert * SCORE_BINS..][..SCORE_BINS];
            ensure!(sum(bins) == Some(tokens), "`score_histogram` of expert {expert} does not add up");
            if let Some(transitions) = &routing.transitions {
                let into =
                    transitions.iter().skip(expert).step_by(experts).try_fold(0_u64, |sum, &n| sum.checked_add(n));
                ensure!(into == Some(tokens * top_k), "`transitions` into expert {expert} do not add up");
            }
        }
        for (&score, &tokens) in routing.score_sum.iter().zip(&routing.tokens) {
            // A score is at most 1, and a sum of rounded numbers a little more.
            ensure!(score >= 0.0 && score <= tokens as f64 * 1.000_001, "`score_sum` {score} over {tokens} tokens");
        }
        Ok(())
    }
}

/// The file has the tensors of the layout and no others.
fn check_tensors(layout: &Layout, tensors: &[TensorInfo]) -> Result<()> {
    for tensor in tensors {
        let name = crate::checkpoint::shown(&tensor.name);
        let Some(index) = layout.find(&tensor.name) else { bail!("the tensor `{name}` belongs to no statistics") };
        let entry = &layout.entries[index];
        ensure!(
            (tensor.dtype, &tensor.shape) == (entry.dtype, &entry.shape),
            "`{name}` is {} {:?} and should be {} {:?}",
            tensor.dtype,
            tensor.shape,
            entry.dtype,
            entry.shape
        );
    }
    let has = |name: &str| tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).is_ok();
    match layout.entries.iter().find(|entry| !has(&entry.name)) {
        Some(missing) => bail!("the tensor `{}` is missing", missing.name),
        None => Ok(()),
    }
}
