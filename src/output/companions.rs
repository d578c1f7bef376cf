//! The files beside the weights: config, index, model card, notice, and what is copied from the source.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::manifest::Origin;
use super::plan::Plan;
use crate::checkpoint::INDEX_NAME;

/// A small file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// File name.
    pub name: String,
    /// Contents.
    pub contents: Vec<u8>,
}

/// Largest file that is copied along. Llama 4's `tokenizer.json` has 28 MB.
const COPIED_BYTES_MAX: u64 = 256 << 20;

/// `model.safetensors.index.json`. SGLang looks for it even if there is one weight file.
pub fn index(plan: &Plan) -> Companion {
    let mut weight_map: Vec<(&str, &str)> =
        plan.tensors.iter().map(|tensor| (tensor.name.as_str(), plan.files[tensor.file].name.as_str())).collect();
    weight_map.sort_unstable();
    let weight_map: Map<String, Value> =
        weight_map.into_iter().map(|(name, file)| (name.to_owned(), file.into())).collect();
    pretty(INDEX_NAME, &json!({"metadata": {"total_size": plan.data_bytes()}, "weight_map": weight_map}))
}

/// A JSON document as a file, indented as transformers does.
pub fn pretty(name: &str, document: &Value) -> Companion {
    let mut contents = serde_json::to_vec_pretty(document).expect("a JSON value can be printed");
    contents.push(b'\n');
    Companion { name: name.into(), contents }
}

/// Tokenizer, chat template, processor and generation config, licence, use policy: everything in the source's folder
/// that belongs to the model and is not a weight, an index or about the source itself. Sorted by name.
///
/// # Errors
/// A file cannot be read.
pub fn copied(source: &Path) -> Result<Vec<Companion>> {
    let context = || format!("reading the folder `{}`", source.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(source).with_context(context)? {
        let entry = entry.with_context(context)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Follows links: in the hub's cache every file is one.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if metadata.is_file() && metadata.len() <= COPIED_BYTES_MAX && belongs(&name) {
            let contents = fs::read(entry.path()).with_context(|| format!("reading `{}`", entry.path().display()))?;
            files.push(Companion { name, contents });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn belongs(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let made_here = ["config.json", "readme.md", "l4tool.manifest.json", "notice"];
    if lower.starts_with('.') || made_here.contains(&lower.as_str()) || lower.ends_with(".index.json") {
        return false;
    }
    let legal = ["license", "licence", "use_policy", "acceptable_use"].iter().any(|start| lower.starts_with(start));
    let endings = [".json", ".jinja", ".model", ".txt", ".tiktoken"];
    legal || endings.iter().any(|ending| lower.ends_with(ending))
}

/// The line that Llama 4's licence (section 1.b.iii of its text) wants in a `Notice` file of every copy.
const NOTICE: &str = "Llama 4 is licensed under the Llama 4 Community License, \
    Copyright © Meta Platforms, Inc. All Rights Reserved.\n";

/// The `NOTICE` file.
pub fn notice() -> Companion {
    Companion { name: "NOTICE".into(), contents: NOTICE.into() }
}

/// What a model card tells.
#[derive(Clone, Copy, Debug)]
pub struct Card<'a> {
    /// Where the weights came from.
    pub origin: &'a Origin,
    /// Schemes with the number of matrices in each, such as `w4a16: 2,352 matrices`.
    pub schemes: &'a [String],
    /// Bits per quantized weight, scales included.
    pub bits_per_weight: f64,
    /// Size of all weight files.
    pub bytes: u64,
    /// Version of l4tool.
    pub tool_version: &'a str,
}

/// The model card, `README.md`.
pub fn card(card: &Card<'_>) -> Companion {
    let Card { origin, schemes, bits_per_weight, bytes, tool_version } = card;
    let base_model = origin
        .repo
        .as_ref()
        .map_or_else(String::new, |repo| format!("base_model: {repo}\nbase_model_relation: quantized\n"));
    let made_from = match (&origin.repo, &origin.revision) {
        (Some(repo), Some(revision)) => format!("`{repo}` at revision `{revision}`"),
        (Some(repo), None) => format!("`{repo}`"),
        _ => "a local Llama 4 checkpoint".into(),
    };
    let schemes: String = schemes.iter().map(|line| format!("- {line}\n")).collect();
    let text = format!(
        "---
license: other
license_name: llama4
library_name: transformers
{base_model}tags:
- llama4
- compressed-tensors
- l4tool
---

# Quantized Llama 4

**Built with Llama.** Made by [l4tool](https://github.com/l4tool/l4tool) {tool_version} from {made_from}.

{schemes}
{bits_per_weight:.2} bits per quantized weight, scales included; {gigabytes:.1} GB of weights. What no scheme names is
stored as it was. `l4tool.manifest.json` says for every weight how it is stored and how large its error is, and for
every file what its SHA-256 is; `l4tool verify` checks both.

## Use

```sh
vllm serve PATH --max-model-len 131072
```

```python
from transformers import AutoModelForImageTextToText, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(PATH)
model = AutoModelForImageTextToText.from_pretrained(PATH, device_map=\"auto\")
```

## Licence

{NOTICE}
Whoever passes this model on must pass the licence on with it, show \"Built with Llama\", and begin the model's name with
\"Llama\"; the licence says the rest.
",
        gigabytes = *bytes as f64 / 1e9,
    );
    Companion { name: "README.md".into(), contents: text.into_bytes() }
}
