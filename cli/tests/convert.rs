//! What `convert` makes: of Meta's files the very model that they were written from, of every other checkpoint the same
//! values in another form.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::oracle::floats;
use common::{
    Scratch, Tensor, assert_nothing, assert_same, edit, journal_lines, l4tool, read_file, read_json, read_model, run,
    slow_source, start, tensor, testdata, tiny, wait_until,
};
use l4::checkpoint::Checkpoint;
use l4::llama4::tokenizer::Tokenizer;
use l4::output::hash::sha256;
use l4_testkit::{Shards, Spec};
use serde_json::{Value, json};

fn convert(source: &Path, out: &Path, flags: &str) -> Command {
    let mut command = l4tool("convert");
    command.arg(source).arg("-o").arg(out).args(["--to", "hf"]).args(flags.split_whitespace());
    command
}

/// The tensors of a checkpoint; goldens that lie beside it are none of it.
fn weights(folder: &Path) -> BTreeMap<String, Tensor> {
    let beside = |name: &String| name.starts_with("text.") || name.starts_with("image.") || name.starts_with("vision.");
    read_model(folder).into_iter().filter(|(name, _)| !beside(name)).collect()
}

/// The model that `make_meta.py` wrote Meta's files from: every tensor's shape and SHA-256.
fn check_against_golden(out: &Path, golden: &Value) {
    let model = weights(out);
    let wanted = golden["tensors"].as_object().unwrap();
    assert_eq!(model.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (name, tensor) in &model {
        assert_eq!(tensor.dtype, "BF16", "{name}");
        assert_eq!(json!([tensor.shape, sha256(&tensor.data)]), wanted[name], "{name}");
    }
}

/// The config says what transformers' own says, field by field.
fn check_config(is: &Value, wanted: &Value) {
    for (field, value) in is.as_object().unwrap() {
        match (field.as_str(), value) {
            // Who wrote it, and what transformers spells in another way since version 5.
            ("architectures" | "torch_dtype" | "for_llm_compressor" | "transformers_version", _) => {}
            ("rope_theta", _) => assert_eq!(*value, wanted["rope_parameters"]["rope_theta"], "{field}"),
            ("rope_scaling", Value::Null) => assert_eq!(wanted["rope_parameters"]["rope_type"], "default", "{field}"),
            ("rope_scaling", Value::Object(scaling)) => {
                for (field, value) in scaling {
                    assert_eq!(*value, wanted["rope_parameters"][field], "{field}");
                }
            }
            (_, Value::Object(_)) => check_config(value, &wanted[field]),
            _ => assert_eq!(*value, wanted[field], "{field}"),
        }
    }
}

#[test]
fn metas_files_become_the_model_that_they_were_written_from() {
    let scratch = Scratch::new();
    let text = fs::read_to_string(testdata("text/eval.txt")).unwrap();
    for (name, ranks) in [("meta-tiny", 8), ("meta-fp8", 2)] {
        let (source, out) = (testdata(name), scratch.path(name));
        let report = run(&mut convert(&source, &out, "--json")).ok().json();
        assert_eq!(report["from"], "meta");
        assert!(report["changes"][0].as_str().unwrap().contains(&format!("{ranks} ranks")), "{report}");
        let golden = read_json(&source.join("golden.json"));
        check_against_golden(&out, &golden);
        check_config(&read_json(&out.join("config.json")), &golden["config"]);
        let tokens = Tokenizer::of(&Checkpoint::open(&out).unwrap()).unwrap().encode(&text).unwrap();
        let config = &golden["config"];
        let begin = &config.get("text_config").unwrap_or(config)["bos_token_id"];
        assert_eq!(json!(tokens[0]), *begin);
        assert_eq!(json!(tokens[1..]), golden["tokens"]);
        run(l4tool("verify").arg(&out)).ok();
        // In files of another size, with a thread and hardly any memory, the same tensors.
        let small = scratch.path("small");
        run(&mut convert(&source, &small, "--shard-size 100K --threads 1 --memory 100M")).ok();
        check_against_golden(&small, &golden);
        fs::remove_dir_all(small).unwrap();
    }
}

#[test]
fn an_instruction_tuned_model_ends_turns() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    run(&mut convert(&testdata("meta-tiny"), &out, "--instruct")).ok();
    let config = read_json(&out.join("config.json"));
    // 512 tokens of text, then the special ones: end of text, of a message, of a turn.
    assert_eq!(config["text_config"]["eos_token_id"], json!([513, 519, 520]));
    assert_eq!(config["text_config"]["max_position_embeddings"], 1_048_576);
    let generation = read_json(&out.join("generation_config.json"));
    assert_eq!(generation["eos_token_id"], json!([513, 519, 520]));
    assert_eq!(generation["pad_token_id"], 530);
    assert_eq!(read_json(&out.join("tokenizer_config.json"))["eos_token"], "<|eot|>");
    let hint = "this checkpoint says what it is itself";
    run(&mut convert(&out, &scratch.path("again"), "--instruct")).refused(&[hint]);
}

#[test]
fn a_value_that_is_not_finite_is_named_with_the_file_of_its_rank() {
    let scratch = Scratch::new();
    let source = scratch.testdata("meta-tiny");
    let name = "consolidated.05.pth:layers.1.feed_forward.experts.moe_w_out_eF_D";
    let offset = {
        let checkpoint = Checkpoint::open(&source).unwrap();
        checkpoint.tensors()[checkpoint.find(name).unwrap()].offset as usize
    };
    let path = source.join("consolidated.05.pth");
    let mut bytes = fs::read(&path).unwrap();
    // Element (3, 2) of the first expert's [16, 64] in this rank: output 2, and input 5 * 16 + 3 of all.
    let at = offset + (3 * 64 + 2) * 2;
    bytes[at..at + 2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let out = scratch.path("out");
    run(&mut convert(&source, &out, "")).refused(&[
        "consolidated.05.pth` holds a weight that cannot be used",
        "`layers.1.feed_forward.experts.0.down_proj`: the value NaN at output 2, input 83 is not finite",
    ]);
    assert_nothing(&out);
}

#[test]
fn keys_that_are_not_known_are_told() {
    let scratch = Scratch::new();
    let source = scratch.testdata("meta-fp8");
    // A key of the same length, so that the pickle stays whole.
    for rank in 0..2 {
        let path = source.join(format!("consolidated.{rank:02}.pth"));
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(10).position(|found| found == b"rope.freqs").unwrap();
        bytes[at..at + 10].copy_from_slice(b"rope.trick");
        fs::write(&path, bytes).unwrap();
    }
    let done = run(&mut convert(&source, &scratch.path("out"), "")).ok();
    assert!(done.stderr.contains("2 tensors are no part of this model"), "{}", done.stderr);
    let problems = run(l4tool("inspect --json").arg(&source)).json();
    assert_eq!(problems["problems"][0]["name"], "consolidated.00.pth:rope.trick");
    assert_eq!(problems["problems"][0]["kind"], "unexpected");
    // Without the scales of a rank its codes say nothing.
    fs::remove_file(source.join("fp8_scales_1.pt")).unwrap();
    run(&mut convert(&source, &scratch.path("other"), "")).refused(&["is FP8 in rank 1", "fp8_scales_1.pt"]);
}

#[test]
fn other_commands_say_that_metas_files_must_be_converted() {
    let scratch = Scratch::new();
    let words = ["Meta's own layout", "l4tool convert"];
    run(&mut common::quantize(&testdata("meta-tiny"), &scratch.path("out"), "--int4 --group-size 32")).refused(&words);
    run(l4tool("verify").arg(testdata("meta-tiny"))).refused(&words);
}

/// A matrix of one expert out of a fused tensor `[E, in, out]`, as `[out, in]`; `part` of `parts` of its columns.
fn unfused(fused: &Tensor, expert: usize, (part, parts): (usize, usize)) -> Vec<u8> {
    let [_, ins, columns] = *fused.shape.as_slice() else { panic!("{:?}", fused.shape) };
    let size = fused.width();
    let outs = columns / parts;
    let element = |out: usize, input: usize| {
        let at = ((expert * ins + input) * columns + part * outs + out) * size;
        &fused.data[at..at + size]
    };
    (0..outs).flat_map(|out| (0..ins).flat_map(move |input| element(out, input))).copied().collect()
}

#[test]
fn fused_experts_come_apart_and_together_again() {
    let scratch = Scratch::new();
    let spec = Spec { shards: Shards::Single, ..tiny() };
    for source in [scratch.checkpoint("source", &spec), testdata("tiny-maverick"), testdata("tiny-scout")] {
        let (apart, together) = (scratch.path("apart"), scratch.path("together"));
        let report = run(&mut convert(&source, &apart, "--experts per-expert --json")).ok().json();
        assert_eq!(report["rounded"], json!([]));
        assert!(report["notes"][0].as_str().unwrap().contains("transformers does not load"), "{report}");
        let (before, after) = (weights(&source), weights(&apart));
        let mut experts = 0;
        for (name, fused) in before.iter().filter(|(name, _)| name.contains(".experts.")) {
            let (module, projections) = match name.strip_suffix("gate_up_proj") {
                Some(module) => (module, &["gate_proj", "up_proj"][..]),
                None => (name.strip_suffix("down_proj").unwrap(), &["down_proj"][..]),
            };
            for expert in 0..fused.shape[0] {
                for (part, projection) in projections.iter().enumerate() {
                    let is = &after[&format!("{module}{expert}.{projection}.weight")];
                    assert_eq!(is.data, unfused(fused, expert, (part, projections.len())), "{module}{expert}");
                    experts += 1;
                }
            }
        }
        let fused = before.keys().filter(|name| name.contains(".experts.")).count();
        assert!(fused > 0);
        assert_eq!(after.len(), before.len() - fused + experts);
        run(&mut convert(&apart, &together, "--shard-size 1M")).ok();
        assert_eq!(weights(&together), before);
        fs::remove_dir_all(apart).unwrap();
        fs::remove_dir_all(together).unwrap();
    }
}

#[test]
fn quantized_weights_become_what_compressed_tensors_decompresses() {
    let scratch = Scratch::new();
    for name in ["ct-w4a16", "ct-w4a16-asym", "ct-fp8-channel", "ct-fp8-block", "ct-fp8-tensor"] {
        let (apart, fused, again) = (scratch.path("apart"), scratch.path("fused"), scratch.path("again"));
        run(&mut convert(&testdata(name), &apart, "--experts per-expert")).ok();
        let model = weights(&apart);
        let golden: BTreeMap<String, Tensor> = read_file(&testdata(name).join("golden.safetensors"))
            .into_iter()
            .filter_map(|tensor| Some((tensor.name.strip_prefix("weight.")?.to_owned(), tensor)))
            .collect();
        assert_eq!(golden.len(), 3 + 3 * 5, "{name}");
        for (module, wanted) in &golden {
            let is = &model[&format!("{module}.weight")];
            assert_eq!((&is.dtype, &is.shape, &is.data), (&wanted.dtype, &wanted.shape, &wanted.data), "{module}");
        }
        run(&mut convert(&testdata(name), &fused, "")).ok();
        assert!(read_json(&fused.join("config.json")).get("quantization_config").is_none());
        run(&mut convert(&fused, &again, "--experts per-expert")).ok();
        assert_eq!(weights(&again), model, "{name}");
        for folder in [apart, fused, again] {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

/// Fused FP8 experts with one scale for all, as ModelOpt stores them, made from plain ones; gives the values.
fn as_modelopt(tensors: &mut Vec<Tensor>) -> BTreeMap<String, Vec<f32>> {
    let mut values = BTreeMap::new();
    let mut added = Vec::new();
    for tensor in tensors.iter_mut().filter(|tensor| tensor.name.contains(".experts.")) {
        // Codes of 0.5, 1, 1.5, 2 and their negatives (S.EEEE.MMM with a bias of 7), in some order.
        let codes = [(0x30_u8, 0.5_f32), (0x38, 1.0), (0x3c, 1.5), (0x40, 2.0), (0xb0, -0.5), (0xbc, -1.5)];
        let elements = tensor.data.len() / tensor.width();
        let of = |index: usize| codes[index * 7 % 31 % codes.len()];
        tensor.data = (0..elements).map(|index| of(index).0).collect();
        tensor.dtype = "F8_E4M3".into();
        values.insert(tensor.name.clone(), (0..elements).map(|index| of(index).1 * 0.03125).collect());
        for (ending, scale) in [("_weight_scale", 0.03125_f32), ("_input_scale", 0.5)] {
            let name = format!("{}{ending}", tensor.name);
            added.push(Tensor { name, dtype: "F32".into(), shape: vec![], data: scale.to_le_bytes().to_vec() });
        }
    }
    tensors.extend(added);
    values
}

#[test]
fn fused_fp8_experts_with_one_scale_are_dequantized() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { shards: Shards::Single, ..tiny() });
    let mut values = BTreeMap::new();
    edit(&source, |tensors| values = as_modelopt(tensors));
    fs::write(source.join("hf_quant_config.json"), r#"{"quantization": {"quant_algo": "FP8"}}"#).unwrap();
    let out = scratch.path("out");
    run(&mut convert(&source, &out, "")).ok();
    let model = weights(&out);
    assert!(!values.is_empty());
    for (name, values) in values {
        assert_eq!(floats(&model[&name]), values, "{name}");
    }
    assert!(!out.join("hf_quant_config.json").exists());
    run(&mut common::quantize(&source, &scratch.path("other"), "--int4 --group-size 32")).refused(&["l4tool convert"]);
}

#[test]
fn without_the_vision_part_it_is_a_text_model() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    run(&mut convert(&testdata("tiny-scout"), &out, "--vision drop")).ok();
    let (before, after) = (weights(&testdata("tiny-scout")), weights(&out));
    let text: BTreeMap<String, (Vec<usize>, Vec<u8>)> = before
        .into_iter()
        .filter_map(|(name, tensor)| {
            Some((name.strip_prefix("language_model.")?.to_owned(), (tensor.shape, tensor.data)))
        })
        .collect();
    let is: BTreeMap<_, _> = after.into_iter().map(|(name, tensor)| (name, (tensor.shape, tensor.data))).collect();
    assert_eq!(is, text);
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["architectures"], json!(["Llama4ForCausalLM"]));
    assert_eq!(config["model_type"], "llama4_text");
    let source = read_json(&testdata("tiny-scout/config.json"));
    for (field, value) in source["text_config"].as_object().unwrap() {
        assert_eq!(config[field], *value, "{field}");
    }
    assert!(!out.join("preprocessor_config.json").exists());
    // It computes the same.
    let against = testdata("tiny-scout");
    run(l4tool("verify --max-kl 0 --tokens 64").arg(&out).arg("--against").arg(against)).ok();
}

#[test]
fn formats_change_exactly_or_are_refused() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { shards: Shards::Single, ..tiny() });
    let (wide, back) = (scratch.path("wide"), scratch.path("back"));
    run(&mut convert(&source, &wide, "--dtype f32")).ok();
    let (before, after) = (weights(&source), weights(&wide));
    assert!(after.values().all(|tensor| tensor.dtype == "F32"));
    for (name, tensor) in &before {
        assert_eq!(floats(&after[name]), floats(tensor), "{name}");
    }
    assert_eq!(read_json(&wide.join("config.json"))["torch_dtype"], "float32");
    run(&mut convert(&wide, &back, "--dtype bf16")).ok();
    assert_eq!(weights(&back), before);
    // The largest number of binary16 is 65504; what rounds to more is too large.
    edit(&source, |tensors| {
        let weight = tensor(tensors, "language_model.model.layers.1.self_attn.o_proj.weight");
        weight.set(7, &0x4780_u16.to_le_bytes());
        weight.set(9, &0xc780_u16.to_le_bytes());
    });
    let out = scratch.path("out");
    run(&mut convert(&source, &out, "--dtype f16")).refused(&[
        "2 values are beyond 6.5504e4, the largest of F16",
        "the first is 6.5536e4, at output 0, input 7",
        "caused by: `layers.1.self_attn.o_proj`",
        "--clamp",
    ]);
    assert_nothing(&out);
    let report = run(&mut convert(&source, &out, "--dtype f16 --clamp --json")).ok().json();
    assert_eq!(report["overflows"], 2);
    let rounded = report["rounded"].as_array().unwrap();
    let weight = rounded.iter().find(|weight| weight["name"] == "layers.1.self_attn.o_proj").unwrap();
    assert_eq!(weight["overflows"], 2);
    assert_eq!(weight["max_abs_error"], 32.0);
    let model = weights(&out);
    let clamped = model
        .iter()
        .find(|(name, _)| name.ends_with("language_model.model.layers.1.self_attn.o_proj.weight"))
        .unwrap()
        .1;
    assert_eq!((floats(clamped)[7], floats(clamped)[9]), (65504.0, -65504.0));
}

#[test]
fn a_file_that_was_named_may_have_its_output_beside_it() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { shards: Shards::Single, ..tiny() });
    let (file, beside, before) = (source.join("model.safetensors"), source.join("beside"), weights(&source));
    run(&mut convert(&source, &beside, "")).refused(&["lies inside the source"]);
    run(&mut convert(&file, &file, "--force")).refused(&["is the source itself"]);
    assert_nothing(&beside);
    run(&mut convert(&file, &beside, "")).ok();
    assert_eq!(weights(&beside), before);
}

#[test]
fn killed_and_run_again_gives_the_same_bytes() {
    let scratch = Scratch::new();
    let source = slow_source();
    let flags = "--experts per-expert --dtype f32 --threads 1";
    let (expected, out) = (scratch.path("expected"), scratch.path("out"));
    run(&mut convert(&source, &expected, flags)).ok();
    let mut kills = 0;
    for lines in [3, 20, 60] {
        let mut child = start(&mut convert(&source, &out, flags));
        kills += usize::from(wait_until(&mut child, || journal_lines(&out) > lines));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills > 0, "every run was over before it could be killed");
    let differs = run(&mut convert(&source, &out, "--threads 1"));
    if !out.exists() {
        differs.refused(&["a different run", "experts: was per-expert, is fused"]);
        let report = run(&mut convert(&source, &out, &format!("{flags} --json"))).ok().json();
        assert_eq!(report["resumed"], true);
    }
    assert_same(&expected, &out, "killed");
}

#[test]
fn a_dry_run_writes_nothing_and_tells_what_would_be() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let plan = run(&mut convert(&testdata("meta-tiny"), &out, "--dry-run --json")).ok().json();
    assert_eq!(plan["schema"], "l4tool.convert-plan/1");
    let text = run(&mut convert(&testdata("meta-tiny"), &out, "--dry-run")).ok().stdout;
    assert!(text.contains("8 ranks") && text.contains("it fits"), "{text}");
    assert_nothing(&out);
    run(&mut convert(&testdata("meta-tiny"), &out, "")).ok();
    assert_eq!(plan["bytes_out"], fs::metadata(out.join("model.safetensors")).unwrap().len());
}
