//! Writes a checkpoint folder from a [`Spec`]. It must not know names of tensors beyond what decides their values.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::random::{Filler, Values};
use crate::{Shards, Spec, TensorDef, config_json, generation_config_json, tensors};
use crate::{write_safetensors, write_sparse_safetensors};

/// Metadata of the shards of published models.
const METADATA: [(&str, &str); 1] = [("format", "pt")];
const TOKENIZER: &[u8] = include_bytes!("../../testdata/tiny-scout/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../testdata/tiny-scout/tokenizer_config.json");

impl Spec {
    /// Writes the whole checkpoint into `dir`, which is made if it is not there: config, generation config, safetensors
    /// and their index, and the tokenizer if asked for. Weights are random (see the fields); no more than 64 MiB of
    /// them are ever in memory.
    pub fn write(&self, dir: &Path) -> Result<()> {
        self.write_side_files(dir, &config_json(self))?;
        let defs = tensors(self);
        let mut filler = Filler::new(self.seed);
        write_shards(dir, &defs, self.shards, |path, defs| {
            write_safetensors(path, defs, &METADATA, |i, out| {
                let count = defs[i].shape.iter().product();
                filler.fill(&defs[i].name, count, self.values(&defs[i]), defs[i].dtype, out)
            })
        })
    }

    /// Writes the same files with holes for weights: every weight is zero, and no disk is taken. `config` is what
    /// `config.json` says; `None` for the one that belongs to the spec.
    pub fn write_sparse(&self, dir: &Path, config: Option<&str>) -> Result<()> {
        match config {
            Some(text) => self.write_side_files(dir, &serde_json::from_str(text)?)?,
            None => self.write_side_files(dir, &config_json(self))?,
        }
        write_shards(dir, &tensors(self), self.shards, |path, defs| write_sparse_safetensors(path, defs, &METADATA))
    }

    fn write_side_files(&self, dir: &Path, config: &Value) -> Result<()> {
        ensure!(self.vocab_size >= 32, "vocab_size {} leaves no room for special tokens", self.vocab_size);
        ensure!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "kv_heads must divide heads");
        ensure!(self.interleave_moe_layer_step > 0, "interleave_moe_layer_step must be at least 1");
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        write_json(&dir.join("config.json"), config)?;
        write_json(&dir.join("generation_config.json"), &generation_config_json(self))?;
        if self.tokenizer {
            ensure!(self.vocab_size >= 2048, "tiny-scout's tokenizer needs a vocabulary of 2048 or more");
            fs::write(dir.join("tokenizer.json"), TOKENIZER)?;
            fs::write(dir.join("tokenizer_config.json"), TOKENIZER_CONFIG)?;
        }
        Ok(())
    }

    /// Values that keep activations sane: matrices have unit gain, the weights of norms are near one, biases are small,
    /// and the router's logits spread enough to make clear choices.
    fn values(&self, tensor: &TensorDef) -> Values {
        let name = tensor.name.as_str();
        let fan_in = match tensor.shape.as_slice() {
            [_, rows, _] => *rows,
            [_, columns] => *columns,
            _ => 1,
        } as f32;
        let (mean, deviation) = match name {
            _ if name.ends_with("norm.weight") || name.contains("layernorm") && name.ends_with("weight") => (1.0, 0.1),
            _ if name.ends_with(".bias") || name.contains("_embedding") && tensor.shape.len() == 1 => (0.0, 0.02),
            _ if name.ends_with("embed_tokens.weight") => (0.0, 1.0),
            _ if name.ends_with("router.weight") => (0.0, 2.0 / fan_in.sqrt()),
            _ => (0.0, 1.0 / fan_in.sqrt()),
        };
        Values { mean, deviation, heavy: self.outliers && tensor.shape.len() > 1 }
    }
}

/// Calls `write` for each file with its tensors, and writes the index if there is one.
fn write_shards(
    dir: &Path,
    defs: &[TensorDef],
    shards: Shards,
    mut write: impl FnMut(&Path, &[TensorDef]) -> Result<()>,
) -> Result<()> {
    if shards == Shards::Single {
        return write(&dir.join("model.safetensors"), defs);
    }
    let ranges = match shards {
        Shards::Split(count) => split(defs, count)?,
        Shards::ByBytes(limit) => by_bytes(defs, limit),
        Shards::Single => unreachable!("returned above"),
    };
    let mut weight_map = Map::new();
    for (i, range) in ranges.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, ranges.len());
        write(&dir.join(&file), &defs[range.clone()])?;
        weight_map.extend(defs[range.clone()].iter().map(|t| (t.name.clone(), json!(file))));
    }
    let total: u64 = defs.iter().map(TensorDef::bytes).sum();
    let parameters: u64 = defs.iter().map(|t| t.bytes() / t.dtype.bytes() as u64).sum();
    weight_map.sort_keys();
    let metadata = json!({"total_parameters": parameters, "total_size": total});
    let index = json!({"metadata": metadata, "weight_map": weight_map});
    write_json(&dir.join("model.safetensors.index.json"), &index)
}

/// Cuts `defs` into exactly `count` ranges, each at the tensor that is nearest to its equal share.
fn split(defs: &[TensorDef], count: usize) -> Result<Vec<Range<usize>>> {
    ensure!((1..=defs.len()).contains(&count), "{} tensors can't be split over {count} files", defs.len());
    let total: u64 = defs.iter().map(TensorDef::bytes).sum();
    let (mut ranges, mut start, mut before) = (Vec::new(), 0, 0u64);
    for shard in 1..=count {
        let share = (u128::from(total) * shard as u128 / count as u128) as u64;
        let last = defs.len() - (count - shard);
        let mut end = start + 1;
        before += defs[start].bytes();
        while end < last && (shard == count || before + defs[end].bytes() / 2 < share) {
            before += defs[end].bytes();
            end += 1;
        }
        ranges.push(start..end);
        start = end;
    }
    Ok(ranges)
}

/// Cuts `defs` wherever the next tensor would take a file beyond `limit` bytes.
fn by_bytes(defs: &[TensorDef], limit: u64) -> Vec<Range<usize>> {
    let (mut ranges, mut start, mut bytes) = (Vec::new(), 0, 0u64);
    for (i, t) in defs.iter().enumerate() {
        if i > start && bytes + t.bytes() > limit {
            ranges.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes += t.bytes();
    }
    ranges.push(start..defs.len());
    ranges
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges cover every tensor once and in order, so their ends tell them all.
    fn ends(ranges: &[Range<usize>]) -> Vec<usize> {
        assert!(ranges[0].start == 0 && ranges.windows(2).all(|w| w[0].end == w[1].start));
        ranges.iter().map(|r| r.end).collect()
    }

    fn sized(bytes: &[usize]) -> Vec<TensorDef> {
        bytes.iter().map(|&n| TensorDef { name: String::new(), dtype: crate::Dtype::U8, shape: vec![n] }).collect()
    }

    #[test]
    fn splitting_gives_exactly_as_many_files_as_asked_for() {
        assert_eq!(ends(&split(&sized(&[1, 1, 1, 1, 1, 1]), 3).unwrap()), [2, 4, 6]);
        assert_eq!(ends(&split(&sized(&[100, 1, 1]), 3).unwrap()), [1, 2, 3]);
        assert_eq!(ends(&split(&sized(&[1, 1, 100]), 3).unwrap()), [1, 2, 3]);
        assert!(split(&sized(&[1]), 2).is_err());
    }

    #[test]
    fn a_tensor_above_the_limit_is_alone_in_its_file() {
        assert_eq!(ends(&by_bytes(&sized(&[4, 4, 50, 4, 4, 4]), 10)), [2, 3, 5, 6]);
    }

    #[test]
    fn weights_do_not_depend_on_the_shards() {
        let dir = tempfile::tempdir().unwrap();
        let single = Spec { vision: None, ..Spec::default() };
        single.write(&dir.path().join("a")).unwrap();
        Spec { shards: Shards::Split(tensors(&single).len()), ..single.clone() }.write(&dir.path().join("b")).unwrap();
        let whole = fs::read(dir.path().join("a/model.safetensors")).unwrap();
        let mut parts: Vec<_> = fs::read_dir(dir.path().join("b")).unwrap().map(|e| e.unwrap().path()).collect();
        parts.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
        parts.sort();
        let data: Vec<u8> = parts.iter().flat_map(|p| data_of(&fs::read(p).unwrap()).to_vec()).collect();
        assert!(data == data_of(&whole));
    }

    fn data_of(file: &[u8]) -> &[u8] {
        &file[8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize..]
    }
}
