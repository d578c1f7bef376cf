//! Quantizing with calibration data: which tasks need to see what, how memory is shared out, and the pass over the layers.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::moments::Needs;
use super::policy::Seen;
use super::solver::Solver;
use super::state;
use crate::calibration::data::{self, DataOptions};
use crate::calibration::statistics::Statistics;
use crate::calibration::{Pass, Sequences};
use crate::error::hint;
use crate::kernels::gemm;
use crate::llama4::Llama4;
use crate::llama4::config::TextConfig;
use crate::output::evidence::Nothing;
use crate::output::executor::Run;
use crate::output::modules::Target;
use crate::output::plan::{Plan, Task};
use crate::output::preflight;
use crate::output::work::Work;
use crate::progress::Control;
use crate::quant::Method;

/// How what is known of inputs is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SolverOptions {
    /// Added to the diagonal of the second moments, relative to its mean.
    pub damping: f64,
    /// An expert with fewer tokens is judged by those of its layer too; `None`: twice the width of the residual stream.
    pub expert_tokens: Option<usize>,
    /// For how many tokens those of the layer count then; `None`: half the width of the residual stream.
    pub shrink: Option<f64>,
}

impl Default for SolverOptions {
    fn default() -> Self {
        Self { damping: 0.01, expert_tokens: None, shrink: None }
    }
}

/// [`SolverOptions`] for a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judging {
    pub(super) damping: f64,
    pub(super) enough: usize,
    pub(super) shrink: f64,
}

impl Judging {
    /// # Errors
    /// An option makes no sense.
    pub(super) fn new(text: &TextConfig, options: &SolverOptions) -> Result<Self> {
        let enough = options.expert_tokens.unwrap_or(2 * text.hidden_size);
        let shrink = options.shrink.unwrap_or(text.hidden_size as f64 / 2.0);
        for (flag, value) in [("--damping", options.damping), ("--shrink", shrink)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(hint(format!("`{flag} {value}` is no share"), "give a number that is 0 or larger"));
            }
        }
        Ok(Self { damping: options.damping, enough, shrink })
    }

    /// For the journal and the manifest.
    pub(super) fn settings(&self) -> [(String, String); 3] {
        [
            ("damping".to_owned(), self.damping.to_string()),
            ("expert tokens".to_owned(), self.enough.to_string()),
            ("shrink".to_owned(), self.shrink.to_string()),
        ]
    }
}

/// Calibration data that is ready to be used.
#[derive(Clone, Debug)]
pub(super) struct Calibration {
    pub(super) sequences: Sequences,
    /// What of it decides the output, for the journal and the manifest.
    pub(super) settings: BTreeMap<String, String>,
    /// What the person who calibrates should know.
    pub(super) notes: Vec<String>,
}

impl Calibration {
    /// Reads the data.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn new(model: &Llama4, options: &DataOptions, control: &Control<'_>) -> Result<Self> {
        let data = data::load(options, &model.checkpoint, &model.config.text, control)?;
        let files = data.files.iter().map(|file| serde_json::to_string(file).expect("a record is plain data"));
        let settings = BTreeMap::from([
            ("calibration data".to_owned(), format!("[{}]", files.collect::<Vec<_>>().join(","))),
            ("calibration tokens".to_owned(), data.tokens().to_string()),
            ("calibration tokens sha256".to_owned(), data.sha256()),
            ("samples".to_owned(), options.samples.to_string()),
            ("seed".to_owned(), options.seed.to_string()),
        ]);
        let lengths = data.samples.iter().map(|sample| sample.tokens.len()).collect();
        let ids = data.samples.into_iter().flat_map(|sample| sample.tokens).collect();
        let sequences = Sequences::new(ids, lengths)?;
        Ok(Self { sequences, settings, notes: data.notes })
    }
}

/// Whether a task needs calibration data.
fn needs_data(task: &Task) -> bool {
    match &task.work {
        Work::Quantize(parts) => parts.iter().any(|part| !Needs::of(part.target).is_nothing()),
        _ => false,
    }
}

/// Whether anything in a plan needs calibration data.
pub(super) fn is_of_use(plan: &Plan) -> bool {
    plan.tasks.iter().any(needs_data)
}

/// How the memory bound is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// Tasks that may run at the same time.
    pub(super) at_once: usize,
    /// Bytes of activations that may lie in memory.
    pub(super) activations: u64,
    /// Most resident memory, whether or not activations take all that they may.
    pub(super) most: u64,
}

impl Shares {
    /// For a run of `plan` over `sequences`; none of them where all is known before.
    ///
    /// # Errors
    /// The bound is too small.
    pub(super) fn new(
        model: &Llama4,
        targets: &[Option<Target>],
        plan: &Plan,
        sequences: Option<&Sequences>,
        control: &Control<'_>,
    ) -> Result<Self> {
        let task = plan.tasks.iter().filter(|task| needs_data(task)).map(|task| task.memory).max().unwrap_or(0);
        let task = task + preflight::BOUNCE_BYTES;
        let of_pass = sequences.map(|sequences| Pass::working_bytes(model, sequences) + matrices_bytes(model));
        let fixed = preflight::BASE_BYTES + sums_bytes(&model.config.text, targets) + of_pass.unwrap_or(0);
        let least = fixed + task;
        let Some(rest) = control.memory.checked_sub(least) else {
            return Err(hint(
                format!("a memory bound of {} bytes is too small for calibration: it needs {least}", control.memory),
                format!("use `--memory {}M` or more", least.div_ceil(1 << 20)),
            ));
        };
        // Half of what is left may go to more tasks at the same time, what they leave to activations.
        let more = (rest / 2 / task.max(1)).min(control.threads as u64 - 1);
        let activations = rest - more * task;
        // The residual stream before and after a step, what a layer adds to it, and one inner activation.
        let text = &model.config.text;
        let width = 3 * text.hidden_size + text.intermediate_size.max(text.intermediate_size_mlp);
        let wanted = sequences.map_or(0, Sequences::tokens) as u64 * width as u64 * size_of::<f32>() as u64;
        Ok(Self { at_once: 1 + more as usize, activations, most: least + more * task + wanted.min(activations) })
    }
}

/// Sums over a site's rows, and over those of both pools of a layer.
fn sums_bytes(text: &TextConfig, targets: &[Option<Target>]) -> u64 {
    let mut needs = targets.iter().flatten().map(|&target| Needs::of(target)).fold(Needs::NOTHING, Needs::and);
    let mut factors = 0;
    if targets.iter().flatten().any(|target| target.method == Method::Awq) {
        let inner = text.intermediate_size.max(text.intermediate_size_mlp);
        needs = needs.with_inner(inner);
        factors = (text.num_local_experts * inner * size_of::<f32>()) as u64;
    }
    let heads = text.num_attention_heads * text.head_dim;
    let widths = [text.hidden_size, heads, text.intermediate_size, text.intermediate_size_mlp];
    let largest = widths.into_iter().max().unwrap_or(0);
    let pools = needs.bytes(text.hidden_size) + needs.bytes(text.intermediate_size);
    needs.bytes(largest) + pools + factors
}

/// Matrices that are held while activations run through them: as many as [`Solver`] keeps, dequantized to 16 bits, and the
/// pages of one where it is stored.
fn matrices_bytes(model: &Llama4) -> u64 {
    let layers = model.weights.iter().filter(|weight| weight.layer.is_some());
    let largest = layers.map(crate::llama4::Weight::numel).max().unwrap_or(0);
    (2 * super::solver::MATRICES_KEPT as u64 + 4) * largest
}

/// Performs all tasks of `run`: first those that need no data, then the others layer by layer. Gives what is known of every
/// weight.
///
/// # Errors
/// As [`Run::perform`]; the memory bound is too small.
pub(super) fn perform(
    run: &Run<'_>,
    targets: &[Option<Target>],
    calibration: &Calibration,
    judging: Judging,
    control: &Control<'_>,
) -> Result<Vec<Option<Seen>>> {
    let model = run.model();
    let shares = Shares::new(model, targets, run.plan(), Some(&calibration.sequences), control)?;
    perform_plain(run)?;
    // What is computed from here on decides bytes of the output.
    let _reproducible = gemm::reproducible();
    let folder = scratch(run)?;
    let pass = Pass::new(model, &calibration.sequences, &folder, shares.activations, *control)?;
    let mut solver = Solver::new(run, targets, judging, shares.at_once, folder.clone());
    let size = (calibration.sequences.tokens(), model.config.text.hidden_size);
    let (first, hidden) = match state::take_up(&folder, size, targets, pass.storage())? {
        Some((layer, hidden, seen)) => {
            solver.seen = seen;
            (layer, Some(hidden))
        }
        None => (0, None),
    };
    pass.run_from(first, hidden, &mut solver)?;
    Ok(solver.seen)
}

/// As [`perform`], by what an earlier pass over the unquantized model has written down: no text, and no forward pass.
///
/// # Errors
/// As [`perform`]; the statistics cannot be read.
pub(super) fn perform_stored(
    run: &Run<'_>,
    targets: &[Option<Target>],
    statistics: &Statistics,
    judging: Judging,
    control: &Control<'_>,
) -> Result<Vec<Option<Seen>>> {
    let shares = Shares::new(run.model(), targets, run.plan(), None, control)?;
    perform_plain(run)?;
    let _reproducible = gemm::reproducible();
    let mut solver = Solver::new(run, targets, judging, shares.at_once, scratch(run)?);
    let loads = statistics.loads();
    for layer in 0..run.model().config.text.num_hidden_layers {
        let counts = loads.iter().find(|(routed, _)| *routed == layer).map(|(_, counts)| counts.as_slice());
        solver.solve_stored(statistics, layer, counts.unwrap_or_default())?;
    }
    Ok(solver.seen)
}

/// Performs the tasks that need no data.
fn perform_plain(run: &Run<'_>) -> Result<()> {
    let tasks = &run.plan().tasks;
    let plain: Vec<usize> = (0..tasks.len()).filter(|&task| !needs_data(&tasks[task])).collect();
    run.perform(&plain, &Nothing)
}

/// The folder for what a process that goes on has to know.
fn scratch(run: &Run<'_>) -> Result<PathBuf> {
    let folder = run.scratch();
    fs::create_dir_all(&folder).with_context(|| format!("creating `{}`", folder.display()))?;
    Ok(folder)
}
