//! GGUF files as inputs of every command, as a user meets them.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{Scratch, assert_nothing, l4tool, quantize, read_model, run, testdata};

#[test]
fn every_command_takes_a_file() {
    let scratch = Scratch::new();
    let small = testdata("gguf/small-00001-of-00003.gguf");
    let text = run(l4tool("inspect").arg(&small)).ok().stdout;
    assert!(text.contains("tensors        57 in 3 gguf files"), "{text}");
    let report = run(l4tool("inspect --json").arg(testdata("gguf/cut-q4_k_m.gguf"))).ok().json();
    assert_eq!(report["format"], "gguf");
    assert_eq!(report["quantization"]["schemes"]["q4_k"]["weights"], 28);
    assert_eq!(report["gguf"]["files"][0]["version"], 3);
    assert_eq!(report["gguf"]["file_type"], "Q4_K_M");

    let eval = testdata("text/eval.txt");
    let verified =
        run(l4tool("verify --tokens 40 --json").arg(testdata("gguf/cut-q4_k_m.gguf")).arg("--text").arg(&eval));
    assert!(verified.ok().json()["perplexity"]["candidate"].as_f64().unwrap() > 1.0);
    run(l4tool("routing --samples 2 --seq-len 32").arg(&small).arg("--data").arg(&eval)).ok();

    // Quantized from BF16, it is a checkpoint like any other.
    let out = scratch.path("fp8");
    run(&mut quantize(&small, &out, "--scheme fp8-dynamic --quiet")).ok();
    run(l4tool("verify --max-kl 0.1 --tokens 40").arg(&out).arg("--against").arg(&small)).ok();
    let names = read_model(&out);
    assert!(names.contains_key("model.layers.1.feed_forward.experts.2.down_proj.weight_scale"));
    assert!(names.contains_key("model.layers.0.self_attn.q_proj.weight"));
    assert!(out.join("tokenizer.json").exists());

    // Blocks become floats.
    let out = scratch.path("floats");
    let blocks = testdata("gguf/cut-q4_k_m.gguf");
    run(l4tool("convert --to hf --dtype f32 --quiet -o").arg(&out).arg(&blocks)).ok();
    let report = run(l4tool("diff --json").arg(&blocks).arg(&out)).ok().json();
    assert_eq!(report["same"], true);
    let report = run(l4tool("verify --json --tokens 40 --against").arg(&blocks).arg(&out)).ok().json();
    assert!(report["logits"]["kl_max"].as_f64().unwrap() < 1e-9, "{report}");
}

#[test]
fn what_a_gguf_file_cannot_be_used_for_is_said() {
    let scratch = Scratch::new();
    let blocks = testdata("gguf/cut-q4_k_m.gguf");
    let out = scratch.path("out");
    run(&mut quantize(&blocks, &out, "--scheme fp8-dynamic"))
        .refused(&["is stored as q4_k, which only GGUF files have"]);
    assert_nothing(&out);
    run(l4tool("inspect").arg(testdata("gguf/cut-mmproj.gguf")))
        .refused(&["the vision part of a model (mmproj) alone"]);
    run(l4tool("verify").arg(testdata("gguf/sample.gguf"))).refused(&["sample.gguf`, field `llama4.", "missing"]);
    let model = scratch.path("other.gguf");
    let mut bytes = fs::read(testdata("gguf/types.gguf")).unwrap();
    let first = bytes.windows(6).position(|window| window == b"llama4").unwrap();
    bytes[first..first + 6].copy_from_slice(b"gemma4");
    fs::write(&model, bytes).unwrap();
    run(l4tool("inspect").arg(&model)).refused(&["a `gemma4` model, not Llama 4"]);
    fs::write(scratch.path("cut.gguf"), &fs::read(&blocks).unwrap()[..100_000]).unwrap();
    run(l4tool("verify").arg(scratch.path("cut.gguf"))).refused(&["cut.gguf`, tensor `", "truncated", "hint: "]);
}

#[test]
fn a_vision_part_with_wrong_names_is_flagged() {
    let scratch = Scratch::new();
    let folder = scratch.path("both");
    fs::create_dir(&folder).unwrap();
    for name in ["cut-q4_k_m.gguf", "cut-mmproj.gguf"] {
        fs::copy(testdata("gguf").join(name), folder.join(name)).unwrap();
    }
    let done = run(l4tool("verify").arg(&folder));
    assert_eq!(done.code, Some(1));
    assert!(done.stdout.contains("problem: misnamed: `v.blk.0.attn_post_norm.bias`"), "{}", done.stdout);
    let text = run(l4tool("inspect").arg(&folder)).ok().stdout;
    assert!(text.contains("misnamed: `v.blk.0.attn_post_norm.bias` (and 5 more) should be called `ln2`"), "{text}");
    // Read for what they are, they are written under their names.
    let out = scratch.path("out");
    run(l4tool("convert --to hf --quiet -o").arg(&out).arg(&folder)).ok();
    assert!(read_model(&out).contains_key("vision_model.model.layers.2.post_attention_layernorm.bias"));
    run(l4tool("verify --tokens 40 --against").arg(&folder).arg(&out)).ok();
}
