//! Reading JSON from outside: bounded, in UTF-8, and with the keys that serde's own maps would silently merge.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::error::{FormatError, Kind};

/// Reads a whole file that has at most `cap` bytes. Allocates by the file's size, never by a number in it.
pub(crate) fn read_capped(file: &mut File, path: &Path, bytes: u64, cap: u64) -> Result<Vec<u8>, FormatError> {
    if bytes > cap {
        return Err(FormatError::new(path, Kind::TooLarge { bytes, cap }));
    }
    let mut content = Vec::with_capacity(bytes as usize);
    file.take(cap).read_to_end(&mut content).map_err(FormatError::io(path, "read"))?;
    Ok(content)
}

/// The text of a JSON file or header, or where it stops being UTF-8.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Kind> {
    std::str::from_utf8(bytes).map_err(|error| Kind::NotUtf8 { at: error.valid_up_to() as u64 })
}

/// A JSON error in the words of `serde_json`, which give line and column.
pub(crate) fn json_error(error: &serde_json::Error) -> Kind {
    Kind::Json { message: format!("not the JSON that belongs here: {error}") }
}

/// A JSON object from strings to strings with every pair that the text has, sorted by key; equal keys lie side by side.
#[derive(Debug, Default)]
pub(crate) struct Pairs(pub(crate) Vec<(String, String)>);

impl Pairs {
    /// The first key that is there twice.
    pub(crate) fn duplicate(&self) -> Option<&str> {
        self.0.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| pair[0].0.as_str())
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                // Without a size hint from the text: the vector grows with what is really there.
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                pairs.sort();
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}
