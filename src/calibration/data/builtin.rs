//! The data that come with the program: public-domain text in a number of languages, mathematics and code.
//!
//! `builtin/README.md` says where each comes from. About 40 kB: enough that every kind of expert sees something, and no more than that.

use super::inputs::{DEFAULT_LABEL, Input, Kind, Labelled, Place};

const TEXTS: [(&str, &str); 7] = [
    ("built-in/code.txt", include_str!("builtin/code.txt")),
    ("built-in/drama.txt", include_str!("builtin/drama.txt")),
    ("built-in/dutch.txt", include_str!("builtin/dutch.txt")),
    ("built-in/languages.txt", include_str!("builtin/languages.txt")),
    ("built-in/mathematics.txt", include_str!("builtin/mathematics.txt")),
    ("built-in/novel.txt", include_str!("builtin/novel.txt")),
    ("built-in/satire.txt", include_str!("builtin/satire.txt")),
];

/// The built-in set, under one label.
pub(super) fn inputs() -> Vec<Labelled> {
    let inputs = TEXTS.map(|(name, text)| Input {
        place: Place::Memory(name, text),
        kind: Kind::Text,
        bytes: text.len() as u64,
    });
    vec![Labelled { label: DEFAULT_LABEL.to_owned(), inputs: inputs.into() }]
}
