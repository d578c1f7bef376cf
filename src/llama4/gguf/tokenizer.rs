//! The tokenizer in a GGUF file's keys as the files that Hugging Face's tools read.
//!
//! Sources: llama.cpp at 0c1e57098, `src/llama-vocab.cpp` (which keys are read, how a text is cut) and `conversion/base.py`,
//! `_set_vocab_gpt2` (what they were written from). The keys do not hold how a text is cut, only the name of a way that llama.cpp
//! knows; of these, Llama 4's alone is known here.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};

use super::keys::Fields;
use crate::checkpoint::{Checkpoint, shown};
use crate::error::hint;
use crate::llama4::tiktoken::{byte_level, pre_tokenizer};

const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";
const MERGES_KEY: &str = "tokenizer.ggml.merges";

/// Names of ways to cut a text that are Llama 4's (`LLAMA_VOCAB_PRE_TYPE_GPT4O`).
const PRE_TOKENIZERS: [&str; 3] = ["llama4", "gpt-4o", "kanana2"];

// Kinds of tokens (`enum llama_token_type`); 1 is normal, 6 a byte.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// A text model's vocabulary.
pub struct Vocabulary<'a> {
    fields: Fields<'a>,
    /// Texts and kinds of tokens, by id.
    tokens: Vec<(&'a str, i64)>,
    /// The first token of those at the end that get their ids by counting on: added ones, and behind them what fills gaps.
    counted: usize,
}

impl<'a> Vocabulary<'a> {
    /// The vocabulary of a checkpoint; `None` if it is not in GGUF.
    ///
    /// # Errors
    /// The keys hold no tokenizer of Llama 4's kind.
    pub fn of(checkpoint: &'a Checkpoint) -> Result<Option<Self>> {
        let Some(fields) = Fields::of_text(checkpoint) else { return Ok(None) };
        let keys = fields.keys;
        let Some(texts) = keys.strings(TOKENS_KEY) else {
            return Err(hint(
                format!("{}", fields.error(TOKENS_KEY, "missing, so text cannot be turned into tokens")),
                "use a GGUF file that was converted with its tokenizer",
            ));
        };
        match (fields.text("tokenizer.ggml.model")?, fields.text("tokenizer.ggml.pre")?) {
            (Some("gpt2"), Some(pre)) if PRE_TOKENIZERS.contains(&pre) => {}
            (Some("gpt2"), pre) => {
                let pre = shown(pre.unwrap_or("none"));
                bail!(fields.error("tokenizer.ggml.pre", format!("`{pre}`; Llama 4's `llama4` alone is known")));
            }
            (model, _) => {
                let model = shown(model.unwrap_or("none"));
                bail!(fields.error("tokenizer.ggml.model", format!("`{model}`; Llama 4's is `gpt2`")));
            }
        }
        let kinds = keys.numbers(TYPES_KEY);
        let mut kinds = kinds.into_iter().flatten().map(|kind| kind.as_i64().unwrap_or(1));
        let tokens: Vec<(&str, i64)> = texts.map(|text| (text, kinds.next().unwrap_or(1))).collect();
        let last = tokens.iter().rposition(|(_, kind)| *kind != UNUSED).map_or(0, |last| last + 1);
        let inner = tokens[..last].iter().rposition(|(_, kind)| !is_added(*kind)).map_or(0, |last| last + 1);
        let gaps = tokens[..last].iter().any(|(_, kind)| *kind == UNUSED);
        Ok(Some(Self { fields, tokens, counted: if gaps { usize::MAX } else { inner } }))
    }

    /// `tokenizer.json`.
    ///
    /// # Errors
    /// A merge that is not two tokens, or a first token that is not in the vocabulary.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>> {
        let quoted = |text: &str| serde_json::to_string(text).expect("a string can be printed");
        // By hand, piece by piece: as a tree of JSON values the merges alone would take ten times as much memory.
        let mut json = String::from("{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":");
        json += &self.added_tokens().to_string();
        json += ",\"normalizer\":null,\"pre_tokenizer\":";
        json += &pre_tokenizer().to_string();
        json += ",\"post_processor\":";
        json += &self.post_processor()?.to_string();
        json += ",\"decoder\":";
        json += &byte_level(true).to_string();
        // As in Meta's own tokenizer, a piece that is a token is that token.
        json += ",\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,\
            \"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":true,\"vocab\":{";
        let mut comma = "";
        let mut known: HashMap<&str, usize> = HashMap::new();
        for (id, (text, _)) in self.tokens.iter().enumerate().filter(|(id, _)| self.is_in_model(*id)) {
            if let Some(first) = known.insert(text, id) {
                bail!(self.fields.error(TOKENS_KEY, format!("tokens {first} and {id} are both `{}`", shown(text))));
            }
            let _ = write!(json, "{comma}{}:{id}", quoted(text));
            comma = ",";
        }
        json += "},\"merges\":[";
        comma = "";
        for merge in self.fields.keys.strings(MERGES_KEY).into_iter().flatten() {
            let Some((left, right)) = merge.split_once(' ') else {
                bail!(self.fields.error(MERGES_KEY, format!("`{}` is not two tokens", shown(merge))));
            };
            let _ = write!(json, "{comma}[{},{}]", quoted(left), quoted(right));
            comma = ",";
        }
        json += "]}}\n";
        Ok(json.into_bytes())
    }

    /// `tokenizer_config.json`; `context` is the longest text.
    ///
    /// # Errors
    /// A special token is not in the vocabulary.
    pub fn tokenizer_config(&self, context: u64) -> Result<Value> {
        let mut config = json!({
            "clean_up_tokenization_spaces": false,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        for (field, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")] {
            if let Some((_, text)) = self.special(key)? {
                config[field] = text.into();
            }
        }
        Ok(config)
    }

    /// The chat template, if the file has one.
    ///
    /// # Errors
    /// The key holds something else.
    pub fn chat_template(&self) -> Result<Option<&'a str>> {
        Ok(self.fields.text("tokenizer.chat_template")?)
    }

    /// The id and the text of the token that a key names: `bos`, `eos`, `padding`.
    ///
    /// # Errors
    /// It is not in the vocabulary.
    pub fn special(&self, name: &str) -> Result<Option<(usize, &'a str)>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = self.fields.whole(&key)? else { return Ok(None) };
        let found = usize::try_from(id).ok().and_then(|id| Some((id, self.tokens.get(id)?.0)));
        let outside = || anyhow!(self.fields.error(&key, format!("`{id}` of {} tokens", self.tokens.len())));
        found.map(Some).ok_or_else(outside)
    }

    /// Whether a token belongs to byte-pair encoding, rather than being found as it stands or filling a gap.
    fn is_in_model(&self, id: usize) -> bool {
        // Where an added token stands among the others, its id has to be said.
        match self.tokens[id].1 {
            UNUSED => false,
            kind => !is_added(kind) || id < self.counted,
        }
    }

    fn added_tokens(&self) -> Value {
        let added = self.tokens.iter().enumerate().filter(|(_, (_, kind))| is_added(*kind));
        let entry = |(id, (content, kind)): (usize, &(&str, i64))| {
            json!({
                "id": id,
                "content": content,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": *kind != USER_DEFINED,
            })
        };
        added.map(entry).collect()
    }

    /// What stands before and behind every text.
    fn post_processor(&self) -> Result<Value> {
        let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
        let mut pair =
            vec![json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 1}})];
        let mut special = serde_json::Map::new();
        let flag = |key: &str| Ok::<_, anyhow::Error>(self.fields.flag(key)?.unwrap_or(false));
        let [begins, ends] = [flag("tokenizer.ggml.add_bos_token")?, flag("tokenizer.ggml.add_eos_token")?];
        let piece = |text: &str, kind: u8| json!({"SpecialToken": {"id": text, "type_id": kind}});
        if let Some((id, text)) = self.special("bos")?.filter(|_| begins) {
            special.insert(text.into(), json!({"id": text, "ids": [id], "tokens": [text]}));
            single.insert(0, piece(text, 0));
            pair.insert(1, piece(text, 1));
            pair.insert(0, piece(text, 0));
        }
        if let Some((id, text)) = self.special("eos")?.filter(|_| ends) {
            special.insert(text.into(), json!({"id": text, "ids": [id], "tokens": [text]}));
            single.push(piece(text, 0));
            pair.push(piece(text, 1));
        }
        let template = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special});
        Ok(json!({"type": "Sequence", "processors": [byte_level(false), template]}))
    }
}

/// Whether tokens of this kind are found in a text before it is cut.
fn is_added(kind: i64) -> bool {
    matches!(kind, UNKNOWN | CONTROL | USER_DEFINED)
}
