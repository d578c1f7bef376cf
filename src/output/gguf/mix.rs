//! Which type each tensor of a GGUF file gets: llama.cpp's mixtures, as pure functions of names, shapes and a file type.
//!
//! The rules are those of `llama_tensor_get_type` and `tensor_allows_quantization` in llama.cpp (`src/llama-quant.cpp`, commit 0c1e57098)
//! as far as they can apply to Llama 4. It knows no checkpoint: tensors are names and extents.

use std::fmt;

use crate::dtype::Dtype;

/// What a GGUF file is mostly made of: the presets of `llama-quantize`, by its own names.
#[allow(non_camel_case_types, missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

/// Every file type with the name that users type, the number of `general.file_type` (`enum llama_ftype` in `include/llama.h`), and the
/// type that tensors have where no rule says otherwise.
const TABLE: [(FileType, &str, u32, Dtype); 20] = [
    (FileType::F32, "f32", 0, Dtype::F32),
    (FileType::F16, "f16", 1, Dtype::F16),
    (FileType::BF16, "bf16", 32, Dtype::BF16),
    (FileType::Q4_0, "q4_0", 2, Dtype::Q4_0),
    (FileType::Q4_1, "q4_1", 3, Dtype::Q4_1),
    (FileType::Q5_0, "q5_0", 8, Dtype::Q5_0),
    (FileType::Q5_1, "q5_1", 9, Dtype::Q5_1),
    (FileType::Q8_0, "q8_0", 7, Dtype::Q8_0),
    (FileType::Q2_K, "q2_k", 10, Dtype::Q2_K),
    (FileType::Q3_K_S, "q3_k_s", 11, Dtype::Q3_K),
    (FileType::Q3_K_M, "q3_k_m", 12, Dtype::Q3_K),
    (FileType::Q3_K_L, "q3_k_l", 13, Dtype::Q3_K),
    (FileType::Q4_K_S, "q4_k_s", 14, Dtype::Q4_K),
    (FileType::Q4_K_M, "q4_k_m", 15, Dtype::Q4_K),
    (FileType::Q5_K_S, "q5_k_s", 16, Dtype::Q5_K),
    (FileType::Q5_K_M, "q5_k_m", 17, Dtype::Q5_K),
    (FileType::Q6_K, "q6_k", 18, Dtype::Q6_K),
    (FileType::IQ4_NL, "iq4_nl", 25, Dtype::IQ4_NL),
    (FileType::IQ4_XS, "iq4_xs", 30, Dtype::IQ4_XS),
    (FileType::MXFP4, "mxfp4", 38, Dtype::MXFP4),
];

// The table is indexed by the enum's own order.
const _: () = {
    let mut i = 0;
    while i < TABLE.len() {
        assert!(TABLE[i].0 as usize == i);
        i += 1;
    }
};

impl FileType {
    /// Every file type.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|entry| entry.0)
    }

    /// The file type with this name, in letters of either case.
    pub fn parse(name: &str) -> Option<Self> {
        TABLE.iter().find(|entry| entry.1.eq_ignore_ascii_case(name)).map(|entry| entry.0)
    }

    /// The name that users type.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// The value of `general.file_type`.
    pub fn number(self) -> u32 {
        TABLE[self as usize].2
    }

    /// The type of tensors that no rule speaks of.
    pub fn dtype(self) -> Dtype {
        TABLE[self as usize].3
    }

    /// Whether tensors come in blocks; otherwise they are plain floats.
    pub fn is_quantized(self) -> bool {
        self.dtype().block_len() > 1
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A type of tensors that can be written, by ggml's name in letters of either case.
pub fn parse_dtype(name: &str) -> Option<Dtype> {
    TABLE.iter().map(|entry| entry.3).find(|dtype| dtype.name().eq_ignore_ascii_case(name))
}

/// What decides the types of a file's tensors. For a vision part all counts are 0, as llama-quantize reads none of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// The preset.
    pub file_type: FileType,
    /// Whether importances of inputs are known.
    pub importance: bool,
    /// One type for all that is quantized.
    pub pure: bool,
    /// Decoder layers.
    pub layers: usize,
    /// Routed experts of a layer.
    pub experts: usize,
    /// Query heads for each key and value head.
    pub heads_per_kv: usize,
}

/// A tensor that gets a type.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// llama.cpp's name.
    pub name: &'a str,
    /// Extents, the fastest-varying first.
    pub extents: &'a [u64],
    /// The type that the user has chosen for it, in place of the preset's.
    pub chosen: Option<Dtype>,
}

/// What the rules tell tensors apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Category {
    Output,
    Embedding,
    Value,
    AttentionOutput,
    Down,
    Other,
}

/// What the vision part's patches go through, which only a file of F16 has in another format than F32.
const PATCHES: &str = ".patch_embd";

/// Whether a tensor may be quantized at all: vectors, norms, routers, the vision part's first tensors and what is no weight stay F32.
pub fn can_be_quantized(name: &str, extents: &[u64]) -> bool {
    // `ggml_n_dims` does not count trailing extents of 1.
    let dimensions = extents.iter().rposition(|&extent| extent > 1).map_or(1, |last| last + 1);
    dimensions >= 2
        && name.ends_with("weight")
        && !name.contains("_norm.weight")
        && !name.contains("ffn_gate_inp.weight")
        && !name.contains(".position_embd")
        && !name.contains(PATCHES)
}

impl Mix {
    /// The type of each tensor. They must be all of the file's, in the order of the file: a few rules count.
    pub fn dtypes(&self, tensors: &[Candidate<'_>]) -> Vec<Dtype> {
        let tied = !tensors.iter().any(|tensor| tensor.name == "output.weight");
        let mut counts = Counts::default();
        let values = tensors.iter().filter(|tensor| category(tensor.name, tied) == Category::Value).count();
        let dtype = |tensor: &Candidate<'_>| {
            if self.file_type == FileType::F16 && tensor.name.contains(PATCHES) {
                return Dtype::F16;
            }
            if !can_be_quantized(tensor.name, tensor.extents) {
                return Dtype::F32;
            }
            let chosen = match tensor.chosen {
                Some(chosen) => chosen,
                None if self.pure || !self.file_type.is_quantized() => self.file_type.dtype(),
                None => self.mixed(tensor, category(tensor.name, tied), values, &mut counts),
            };
            fitting(chosen, tensor.extents[0])
        };
        tensors.iter().map(dtype).collect()
    }

    fn mixed(&self, tensor: &Candidate<'_>, category: Category, values: usize, counts: &mut Counts) -> Dtype {
        let base = self.file_type.dtype();
        if category == Category::Output {
            let fits = tensor.extents[0].is_multiple_of(base.block_len());
            let large = base == Dtype::Q8_0 || self.file_type == FileType::MXFP4 || !fits;
            return if large { Dtype::Q8_0 } else { Dtype::Q6_K };
        }
        if self.file_type == FileType::MXFP4 {
            let is_stack = tensor.extents.get(2).is_some_and(|&matrices| matrices > 1);
            return if is_stack { Dtype::MXFP4 } else { Dtype::Q8_0 };
        }
        match category {
            Category::Value => {
                counts.values += 1;
                self.value(counts.values - 1, values)
            }
            Category::Down => {
                counts.downs += 1;
                // With one expert llama.cpp counts tensors instead of reading the layer from the name.
                self.down(if self.experts > 1 { layer_of(tensor.name) } else { counts.downs - 1 })
            }
            Category::AttentionOutput => self.attention_output(),
            // llama.cpp gives keys of models with eight experts more bits.
            Category::Other if self.experts == 8 && tensor.name.contains("attn_k.weight") => Dtype::Q8_0,
            Category::Output | Category::Embedding | Category::Other => base,
        }
    }

    fn value(&self, index: usize, count: usize) -> Dtype {
        use FileType::*;
        let base = self.file_type.dtype();
        if self.experts == 8 {
            return Dtype::Q8_0;
        }
        match self.file_type {
            Q2_K if self.heads_per_kv >= 4 => Dtype::Q4_K,
            Q2_K => Dtype::Q3_K,
            Q3_K_M if index < 2 => Dtype::Q5_K,
            Q3_K_M => Dtype::Q4_K,
            Q3_K_L => Dtype::Q5_K,
            IQ4_NL | IQ4_XS if self.heads_per_kv >= 4 => Dtype::Q5_K,
            Q4_K_M | Q5_K_M if more_bits(index, count) => Dtype::Q6_K,
            Q4_K_S if index < 4 => Dtype::Q5_K,
            _ => base,
        }
    }

    fn down(&self, layer: usize) -> Dtype {
        use FileType::*;
        let early = layer < self.layers / 8;
        match self.file_type {
            Q2_K => Dtype::Q3_K,
            Q3_K_M if layer < self.layers / 16 => Dtype::Q5_K,
            Q3_K_M => Dtype::Q4_K,
            Q3_K_L => Dtype::Q5_K,
            Q4_K_M | Q5_K_M if more_bits(layer, self.layers) => Dtype::Q6_K,
            Q4_K_S if early => Dtype::Q5_K,
            IQ4_NL | IQ4_XS if early && !self.importance => Dtype::Q5_K,
            Q4_0 if early && self.importance => Dtype::Q4_1,
            Q5_0 if early && self.importance => Dtype::Q5_1,
            _ => self.file_type.dtype(),
        }
    }

    fn attention_output(&self) -> Dtype {
        use FileType::*;
        match self.file_type {
            Q2_K | Q3_K_S | Q3_K_M | IQ4_NL | Q4_K_S | Q4_K_M | IQ4_XS if self.experts == 8 => Dtype::Q5_K,
            _ if self.experts == 8 => self.file_type.dtype(),
            Q2_K => Dtype::Q3_K,
            Q3_K_M => Dtype::Q4_K,
            Q3_K_L => Dtype::Q5_K,
            _ => self.file_type.dtype(),
        }
    }
}

/// Tensors of a kind that were given a type so far.
#[derive(Default)]
struct Counts {
    values: usize,
    downs: usize,
}

/// The first and the last eighth of the layers, and every third in between.
fn more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

fn category(name: &str, tied: bool) -> Category {
    match name {
        "output.weight" => Category::Output,
        "token_embd.weight" if tied => Category::Output,
        "token_embd.weight" => Category::Embedding,
        _ if name.contains("attn_v.weight") => Category::Value,
        _ if name.contains("attn_output.weight") => Category::AttentionOutput,
        _ if name.contains("ffn_down") => Category::Down,
        _ => Category::Other,
    }
}

/// The layer in a name `blk.N.…`; 0 for other names, which no rule asks about.
fn layer_of(name: &str) -> usize {
    name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok()).unwrap_or(0)
}

/// `dtype`, or what llama.cpp takes in its place for rows that are no whole number of its blocks (`tensor_type_fallback`).
fn fitting(dtype: Dtype, row: u64) -> Dtype {
    if row.is_multiple_of(dtype.block_len()) {
        return dtype;
    }
    let smaller = match dtype {
        Dtype::IQ4_XS => Dtype::IQ4_NL,
        Dtype::Q2_K | Dtype::Q3_K => Dtype::Q4_0,
        Dtype::Q4_K => Dtype::Q5_0,
        Dtype::Q5_K => Dtype::Q5_1,
        Dtype::Q6_K => Dtype::Q8_0,
        other => other,
    };
    if row.is_multiple_of(smaller.block_len()) { smaller } else { Dtype::F16 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The oracle is `llama-quantize --dry-run` on GGUF files of the real shapes: `testdata/gguf/types-*.tsv`.
    #[test]
    fn real_models_get_llama_cpp_s_types() {
        for (model, experts) in [("scout", 16), ("maverick", 128)] {
            let path = format!("{}/testdata/gguf/types-{model}.tsv", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).unwrap();
            let mut lines = text.lines().skip(1);
            let presets: Vec<&str> = lines.next().unwrap().split('\t').skip(2).collect();
            let rows: Vec<Vec<&str>> = lines.map(|line| line.split('\t').collect()).collect();
            let extents: Vec<Vec<u64>> =
                rows.iter().map(|row| row[1].split(',').map(|n| n.parse().unwrap()).collect()).collect();
            let tensor = |index: usize| Candidate { name: rows[index][0], extents: &extents[index], chosen: None };
            let tensors: Vec<Candidate<'_>> = (0..rows.len()).map(tensor).collect();
            let mut seen = 0;
            for (column, preset) in presets.iter().enumerate() {
                let (name, importance) = preset.strip_suffix("+im").map_or((*preset, false), |name| (name, true));
                let file_type = FileType::parse(name.strip_suffix("_MOE").unwrap_or(name)).unwrap();
                let mix = Mix { file_type, importance, pure: false, layers: 48, experts, heads_per_kv: 5 };
                for (index, dtype) in mix.dtypes(&tensors).into_iter().enumerate() {
                    let expected = rows[index][2 + column];
                    assert!(
                        dtype.name().eq_ignore_ascii_case(expected),
                        "{model} {preset} {}: {dtype}",
                        rows[index][0]
                    );
                    seen += 1;
                }
            }
            assert_eq!(seen, presets.len() * rows.len());
            assert_eq!(presets.len(), 26);
        }
    }

    #[test]
    fn rows_that_do_not_fit_get_a_smaller_block() {
        assert_eq!(fitting(Dtype::Q4_K, 5120), Dtype::Q4_K);
        assert_eq!(fitting(Dtype::Q4_K, 1408), Dtype::Q5_0);
        assert_eq!(fitting(Dtype::IQ4_XS, 96), Dtype::IQ4_NL);
        assert_eq!(fitting(Dtype::Q3_K, 80), Dtype::F16);
        assert_eq!(fitting(Dtype::Q8_0, 40), Dtype::F16);
        assert_eq!(fitting(Dtype::BF16, 7), Dtype::BF16);
    }

    #[test]
    fn what_users_choose_goes_before_the_preset_and_not_before_what_must_stay() {
        let mix =
            Mix { file_type: FileType::Q4_K_M, importance: false, pure: true, layers: 4, experts: 16, heads_per_kv: 4 };
        let tensor = |name, chosen| Candidate { name, extents: &[256, 512], chosen };
        let dtypes = mix.dtypes(&[
            tensor("output.weight", None),
            tensor("blk.0.attn_v.weight", Some(Dtype::Q8_0)),
            tensor("blk.0.ffn_gate_inp.weight", Some(Dtype::Q8_0)),
        ]);
        assert_eq!(dtypes, [Dtype::Q4_K, Dtype::Q8_0, Dtype::F32]);
        assert!(!can_be_quantized("blk.0.ffn_up_exps.weight", &[256, 1, 1]));
    }
}
