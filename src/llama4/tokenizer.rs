//! Text to tokens, by the checkpoint's own `tokenizer.json`.

use std::path::Path;

use anyhow::{Result, anyhow};

use crate::error::hint;

/// The name of the file.
pub const TOKENIZER_NAME: &str = "tokenizer.json";

/// A loaded tokenizer.
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Loads the tokenizer of the checkpoint in `folder`.
    ///
    /// # Errors
    /// The file is missing, or is none; names it.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(TOKENIZER_NAME);
        if !path.exists() {
            return Err(hint(
                format!("`{}` is missing, so text cannot be turned into tokens", path.display()),
                "copy `tokenizer.json` from the original repository into the folder",
            ));
        }
        let tokenizer = tokenizers::Tokenizer::from_file(&path)
            .map_err(|error| anyhow!("`{}` is no tokenizer: {error}", path.display()))?;
        Ok(Self(tokenizer))
    }

    /// The tokens of `text`, with the special tokens that the tokenizer puts before and after a text.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.0.encode(text, true).map_err(|error| anyhow!("tokenizing the text: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }
}
