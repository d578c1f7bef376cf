//! The files beside the weights: config, index, model card, notice, and what is copied from the source.

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::manifest::{Origin, VERSION};
use super::plan::Plan;
use crate::checkpoint::{Checkpoint, INDEX_NAME};
use crate::llama4::config::Model;
use crate::llama4::gguf::tokenizer::Vocabulary;
use crate::llama4::tokenizer::TOKENIZER_NAME;
use crate::llama4::{Dialect, Llama4};

/// A small file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// File name.
    pub name: String,
    /// Contents.
    pub contents: Vec<u8>,
}

/// Most bytes that are copied along. Llama 4's `tokenizer.json` has 28 MB, and all of its side files 34 MB.
const COPIED_BYTES_MAX: u64 = 128 << 20;

/// The file that attributes a model to those who made it.
const NOTICE_NAME: &str = "NOTICE";

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
/// that belongs to the model and is not a weight, an index or about the source itself; and the notice that every copy
/// must have. Links that lead out of the folder are refused, as everywhere: a stranger's checkpoint must not bring other
/// files of the user's along.
///
/// # Errors
/// A file cannot be read, lies elsewhere, or all together are larger than side files ever are.
pub fn copied(checkpoint: &Checkpoint) -> Result<Vec<Companion>> {
    collected(checkpoint, belongs)
}

/// What belongs beside the weights of `model`'s `output`: what lies beside the source's, or what its keys hold of it if it is in
/// GGUF. Adds to `notes` what is missing.
///
/// # Errors
/// As [`copied`]; keys that hold a damaged tokenizer.
pub fn of_source(model: &Llama4, output: Model, notes: &mut Vec<String>) -> Result<Vec<Companion>> {
    if model.dialect != Dialect::Gguf {
        return copied(&model.checkpoint);
    }
    // Who keeps a GGUF file in a folder of downloads has other models' files there.
    let mut files = legal(&model.checkpoint)?;
    match Vocabulary::of(&model.checkpoint) {
        Ok(Some(vocabulary)) => {
            files.push(Companion { name: TOKENIZER_NAME.into(), contents: vocabulary.tokenizer_json()? });
            let context = model.config.text.max_position_embeddings;
            files.push(pretty("tokenizer_config.json", &vocabulary.tokenizer_config(context)?));
            if let Some(template) = vocabulary.chat_template()? {
                files.push(Companion { name: "chat_template.jinja".into(), contents: template.into() });
            }
        }
        Ok(None) => {}
        Err(error) => notes.push(format!("the output has no tokenizer: {error}")),
    }
    if let (Model::Multimodal, Some(preprocessor)) = (output, model.config.preprocessor_config()) {
        files.push(pretty("preprocessor_config.json", &preprocessor));
    }
    notes.push("a GGUF file does not hold `generation_config.json`: copy it from the original model".into());
    Ok(files)
}

/// [`copied`] without what is not licence, policy or notice.
///
/// # Errors
/// As [`copied`].
pub fn legal(checkpoint: &Checkpoint) -> Result<Vec<Companion>> {
    collected(checkpoint, is_legal)
}

fn collected(checkpoint: &Checkpoint, wanted: impl Fn(&str) -> bool) -> Result<Vec<Companion>> {
    let mut files = Vec::new();
    let mut left = COPIED_BYTES_MAX;
    for name in checkpoint.side_names()?.into_iter().filter(|name| wanted(name)) {
        let Some(contents) = checkpoint.side_file(&name, left)? else { continue };
        left -= contents.len() as u64;
        files.push(Companion { name, contents });
    }
    let mut notice = checkpoint.side_file(NOTICE_NAME, left)?.unwrap_or_default();
    if !String::from_utf8_lossy(&notice).contains(NOTICE.trim_end()) {
        notice.extend_from_slice(NOTICE.as_bytes());
    }
    files.push(Companion { name: NOTICE_NAME.into(), contents: notice });
    Ok(files)
}

fn belongs(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let made_here = ["config.json", "readme.md", "l4tool.manifest.json", "notice"];
    if lower.starts_with('.') || made_here.contains(&lower.as_str()) || lower.ends_with(".index.json") {
        return false;
    }
    let endings = [".json", ".jinja", ".model", ".txt", ".tiktoken"];
    is_legal(name) || endings.iter().any(|ending| lower.ends_with(ending))
}

fn is_legal(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    ["license", "licence", "use_policy", "acceptable_use"].iter().any(|start| lower.starts_with(start))
}

/// The line that Llama 4's licence (section 1.b.iii of its text) wants in a `Notice` file of every copy.
const NOTICE: &str = "Llama 4 is licensed under the Llama 4 Community License, \
    Copyright © Meta Platforms, Inc. All Rights Reserved.\n";

/// What a model card tells.
#[derive(Clone, Copy, Debug)]
pub struct Card<'a> {
    /// Where the weights came from.
    pub origin: &'a Origin,
    /// The heading, such as `Quantized Llama 4`.
    pub title: &'a str,
    /// What the hub calls the relation to the origin, such as `quantized`; `None` if it is the same model.
    pub relation: Option<&'a str>,
    /// Tags besides those that every card has.
    pub tags: &'a [&'a str],
    /// What is in it, as list entries.
    pub entries: &'a [String],
    /// What is to be known about the weights, in sentences, with line breaks.
    pub about: &'a str,
    /// Whether the model takes images.
    pub images: bool,
}

/// The model card, `README.md`.
pub fn card(card: &Card<'_>) -> Companion {
    let Card { origin, title, relation, tags, entries, about, images } = card;
    let class = if *images { "AutoModelForImageTextToText" } else { "AutoModelForCausalLM" };
    let relation = relation.map_or_else(String::new, |relation| format!("base_model_relation: {relation}\n"));
    let base_model = origin.repo.as_ref().map_or_else(String::new, |repo| format!("base_model: {repo}\n{relation}"));
    let made_from = match (&origin.repo, &origin.revision) {
        (Some(repo), Some(revision)) => format!("`{repo}` at revision `{revision}`"),
        (Some(repo), None) => format!("`{repo}`"),
        _ => "a local Llama 4 checkpoint".into(),
    };
    let tags: String = tags.iter().map(|tag| format!("- {tag}\n")).collect();
    let entries: String = entries.iter().map(|line| format!("- {line}\n")).collect();
    let text = format!(
        "---
license: other
license_name: llama4
library_name: transformers
{base_model}tags:
- llama4
{tags}- l4tool
---

# {title}

**Built with Llama.** Made by [l4tool](https://github.com/l4tool/l4tool) {VERSION} from {made_from}.

{entries}
{about}

## Use

```sh
vllm serve PATH
```

```python
from transformers import {class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(PATH)
model = {class}.from_pretrained(PATH, device_map=\"auto\")
```

## Licence

{NOTICE}
Whoever passes this model on must pass the licence on with it, show \"Built with Llama\", and begin the model's name with
\"Llama\"; the licence says the rest.
",
    );
    Companion { name: "README.md".into(), contents: text.into_bytes() }
}
