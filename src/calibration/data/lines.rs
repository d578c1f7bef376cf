//! One line of a JSON Lines file: a text, a conversation, or tokens.

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::error::hint;

/// What a line, a row or a piece of a file holds.
#[derive(Debug, PartialEq)]
pub(super) enum Document {
    /// A text of its own.
    Text(String),
    /// More of the text before it, where that came from the piece before.
    Running(String),
    /// Messages of a conversation, for the model's chat template.
    Messages(Value),
    /// Tokens as they are: nothing is put before them.
    Tokens(Vec<u32>),
}

/// The fields that are looked at; others do not matter.
#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    messages: Option<Value>,
    input_ids: Option<Vec<u32>>,
}

/// Parses one line; nothing for an empty one.
///
/// # Errors
/// It is no JSON object with one of the fields.
pub(super) fn parse(line: &[u8]) -> Result<Option<Document>> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let line: Line = match serde_json::from_slice(line) {
        Ok(line) => line,
        Err(error) if line.trim_ascii_start().starts_with(b"[") => {
            return Err(hint(
                format!("no JSON object: {error}"),
                "the file should have one object per line; `jq -c '.[]' FILE` turns a list into that",
            ));
        }
        Err(error) => bail!("no JSON object with a text: {error}"),
    };
    match line {
        Line { input_ids: Some(tokens), .. } => Ok(Some(Document::Tokens(tokens))),
        Line { messages: Some(messages @ Value::Array(_)), .. } => Ok(Some(Document::Messages(messages))),
        Line { messages: Some(_), .. } => bail!("`messages` is no list"),
        Line { text: Some(text), .. } => Ok(Some(Document::Text(text))),
        _ => Err(hint(
            "a line without a text",
            "each line is an object with `text`, with `messages`, or with `input_ids`",
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_texts_conversations_or_tokens() {
        let parsed = |line: &str| parse(line.as_bytes());
        assert_eq!(parsed(" \r").unwrap(), None);
        assert_eq!(parsed(r#"{"id":1,"text":"a\nb"}"#).unwrap(), Some(Document::Text("a\nb".into())));
        assert_eq!(parsed(r#"{"input_ids":[1,2]}"#).unwrap(), Some(Document::Tokens(vec![1, 2])));
        assert!(matches!(
            parsed(r#"{"messages":[{"role":"user","content":"x"}]}"#).unwrap(),
            Some(Document::Messages(_))
        ));
        for wrong in
            ["{", "[1]", "7", r#"{"content":"x"}"#, r#"{"text":7}"#, r#"{"messages":7}"#, r#"{"input_ids":[-1]}"#]
        {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
