//! Text to tokens, by the checkpoint's own `tokenizer.json`, or by the keys of a GGUF file.

use anyhow::{Result, anyhow};

use super::gguf::tokenizer::Vocabulary;
use crate::checkpoint::Checkpoint;
use crate::error::hint;

/// The name of the file.
pub const TOKENIZER_NAME: &str = "tokenizer.json";

/// The largest file that is read. Llama 4's has 28 MB.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// A loaded tokenizer.
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Loads the checkpoint's tokenizer.
    ///
    /// # Errors
    /// The file is missing, or is none; names it.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        if let Some(vocabulary) = Vocabulary::of(checkpoint)? {
            let path = checkpoint.folder().display();
            let tokenizer = tokenizers::Tokenizer::from_bytes(vocabulary.tokenizer_json()?)
                .map_err(|error| anyhow!("the keys of `{path}` hold no tokenizer: {error}"))?;
            return Ok(Self(tokenizer));
        }
        let path = checkpoint.folder().join(TOKENIZER_NAME);
        let Some(content) = checkpoint.side_file(TOKENIZER_NAME, TOKENIZER_BYTES_MAX)? else {
            return Err(hint(
                format!("`{}` is missing, so text cannot be turned into tokens", path.display()),
                "copy `tokenizer.json` from the original repository into the folder",
            ));
        };
        let tokenizer = tokenizers::Tokenizer::from_bytes(content)
            .map_err(|error| anyhow!("`{}` is no tokenizer: {error}", path.display()))?;
        Ok(Self(tokenizer))
    }

    /// The first `count` tokens of `text`, or all if there are fewer. Reads no more of a long text than it needs.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn first_tokens(&self, text: &str, count: usize) -> Result<Vec<u32>> {
        // Splits near the cut may differ from those of the whole text, so more is read than is taken.
        let mut bytes = count.saturating_mul(16).saturating_add(4096);
        loop {
            let end =
                (bytes.min(text.len())..=text.len()).find(|&end| text.is_char_boundary(end)).unwrap_or(text.len());
            let mut tokens = self.encode(&text[..end])?;
            if tokens.len() >= count.saturating_add(64) || end == text.len() {
                tokens.truncate(count);
                return Ok(tokens);
            }
            bytes = bytes.saturating_mul(2);
        }
    }

    /// The tokens of `text`, with the special tokens that the tokenizer puts before and after a text.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.0.encode(text, true).map_err(|error| anyhow!("tokenizing the text: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of `text` and nothing else. Special tokens that are spelled out in it are found.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.0.encode(text, false).map_err(|error| anyhow!("tokenizing the text: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens that the tokenizer puts before a text: `<|begin_of_text|>` in Llama's.
    ///
    /// # Errors
    /// The tokenizer cannot encode an empty text.
    pub fn beginning(&self) -> Result<Vec<u32>> {
        self.encode("")
    }
}
