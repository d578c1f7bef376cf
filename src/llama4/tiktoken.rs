//! Meta's `tokenizer.model` (the ranks of tiktoken) as a `tokenizer.json`.
//!
//! The file has one token a line: its bytes in Base64 and its rank. The merges of byte-pair encoding follow from the ranks:
//! whoever has the lower rank is merged first, and every way to put a token together from two others is a merge. Sources:
//! transformers 5.17, `convert_slow_tokenizer.py`, `TikTokenConverter`; special tokens and pattern:
//! `convert_llama4_weights_to_hf.py` at 07497505, with Meta's own spelling of the padding token.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use serde_json::{Value, json};

/// The name of Meta's file.
pub const RANKS_NAME: &str = "tokenizer.model";

/// The largest file that is read. Llama 4's has 3.6 MB.
pub const RANKS_BYTES_MAX: u64 = 64 << 20;

/// Most tokens: five times Llama 4's.
const TOKENS_MAX: usize = 1_000_000;

/// Longest token in bytes; a token of n bytes can be put together in n - 1 ways. Llama 4's longest has 128.
const TOKEN_BYTES_MAX: usize = 1024;

/// How a text is cut into pieces before merging (`O200K_PATTERN`).
pub(crate) const PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Special tokens that have a name, by their place behind the last rank.
const NAMED: [(usize, &str); 19] = [
    (0, "<|begin_of_text|>"),
    (1, "<|end_of_text|>"),
    (2, "<|fim_prefix|>"),
    (3, "<|fim_middle|>"),
    (4, "<|fim_suffix|>"),
    (5, "<|header_start|>"),
    (6, "<|header_end|>"),
    (7, "<|eom|>"),
    (8, "<|eot|>"),
    (9, "<|step|>"),
    (16, "<|python_start|>"),
    (17, "<|python_end|>"),
    (18, "<|finetune_right_pad|>"),
    (80, "<|image_start|>"),
    (81, "<|image_end|>"),
    (84, "<|tile_x_separator|>"),
    (85, "<|tile_y_separator|>"),
    (90, "<|image|>"),
    (92, "<|patch|>"),
];

/// First place of the tokens for images.
const VISION_FIRST: usize = 80;

/// Number of special tokens, of the 2,048 that Meta's vocabulary has room for.
const SPECIAL_TOKENS: usize = 1134;

/// A parsed `tokenizer.model`.
#[derive(Debug)]
pub struct Ranks {
    /// Tokens in the order of their ranks, which count from 0 without a gap.
    tokens: Vec<Vec<u8>>,
}

/// The special tokens, in order: named ones, and reserved ones that are numbered in two groups.
pub fn special_tokens() -> Vec<String> {
    let mut vision = 0;
    let token = |place: usize| {
        if let Some((_, name)) = NAMED.iter().find(|(at, _)| *at == place) {
            return (*name).to_owned();
        }
        match place {
            // The numbers 6 and 7 do not exist: two tokens got a name, and the others kept theirs.
            ..19 => format!("<|text_post_train_reserved_special_token_{}|>", place - 10),
            19..VISION_FIRST => format!("<|text_post_train_reserved_special_token_{}|>", place - 11),
            _ => {
                vision += 1;
                format!("<|vision_reserved_special_token_{}|>", vision - 1)
            }
        }
    };
    (0..SPECIAL_TOKENS).map(token).collect()
}

impl Ranks {
    /// Reads the file.
    ///
    /// # Errors
    /// A line that is not Base64 and a number, a rank that is there twice or missing, a token twice.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let mut ranked: Vec<(usize, Vec<u8>)> = Vec::new();
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let number = index + 1;
            let mut fields = line.split(|&byte| byte == b' ');
            let token = fields.next().and_then(base64);
            let rank = fields.next().and_then(|field| std::str::from_utf8(field).ok()?.trim_end().parse().ok());
            let (Some(token), Some(rank), None) = (token, rank, fields.next()) else {
                bail!("line {number} is not a token in Base64 and its rank");
            };
            if token.is_empty() || token.len() > TOKEN_BYTES_MAX || ranked.len() == TOKENS_MAX {
                bail!("line {number}: no tokenizer has tokens of {} bytes, or more than {TOKENS_MAX}", token.len());
            }
            ranked.push((rank, token));
        }
        ranked.sort();
        if let Some((expected, (rank, _))) = ranked.iter().enumerate().find(|(expected, (rank, _))| expected != rank) {
            bail!("rank {expected} is missing, or {rank} is there twice");
        }
        let tokens: Vec<Vec<u8>> = ranked.into_iter().map(|(_, token)| token).collect();
        let mut seen = std::collections::HashSet::new();
        if let Some(rank) = tokens.iter().position(|token| !seen.insert(token.as_slice())) {
            bail!("the token of rank {rank} is there twice");
        }
        Ok(Self { tokens })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The `tokenizer.json`: vocabulary, merges, special tokens behind the last rank, and how texts are cut and begun.
    pub fn tokenizer_json(&self) -> Vec<u8> {
        let letters = letters();
        let spelled: Vec<String> =
            self.tokens.iter().map(|token| token.iter().map(|&byte| letters[usize::from(byte)]).collect()).collect();
        let quoted = |text: &str| serde_json::to_string(text).expect("a string can be printed");
        // By hand, piece by piece: as a tree of JSON values the merges alone would take ten times as much memory.
        let mut json = String::from("{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":");
        json += &self.added_tokens().to_string();
        json += ",\"normalizer\":null,\"pre_tokenizer\":";
        json += &pre_tokenizer().to_string();
        json += ",\"post_processor\":";
        json += &self.post_processor().to_string();
        json += ",\"decoder\":";
        json += &byte_level(true).to_string();
        json += ",\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,\
            \"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":true,\"vocab\":{";
        for (rank, token) in spelled.iter().enumerate() {
            let comma = if rank == 0 { "" } else { "," };
            let _ = write!(json, "{comma}{}:{rank}", quoted(token));
        }
        json += "},\"merges\":[";
        let mut comma = "";
        for (left, right) in self.merges() {
            let _ = write!(json, "{comma}[{},{}]", quoted(&spelled[left]), quoted(&spelled[right]));
            comma = ",";
        }
        json += "]}}\n";
        json.into_bytes()
    }

    /// Every way to put a token together from two others, by the rank of the whole, of the left part, of the right part.
    fn merges(&self) -> Vec<(usize, usize)> {
        let ranks: HashMap<&[u8], usize> =
            self.tokens.iter().enumerate().map(|(rank, token)| (token.as_slice(), rank)).collect();
        let mut merges = Vec::new();
        for token in &self.tokens {
            let mut ways: Vec<(usize, usize)> = (1..token.len())
                .filter_map(|cut| Some((*ranks.get(&token[..cut])?, *ranks.get(&token[cut..])?)))
                .collect();
            ways.sort_unstable();
            merges.append(&mut ways);
        }
        merges
    }

    fn added_tokens(&self) -> Value {
        let added = special_tokens().into_iter().enumerate().map(|(place, content)| {
            json!({
                "id": self.len() + place,
                "content": content,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": true,
            })
        });
        added.collect()
    }

    /// Every text begins with `<|begin_of_text|>`.
    fn post_processor(&self) -> Value {
        let begin = NAMED[0].1;
        let special = |kind: u8| json!({"SpecialToken": {"id": begin, "type_id": kind}});
        let sequence = |id: &str, kind: u8| json!({"Sequence": {"id": id, "type_id": kind}});
        json!({
            "type": "Sequence",
            "processors": [
                byte_level(false),
                {
                    "type": "TemplateProcessing",
                    "single": [special(0), sequence("A", 0)],
                    "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
                    "special_tokens": {begin: {"id": begin, "ids": [self.len()], "tokens": [begin]}},
                },
            ],
        })
    }
}

/// `tokenizer_config.json`; `context` is the longest text, `instruct` decides which token ends one.
pub fn tokenizer_config(instruct: bool, context: u64) -> Value {
    json!({
        "bos_token": "<|begin_of_text|>",
        "clean_up_tokenization_spaces": false,
        "eos_token": if instruct { "<|eot|>" } else { "<|end_of_text|>" },
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "pad_token": "<|finetune_right_pad|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

/// `special_tokens_map.json`.
pub fn special_tokens_map(instruct: bool) -> Value {
    let config = tokenizer_config(instruct, 0);
    json!({"bos_token": config["bos_token"], "eos_token": config["eos_token"], "pad_token": config["pad_token"]})
}

pub(super) fn byte_level(trim_offsets: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": trim_offsets, "use_regex": true})
}

pub(super) fn pre_tokenizer() -> Value {
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false});
    json!({"type": "Sequence", "pretokenizers": [split, bytes]})
}

/// GPT-2's letters for bytes: printable ones stand for themselves, the others for what follows U+00FF, in order.
fn letters() -> [char; 256] {
    let mut next = 0x100_u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(byte);
        }
        let letter = char::from_u32(next).expect("a letter of Latin Extended");
        next += 1;
        letter
    })
}

/// Standard Base64 with padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => Some(u32::from(byte - b'A')),
        b'a'..=b'z' => Some(u32::from(byte - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(byte - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (groups, rest) = text.as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(groups.len() * 3);
    for (index, group) in groups.iter().enumerate() {
        let padding = group.iter().rev().take_while(|&&byte| byte == b'=').count();
        if padding > 2 || (padding > 0 && index + 1 < groups.len()) {
            return None;
        }
        let known = group[..4 - padding].iter().try_fold(0, |sum, &byte| Some(sum << 6 | value(byte)?))?;
        let [_, all @ ..] = (known << (6 * padding)).to_be_bytes();
        bytes.extend_from_slice(&all[..3 - padding]);
    }
    Some(bytes)
}
