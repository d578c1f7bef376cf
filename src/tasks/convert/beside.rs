//! The files beside the weights of a converted checkpoint: config, index, card, tokenizer, and what is copied.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Options;
use crate::llama4::config::{Conversion, Model};
use crate::llama4::tiktoken::{self, RANKS_BYTES_MAX, RANKS_NAME, Ranks};
use crate::llama4::tokenizer::TOKENIZER_NAME;
use crate::llama4::{Dialect, Llama4};
use crate::output::companions::{self, Card, Companion, pretty};
use crate::output::converting::Form;
use crate::output::origin;
use crate::output::plan::Plan;

/// Files that say how the source was stored, which is true no longer.
const OF_THE_SOURCE: [&str; 4] = ["params.json", RANKS_NAME, "hf_quant_config.json", "quantization_config.json"];

/// Files about images.
const OF_IMAGES: [&str; 3] = ["preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"];

/// Every file beside the weights, sorted by name. Adds to `notes` what is missing.
///
/// # Errors
/// A file of the source cannot be read, or its tokenizer is damaged.
pub(super) fn files(
    options: &Options,
    model: &Llama4,
    form: &Form,
    plan: &Plan,
    changes: &[String],
    notes: &mut Vec<String>,
) -> Result<Vec<Companion>> {
    let mut files =
        companions::of_source(model, form.model, notes).context("collecting the files beside the weights")?;
    files.retain(|file| match file.name.as_str() {
        RANKS_NAME | "params.json" if model.dialect == Dialect::HuggingFace => true,
        name => !OF_THE_SOURCE.contains(&name) && (form.model == Model::Multimodal || !OF_IMAGES.contains(&name)),
    });
    if model.dialect == Dialect::Meta {
        for file in of_meta(options, model, form, notes)? {
            // What lies in the folder was put there on purpose.
            if files.iter().all(|there| there.name != file.name) {
                files.push(file);
            }
        }
        if !files.iter().any(|file| file.name.starts_with("chat_template")) && options.instruct {
            notes.push("there is no chat template: copy `chat_template.jinja` from the published model".into());
        }
    }
    let conversion = Conversion {
        text_only: form.model == Model::TextOnly,
        dtype: form.float.or_else(|| dequantized(model, form)).map(|float| float.dtype()),
    };
    files.push(pretty("config.json", &model.config.converted_document(conversion)));
    files.push(companions::index(plan));
    let about = format!(
        "{:.1} GB of weights in plain floats. `l4tool.manifest.json` says for every file what its SHA-256 is;
`l4tool verify` checks it.",
        plan.bytes() as f64 / 1e9,
    );
    files.push(companions::card(&Card {
        origin: &origin::describe(&model.checkpoint),
        title: if form.model == Model::TextOnly { "Llama 4, converted, text only" } else { "Llama 4, converted" },
        relation: None,
        tags: &[],
        entries: changes,
        about: &about,
        images: form.model == Model::Multimodal,
    }));
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// The format that quantized weights get, if there are any.
fn dequantized(model: &Llama4, form: &Form) -> Option<crate::kernels::Float> {
    let quantized = model.weights.iter().find(|weight| form.keeps(weight) && model.stored_float(weight).is_none());
    quantized.map(|weight| form.float_of(model, weight))
}

/// What Hugging Face's tools want and Meta's folder has in another form.
fn of_meta(options: &Options, model: &Llama4, form: &Form, notes: &mut Vec<String>) -> Result<Vec<Companion>> {
    let mut files = Vec::new();
    let instruct = options.instruct;
    if instruct {
        files.push(pretty("generation_config.json", &model.config.generation_config()));
    } else {
        notes.push(
            "taken for a base model; `--instruct` is for instruction-tuned ones, which end turns by other tokens"
                .into(),
        );
    }
    if let (Model::Multimodal, Some(preprocessor)) = (form.model, model.config.preprocessor_config()) {
        files.push(pretty("preprocessor_config.json", &preprocessor));
    }
    let Some(text) = model.checkpoint.side_file(RANKS_NAME, RANKS_BYTES_MAX)? else {
        notes.push(format!("there is no `{RANKS_NAME}`, so the output has no tokenizer"));
        return Ok(files);
    };
    let shown = model.checkpoint.folder().join(RANKS_NAME);
    let ranks = Ranks::parse(&text).with_context(|| format!("reading `{}`", shown.display()))?;
    let first_special = model.config.text.bos_token_id;
    if first_special.map(|id| id as usize) != Some(ranks.len()) {
        notes.push(format!(
            "`{RANKS_NAME}` has {} tokens, and with a vocabulary of {} special tokens should begin at {}",
            ranks.len(),
            model.config.text.vocab_size,
            first_special.unwrap_or(0),
        ));
    }
    files.push(Companion { name: TOKENIZER_NAME.into(), contents: ranks.tokenizer_json() });
    let describe = |name: &str, document: Value| pretty(name, &document);
    let context = model.config.text.max_position_embeddings;
    files.push(describe("tokenizer_config.json", tiktoken::tokenizer_config(instruct, context)));
    files.push(describe("special_tokens_map.json", tiktoken::special_tokens_map(instruct)));
    Ok(files)
}
