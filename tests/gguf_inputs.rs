//! Models in GGUF that llama.cpp's own programs and the Python package `gguf` made (`testdata/make_gguf_models.py`): their numbers,
//! their configs, their tokens; and the same files with something wrong in them.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::testdata;
use l4::llama4::config::Config;
use l4::llama4::tokenizer::Tokenizer;
use l4::llama4::{Llama4, ProblemKind, Values};
use l4::model::rope::{RopeOptions, Scaling, frequencies};
use l4::output::casting::Overflow;
use l4::output::converting::Experts;
use l4::output::partial::Existing;
use l4::progress::{Control, Silent};
use l4::tasks::{convert, diff, verify};
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn gguf(name: &str) -> PathBuf {
    testdata("gguf").join(name)
}

fn facts() -> Value {
    serde_json::from_slice(&fs::read(gguf("models.json")).unwrap()).unwrap()
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A folder with a text model and the vision part.
fn with_vision() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["cut-q4_k_m.gguf", "cut-mmproj.gguf"] {
        fs::copy(gguf(name), folder.path().join(name)).unwrap();
    }
    folder
}

/// The digest of every tensor's numbers in float32: those of its weights, in the order of the experts.
fn digests(model: &Llama4) -> BTreeMap<String, [String; 2]> {
    let mut digests: BTreeMap<String, Sha256> = BTreeMap::new();
    for weight in &model.weights {
        let tensor = weight.coding.tensors().next().unwrap();
        let name = model.checkpoint.tensors()[tensor].name.clone();
        let (out, input) = weight.matrix();
        let mut values = Values::new(model, weight);
        values.enter(0..out);
        // In pieces of three rows: a piece must not depend on its neighbours.
        for first in (0..out).step_by(3) {
            let outs = first..(first + 3).min(out);
            let mut rows = vec![0.0_f32; outs.len() * input];
            values.read(&outs, &mut rows);
            values.release(&outs);
            let digest = digests.entry(name.clone()).or_default();
            rows.iter().for_each(|value| digest.update(value.to_le_bytes()));
        }
    }
    let tensors = model.checkpoint.tensors().iter();
    let dtypes: BTreeMap<&str, &str> = tensors.map(|tensor| (tensor.name.as_str(), tensor.dtype.name())).collect();
    digests
        .into_iter()
        .map(|(name, digest)| (name.clone(), [dtypes[&*name].to_owned(), hex(digest.finalize())]))
        .collect()
}

#[test]
fn numbers_are_those_of_python_for_every_type() {
    let facts = facts();
    let mut types = std::collections::BTreeSet::new();
    let folder = with_vision();
    for (path, keys) in [
        (gguf("types.gguf"), &["types"][..]),
        (gguf("cut-q4_k_m.gguf"), &["cut"]),
        (gguf("small-00002-of-00003.gguf"), &["small"]),
        (folder.path().to_owned(), &["cut", "mmproj"]),
    ] {
        let model = Llama4::open(&path).unwrap();
        model.require_complete().unwrap();
        let ours = digests(&model);
        let mut compared = 0;
        for (name, expected) in keys.iter().flat_map(|key| facts[key].as_object().unwrap()) {
            if name == "rope_freqs.weight" {
                continue;
            }
            let expected: [String; 2] = serde_json::from_value(expected.clone()).unwrap();
            types.insert(expected[0].clone());
            assert_eq!(ours[name], expected, "{name}");
            compared += 1;
        }
        assert_eq!(compared, ours.len());
    }
    let decoded = [
        "BF16", "F16", "F32", "IQ4_NL", "IQ4_XS", "MXFP4", "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1",
        "Q5_K", "Q6_K", "Q8_0",
    ];
    assert!(types.iter().eq(decoded.iter()), "{types:?}");
}

#[test]
fn keys_say_what_the_config_said() {
    let folder = with_vision();
    let ours = Llama4::open(folder.path()).unwrap().config;
    let theirs = fs::read(testdata("tiny-scout/config.json")).unwrap();
    let theirs = Config::parse(Path::new("config.json"), &theirs).unwrap();
    assert_eq!(ours.model, theirs.model);
    assert_eq!((ours.vision, ours.image_tokens), (theirs.vision, theirs.image_tokens));
    let (a, b) = (&ours.text, &theirs.text);
    assert_eq!((a.hidden_size, a.head_dim, a.num_attention_heads), (b.hidden_size, b.head_dim, b.num_attention_heads));
    assert_eq!((a.num_key_value_heads, a.vocab_size), (b.num_key_value_heads, b.vocab_size));
    assert_eq!((a.intermediate_size, a.intermediate_size_mlp), (b.intermediate_size, b.intermediate_size_mlp));
    assert_eq!((a.num_hidden_layers, a.num_local_experts, a.num_experts_per_tok), (2, 4, 1));
    assert_eq!((a.rms_norm_eps, a.max_position_embeddings), (b.rms_norm_eps, b.max_position_embeddings));
    assert_eq!((a.bos_token_id, a.pad_token_id), (b.bos_token_id, b.pad_token_id));
    assert!(b.eos_token_id.contains(&a.eos_token_id[0]));
    assert_eq!((a.use_qk_norm, a.tie_word_embeddings, a.attn_temperature_tuning), (true, false, true));
    // What llama.cpp takes for granted.
    assert_eq!((a.attention_chunk_size, a.floor_scale, a.attn_scale), (Some(8192), 8192, 0.1));
    let turns = |text: &l4::llama4::config::TextConfig| {
        let scaling = text.rope.scaling.map(|scaling| Scaling {
            factor: scaling.factor as f32,
            low_freq_factor: scaling.low_freq_factor as f32,
            high_freq_factor: scaling.high_freq_factor as f32,
            original_positions: scaling.original_max_position_embeddings as f32,
        });
        frequencies(&RopeOptions { head_dim: text.head_dim, theta: text.rope.theta as f32, scaling })
    };
    assert_eq!(turns(a), turns(b));

    let small = Llama4::open(&gguf("small-00001-of-00003.gguf")).unwrap().config.text;
    assert_eq!(small.moe_layers, [false, true, false, true, false]);
    assert_eq!(small.rope_layers, [true, true, true, false, true]);
    assert_eq!((small.num_experts_per_tok, small.num_key_value_heads, small.intermediate_size_mlp), (2, 5, 48));
    let scaling = small.rope.scaling.unwrap();
    assert_eq!((scaling.factor, scaling.high_freq_factor, scaling.original_max_position_embeddings), (8.0, 4.0, 8192));
}

#[test]
fn tokens_are_those_of_the_tokenizer_it_came_from() {
    let expected: Vec<u32> = serde_json::from_value(facts()["tokens"].clone()).unwrap();
    let text = fs::read_to_string(testdata("text/eval.txt")).unwrap();
    for name in ["cut-q4_k_m.gguf", "small-00003-of-00003.gguf"] {
        let tokenizer = Tokenizer::of(&Llama4::open(&gguf(name)).unwrap().checkpoint).unwrap();
        assert_eq!(tokenizer.first_tokens(&text, expected.len()).unwrap(), expected, "{name}");
        assert_eq!(tokenizer.encode_plain("<|eot|>").unwrap(), [2038]);
        assert_eq!(tokenizer.beginning().unwrap(), [2033]);
    }
    let error = Tokenizer::of(&Llama4::open(&gguf("types.gguf")).unwrap().checkpoint).err().unwrap().to_string();
    assert!(error.contains("tokenizer.ggml.tokens"), "{error}");
}

fn control(stop: &AtomicBool) -> Control<'_> {
    Control { progress: &Silent, stop, threads: 2, memory: 1 << 30 }
}

/// The files that the converter read, tensor by tensor; and the model that they are computes the same.
#[test]
fn converted_back_it_is_the_checkpoint_that_it_came_from() {
    let (stop, folder) = (AtomicBool::new(false), tempfile::tempdir().unwrap());
    let (source, out) = (gguf("small-00001-of-00003.gguf"), folder.path().join("out"));
    let options = convert::Options {
        source: source.clone(),
        out: out.clone(),
        experts: Experts::Fused,
        float: None,
        overflow: Overflow::Refuse,
        text_only: false,
        instruct: false,
        shard_bytes_max: 1 << 30,
        existing: Existing { force: false, restart: false },
        hash_source: false,
    };
    convert::run(&options, &control(&stop)).unwrap();
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let facts = facts();
    let expected = facts["hf"].as_object().unwrap();
    assert_eq!(file.len(), expected.len());
    for (name, digest) in expected {
        assert_eq!(hex(Sha256::digest(file.tensor(name).unwrap().data())), digest.as_str().unwrap(), "{name}");
    }
    let compared = diff::run(&diff::Options { a: source.clone(), b: out.clone() }, &control(&stop)).unwrap();
    assert!(compared.same);
    let options = verify::Options { checkpoint: source, against: Some(out), tokens: 60, ..verify::Options::default() };
    let report = verify::run(&options, &control(&stop)).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let kl = report.logits.unwrap().kl_max;
    assert!(kl < 1e-9, "{kl}");
}

#[test]
fn norms_under_a_name_that_llama_cpp_misunderstands_are_flagged() {
    let folder = with_vision();
    let model = Llama4::open(folder.path()).unwrap();
    model.require_complete().unwrap();
    let [problem] = model.problems.as_slice() else { panic!("{:?}", model.problems) };
    assert_eq!((problem.kind, problem.name.as_str()), (ProblemKind::Misnamed, "v.blk.0.attn_post_norm.bias"));
    let stop = AtomicBool::new(false);
    let options = verify::Options { checkpoint: folder.path().into(), ..verify::Options::default() };
    let report = verify::run(&options, &control(&stop)).unwrap();
    assert!(report.problems.iter().any(|found| found.kind == "misnamed"), "{:?}", report.problems);
}

/// The first part of a file up to its data, with where each tensor's type stands.
fn type_position(bytes: &[u8], tensor: &str) -> usize {
    let at = bytes.windows(tensor.len()).position(|window| window == tensor.as_bytes()).unwrap() + tensor.len();
    let dimensions = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    at + 4 + 8 * dimensions as usize
}

#[test]
fn a_type_that_is_not_decoded_is_listed_and_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let mut bytes = fs::read(gguf("types.gguf")).unwrap();
    // IQ3_S has blocks as large as those of Q3_K (testdata/gguf/types.tsv).
    let at = type_position(&bytes, "output.weight");
    assert_eq!(bytes[at], 11);
    bytes[at] = 21;
    fs::write(&path, bytes).unwrap();
    let model = Llama4::open(&path).unwrap();
    assert!(model.problems.is_empty());
    let weight = model.named("lm_head").unwrap();
    assert_eq!(model.label(weight), "iq3_s");
    let error = model.require_complete().unwrap_err().to_string();
    assert!(error.contains("`output.weight` is iq3_s"), "{error}");
}

#[test]
fn a_scale_that_is_no_number_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let model = Llama4::open(&gguf("types.gguf")).unwrap();
    let stop = AtomicBool::new(false);
    // Where the float16 scales lie in a block: testdata/make_gguf_models.py.
    for (dtype, at) in [("Q4_K", 2), ("Q6_K", 208), ("Q2_K", 82), ("Q5_1", 2), ("Q8_0", 0), ("F16", 0), ("MXFP4", 0)] {
        let tensor = model.checkpoint.tensors().iter().find(|tensor| tensor.dtype.name() == dtype).unwrap();
        let mut bytes = fs::read(gguf("types.gguf")).unwrap();
        let block = (tensor.dtype.block_bits() / 8) as usize;
        let place = tensor.offset as usize + 3 * block + at;
        bytes[place..place + 2].copy_from_slice(if dtype == "MXFP4" { &[0xff, 0x77] } else { &[0x00, 0x7c] });
        fs::write(&path, bytes).unwrap();
        let options = verify::Options { checkpoint: path.clone(), ..verify::Options::default() };
        let report = verify::run(&options, &control(&stop)).unwrap();
        let values: Vec<_> = report.problems.iter().filter(|found| found.kind == "value").collect();
        let [found] = values.as_slice() else { panic!("{dtype}: {:?}", report.problems) };
        assert_eq!(found.name, tensor.name);
    }
}

/// Whatever a byte of the head is: an error that names the file, or another model, and never a panic.
#[test]
fn damaged_heads_are_survived() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    let mut state = 7_u64;
    let mut random = |below: usize| {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut errors = 0;
    for (name, rounds) in [("types.gguf", 300), ("small-00001-of-00003.gguf", 100), ("cut-mmproj.gguf", 60)] {
        let mut good = fs::read(gguf(name)).unwrap();
        if name.starts_with("small") {
            // A part by itself, as a whole model: the key that counts parts gets another name.
            let at = good.windows(11).position(|window| window == b"split.count").unwrap();
            good[at..at + 5].copy_from_slice(b"xplit");
        }
        let head = Llama4::open(&gguf("types.gguf")).unwrap().checkpoint.files()[0].header_bytes as usize;
        for round in 0..rounds {
            let mut bytes = good.clone();
            if round % 5 == 0 {
                bytes.truncate(random(good.len()));
            }
            for _ in 0..=random(3) {
                let at = random(head.min(bytes.len()).max(1));
                let value = [0, 0xff, 0x80, 1][random(4)];
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = if random(2) == 0 { value } else { *byte ^ (1 << random(8)) };
                }
            }
            fs::write(&path, bytes).unwrap();
            match Llama4::open(&path) {
                Ok(model) => {
                    let _ = Tokenizer::of(&model.checkpoint);
                    if model.require_decoded().is_ok() {
                        let _ = digests(&model).len();
                    }
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    assert!(text.contains("damaged.gguf"), "{text}");
                    errors += 1;
                }
            }
        }
    }
    assert!(errors > 100, "{errors}");
}
