//! `repack`: the same weights in files that a deployment loads fast, and back again.
//!
//! Nothing is computed but turned matrices. Memory is bounded by [`Control::memory`]; see `output` for what happens to a plan.

mod fit;
mod layout;
mod loads;
mod order;
mod placement;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::error::hint;
use crate::llama4::names::logical_name;
use crate::llama4::{Coding, Llama4, Weight};
use crate::output::companions::{self, Card, Companion};
use crate::output::hash::sha256;
use crate::output::partial::{Existing, Form};
use crate::output::plan::Plan;
use crate::output::quantization_config::quantization_config;
use crate::output::{job, origin};
use crate::progress::Control;
use crate::quant::{self, scheme::Scheme};

pub use fit::Fit;
pub use layout::{Layout, Orders};
pub use order::{LayerPlacement, PLACEMENT_NAME, Placement};
pub use placement::Redundant;
pub use report::{DryRun, Report};

/// Ranks that `maverick-8xh100` is for unless the user says otherwise.
const RANKS: usize = 8;

/// Most ranks: every one has a file of its own.
const RANKS_MAX: usize = 512;

/// Most rank shards: their files are named by two digits.
const SHARDS_MAX: usize = 100;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checkpoint: a folder or a file.
    pub source: PathBuf,
    /// The folder to be made.
    pub out: PathBuf,
    /// Where tensors go.
    pub layout: Layout,
    /// Ranks, for layouts that have more than one; `None` for eight.
    pub ranks: Option<usize>,
    /// Numbers of tokens for each expert, to spread experts evenly; `None` leaves them in the model's own order.
    pub statistics: Option<PathBuf>,
    /// More copies of experts to plan places for.
    pub redundant_experts: usize,
    /// Most bytes of data in one output file; `None` for what suits the layout.
    pub shard_bytes_max: Option<u64>,
    /// Memory of one GPU in bytes; `None` for an H100.
    pub gpu_memory: Option<u64>,
    /// Whether the KV cache is in FP8 instead of BF16.
    pub kv_fp8: bool,
    /// Tokens of context that have to fit; `None` for 8,192, or the model's longest if that is less.
    pub context: Option<u64>,
    /// Sequences of that length that have to fit at a time; at least 1.
    pub sequences: u64,
    /// What to do about what is already there.
    pub existing: Existing,
    /// Compute the SHA-256 of the source's files for the manifest: reads all of the source.
    pub hash_source: bool,
}

/// A run that is ready to begin: everything that is known before one weight is read.
#[derive(Debug)]
pub struct Job<'a> {
    options: &'a Options,
    model: Llama4,
    ranks: usize,
    orders: Orders,
    placement: Option<Placement>,
    fit: Option<Fit>,
    plan: Plan,
    companions: Vec<Companion>,
    settings: BTreeMap<String, String>,
    warnings: Vec<String>,
}

impl<'a> Job<'a> {
    /// Opens the source and plans the output.
    ///
    /// # Errors
    /// The source or the options cannot be used.
    pub fn new(options: &'a Options) -> Result<Self> {
        let model = Llama4::open(&options.source)?;
        model.require_safetensors()?;
        model.require_complete()?;
        let ranks = ranks(options, &model)?;
        let source = order::of_source(&model)?;
        check_redundant(options, &model, ranks)?;
        let placement = order::asked_for(options, &model, &source, ranks)?.map(in_own_numbers);
        let is_own = |order: &Vec<usize>| order.iter().copied().eq(0..order.len());
        let was_moved = !source.values().all(is_own);
        let orders = order::compose(source, placement.as_ref());
        check_shards(options, &model, &orders, ranks)?;
        let plan = layout::plan(&model, options.layout, &orders, ranks, options.shard_bytes_max, layout::NO_SAMPLE)?;
        let mut warnings = warnings(&model, options.layout);
        if was_moved {
            warnings.push(match &placement {
                Some(_) => {
                    "the source's experts were moved before; the new order takes the place of the old one".into()
                }
                None => "the source's experts were moved; the output has them in the model's own order again".into(),
            });
        }
        let fit = Fit::new(options, &model, &orders, placement.as_ref(), ranks);
        let settings = settings(options, ranks, &orders, placement.as_ref());
        let mut job =
            Self { options, model, ranks, orders, placement, fit, plan, companions: Vec::new(), settings, warnings };
        job.companions = job.companions()?;
        Ok(job)
    }

    /// What engines cannot load, or what is worth knowing before the work begins.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether weights and cache fit the GPUs that the layout is for.
    pub fn fits(&self) -> bool {
        self.fit.as_ref().is_none_or(|fit| fit.fits)
    }

    /// Says what [`Job::run`] would do.
    ///
    /// # Errors
    /// The output is in the way, or the memory bound too small.
    pub fn dry_run(&self, control: &Control<'_>) -> Result<DryRun> {
        self.job().check_destination()?;
        DryRun::new(self, control)
    }

    /// Makes the output, whether it fits or not.
    ///
    /// # Errors
    /// The output is in the way; the disk is full or does not answer; a weight is NaN or infinite;
    /// [`crate::error::Interrupted`] after a safe stop. The output does not exist then.
    pub fn run(&self, control: &Control<'_>) -> Result<Report> {
        let began = Instant::now();
        self.model.check_copies()?;
        let stored = self.stored();
        let promised: Vec<_> =
            self.model.weights.iter().zip(&stored).map(|(weight, scheme)| (weight.name.as_str(), *scheme)).collect();
        let plan = match self.options.layout {
            // The same plan with the model's sample in its headers: only now weights may be read.
            Layout::Shards => &layout::plan(
                &self.model,
                Layout::Shards,
                &self.orders,
                self.ranks,
                self.options.shard_bytes_max,
                &layout::sample(&self.model),
            )?,
            _ => &self.plan,
        };
        let done = job::Job { plan, ..self.job() }.run(&promised, |_| Vec::new(), control)?;
        Ok(Report::new(self, done.resumed, began.elapsed()))
    }

    fn job(&self) -> job::Job<'_> {
        job::Job {
            command: "repack",
            settings: &self.settings,
            model: &self.model,
            plan: &self.plan,
            companions: &self.companions,
            out: &self.options.out,
            form: Form::Folder,
            existing: self.options.existing,
            hash_source: self.options.hash_source,
        }
    }

    /// The scheme that every weight has in the output, by the output's names.
    fn stored(&self) -> Vec<Option<Scheme>> {
        let scheme = |weight: &Weight| match (weight.layer, weight.expert) {
            (Some(layer), Some(position)) => {
                let expert = self.orders[&layer][position];
                let source = self.model.named(&logical_name(weight.role, Some(layer), Some(expert)));
                source.expect("the model is complete").coding.scheme()
            }
            _ => weight.coding.scheme(),
        };
        self.model.weights.iter().map(scheme).collect()
    }

    fn companions(&self) -> Result<Vec<Companion>> {
        let Self { options, model, plan, placement, .. } = self;
        let mut files = companions::copied(&model.checkpoint).context("collecting the files beside the weights")?;
        files.retain(|file| file.name != PLACEMENT_NAME);
        let stored = self.stored();
        let same = model.weights.iter().zip(&stored).all(|(weight, scheme)| weight.coding.scheme() == *scheme);
        // A config that names experts one by one has to follow them; otherwise it stays as its author wrote it.
        let quantization = match &model.config.quantization {
            Some(_) if !same => Some(quantization_config(model, &stored)),
            own => own.clone(),
        };
        files.push(companions::pretty("config.json", &model.config.output_document(quantization)));
        if options.layout != Layout::Shards {
            // Ranks have tensors of the same names, so there is nothing that an index could say.
            files.push(companions::index(plan));
        }
        files.extend(placement.as_ref().map(order::companion));
        let about = format!(
            "The weights are those of the original, in files for the layout `{}`; {:.1} GB. `l4tool.manifest.json` says what every
file's SHA-256 is; `l4tool verify` checks it, and `l4tool repack --layout hf` goes back to ordinary files.",
            options.layout,
            plan.bytes() as f64 / 1e9,
        );
        let about = match options.layout {
            Layout::Shards => format!("{about}\nEngines do not load rank shards; go back first."),
            _ => about,
        };
        files.push(companions::card(&Card {
            origin: &origin::describe(&model.checkpoint),
            title: "Llama 4, repacked",
            relation: None,
            tags: &[],
            entries: &[format!("{} files, {} tensors", plan.files.len(), plan.tensors.len())],
            about: &about,
            images: model.config.vision.is_some(),
        }));
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }
}

/// Repacks a checkpoint: [`Job::new`] and [`Job::run`].
///
/// # Errors
/// As these.
pub fn run(options: &Options, control: &Control<'_>) -> Result<Report> {
    Job::new(options)?.run(control)
}

/// How many ranks the layout is for.
fn ranks(options: &Options, model: &Llama4) -> Result<usize> {
    let experts = model.config.text.num_local_experts;
    let ranks = match options.layout {
        Layout::Ranks => options.ranks.unwrap_or(RANKS),
        Layout::Shards => {
            if options.statistics.is_some() {
                let message = "the layout `tp8` gives every rank a part of every expert";
                return Err(hint(message, "`--placement balanced` goes with `--layout maverick-8xh100`"));
            }
            let ranks = options.ranks.unwrap_or(RANKS);
            if ranks == 0 || ranks > SHARDS_MAX {
                return Err(hint(
                    format!("{ranks} rank shards cannot be written"),
                    format!("use from 1 to {SHARDS_MAX}"),
                ));
            }
            return Ok(ranks);
        }
        Layout::Hf | Layout::OneGpu => {
            if options.ranks.is_some_and(|ranks| ranks != 1) {
                let message = format!("the layout `{}` has no ranks", options.layout);
                return Err(hint(message, "leave `--ranks` out, or use `--layout maverick-8xh100`"));
            }
            if options.statistics.is_some() {
                let message = format!("the layout `{}` has no ranks to spread experts over", options.layout);
                return Err(hint(message, "`--placement balanced` goes with `--layout maverick-8xh100`"));
            }
            1
        }
    };
    if ranks == 0 || ranks > experts || ranks > RANKS_MAX {
        return Err(hint(
            format!("{experts} experts cannot be spread over {ranks} ranks"),
            format!("use from 1 to {} ranks", experts.min(RANKS_MAX)),
        ));
    }
    Ok(ranks)
}

/// Refuses more copies of experts than ranks have use for: a second copy on one rank only takes memory.
fn check_redundant(options: &Options, model: &Llama4, ranks: usize) -> Result<()> {
    let (experts, extra) = (model.config.text.num_local_experts, options.redundant_experts);
    let most = placement::redundant_max(experts, ranks);
    if options.statistics.is_none() || extra <= most {
        return Ok(());
    }
    Err(hint(
        format!("`--redundant-experts {extra}`: {experts} experts on {ranks} ranks have use for at most {most} copies"),
        match most {
            0 => "leave `--redundant-experts` out".into(),
            most => format!("use at most `--redundant-experts {most}`, which puts every expert on every rank"),
        },
    ))
}

/// The placement with its copies of experts by the numbers that the output gives to experts: whoever loads it knows no others.
fn in_own_numbers(mut placement: Placement) -> Placement {
    for LayerPlacement { order, redundant, .. } in &mut placement.layers {
        if let Some(redundant) = redundant {
            redundant.renumber(order, placement.ranks);
        }
    }
    placement
}

/// Refuses what cannot be cut into rank shards, and to do with shards what needs whole tensors.
fn check_shards(options: &Options, model: &Llama4, orders: &Orders, ranks: usize) -> Result<()> {
    if options.layout != Layout::Hf {
        model.require_joined()?;
    }
    if options.layout != Layout::Shards {
        return Ok(());
    }
    if options.shard_bytes_max.is_some() {
        return Err(hint("`--shard-size` has no meaning for rank shards", "leave it out: every rank has one file"));
    }
    let text = &model.config.text;
    if !text.num_attention_heads.is_multiple_of(ranks) || !text.num_key_value_heads.is_multiple_of(ranks) {
        let (heads, kv_heads) = (text.num_attention_heads, text.num_key_value_heads);
        return Err(hint(
            format!("{heads} query heads and {kv_heads} KV heads cannot be cut for {ranks} ranks"),
            "use a number of `--ranks` that divides both",
        ));
    }
    let own = orders.values().all(|order| order.iter().copied().eq(0..order.len()));
    let plain = model.config.quantization.is_none();
    let fused = |weight: &Weight| matches!(weight.coding, Coding::Plain(plane) if plane.layout == quant::Layout::InOut);
    if !own || (plain && model.weights.iter().any(|weight| weight.expert.is_some() && !fused(weight))) {
        return Err(hint(
            "rank shards are cut out of ordinary files, and these are not",
            "go back to them first: `l4tool repack CHECKPOINT -o OUT --layout hf`",
        ));
    }
    Ok(())
}

/// What is to be known of the layout with this model.
fn warnings(model: &Llama4, layout: Layout) -> Vec<String> {
    let plain = model.weights.iter().all(|weight| weight.coding.scheme().is_none());
    let mut warnings = Vec::new();
    if plain && layout == Layout::Ranks {
        warnings.push(
            "the model is not quantized, and its experts get names of their own: vLLM and SGLang load that, transformers does not; \
             `--layout hf` makes a checkpoint that all of them load"
                .into(),
        );
    }
    if plain && layout == Layout::OneGpu {
        warnings.push(
            "the model is not quantized: its experts stay fused, which engines load slowly; `l4tool quantize --int4` makes a \
             checkpoint that this layout is for"
                .into(),
        );
    }
    let labels: BTreeSet<String> =
        model.weights.iter().filter(|w| w.expert.is_some()).map(|weight| model.label(weight)).collect();
    if labels.len() > 1 {
        let labels: Vec<String> = labels.into_iter().collect();
        warnings.push(format!("experts are stored as {}; ranks may differ in size", labels.join(" and ")));
    }
    warnings
}

/// The options that decide the bytes of the output, by name.
fn settings(
    options: &Options,
    ranks: usize,
    orders: &Orders,
    placement: Option<&Placement>,
) -> BTreeMap<String, String> {
    let digest = |data: serde_json::Result<Vec<u8>>| sha256(&data.expect("it is plain data"));
    BTreeMap::from([
        ("layout".into(), options.layout.to_string()),
        ("ranks".into(), ranks.to_string()),
        ("order of experts sha256".into(), digest(serde_json::to_vec(orders))),
        ("placement sha256".into(), digest(serde_json::to_vec(&placement))),
        ("shard size".into(), options.shard_bytes_max.map_or_else(|| "default".into(), |bytes| bytes.to_string())),
        ("hash source".into(), options.hash_source.to_string()),
    ])
}
