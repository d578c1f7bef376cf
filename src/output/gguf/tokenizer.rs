//! The keys of a GGUF file that hold the tokenizer: from `tokenizer.json` and what lies beside it.
//!
//! The rules are those of llama.cpp's converter (`get_vocab_base` in `conversion/base.py`, `SpecialVocab` in `gguf-py/gguf/vocab.py`, commit
//! 0c1e57098) for tokenizers of Llama 4's kind, byte-level BPE.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use serde_json::Value as Json;

use super::keys::Key;
use super::template;
use crate::checkpoint::gguf::{Content, Value};
use crate::checkpoint::{Checkpoint, shown};
use crate::error::hint;
use crate::llama4::gguf::tokenizer::Vocabulary;
use crate::llama4::tiktoken::{self, PATTERN, RANKS_BYTES_MAX, RANKS_NAME, Ranks};
use crate::llama4::tokenizer::TOKENIZER_NAME;
use crate::llama4::{Dialect, Llama4};

/// The largest file that is read.
const BYTES_MAX: u64 = 256 << 20;

/// What llama.cpp calls Llama 4's way to cut a text (`llama-vocab.cpp`).
pub const LLAMA4: &str = "llama4";

/// Kinds of tokens (`TokenType` in `gguf-py/gguf/constants.py`).
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Special tokens: their names in `tokenizer_config.json`, and in keys.
const SPECIAL: [(&str, &str); 7] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    // Spelled like this by llama.cpp.
    ("sep", "seperator"),
    ("pad", "padding"),
    ("cls", "cls"),
    ("mask", "mask"),
];

/// `tokenizer.json`, as far as it is needed.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    added_tokens: Vec<Added>,
    pre_tokenizer: Option<Json>,
    post_processor: Option<Json>,
    model: Bpe,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// In the form of today, or in that from before transformers 4.45.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
}

/// What users say about a tokenizer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// llama.cpp's name for the way in which texts are cut, if it is not to be recognized.
    pub pre_tokenizer: Option<&'a str>,
    /// Whether Meta's files, which do not tell, hold an instruction-tuned model.
    pub instruct: bool,
}

/// The keys of the model's tokenizer.
///
/// # Errors
/// There is no tokenizer, or one that llama.cpp has no name for; names file and token.
pub fn keys(model: &Llama4, request: Request<'_>) -> Result<Vec<Key>> {
    let (content, config) = files(model, request.instruct)?;
    let path = model.checkpoint.folder().join(TOKENIZER_NAME);
    let context = || format!("reading `{}`", path.display());
    let document: Document = serde_json::from_slice(&content).with_context(context)?;
    drop(content);
    let pre = match request.pre_tokenizer {
        Some(name) => name,
        None if is_llama4(document.pre_tokenizer.as_ref()) => LLAMA4,
        None => {
            return Err(hint(
                format!(
                    "`{}` cuts texts in another way than Llama 4's, so llama.cpp's name for it is not known",
                    path.display()
                ),
                "name it with `--pre-tokenizer NAME` (`tokenizer.ggml.pre`), if llama.cpp has it",
            ));
        }
    };
    let special = special_ids(model, &document, &config);
    let add = template::added(document.post_processor.as_ref(), &config);
    let chat = chat_template(&model.checkpoint, &config)?;
    let (tokens, kinds) =
        tokens(document.added_tokens, document.model.vocab, model.config.text.vocab_size).with_context(context)?;
    let merges = document.model.merges.into_iter().map(Merge::joined).collect();
    let text = |text: &str| Content::Value(Value::String(text.to_owned()));
    let own = |key: &str| format!("tokenizer.ggml.{key}");
    let mut keys = vec![
        (own("model"), text("gpt2")),
        (own("pre"), text(pre)),
        (own("tokens"), Content::Strings(tokens)),
        (own("token_type"), Content::Numbers(kinds)),
        (own("merges"), Content::Strings(merges)),
    ];
    let id = |(name, id): (&str, u32)| (own(&format!("{name}_token_id")), Content::Value(Value::U32(id)));
    keys.extend(special.into_iter().map(id));
    let flag = |(name, flag): (&str, bool)| (own(&format!("add_{name}_token")), Content::Value(Value::Bool(flag)));
    keys.extend(add.into_iter().map(flag));
    keys.extend(chat.map(|chat| ("tokenizer.chat_template".to_owned(), text(&chat))));
    Ok(keys)
}

/// `tokenizer.json` and `tokenizer_config.json`, or what Meta's file comes to.
fn files(model: &Llama4, instruct: bool) -> Result<(Vec<u8>, Json)> {
    let checkpoint = &model.checkpoint;
    if model.dialect == Dialect::Gguf
        && let Some(vocabulary) = Vocabulary::of(checkpoint)?
    {
        let mut config = vocabulary.tokenizer_config(model.config.text.max_position_embeddings)?;
        // Without one, nothing beside the file is one.
        config["chat_template"] = vocabulary.chat_template()?.into();
        return Ok((vocabulary.tokenizer_json()?, config));
    }
    if let Some(content) = checkpoint.side_file(TOKENIZER_NAME, BYTES_MAX)? {
        return Ok((content, json(checkpoint, "tokenizer_config.json")?.unwrap_or(Json::Null)));
    }
    if let Some(text) = checkpoint.side_file(RANKS_NAME, RANKS_BYTES_MAX)? {
        let shown = checkpoint.folder().join(RANKS_NAME);
        let ranks = Ranks::parse(&text).with_context(|| format!("reading `{}`", shown.display()))?;
        let config = tiktoken::tokenizer_config(instruct, model.config.text.max_position_embeddings);
        return Ok((ranks.tokenizer_json(), config));
    }
    Err(hint(
        format!(
            "`{}` is missing, and llama.cpp loads no model without a tokenizer",
            checkpoint.folder().join(TOKENIZER_NAME).display()
        ),
        "copy `tokenizer.json` and `tokenizer_config.json` from the original repository into the folder",
    ))
}

/// A small JSON file beside the weights.
///
/// # Errors
/// It cannot be read, or is no JSON.
pub fn json(checkpoint: &Checkpoint, name: &str) -> Result<Option<Json>> {
    let Some(content) = checkpoint.side_file(name, BYTES_MAX)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&content);
    parsed.map(Some).map_err(|error| anyhow!("`{}` is not JSON: {error}", checkpoint.folder().join(name).display()))
}

/// Whether a text is cut by Llama 4's pattern, and nothing else.
fn is_llama4(pre_tokenizer: Option<&Json>) -> bool {
    let Some(pre) = pre_tokenizer else { return false };
    let steps = match pre.get("pretokenizers").and_then(Json::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![pre],
    };
    let kind = |step: &Json, name: &str| step.get("type").and_then(Json::as_str) == Some(name);
    let is_split =
        |step: &Json| kind(step, "Split") && step.pointer("/pattern/Regex").and_then(Json::as_str) == Some(PATTERN);
    let is_bytes = |step: &Json| kind(step, "ByteLevel") && step.get("use_regex") != Some(&Json::Bool(true));
    matches!(steps[..], [split, bytes] if is_split(split) && is_bytes(bytes))
}

/// Every token with its kind, in the order of their numbers; numbers without a token are filled.
fn tokens(added: Vec<Added>, vocab: HashMap<String, u32>, size: usize) -> Result<(Vec<String>, Vec<i32>)> {
    let mut found: Vec<Option<(String, i32)>> = vec![None; size];
    let mut put = |id: u32, token: String, kind: i32| {
        let place = found.get_mut(id as usize);
        let place = place.with_context(|| format!("`{}` is token {id}, and the model has {size}", shown(&token)))?;
        ensure!(kind != NORMAL || place.is_none(), "`{}` is token {id}, and so is another one", shown(&token));
        *place = Some((token, kind));
        anyhow::Ok(())
    };
    for (token, id) in vocab {
        put(id, token, NORMAL)?;
    }
    for Added { id, content, special } in added {
        if special || looks_special(&content) {
            put(id, content, CONTROL)?;
        } else {
            // llama.cpp wants these with plain spaces.
            put(id, content.replace('\u{2581}', " "), USER_DEFINED)?;
        }
    }
    let filled = found.into_iter().enumerate();
    Ok(filled.map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED))).unzip())
}

/// `does_token_look_special`.
fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&token)
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

impl Merge {
    /// Both halves with a space between; a space inside is spelled as bytes are.
    fn joined(self) -> String {
        match self {
            Self::Pair(left, right) => format!("{} {}", left.replace(' ', "\u{120}"), right.replace(' ', "\u{120}")),
            Self::Joined(text) => text,
        }
    }
}

/// A token's text in `tokenizer_config.json`, which may be an object.
pub(super) fn content<'a>(config: &'a Json, name: &str) -> Option<&'a str> {
    let entry = config.get(format!("{name}_token"))?;
    entry.as_str().or_else(|| entry.get("content")?.as_str())
}

/// The numbers of special tokens by their names in keys: what `tokenizer_config.json` says first, then what the config adds.
fn special_ids(model: &Llama4, document: &Document, config: &Json) -> Vec<(&'static str, u32)> {
    let mut ids: Vec<(&'static str, u32)> = Vec::new();
    for (name, key) in SPECIAL {
        let added =
            content(config, name).and_then(|text| document.added_tokens.iter().find(|token| token.content == text));
        ids.extend(added.map(|token| (key, token.id)));
    }
    let model_config = model.config.document();
    for (name, key) in SPECIAL {
        let field = format!("{name}_token_id");
        let own = model_config.get(&field).filter(|id| !id.is_null());
        let id = own.or_else(|| model_config.get("text_config")?.get(&field)).and_then(Json::as_u64);
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok())
            && ids.iter().all(|(known, _)| *known != key)
        {
            ids.push((key, id));
        }
    }
    ids
}

/// The template that turns a conversation into a text; of several, the one that is called `default`.
fn chat_template(checkpoint: &Checkpoint, config: &Json) -> Result<Option<String>> {
    if let Some(template) = config.get("chat_template") {
        let named = |entry: &Json| entry.get("name").and_then(Json::as_str) == Some("default");
        let default = || template.as_array()?.iter().find(|entry| named(entry))?.get("template")?.as_str();
        return Ok(template.as_str().or_else(default).map(str::to_owned));
    }
    if let Some(text) = checkpoint.side_file("chat_template.jinja", BYTES_MAX)? {
        return String::from_utf8(text).map(Some).context("`chat_template.jinja` is not UTF-8");
    }
    let json = json(checkpoint, "chat_template.json")?;
    Ok(json.and_then(|json| Some(json.get("chat_template")?.as_str()?.to_owned())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tokens_get_their_kinds() {
        let added = |id, content: &str, special| Added { id, content: content.into(), special };
        let vocab = [("a".to_owned(), 0), ("b".to_owned(), 1)];
        let list = vec![added(3, "<|x|>", false), added(4, "y\u{2581}z", false), added(5, "z", true)];
        let (names, kinds) = tokens(list, vocab.clone().into(), 7).unwrap();
        assert_eq!(names, ["a", "b", "[PAD2]", "<|x|>", "y z", "z", "[PAD6]"]);
        assert_eq!(kinds, [NORMAL, NORMAL, UNUSED, CONTROL, USER_DEFINED, CONTROL, UNUSED]);
        let error = tokens(vec![added(9, "c", true)], vocab.into(), 7).unwrap_err().to_string();
        assert_eq!(error, "`c` is token 9, and the model has 7");
        let twice = [("a".to_owned(), 0), ("b".to_owned(), 0)];
        assert!(tokens(vec![], twice.into(), 7).is_err());
    }

    #[test]
    fn a_space_inside_a_merge_is_spelled() {
        assert_eq!(Merge::Pair("a b".into(), "c".into()).joined(), "aĠb c");
        assert_eq!(Merge::Joined("a b".into()).joined(), "a b");
    }
}
