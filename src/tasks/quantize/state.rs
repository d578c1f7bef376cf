//! What a killed calibration leaves for the next process: the residual stream after the last finished layer.
//!
//! ```text
//! OUT.partial/scratch/
//!   layer-N        float32, [tokens, hidden], before layer N
//!   unusable-W     inputs of weight W were found not to be finite
//!   state.json     {"layer": N, "digest": XXH3 of layer-N, "seen": [[weight, tokens, basis], ...]}
//! ```
//!
//! `state.json` is replaced by a rename when everything it speaks of is written. What a power cut leaves of `layer-N` is found
//! out by digest. The journal beside it says whose work this is.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::policy::{Basis, Policy, Seen};
use crate::calibration::store::{Rows, Storage};
use crate::output::modules::Target;

const STATE: &str = "state.json";

/// Rows that are moved at a time.
const ROWS: usize = 1024;

#[derive(Serialize, Deserialize)]
struct State {
    layer: usize,
    digest: String,
    seen: Vec<(usize, u64, Basis)>,
}

fn unusable(folder: &Path, weight: usize) -> PathBuf {
    folder.join(format!("unusable-{weight}"))
}

/// Remembers that a weight's inputs were not finite, before it is quantized without them.
pub(super) fn mark_unusable(folder: &Path, weight: usize) -> Result<()> {
    let path = unusable(folder, weight);
    fs::write(&path, []).with_context(|| format!("writing `{}`", path.display()))
}

/// Whether [`mark_unusable`] was called, by whatever process.
pub(super) fn is_unusable(folder: &Path, weight: usize) -> bool {
    unusable(folder, weight).exists()
}

/// Keeps the residual stream before `layer`, and what is known of weights so far.
pub(super) fn keep(folder: &Path, layer: usize, hidden: &Rows, seen: &[Option<Seen>]) -> Result<()> {
    let path = folder.join(format!("layer-{layer}"));
    let context = || format!("keeping the calibration in `{}`", path.display());
    let mut file = File::create(&path).with_context(context)?;
    let mut digest = Xxh3::new();
    for first in (0..hidden.len()).step_by(ROWS) {
        let rows = hidden.read(first..(first + ROWS).min(hidden.len()))?;
        let bytes: &[u8] = bytemuck::cast_slice(&rows);
        digest.update(bytes);
        file.write_all(bytes).with_context(context)?;
    }
    let seen = seen.iter().enumerate();
    let seen = seen.filter_map(|(index, seen)| seen.map(|seen| (index, seen.tokens, seen.policy.basis)));
    let state = State { layer, digest: format!("{:016x}", digest.digest()), seen: seen.collect() };
    let new = folder.join("state.new");
    fs::write(&new, serde_json::to_vec(&state)?).with_context(context)?;
    fs::rename(&new, folder.join(STATE)).with_context(context)?;
    if let Some(before) = layer.checked_sub(1) {
        // It is in nobody's way if it stays.
        let _ = fs::remove_file(folder.join(format!("layer-{before}")));
    }
    Ok(())
}

/// The layer to go on from, the residual stream before it, and what is known of weights.
pub(super) type TakenUp = (usize, Rows, Vec<Option<Seen>>);

/// What an earlier run left; `None` if there is nothing of use.
pub(super) fn take_up(
    folder: &Path,
    (tokens, width): (usize, usize),
    targets: &[Option<Target>],
    storage: &Storage,
) -> Result<Option<TakenUp>> {
    let context = || format!("taking up the calibration in `{}`", folder.display());
    let text = match fs::read(folder.join(STATE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(context)?,
    };
    let Ok(state) = serde_json::from_slice::<State>(&text) else { return Ok(None) };
    let Ok(mut file) = File::open(folder.join(format!("layer-{}", state.layer))) else { return Ok(None) };
    if file.metadata().with_context(context)?.len() != (tokens * width * size_of::<f32>()) as u64 {
        return Ok(None);
    }
    let mut rows = storage.rows(tokens, width)?;
    let mut digest = Xxh3::new();
    for first in (0..tokens).step_by(ROWS) {
        let mut values = vec![0.0f32; ROWS.min(tokens - first) * width];
        file.read_exact(bytemuck::cast_slice_mut(&mut values)).with_context(context)?;
        digest.update(bytemuck::cast_slice(&values));
        rows.write(first, &values)?;
    }
    if state.digest != format!("{:016x}", digest.digest()) {
        storage.recycle(rows);
        return Ok(None);
    }
    let mut seen = vec![None; targets.len()];
    for (index, tokens, basis) in state.seen {
        let Some(Some(target)) = targets.get(index) else { return Ok(None) };
        seen[index] = Some(Seen { tokens, policy: Policy { method: target.method, basis } });
    }
    Ok(Some((state.layer, rows, seen)))
}
