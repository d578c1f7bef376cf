//! Calibration data as tokens: text files, packed into sequences.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use super::calibrate::CalibrationOptions;
use crate::calibration::Sequences;
use crate::error::hint;
use crate::llama4::Llama4;
use crate::llama4::tokenizer::Tokenizer;
use crate::output::hash::sha256;

/// Reads the data, and what to record of it.
///
/// # Errors
/// A file cannot be read, or there is not one token.
pub(super) fn read(model: &Llama4, options: &CalibrationOptions) -> Result<(Sequences, BTreeMap<String, String>)> {
    if options.samples == 0 || options.seq_len == 0 {
        return Err(hint("no samples, or samples without tokens", "give `--samples` and `--seq-len` of 1 or more"));
    }
    let tokenizer = Tokenizer::of(&model.checkpoint)?;
    let (mut sequences, mut names) = (Vec::new(), Vec::new());
    for path in &options.data {
        let text = fs::read_to_string(path).with_context(|| format!("reading `{}`", path.display()))?;
        let ids = tokenizer.encode(&text)?;
        sequences.push(ids.chunks(options.seq_len).map(<[u32]>::to_vec).collect::<Vec<_>>());
        names.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    // One sequence of each file in turn, so that a few samples are of all kinds.
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let turns = (0..longest).flat_map(|index| sequences.iter().filter_map(move |file| file.get(index)));
    let chosen: Vec<&Vec<u32>> = turns.take(options.samples).collect();
    let ids: Vec<u32> = chosen.iter().flat_map(|ids| ids.iter().copied()).collect();
    let lengths = chosen.iter().map(|ids| ids.len()).collect();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let settings = BTreeMap::from([
        ("calibration files".to_owned(), names.join(" ")),
        ("calibration tokens".to_owned(), ids.len().to_string()),
        ("calibration tokens sha256".to_owned(), sha256(&bytes)),
        ("samples".to_owned(), options.samples.to_string()),
        ("sequence length".to_owned(), options.seq_len.to_string()),
    ]);
    Ok((Sequences::new(ids, lengths)?, settings))
}
