//! Adding statistics of one model up, in any order and any grouping.
//!
//! Counts are whole numbers and their sums exact. Sums of squares and of scores are float64: the order of two files does not matter, and
//! another grouping may change the last bit. Labels of the same name become one; labels and runs are sorted.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::layout::{Entry, Layout};
use super::{DataPart, LabelCount, Meta, Sink, Statistics};
use crate::dtype::Dtype;
use crate::error::{Interrupted, hint};
use crate::progress::{Control, Unit};

/// Bytes of a tensor that are added up at a time.
const STRIPE_BYTES: usize = 1 << 20;

/// What statistics become when they are merged.
#[derive(Debug)]
pub struct Merged {
    /// What the new file says about itself.
    pub meta: Meta,
    /// Its tensors.
    pub layout: Layout,
    /// What is worth knowing: data that are in it twice.
    pub notes: Vec<String>,
}

/// Plans a merge.
///
/// # Errors
/// There is nothing to merge; statistics of different models, or some with Hessians and some without.
pub fn merged(parts: &[Statistics]) -> Result<Merged> {
    let Some(first) = parts.first() else { bail!("there are no statistics to merge") };
    let mut labels: BTreeMap<&str, LabelCount> = BTreeMap::new();
    let mut data: Vec<DataPart> = Vec::new();
    for part in parts {
        let what = format!("`{}`", first.path.display());
        part.meta.model.same_as(&first.meta.model, &what).with_context(|| format!("`{}`", part.path.display()))?;
        if part.meta.hessians != first.meta.hessians {
            return Err(hint(
                format!("only one of `{}` and `{}` has Hessians", first.path.display(), part.path.display()),
                "make both with `--hessians`, or both without",
            ));
        }
        for label in &part.meta.labels {
            let zero = || LabelCount { label: label.label.clone(), sequences: 0, tokens: 0 };
            let sum = labels.entry(&label.label).or_insert_with(zero);
            sum.sequences = sum.sequences.checked_add(label.sequences).context("too many sequences")?;
            // No overflow: every file has at most 2^48.
            sum.tokens += label.tokens;
        }
        data.extend(part.meta.data.iter().cloned());
    }
    data.sort();
    let twice = data.windows(2).filter(|pair| pair[0].tokens_sha256 == pair[1].tokens_sha256).count();
    let notes = Vec::from_iter((twice > 0).then(|| format!("{twice} runs are over the same tokens as another one")));
    let labels: Vec<LabelCount> = labels.into_values().collect();
    let meta = Meta { model: first.meta.model.clone(), labels, data, hessians: first.meta.hessians };
    // What cannot be read again must not be written.
    let meta = Meta::from_strings(&meta.to_strings()).context("the merged statistics")?;
    let layout = Layout::new(&meta.model, meta.labels.len(), meta.hessians);
    Ok(Merged { meta, layout, notes })
}

/// Adds the statistics up, tensor by tensor.
///
/// # Errors
/// A sum that passes its format; the sink refuses; [`Interrupted`].
pub fn merge(parts: &[Statistics], plan: &Merged, sink: &mut dyn Sink, control: &Control<'_>) -> Result<()> {
    control.progress.start("merging", plan.layout.entries.len() as u64, 0, Unit::Tensors);
    for (index, entry) in plan.layout.entries.iter().enumerate() {
        if control.stop_requested() {
            return Err(Interrupted.into());
        }
        let labelled = entry.name.ends_with(".router.tokens") || entry.name.ends_with(".router.score_sum");
        if labelled {
            let sum = by_label(parts, plan, entry)?;
            sink.write(index, 0, &sum)?;
        } else {
            let bytes = parts[0].bytes(&entry.name).len();
            for start in (0..bytes).step_by(STRIPE_BYTES) {
                let stripe = start..bytes.min(start + STRIPE_BYTES);
                let mut sum = parts[0].bytes(&entry.name)[stripe.clone()].to_vec();
                for part in &parts[1..] {
                    add(&mut sum, &part.bytes(&entry.name)[stripe.clone()], entry)?;
                }
                sink.write(index, start as u64, &sum)?;
            }
        }
        parts.iter().for_each(|part| part.release(&entry.name));
        control.progress.advance(1);
    }
    control.progress.finish();
    Ok(())
}

/// A tensor with a row for each label.
fn by_label(parts: &[Statistics], plan: &Merged, entry: &Entry) -> Result<Vec<u8>> {
    let row = plan.meta.model.num_local_experts * 8;
    let mut sum = vec![0; plan.meta.labels.len() * row];
    for part in parts {
        for (label, values) in part.meta.labels.iter().zip(part.bytes(&entry.name).chunks_exact(row)) {
            let place = plan.meta.labels.iter().position(|merged| merged.label == label.label);
            let place = place.expect("the plan has every label of its parts");
            add(&mut sum[place * row..][..row], values, entry)?;
        }
    }
    Ok(sum)
}

/// Adds values of the entry's format; of largest magnitudes, takes the larger one.
fn add(sum: &mut [u8], values: &[u8], entry: &Entry) -> Result<()> {
    let largest = entry.name.ends_with(".in_amax");
    match entry.dtype {
        Dtype::U64 => {
            each(sum, values, |a, b| u64::from_le_bytes(a).checked_add(u64::from_le_bytes(b)).map(u64::to_le_bytes))
        }
        Dtype::F64 => each(sum, values, |a, b| Some((f64::from_le_bytes(a) + f64::from_le_bytes(b)).to_le_bytes())),
        _ => each(sum, values, |a, b| {
            let (a, b) = (f32::from_le_bytes(a), f32::from_le_bytes(b));
            Some(if largest { a.max(b) } else { a + b }.to_le_bytes())
        }),
    }
    .with_context(|| format!("`{}` passes 64 bits", entry.name))
}

fn each<const N: usize>(
    sum: &mut [u8],
    values: &[u8],
    add: impl Fn([u8; N], [u8; N]) -> Option<[u8; N]>,
) -> Option<()> {
    for (sum, value) in sum.chunks_exact_mut(N).zip(values.chunks_exact(N)) {
        let result = add((&*sum).try_into().ok()?, value.try_into().ok()?)?;
        sum.copy_from_slice(&result);
    }
    Some(())
}
