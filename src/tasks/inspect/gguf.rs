//! What GGUF files say of themselves: versions, types, parts.

use serde::Serialize;

use crate::llama4::Llama4;

/// What the keys of a checkpoint in GGUF say beside the config.
#[derive(Clone, Debug, Serialize)]
pub struct GgufFacts {
    /// `general.name` of the text model.
    pub name: Option<String>,
    /// `general.file_type` of the text model, by llama.cpp's name, such as `Q4_K_M`; the number, if that has none.
    pub file_type: Option<String>,
    /// Every file.
    pub files: Vec<GgufFile>,
}

/// One file.
#[derive(Clone, Debug, Serialize)]
pub struct GgufFile {
    /// Its name.
    pub name: String,
    /// Version of the format.
    pub version: u32,
    /// `general.architecture`; absent in all parts of a split model but the first.
    pub architecture: Option<String>,
    /// Which part it is, from 1, and of how many; absent for a whole file.
    pub part: Option<(u64, u64)>,
}

/// Names of `general.file_type` (`enum llama_ftype` in llama.cpp's `include/llama.h` at 0c1e57098).
const FILE_TYPES: [(u64, &str); 36] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4_MOE"),
    (39, "NVFP4"),
    (40, "Q1_0"),
    (41, "Q2_0"),
];

/// The facts; `None` for another container.
pub(super) fn facts(model: &Llama4) -> Option<GgufFacts> {
    let mut facts = GgufFacts { name: None, file_type: None, files: Vec::new() };
    for (index, file) in model.checkpoint.files().iter().enumerate() {
        let Some(keys) = model.checkpoint.keys(index) else { continue };
        let architecture = keys.text("general.architecture").map(str::to_owned);
        if architecture.as_deref().is_some_and(|name| name != "clip") {
            facts.name = keys.text("general.name").map(str::to_owned);
            facts.file_type = keys.whole("general.file_type").map(|number| {
                let name = FILE_TYPES.iter().find(|entry| entry.0 == number);
                name.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
            });
        }
        let part = keys.whole("split.count").filter(|count| *count > 1);
        let part = part.map(|count| (keys.whole("split.no").unwrap_or(0) + 1, count));
        facts.files.push(GgufFile { name: file.name.clone(), version: keys.version(), architecture, part });
    }
    (!facts.files.is_empty()).then_some(facts)
}
