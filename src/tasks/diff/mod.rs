//! `diff`: two checkpoints, weight by weight over logical names, whatever their containers and layouts are.
//!
//! Identical bytes are recognized at the speed of memory; only weights that are not identical are decoded and measured.
//! Memory: for each thread a block of two matrices.

mod compare;
mod config;
mod report;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::Result;

use crate::checkpoint::shown;
use crate::error::hint;
use crate::llama4::{Expected, Llama4, Problem, ProblemKind, expected};
use crate::parallel;
use crate::progress::{Control, Unit};
use compare::{Buffers, Side};

pub use report::{Counts, Difference, Element, Report, Setting, Status, WeightDiff};

/// Resident memory besides the workers': code, and the catalogues of two models.
const BASE_BYTES: u64 = 64 << 20;

/// What to compare.
#[derive(Clone, Debug)]
pub struct Options {
    /// The first checkpoint.
    pub a: PathBuf,
    /// The second checkpoint.
    pub b: PathBuf,
}

/// One logical weight on either side.
struct Pair<'a> {
    wanted: Expected,
    a: Option<Side<'a>>,
    b: Option<Side<'a>>,
}

/// Compares two checkpoints.
///
/// # Errors
/// One cannot be opened, the memory bound is too small, or [`crate::error::Interrupted`]. What differs is in the report.
pub fn run(options: &Options, control: &Control<'_>) -> Result<Report> {
    let began = Instant::now();
    let (a, b) = (Llama4::open(&options.a)?, Llama4::open(&options.b)?);
    a.require_decoded()?;
    b.require_decoded()?;
    let settings = config::differences(&a.config, &b.config);
    let pairs = pairs(&a, &b);
    let bytes = a.weights.iter().map(|weight| a.stored_bytes(weight)).fold(0, u64::saturating_add);
    control.progress.start("comparing", bytes, 0, Unit::Bytes);
    let workers = workers(&pairs, control)?;
    let found: Vec<OnceLock<WeightDiff>> = pairs.iter().map(|_| OnceLock::new()).collect();
    let problems = Problems::of(&a, &b);
    parallel::for_each(pairs.len(), workers, control, Buffers::default, |buffers, index| {
        let pair = &pairs[index];
        let diff = match (pair.a, pair.b) {
            (Some(a), Some(b)) => compare::compare(a, b, buffers),
            _ => problems.explain(pair),
        };
        found[index].set(diff).expect("a weight is compared once");
        control.progress.advance(pair.a.map_or(0, |side| side.model.stored_bytes(side.weight)));
        Ok(())
    })?;
    control.progress.finish();
    for model in [&a, &b] {
        model.checkpoint.unchanged()?;
    }
    let weights = found.into_iter().map(|diff| diff.into_inner().expect("every weight was compared")).collect();
    let notes = [("A", &a), ("B", &b)].iter().flat_map(|(side, model)| notes(side, model)).collect();
    let sides = (options.a.clone(), options.b.clone());
    Ok(Report::new(sides, weights, settings, notes, bytes, began.elapsed()))
}

/// Every weight that either config promises, in the order of a forward pass; those that only B's does at the end.
fn pairs<'a>(a: &'a Llama4, b: &'a Llama4) -> Vec<Pair<'a>> {
    let pair = |wanted: Expected| {
        let side = |model: &'a Llama4| model.named(&wanted.name).map(|weight| Side { model, weight });
        Pair { a: side(a), b: side(b), wanted }
    };
    let promised = expected(&a.config);
    let names: std::collections::HashSet<String> = promised.iter().map(|wanted| wanted.name.clone()).collect();
    let more = expected(&b.config).into_iter().filter(|wanted| !names.contains(&wanted.name));
    let pairs = promised.into_iter().chain(more).map(pair);
    // What neither has is no difference; a note tells of it.
    let told = |pair: &Pair<'_>| {
        let unreadable = |model: &Llama4| mismatches(model).any(|problem| problem.name == pair.wanted.name);
        pair.a.is_some() || pair.b.is_some() || unreadable(a) || unreadable(b)
    };
    pairs.filter(told).collect()
}

fn mismatches(model: &Llama4) -> impl Iterator<Item = &Problem> {
    model.problems.iter().filter(|problem| problem.kind == ProblemKind::Mismatch)
}

/// Why weights are not there, by logical name.
struct Problems<'a> {
    a: HashMap<&'a str, &'a str>,
    b: HashMap<&'a str, &'a str>,
}

impl<'a> Problems<'a> {
    fn of(a: &'a Llama4, b: &'a Llama4) -> Self {
        let [a, b] = [a, b].map(|model| mismatches(model).map(|it| (it.name.as_str(), it.message.as_str())).collect());
        Self { a, b }
    }

    /// What there is to say of a weight that is not readable on both sides.
    fn explain(&self, pair: &Pair<'_>) -> WeightDiff {
        let Expected { name, role, layer, expert, .. } = pair.wanted.clone();
        let messages = [("A", &self.a), ("B", &self.b)]
            .map(|(side, problems)| problems.get(name.as_str()).map(|message| format!("in {side} it {message}")));
        let messages: Vec<String> = messages.into_iter().flatten().collect();
        let status = match (messages.is_empty(), pair.a.is_some()) {
            (false, _) => Status::Unreadable,
            (true, true) => Status::OnlyInA,
            (true, false) => Status::OnlyInB,
        };
        let [a, b] = [pair.a, pair.b].map(|side| side.map(|side| side.model.label(side.weight)));
        let message = (!messages.is_empty()).then(|| messages.join("; "));
        WeightDiff { name, role, layer, expert, status, a, b, difference: None, message }
    }
}

/// Number of workers that threads and memory allow.
fn workers(pairs: &[Pair<'_>], control: &Control<'_>) -> Result<usize> {
    let needs = pairs.iter().filter_map(|pair| Some(compare::memory(pair.a?.weight, pair.b?.weight)));
    let each = needs.max().unwrap_or(0).max(1);
    let fitting = control.memory.saturating_sub(BASE_BYTES) / each;
    if fitting == 0 {
        return Err(hint(
            format!("a memory bound of {} bytes is too small: the largest weight needs {each}", control.memory),
            format!("use `--memory {}M` or more", (each + BASE_BYTES).div_ceil(1 << 20)),
        ));
    }
    Ok(control.threads.min(usize::try_from(fitting).unwrap_or(usize::MAX)).max(1))
}

/// What a side has besides its weights, or lacks.
fn notes(side: &str, model: &Llama4) -> Vec<String> {
    let of = |kind: ProblemKind| model.problems.iter().filter(move |problem| problem.kind == kind);
    let mut notes = Vec::new();
    if let Some(first) = of(ProblemKind::Unexpected).next() {
        let count = of(ProblemKind::Unexpected).count();
        let name = shown(&first.name);
        notes.push(format!("{side} has {count} tensors that are no part of the model, such as `{name}`; not compared"));
    }
    if let Some(first) = of(ProblemKind::Missing).next() {
        let count = of(ProblemKind::Missing).count();
        notes.push(format!("{side} lacks {count} weights that its config promises, such as `{}`", first.name));
    }
    let config = mismatches(model).find(|problem| problem.name == "quantization_config");
    notes.extend(config.map(|problem| format!("{side}: `{}` {}", problem.name, problem.message)));
    notes
}
