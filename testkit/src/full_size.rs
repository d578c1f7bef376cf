//! The real models: whole but without weights, or a few layers with them. It must not know how a folder is written.

use std::path::Path;

use anyhow::Result;

use crate::{Shards, Spec};

const SCOUT_CONFIG: &str = include_str!("../../testdata/full-size/config-scout-instruct.json");
const MAVERICK_CONFIG: &str = include_str!("../../testdata/full-size/config-maverick-instruct.json");

/// Which of the two published models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 16 experts in every layer.
    Scout,
    /// 128 experts in every second layer.
    Maverick,
}

/// Writes the whole of Scout into `dir`, with holes for weights: real headers, names, shapes and config, 50 files,
/// 217 GB that take no disk.
pub fn write_sparse_scout(dir: &Path) -> Result<()> {
    Spec::scout_full().write_sparse(dir, Some(SCOUT_CONFIG))
}

/// Writes the whole of Maverick into `dir`, with holes for weights: 803 GB that take no disk. A file holds 5 GB; the
/// fused tensors of 21 and 11 GB each have one of their own.
pub fn write_sparse_maverick(dir: &Path) -> Result<()> {
    Spec::maverick_full().write_sparse(dir, Some(MAVERICK_CONFIG))
}

/// The first layers of a real model: text only, with a vocabulary of 2,048 (and tiny-scout's tokenizer), otherwise real
/// dimensions. `experts` overrides the number of experts.
///
/// One layer of Scout is 4.4 GB. Maverick's first layer is dense (0.6 GB), its second has 34 GB with all 128 experts.
pub fn real_layers(kind: Kind, layers: usize, experts: Option<usize>) -> Spec {
    let full = match kind {
        Kind::Scout => Spec::scout_full(),
        Kind::Maverick => Spec::maverick_full(),
    };
    Spec {
        layers,
        experts: experts.unwrap_or(full.experts),
        vocab_size: 2048,
        vision: None,
        text_only: true,
        tokenizer: true,
        shards: Shards::ByBytes(5_000_000_000),
        ..full
    }
}

/// Writes [`real_layers`] into `dir`, with random weights or with holes for them.
pub fn write_real_layers(dir: &Path, kind: Kind, layers: usize, experts: Option<usize>, sparse: bool) -> Result<()> {
    let spec = real_layers(kind, layers, experts);
    if sparse { spec.write_sparse(dir, None) } else { spec.write(dir) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// The totals are those of the published models; the rest is that of the file system.
    fn assert_sparse(write: fn(&Path) -> Result<()>, bytes: u64, files: usize, tensors: usize) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("model.safetensors.index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(index["metadata"]["total_size"], bytes);
        assert_eq!(index["weight_map"].as_object().unwrap().len(), tensors);
        let shards: Vec<fs::Metadata> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "safetensors"))
            .map(|entry| entry.metadata().unwrap())
            .collect();
        assert_eq!(shards.len(), files);
        let length: u64 = shards.iter().map(fs::Metadata::len).sum();
        assert!(length > bytes && length < bytes + 1_000_000, "{length}");
        let disk: u64 = shards.iter().map(|m| m.blocks() * 512).sum();
        assert!(disk < 4 << 20, "{disk} bytes on disk");
    }

    #[test]
    fn sparse_scout() {
        assert_sparse(write_sparse_scout, 217_283_587_072, 50, 1133);
    }

    #[test]
    fn sparse_maverick() {
        assert_sparse(write_sparse_maverick, 803_167_562_752, 73, 1061);
    }
}
