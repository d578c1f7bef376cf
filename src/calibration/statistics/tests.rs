//! Statistics against what transformers counts, and hostile files.
