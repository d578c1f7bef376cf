//! Whole quantized models without weights: every header real, every number a hole.
//!
//! It follows compressed-tensors' format by its own few lines, and must not use the library `l4`.

use std::fs;
use std::path::Path;

use l4_testkit::{Dtype, TensorDef, write_sparse_safetensors};
use serde_json::{Value, json};

use super::read_json;

/// Writes what `fp8` (a scale for each channel) or `int4` (groups of 128) makes of the feed-forward matrices of a sparse model in `source`.
pub(crate) fn quantized(source: &Path, out: &Path, scheme: &str) {
    fs::create_dir_all(out).unwrap();
    let mut config = read_json(&source.join("config.json"));
    config["quantization_config"] = json!({"quant_method": "compressed-tensors"});
    fs::write(out.join("config.json"), config.to_string()).unwrap();
    let mut defs = Vec::new();
    for (name, shape) in tensors(source) {
        let (layer, rest) = name.split_once(".feed_forward.").unwrap_or((&name, ""));
        match (rest, shape.as_slice()) {
            ("experts.gate_up_proj", &[experts, input, out]) => {
                for expert in 0..experts {
                    for part in ["gate", "up"] {
                        let module = format!("{layer}.feed_forward.experts.{expert}.{part}_proj");
                        defs.extend(module_of(&module, out / 2, input, scheme));
                    }
                }
            }
            ("experts.down_proj", &[experts, input, out]) => {
                for expert in 0..experts {
                    let module = format!("{layer}.feed_forward.experts.{expert}.down_proj");
                    defs.extend(module_of(&module, out, input, scheme));
                }
            }
            (rest, &[out, input]) if rest.ends_with("_proj.weight") => {
                defs.extend(module_of(name.strip_suffix(".weight").unwrap(), out, input, scheme));
            }
            _ => defs.push(TensorDef { name: name.clone(), dtype: Dtype::BF16, shape }),
        }
    }
    write_sparse_safetensors(&out.join("model.safetensors"), &defs, &[("format", "pt")]).unwrap();
}

fn module_of(module: &str, out: usize, input: usize, scheme: &str) -> Vec<TensorDef> {
    let parts = match scheme {
        "int4" => vec![
            ("weight_packed", Dtype::I32, vec![out, input / 8]),
            ("weight_scale", Dtype::BF16, vec![out, input / 128]),
            ("weight_shape", Dtype::I64, vec![2]),
        ],
        "fp8" => vec![("weight", Dtype::F8_E4M3, vec![out, input]), ("weight_scale", Dtype::BF16, vec![out, 1])],
        other => panic!("{other}"),
    };
    let def = |(part, dtype, shape)| TensorDef { name: format!("{module}.{part}"), dtype, shape };
    parts.into_iter().map(def).collect()
}

/// Names and shapes of all tensors of a folder, from the headers.
fn tensors(folder: &Path) -> Vec<(String, Vec<usize>)> {
    let index = read_json(&folder.join("model.safetensors.index.json"));
    let files = index["weight_map"].as_object().unwrap().values();
    let files: std::collections::BTreeSet<&str> = files.map(|file| file.as_str().unwrap()).collect();
    let mut tensors = Vec::new();
    for file in files {
        use std::io::Read;
        let mut file = fs::File::open(folder.join(file)).unwrap();
        let mut length = [0; 8];
        file.read_exact(&mut length).unwrap();
        let mut header = vec![0; u64::from_le_bytes(length) as usize];
        file.read_exact(&mut header).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        for (name, entry) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
            let shape = entry["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
            tensors.push((name.clone(), shape));
        }
    }
    tensors
}
