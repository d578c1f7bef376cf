//! The layer's parts put together on tiny-scout and held against what `transformers` computes.

use super::attention::{AttentionOptions, Temperature, attend};
use super::linear::{Linear, Numbers};
use super::moe::Routing;
use super::ops::{Mlp, add, rms_norm};
use super::rope::{RopeOptions, RopeTable, Scaling, frequencies};
use crate::kernels::gemm::{Layout, View};
use half::bf16;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const HIDDEN: usize = 256;
const EXPERTS: usize = 16;
const INNER: usize = 128;

/// The tensors of tiny-scout's six files, all of them BF16: name to shape and numbers.
struct Tiny(HashMap<String, (Vec<usize>, Vec<bf16>)>);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny-scout")
}

impl Tiny {
    fn open() -> Self {
        let mut tensors = HashMap::new();
        for index in 1..=6 {
            let bytes =
                std::fs::read(folder().join(format!("model-0000{index}-of-00006.safetensors"))).expect("a shard");
            for (name, view) in SafeTensors::deserialize(&bytes).expect("a valid file").tensors() {
                let numbers = view.data().as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes)).collect();
                tensors.insert(name, (view.shape().to_vec(), numbers));
            }
        }
        Self(tensors)
    }

    fn numbers(&self, name: &str) -> &[bf16] {
        let prefix = if name == "lm_head.weight" { "language_model." } else { "language_model.model." };
        &self.0[&format!("{prefix}{name}")].1
    }

    fn vector(&self, name: &str) -> Vec<f32> {
        self.numbers(name).iter().map(|value| value.to_f32()).collect()
    }

    fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Linear<'_> {
        let view = View::dense(self.numbers(&format!("{name}.weight")), outputs, inputs);
        Linear { numbers: Numbers::Bf16(view), layout: Layout::OutIn }
    }

    fn shared_expert(&self, layer: usize) -> Mlp<'_> {
        let part = |name: &str| format!("layers.{layer}.feed_forward.shared_expert.{name}_proj");
        Mlp {
            gate: self.linear(&part("gate"), INNER, HIDDEN),
            up: self.linear(&part("up"), INNER, HIDDEN),
            down: self.linear(&part("down"), HIDDEN, INNER),
        }
    }

    /// A slice of the fused tensors: `gate_up_proj` `[E, hidden, 2 * inner]` and `down_proj` `[E, inner, hidden]`.
    fn expert(&self, layer: usize, expert: usize) -> Mlp<'_> {
        let gate_up = self.numbers(&format!("layers.{layer}.feed_forward.experts.gate_up_proj"));
        let down = self.numbers(&format!("layers.{layer}.feed_forward.experts.down_proj"));
        let size = HIDDEN * 2 * INNER;
        let gate_up = &gate_up[expert * size..(expert + 1) * size];
        let in_out = |view| Linear { numbers: Numbers::Bf16(view), layout: Layout::InOut };
        Mlp {
            gate: in_out(View::new(gate_up, HIDDEN, INNER, 2 * INNER)),
            up: in_out(View::new(&gate_up[INNER..], HIDDEN, INNER, 2 * INNER)),
            down: in_out(View::dense(&down[expert * INNER * HIDDEN..], INNER, HIDDEN)),
        }
    }
}

const ROPE: RopeOptions = RopeOptions {
    head_dim: 32,
    theta: 500_000.0,
    scaling: Some(Scaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 1.0, original_positions: 256.0 }),
};

/// One decoder layer; gives the router's logits.
fn layer(
    tiny: &Tiny,
    index: usize,
    rope: &RopeTable,
    hidden: &mut [f32],
    sequences: &[std::ops::Range<usize>],
) -> Vec<f32> {
    let name = |part: &str| format!("layers.{index}.{part}");
    let has_rope = !(index + 1).is_multiple_of(4);
    let options = AttentionOptions {
        heads: 8,
        kv_heads: 2,
        head_dim: 32,
        qk_norm_eps: has_rope.then_some(1e-5),
        chunk: has_rope.then_some(128),
        temperature: (!has_rope).then_some(Temperature { floor_scale: 96.0, attn_scale: 0.1 }),
    };
    let x = rms_norm(hidden, &tiny.vector(&name("input_layernorm.weight")), 1e-5);
    let mut q = tiny.linear(&name("self_attn.q_proj"), 256, HIDDEN).map(&x);
    let mut k = tiny.linear(&name("self_attn.k_proj"), 64, HIDDEN).map(&x);
    let v = tiny.linear(&name("self_attn.v_proj"), 64, HIDDEN).map(&x);
    let mut attention = vec![0.0; q.len()];
    attend(&options, has_rope.then_some(rope), sequences, &mut q, &mut k, &v, &mut attention);
    add(hidden, &tiny.linear(&name("self_attn.o_proj"), HIDDEN, 256).map(&attention));

    let x = rms_norm(hidden, &tiny.vector(&name("post_attention_layernorm.weight")), 1e-5);
    let logits = tiny.linear(&name("feed_forward.router"), EXPERTS, HIDDEN).map(&x);
    let mut out = tiny.shared_expert(index).map(&x);
    let routing = Routing::new(&logits, EXPERTS, 1);
    for expert in 0..EXPERTS {
        let share = routing.share(expert);
        let result = tiny.expert(index, expert).map(&share.gather(&x, HIDDEN));
        share.scatter_add(&result, HIDDEN, &mut out);
    }
    add(hidden, &out);
    logits
}

/// Largest difference over the expected values' largest magnitude.
fn relative_error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let size = expected.iter().fold(0.0f32, |size, value| size.max(value.abs()));
    got.iter().zip(expected).fold(0.0f32, |worst, (got, expected)| worst.max((got - expected).abs())) / size
}

#[test]
fn tiny_scout_agrees_with_transformers() {
    let tiny = Tiny::open();
    let bytes = std::fs::read(folder().join("golden.safetensors")).expect("the goldens");
    let golden = SafeTensors::deserialize(&bytes).expect("a valid file");
    let floats = |name: &str| -> Vec<f32> {
        let data = golden.tensor(name).expect("a golden tensor");
        data.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let ids = golden.tensor("text.input_ids").expect("a golden tensor");
    let ids: Vec<usize> =
        ids.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as usize).collect();

    // The text twice, as two sequences: both must come out like the one.
    let embedding = tiny.vector("embed_tokens.weight");
    let rows = ids.iter().chain(&ids);
    let mut hidden: Vec<f32> = rows.flat_map(|&id| &embedding[id * HIDDEN..(id + 1) * HIDDEN]).copied().collect();
    let sequences = [0..ids.len(), ids.len()..2 * ids.len()];
    let rope = RopeTable::new(&ROPE, ids.len());
    let check = |what: &str, got: &[f32], expected: &[f32]| {
        for got in got.chunks(expected.len()) {
            let error = relative_error(got, expected);
            println!("{what}: {error:e}");
            assert!(error < 2e-5, "{what} is off by {error:e}");
        }
    };
    for index in 0..4 {
        let logits = layer(&tiny, index, &rope, &mut hidden, &sequences);
        check(&format!("router logits {index}"), &logits, &floats(&format!("text.router_logits.{index}")));
        check(&format!("hidden {index}"), &hidden, &floats(&format!("text.hidden.{index}")));
    }
    let x = rms_norm(&hidden, &tiny.vector("norm.weight"), 1e-5);
    check("logits", &tiny.linear("lm_head", 2048, HIDDEN).map(&x), &floats("text.logits"));
}

/// Scout's parameters, and a set with a middle band between short and long waves: `ROPE_INIT_FUNCTIONS["llama3"]` of
/// `transformers` 5.17 printed these.
#[test]
fn frequencies_agree_with_transformers() {
    let options = |factor, high, positions| RopeOptions {
        head_dim: 128,
        theta: 500_000.0,
        scaling: Some(Scaling { factor, low_freq_factor: 1.0, high_freq_factor: high, original_positions: positions }),
    };
    let scout = [(0, 1.0), (1, 0.8146172165870667), (10, 0.12868738174438477), (33, 0.001152042648755014)];
    let scout_long = [(34, 0.0009384738514199853), (35, 4.778106085723266e-05), (63, 1.5344629389346665e-07)];
    check_frequencies(&options(16.0, 1.0, 8192.0), &scout);
    check_frequencies(&options(16.0, 1.0, 8192.0), &scout_long);
    let band = [(28, 0.0032114461064338684), (29, 0.0021665706299245358), (31, 0.0008567514596506953)];
    let band_long = [(33, 0.0003126936999029398), (34, 0.0001785077911335975), (35, 9.556212171446532e-05)];
    check_frequencies(&options(8.0, 4.0, 8192.0), &band);
    check_frequencies(&options(8.0, 4.0, 8192.0), &band_long);
}

fn check_frequencies(options: &RopeOptions, expected: &[(usize, f64)]) {
    let got = frequencies(options);
    assert_eq!(got.len(), 64);
    for &(index, expected) in expected {
        // One unit in the last place of a float32 and a half.
        let error = (f64::from(got[index]) - expected).abs() / expected;
        assert!(error < 1.8e-7, "frequency {index} is {}, not {expected}", got[index]);
    }
}
