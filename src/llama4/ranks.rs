//! The view of a checkpoint in rank shards: every weight put together from what the ranks have of it.
//!
//! A rank's file is read as a checkpoint of its own with smaller matrices; [`super::shards`] says how much smaller. Whether the files
//! belong together is told by what `repack` wrote into their headers.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, bail};

use super::config::Config;
use super::expected::{Expected, expected};
use super::find::{Finder, Parts};
use super::names::{Prefixes, without_rank};
use super::shards::{Cut, MODEL_KEY, RANK_KEY, RANKS_KEY, cut, part_shape};
use super::view::{Coding, Dialect, Llama4, Problem, ProblemKind, TensorId, Weight, config_disagrees, unexpected};
use crate::checkpoint::{Checkpoint, Edges, RANK_MARK};
use crate::error::hint;
use crate::kernels::Float;

/// Whether the checkpoint is in rank shards.
pub(super) fn is_sharded(checkpoint: &Checkpoint) -> bool {
    checkpoint.tensors().first().is_some_and(|tensor| tensor.name.contains(RANK_MARK))
}

/// Reads the files of all ranks as one model.
///
/// # Errors
/// A rank is missing, or the files are not of one model.
pub(super) fn assign(checkpoint: Checkpoint, config: Config) -> Result<Llama4> {
    check_together(&checkpoint)?;
    let ranks = checkpoint.files().len();
    let prefixes = Prefixes::of(config.model);
    let (mut modules, mut problems) = (vec![HashMap::<&str, Parts>::new(); ranks], Vec::new());
    for (id, tensor) in checkpoint.tensors().iter().enumerate() {
        match prefixes.split(without_rank(&tensor.name)) {
            Some((module, part)) => drop(modules[tensor.file].entry(module).or_default().insert(part, id)),
            None => problems.push(unexpected(tensor)),
        }
    }
    let mut found = Found { owner: vec![None; checkpoint.tensors().len()], weights: Vec::new(), shards: Vec::new() };
    for wanted in expected(&config) {
        let name = wanted.name.clone();
        if let Err(problem) = found.find(&checkpoint, &config, &modules, wanted) {
            // Its tensors are accounted for by this problem; they are not unexpected on top of it.
            for &id in modules.iter().filter_map(|rank| rank.get(name.as_str())).flat_map(BTreeMap::values) {
                found.owner[id] = found.owner[id].or(Some(usize::MAX));
            }
            problems.push(problem);
        }
    }
    let Found { mut owner, weights, shards } = found;
    for (id, tensor) in checkpoint.tensors().iter().enumerate() {
        if owner[id].is_none() && prefixes.split(without_rank(&tensor.name)).is_some() {
            problems.push(unexpected(tensor));
        }
        owner[id] = owner[id].filter(|&index| index != usize::MAX);
    }
    problems.extend(config_disagrees(&config, &weights, &[]));
    let mut model = Llama4::assemble(checkpoint, config, Dialect::HuggingFace, weights, Vec::new(), problems, owner);
    model.shards = shards;
    Ok(model)
}

/// Whether every rank has its file, and all are of one model.
fn check_together(checkpoint: &Checkpoint) -> Result<()> {
    let files = checkpoint.files();
    let folder = checkpoint.folder().display();
    let get = |file: usize, key: &str| files[file].metadata.get(key).map(String::as_str);
    let number = |file: usize, key: &str| get(file, key).and_then(|text| text.parse::<usize>().ok());
    let fetch = "fetch the files of all ranks from where they were made, in one folder of their own";
    for (file, found) in files.iter().enumerate() {
        let (Some(rank), Some(ranks)) = (number(file, RANK_KEY), number(file, RANKS_KEY)) else {
            let message = format!("`{}` does not say which rank it is", found.path.display());
            return Err(hint(message, "only rank shards that `l4tool repack` wrote can be read"));
        };
        if rank != file {
            return Err(hint(format!("`{folder}`: the file of rank {file} is missing"), fetch));
        }
        if ranks != files.len() {
            let message =
                format!("`{folder}` has files of {} ranks, and `{}` is one of {ranks}", files.len(), found.name);
            return Err(hint(message, fetch));
        }
        if get(file, MODEL_KEY) != get(0, MODEL_KEY) {
            let message = format!("`{}` and `{}` are of different models", files[0].path.display(), found.name);
            return Err(hint(message, fetch));
        }
    }
    Ok(())
}

struct Found {
    owner: Vec<Option<usize>>,
    weights: Vec<Weight>,
    shards: Vec<Coding>,
}

impl Found {
    fn find(
        &mut self,
        checkpoint: &Checkpoint,
        config: &Config,
        modules: &[HashMap<&str, Parts>],
        wanted: Expected,
    ) -> Result<(), Problem> {
        let ranks = modules.len();
        let how = cut(wanted.role, &wanted.name);
        let problem = |message: String| Problem { kind: ProblemKind::Mismatch, name: wanted.name.clone(), message };
        let Some(shape) = part_shape(how, &wanted.shape, ranks) else {
            return Err(problem(format!("has the shape {:?}, which {ranks} ranks do not divide", wanted.shape)));
        };
        let part = Expected { shape, ..wanted.clone() };
        let (mut codings, mut ids) = (Vec::with_capacity(ranks), Vec::<TensorId>::new());
        for modules in modules {
            let mut pieces = Vec::new();
            let finder = Finder { tensors: checkpoint.tensors(), modules, config };
            let (coding, more) = finder.find(&part, &mut pieces)?;
            if !pieces.is_empty() {
                return Err(problem("is in fused codes, which rank shards do not have".into()));
            }
            codings.push(coding);
            ids.extend(more);
        }
        let kind = |coding: &Coding| match coding {
            Coding::Plain(plane) => (None, Some(plane.float), Some(plane.layout)),
            other => (other.scheme(), None::<Float>, None),
        };
        if codings.iter().any(|coding| kind(coding) != kind(&codings[0])) {
            return Err(problem("is stored in another way by another rank".into()));
        }
        for id in ids {
            self.owner[id] = self.owner[id].or(Some(self.weights.len()));
        }
        let (scheme, float, _) = kind(&codings[0]);
        let coding = if how == Cut::Whole {
            codings[0]
        } else {
            let first = self.shards.len();
            self.shards.extend(codings);
            Coding::Split { cut: how, first, count: ranks, scheme, float }
        };
        let Expected { name, role, layer, expert, shape } = wanted;
        self.weights.push(Weight { name, role, layer, expert, shape, coding });
        Ok(())
    }
}

impl Llama4 {
    /// Whether the ranks agree on what all of them have: norms, routers and the like. Reads these; they are small.
    ///
    /// # Errors
    /// Names the first tensor on which two ranks differ.
    pub fn check_copies(&self) -> Result<()> {
        let mut first: HashMap<&str, TensorId> = HashMap::new();
        for (id, tensor) in self.checkpoint.tensors().iter().enumerate() {
            let whole = self.owner[id].is_some_and(|index| matches!(self.weights[index].coding, Coding::Plain(_)));
            if !whole || self.shards.is_empty() {
                continue;
            }
            let other = *first.entry(without_rank(&tensor.name)).or_insert(id);
            let differ = self.checkpoint.bytes(other) != self.checkpoint.bytes(id);
            for id in [other, id] {
                self.checkpoint.release(id, 0..tensor.bytes, Edges::Drop);
            }
            if differ {
                let file = &self.checkpoint.files()[tensor.file].name;
                let name = without_rank(&tensor.name);
                bail!(hint(
                    format!("`{file}` holds another `{name}` than the first rank: the files are of different models"),
                    "fetch the files of all ranks from where they were made",
                ));
            }
        }
        Ok(())
    }
}
