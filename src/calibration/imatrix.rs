//! llama.cpp's importance matrix: the sums of squares that `llama-quantize --imatrix` weighs errors with.
//!
//! A GGUF file of type `imatrix` (`tools/imatrix/imatrix.cpp`, `save_imatrix`): for every weight W two F32 tensors, `W.in_sum2`
//! `{inputs, matrices}`, the sum of squares of each input, and `W.counts` `{1, matrices}`, the rows that were summed. A tensor of
//! fused experts has one matrix for each expert. Its sums are ours, under llama.cpp's names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::Place;
use super::statistics::{Layout, Meta, Sink, place_name, router_name};
use crate::checkpoint::gguf::{self, Content, Gguf, GgufTensor, Value};
use crate::dtype::Dtype;
use crate::error::hint;

const TYPE_KEY: &str = "general.type";
const DATASETS_KEY: &str = "imatrix.datasets";
const CHUNK_COUNT_KEY: &str = "imatrix.chunk_count";
const CHUNK_SIZE_KEY: &str = "imatrix.chunk_size";

/// Modules of a layer by llama.cpp's names (`gguf-py/gguf/tensor_mapping.py`), each with its name here and the place whose
/// input it sees.
const MODULES: [(&str, &str, Place); 14] = [
    ("attn_q", "self_attn.q_proj", Place::AttentionInput),
    ("attn_k", "self_attn.k_proj", Place::AttentionInput),
    ("attn_v", "self_attn.v_proj", Place::AttentionInput),
    ("attn_output", "self_attn.o_proj", Place::AttentionOutput),
    ("ffn_gate", "feed_forward.gate_proj", Place::DenseGateUp),
    ("ffn_up", "feed_forward.up_proj", Place::DenseGateUp),
    ("ffn_down", "feed_forward.down_proj", Place::DenseDown),
    ("ffn_gate_inp", "feed_forward.router", Place::SharedGateUp),
    ("ffn_gate_shexp", "feed_forward.shared_expert.gate_proj", Place::SharedGateUp),
    ("ffn_up_shexp", "feed_forward.shared_expert.up_proj", Place::SharedGateUp),
    ("ffn_down_shexp", "feed_forward.shared_expert.down_proj", Place::SharedDown),
    ("ffn_gate_exps", "feed_forward.experts.gate_proj", Place::ExpertGateUp(0)),
    ("ffn_up_exps", "feed_forward.experts.up_proj", Place::ExpertGateUp(0)),
    ("ffn_down_exps", "feed_forward.experts.down_proj", Place::ExpertDown(0)),
];

/// Writes bytes at an offset of the file.
pub type Write<'w> = dyn FnMut(u64, &[u8]) -> Result<()> + Send + 'w;

/// An importance matrix in the making: takes in what a statistics file takes in.
pub struct ImatrixSink<'w> {
    /// For each tensor of the statistics: where its sums go.
    sums: Vec<Vec<u64>>,
    /// For each tensor of the statistics that counts tokens of experts: where they go.
    counts: Vec<Vec<u64>>,
    experts: usize,
    write: Box<Write<'w>>,
}

/// What an importance matrix of these statistics looks like.
pub struct ImatrixPlan {
    layout: gguf::Layout,
    sums: Vec<Vec<u64>>,
    counts: Vec<Vec<u64>>,
    /// Where the count of a weight goes that sees every token.
    whole: Vec<u64>,
    tokens: u64,
    experts: usize,
}

impl ImatrixPlan {
    /// Plans the file for statistics with this layout.
    pub fn new(meta: &Meta, statistics: &Layout) -> Self {
        let experts = meta.model.num_local_experts;
        let mut tensors = Vec::new();
        let mut from = Vec::new();
        for layer in 0..meta.model.moe_layers.len() {
            for (module, _, place) in MODULES {
                let Some(source) = statistics.find(&place_name(layer, place, "in_sum2")) else { continue };
                let shape = &statistics.entries[source].shape;
                let extents = vec![shape[shape.len() - 1], if shape.len() == 2 { shape[0] } else { 1 }];
                let routed = (shape.len() == 2).then(|| statistics.find(&router_name(layer, "tokens"))).flatten();
                tensors.push((format!("blk.{layer}.{module}.weight.counts"), vec![1, extents[1]], Dtype::F32));
                tensors.push((format!("blk.{layer}.{module}.weight.in_sum2"), extents, Dtype::F32));
                from.push((source, routed));
            }
        }
        let datasets: Vec<String> =
            meta.data.iter().flat_map(|part| &part.files).map(|file| file.name.clone()).collect();
        let sequences: u64 = meta.data.iter().map(|part| part.sequences).sum();
        let longest = meta.data.iter().map(|part| part.longest).max().unwrap_or(0);
        let small = |number: u64| Value::U32(u32::try_from(number).unwrap_or(u32::MAX));
        let keys = [
            (TYPE_KEY, Content::Value(Value::String("imatrix".into()))),
            (CHUNK_COUNT_KEY, Content::Value(small(sequences))),
            (CHUNK_SIZE_KEY, Content::Value(small(longest))),
            (DATASETS_KEY, Content::Strings(datasets)),
        ];
        let layout = gguf::encode(&keys.map(|(key, content)| (key.to_owned(), content)), &tensors);
        let none = || vec![Vec::new(); statistics.entries.len()];
        let (mut sums, mut counts, mut whole) = (none(), none(), Vec::new());
        for ((source, routed), offsets) in from.into_iter().zip(layout.offsets.chunks_exact(2)) {
            sums[source].push(offsets[1]);
            match routed {
                Some(routed) => counts[routed].push(offsets[0]),
                None => whole.push(offsets[0]),
            }
        }
        Self { layout, sums, counts, whole, tokens: meta.tokens(), experts }
    }

    /// Size of the file.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes
    }

    /// Begins the file: writes everything but what comes through the sink.
    ///
    /// # Errors
    /// `write` refuses.
    pub fn begin<'w>(self, mut write: Box<Write<'w>>) -> Result<ImatrixSink<'w>> {
        write(0, &self.layout.head)?;
        for offset in self.whole {
            write(offset, &(self.tokens as f32).to_le_bytes())?;
        }
        Ok(ImatrixSink { sums: self.sums, counts: self.counts, experts: self.experts, write })
    }
}

impl Sink for ImatrixSink<'_> {
    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if !self.sums[index].is_empty() {
            let sums = bytes.chunks_exact(8).map(|sum| f64::from_le_bytes(sum.try_into().expect("eight bytes")) as f32);
            let sums: Vec<u8> = sums.flat_map(f32::to_le_bytes).collect();
            for &start in &self.sums[index] {
                (self.write)(start + offset / 2, &sums)?;
            }
        }
        if !self.counts[index].is_empty() {
            assert!(offset == 0, "counts come in one piece");
            let count = |expert: usize| {
                let own = bytes.chunks_exact(8).skip(expert).step_by(self.experts);
                own.map(|count| u64::from_le_bytes(count.try_into().expect("eight bytes"))).sum::<u64>() as f32
            };
            let counts: Vec<u8> = (0..self.experts).flat_map(|expert| count(expert).to_le_bytes()).collect();
            for &start in &self.counts[index] {
                (self.write)(start, &counts)?;
            }
        }
        Ok(())
    }
}

/// An importance matrix in a file.
#[derive(Debug)]
pub struct Imatrix {
    /// The file.
    pub path: PathBuf,
    file: Gguf,
}

impl Imatrix {
    /// Opens a file.
    ///
    /// # Errors
    /// It is no GGUF file, or holds something else.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Gguf::open(path)?;
        if file.keys().text(TYPE_KEY) != Some("imatrix") {
            return Err(hint(
                format!("`{}` is a GGUF file and no importance matrix", path.display()),
                "`l4tool calibrate --imatrix FILE.gguf` and llama.cpp's `llama-imatrix` write one",
            ));
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// Mean square of each input of a weight, by its logical name; none for a weight that the file does not have, and for an expert that
    /// saw no token.
    ///
    /// # Errors
    /// `inputs` is another number than the file has, or a value is no sum of squares.
    pub fn importance(&self, name: &str, inputs: usize) -> Result<Option<Vec<f32>>> {
        let Some((gguf_name, expert)) = gguf_name(name) else { return Ok(None) };
        self.mean_squares(&gguf_name, expert, inputs)
            .with_context(|| format!("`{}`, `{gguf_name}`", self.path.display()))
    }

    fn mean_squares(&self, name: &str, matrix: usize, inputs: usize) -> Result<Option<Vec<f32>>> {
        let find = |what: &str| self.file.tensor(&format!("{name}.{what}"));
        let (Some(sums), Some(counts)) = (find("in_sum2"), find("counts")) else { return Ok(None) };
        let [width, matrices] = extents(sums)?;
        ensure!(width == inputs as u64, "{width} inputs, and the model's weight has {inputs}");
        ensure!(
            (matrix as u64) < matrices && extents(counts)? == [1, matrices],
            "counts of another number of matrices"
        );
        let value = |tensor: &GgufTensor, index: usize| {
            let bytes = &self.file.bytes(tensor)[index * 4..][..4];
            f32::from_le_bytes(bytes.try_into().expect("four bytes"))
        };
        let count = value(counts, matrix);
        ensure!(count.is_finite() && count >= 0.0, "a count of {count}");
        if count == 0.0 {
            return Ok(None);
        }
        let means: Vec<f32> = (0..inputs).map(|input| value(sums, matrix * inputs + input) / count).collect();
        ensure!(means.iter().all(|mean| mean.is_finite() && *mean >= 0.0), "a value that is no sum of squares");
        Ok(Some(means))
    }

    /// The tokens that went to each of `experts` experts of a layer; none if the file does not say.
    ///
    /// # Errors
    /// The file has another number of experts, or counts that are none.
    pub fn loads(&self, layer: usize, experts: usize) -> Result<Option<Vec<u64>>> {
        let name = format!("blk.{layer}.ffn_gate_exps.weight.counts");
        let Some(counts) = self.file.tensor(&name) else { return Ok(None) };
        let context = || format!("`{}`, `{name}`", self.path.display());
        if extents(counts).with_context(context)? != [1, experts as u64] {
            bail!("`{}`, `{name}`: the model has {experts} experts", self.path.display());
        }
        let values = self.file.bytes(counts).chunks_exact(4);
        let values = values.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")));
        values
            .map(|count| if (0.0..1e18).contains(&count) { Ok(count as u64) } else { bail!("a count of {count}") })
            .collect::<Result<Vec<u64>>>()
            .map(Some)
            .with_context(context)
    }
}

fn extents(tensor: &GgufTensor) -> Result<[u64; 2]> {
    ensure!(tensor.dtype == Dtype::F32, "{} values; importance matrices are F32", tensor.dtype);
    match tensor.extents[..] {
        [width] => Ok([width, 1]),
        [width, matrices] => Ok([width, matrices]),
        _ => bail!("extents {:?}", tensor.extents),
    }
}

/// llama.cpp's name of a weight, and the matrix inside it.
fn gguf_name(name: &str) -> Option<(String, usize)> {
    let (layer, module) = name.strip_prefix("layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (module, expert) = match module.strip_prefix("feed_forward.experts.") {
        Some(rest) => {
            let (expert, matrix) = rest.split_once('.')?;
            (format!("feed_forward.experts.{matrix}"), expert.parse().ok()?)
        }
        None => (module.to_owned(), 0),
    };
    let found = MODULES.iter().find(|(_, own, _)| *own == module)?;
    Some((format!("blk.{layer}.{}.weight", found.0), expert))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_llama_cpp_s_names() {
        let named = |name: &str| gguf_name(name);
        assert_eq!(named("layers.3.self_attn.o_proj"), Some(("blk.3.attn_output.weight".into(), 0)));
        assert_eq!(named("layers.1.feed_forward.experts.7.up_proj"), Some(("blk.1.ffn_up_exps.weight".into(), 7)));
        assert_eq!(named("layers.0.feed_forward.down_proj"), Some(("blk.0.ffn_down.weight".into(), 0)));
        assert_eq!(named("layers.0.feed_forward.router"), Some(("blk.0.ffn_gate_inp.weight".into(), 0)));
        assert_eq!(named("lm_head"), None);
        assert_eq!(named("layers.0.input_layernorm"), None);
    }
}
