//! `verify` of one checkpoint: structure, values, side files, checksums, and what the report says.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{
    Done, Scratch, Tensor, edit, edit_config, l4tool, quantize, read_file, read_json, run, tensor, testdata, tiny,
};
use l4_testkit::Spec;
use serde_json::{Value, json};

const MANIFEST: &str = "l4tool.manifest.json";

fn verify(checkpoint: &Path, flags: &str) -> Done {
    run(l4tool("verify").arg(checkpoint).args(flags.split_whitespace()))
}

/// Problems as `(kind, name, message)`; asserts that exit code and `ok` agree with there being some.
#[track_caller]
fn problems(done: &Done) -> Vec<(String, String, String)> {
    let report = done.json();
    let text = |problem: &Value, field: &str| problem[field].as_str().unwrap().to_owned();
    let list: Vec<_> = report["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| (text(problem, "kind"), text(problem, "name"), text(problem, "message")))
        .collect();
    assert_eq!(report["ok"], list.is_empty());
    assert_eq!(done.code, Some(i32::from(!list.is_empty())), "{}", done.stderr);
    list
}

/// Asserts that there is this problem and no other.
#[track_caller]
fn only_problem(done: &Done, kind: &str, name: &str, words: &[&str]) {
    let list = problems(done);
    assert_eq!(list.len(), 1, "{list:?}");
    let (is_kind, is_name, message) = &list[0];
    assert_eq!((is_kind.as_str(), is_name.as_str()), (kind, name), "{message}");
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

/// tiny-scout, quantized.
fn quantized(scratch: &Scratch, flags: &str) -> PathBuf {
    let out = scratch.path("out");
    run(&mut quantize(&testdata("tiny-scout"), &out, flags)).ok();
    out
}

const INT4: &str = "--int4 --group-size 32 --method rtn";

fn flip_byte(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// What another program says.
fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].into()
}

#[test]
fn a_sound_checkpoint() {
    let source = testdata("tiny-scout");
    let done = verify(&source, "--json").ok();
    assert_eq!(problems(&done), []);
    let report = done.json();
    let fields: Vec<&str> = report.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        fields.join(" "),
        "schema checkpoint against ok problems notes tensors bytes checksums tokens layers logits perplexity seconds \
         tokens_per_second peak_memory_bytes"
    );
    let index = read_json(&source.join("model.safetensors.index.json"));
    assert_eq!(report["tensors"], index["weight_map"].as_object().unwrap().len());
    let shards = (1..=6).map(|n| source.join(format!("model-0000{n}-of-00006.safetensors")));
    assert_eq!(report["bytes"], shards.map(|shard| shard.metadata().unwrap().len()).sum::<u64>());
    assert_eq!(report["schema"], "l4tool.verify/1");
    assert_eq!((&report["tokens"], &report["layers"]), (&json!(0), &json!([])));
    for field in ["against", "checksums", "logits", "perplexity", "tokens_per_second"] {
        assert!(report[field].is_null(), "{field}");
    }
    assert!(report["seconds"].as_f64().unwrap() > 0.0);
    assert!(report["peak_memory_bytes"].as_u64().unwrap() > 0);
    assert!(report["notes"].to_string().contains("there is no `l4tool.manifest.json`"));

    let text = verify(&source, "").ok().stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with("tiny-scout") && lines[1].starts_with("  109 tensors, 17."), "{text}");
    assert!(lines.iter().any(|line| line.starts_with("  note: there is no `l4tool.manifest.json`")), "{text}");
    assert!(lines.iter().any(|line| line.starts_with("time ")), "{text}");
    assert_eq!(*lines.last().unwrap(), "ok", "{text}");
}

#[test]
fn checksums() {
    let scratch = Scratch::new();
    let out = quantized(&scratch, INT4);
    let manifest = read_json(&out.join(MANIFEST));
    let recorded = manifest["files"].as_array().unwrap();
    let done = verify(&out, "--json");
    assert_eq!(problems(&done), []);
    assert_eq!(done.json()["checksums"], recorded.len());
    // Every file but the manifest itself.
    assert_eq!(recorded.len(), fs::read_dir(&out).unwrap().count() - 1);
    let text = verify(&out, "").ok().stdout;
    assert!(text.contains(&format!("{} checksums as in the manifest", recorded.len())), "{text}");

    for name in ["model.safetensors", "tokenizer.json", "NOTICE"] {
        let path = out.join(name);
        let before = sha256sum(&path);
        // The last tensors are codes or weights, of which one bit of the lowest byte makes nothing improbable.
        let bytes = fs::read(&path).unwrap();
        flip_byte(&path, bytes.len() - 2);
        let done = verify(&out, "--json");
        only_problem(&done, "checksum", name, &[&before, &sha256sum(&path)]);
        assert_eq!(done.json()["checksums"], recorded.len() - 1);
        let text = verify(&out, "").stdout;
        assert!(text.contains(&format!("problem: checksum: `{name}` has SHA-256 {}", sha256sum(&path))), "{text}");
        assert!(text.ends_with("not ok\n"), "{text}");
        fs::write(&path, bytes).unwrap();
    }
    // Spaces in a header change no tensor: only the checksum can tell.
    let path = out.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let rest = &bytes[8..];
    fs::write(&path, [&(length as u64 + 8).to_le_bytes(), &rest[..length], &[b' '; 8], &rest[length..]].concat())
        .unwrap();
    only_problem(&verify(&out, "--json"), "checksum", "model.safetensors", &["SHA-256"]);
}

#[test]
fn manifests_that_are_wrong() {
    let scratch = Scratch::new();
    let out = quantized(&scratch, INT4);
    let original = read_json(&out.join(MANIFEST));
    let recorded = original["files"].as_array().unwrap().len();
    // What is outside is none of its business, even where the digest would be right.
    let outside = scratch.path("x");
    fs::write(&outside, "content").unwrap();
    fs::create_dir(out.join("inner")).unwrap();
    fs::write(out.join("inner/x"), "content").unwrap();
    let digest = sha256sum(&outside);
    for name in ["gone.txt", "../x", "inner/../../x", outside.to_str().unwrap(), "inner", "inner//x", "", ".", ".."] {
        let mut manifest = original.clone();
        manifest["files"].as_array_mut().unwrap().push(json!({ "name": name, "bytes": 7, "sha256": digest }));
        fs::write(out.join(MANIFEST), manifest.to_string()).unwrap();
        let done = verify(&out, "--json");
        only_problem(&done, "checksum", name, &["in the manifest and not in the folder"]);
        assert_eq!(done.json()["checksums"], recorded);
    }
    // Files without a digest are not counted as checked.
    let mut manifest = original.clone();
    for file in manifest["files"].as_array_mut().unwrap() {
        file["sha256"] = Value::Null;
    }
    fs::write(out.join(MANIFEST), manifest.to_string()).unwrap();
    let done = verify(&out, "--json");
    only_problem(&done, "checksum", "model.safetensors", &["has no checksum in the manifest"]);
    assert_eq!(done.json()["checksums"], 0);
    for text in ["", "{", "[]", "{}", "null", "{\"files\": 1}"] {
        fs::write(out.join(MANIFEST), text).unwrap();
        only_problem(&verify(&out, "--json"), "checksum", MANIFEST, &["is no manifest"]);
    }
}

#[test]
fn files_that_cannot_be_opened() {
    let scratch = Scratch::new();
    let source = scratch.testdata("tiny-maverick");
    let path = source.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let sizes = [bytes.len(), bytes.len() - 5].map(|size| size.to_string());
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    verify(&source, "--json").refused(&["model.safetensors", "truncated", &sizes[0], &sizes[1]]);
    for file in [path, source.join("golden.safetensors")] {
        fs::remove_file(file).unwrap();
    }
    verify(&source, "").refused(&["tiny-maverick"]);
    let source = scratch.testdata("tiny-scout");
    fs::remove_file(source.join("model-00003-of-00006.safetensors")).unwrap();
    verify(&source, "").refused(&["model-00003-of-00006.safetensors"]);
    verify(&scratch.path("nowhere"), "").refused(&["nowhere"]);
}

/// Little-endian bytes of a number in a float format of that width; the upper half of a binary32 is the bfloat16.
fn float(width: usize, x: f32) -> Vec<u8> {
    x.to_le_bytes()[4 - width..].to_vec()
}

/// Asserts that the value `bytes` at `element` of one tensor is found.
#[track_caller]
fn found(source: &Path, end: &str, element: usize, bytes: &dyn Fn(usize) -> Vec<u8>, words: &[&str]) {
    let scratch = Scratch::new();
    let copy = scratch.path("copy");
    common::copy_folder(source, &copy);
    let mut name = String::new();
    edit(&copy, |tensors| {
        let tensor = tensor(tensors, end);
        name = tensor.name.clone();
        tensor.set(element, &bytes(tensor.width()));
    });
    let _ = fs::remove_file(copy.join(MANIFEST));
    let place = format!("at element {element}");
    only_problem(&verify(&copy, "--json"), "value", &name, &[words, &[&place]].concat());
}

#[test]
fn values_that_cannot_be() {
    let scratch = Scratch::new();
    let out = quantized(&scratch, INT4);
    let scale = "layers.1.feed_forward.experts.2.up_proj.weight_scale";
    for (x, shown) in [(f32::NAN, "NaN"), (0.0, "0"), (-0.0, "0"), (f32::INFINITY, "inf")] {
        found(&out, scale, 5, &|width| float(width, x), &["a scale of ", shown]);
    }
    found(
        &out,
        "layers.3.feed_forward.shared_expert.gate_proj.weight_shape",
        0,
        &|width| 7_u64.to_le_bytes()[..width].to_vec(),
        &["[7, 256]", "[128, 256]"],
    );
    for (name, element) in [
        ("language_model.model.norm.weight", 255),
        ("layers.2.self_attn.k_proj.weight", 1234),
        ("embed_tokens.weight", 0),
        ("vision_model.class_embedding", 63),
    ] {
        found(&out, name, element, &|width| float(width, f32::NAN), &["the value NaN"]);
        found(&out, name, element, &|width| float(width, f32::NEG_INFINITY), &["the value -inf"]);
    }
    let maverick = testdata("tiny-maverick");
    found(&maverick, "layers.3.feed_forward.experts.down_proj", 128 * 32 * 64 - 1, &|w| float(w, f32::NAN), &["NaN"]);

    let scratch = Scratch::new();
    let out = quantized(&scratch, "--fp8");
    let codes = "layers.0.feed_forward.experts.15.down_proj.weight";
    for code in [0x7f, 0xff] {
        found(&out, codes, 77, &|_| vec![code], &["the value NaN"]);
    }
    found(&out, &format!("{codes}_scale"), 3, &|width| float(width, f32::NAN), &["a scale of NaN"]);
    // A scale of activations.
    let source = scratch.testdata("ct-fp8-tensor");
    fs::copy(testdata("tiny-scout").join("tokenizer.json"), source.join("tokenizer.json")).unwrap();
    assert_eq!(problems(&verify(&source, "--json")), []);
    found(&source, "experts.3.gate_proj.input_scale", 0, &|width| float(width, 0.0), &["a scale of 0"]);
}

/// Values are judged a few mebibytes at a time; elements are counted through the tensor.
#[test]
fn a_value_far_inside_a_large_tensor() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { vocab_size: 40_000, ..tiny() });
    fs::copy(testdata("tiny-scout").join("tokenizer.json"), source.join("tokenizer.json")).unwrap();
    found(&source, "embed_tokens.weight", 39_999 * 64 + 1, &|width| float(width, f32::NAN), &["NaN"]);
}

#[test]
fn weights_that_are_missing_or_do_not_fit() {
    let scratch = Scratch::new();
    let out = quantized(&scratch, INT4);
    let against = format!("--json --against {}", testdata("tiny-scout").display());
    for name in [MANIFEST, "model.safetensors.index.json"] {
        fs::remove_file(out.join(name)).unwrap();
    }
    let whole = fs::read(out.join("model.safetensors")).unwrap();
    let expert = "layers.2.feed_forward.experts.3.up_proj";
    let not_run = |done: &Done| {
        let report = done.json();
        assert_eq!((&report["tokens"], &report["layers"]), (&json!(0), &json!([])));
        assert!(report["perplexity"].is_null() && report["logits"].is_null());
    };
    edit(&out, |tensors| tensors.retain(|tensor| !tensor.name.contains(&format!("{expert}."))));
    let done = verify(&out, &against);
    only_problem(&done, "missing", expert, &["[128, 256]"]);
    not_run(&done);
    // A logits file would be empty.
    let logits = scratch.path("logits.safetensors");
    verify(&out, &format!("{against} --logits {}", logits.display()));
    assert!(!logits.exists() && !common::partial(&logits).exists());

    fs::write(out.join("model.safetensors"), whole).unwrap();
    edit(&out, |tensors: &mut Vec<Tensor>| {
        let scale = tensor(tensors, &format!("{expert}.weight_scale"));
        scale.shape[0] -= 1;
        let width = scale.data.len() / 128;
        scale.data.truncate(127 * width);
    });
    let done = verify(&out, &against);
    only_problem(&done, "mismatch", expert, &["[127, 8]", "[128, 256]"]);
    not_run(&done);
    // An incomplete reference cannot be compared with.
    run(l4tool("verify").arg(testdata("tiny-scout")).arg("--against").arg(&out)).refused(&[expert, "hint:"]);
    // Tensors of no use are worth a note.
    let source = scratch.testdata("tiny-maverick");
    edit(&source, |tensors| {
        let mut more = read_file(&testdata("tiny-maverick").join("model.safetensors")).swap_remove(0);
        more.name = "model.layers.9.more".into();
        tensors.push(more);
    });
    let done = verify(&source, "--json").ok();
    assert!(done.json()["notes"].to_string().contains("model.layers.9.more"), "{}", done.stdout);
}

#[test]
fn side_files() {
    let scratch = Scratch::new();
    let source = scratch.testdata("tiny-scout");
    let text = format!("--text {}", testdata("text/eval.txt").display());
    for name in ["generation_config.json", "preprocessor_config.json"] {
        fs::remove_file(source.join(name)).unwrap();
        let done = verify(&source, "--json").ok();
        assert!(done.json()["notes"].to_string().contains(&format!("`{name}` is missing")), "{}", done.stdout);
    }
    fs::remove_file(source.join("tokenizer.json")).unwrap();
    only_problem(&verify(&source, "--json"), "side_file", "tokenizer.json", &["is missing"]);
    verify(&source, &text).refused(&["tokenizer.json` is missing", "hint: "]);
    // The reference's is as good for a comparison, but the problem stays.
    let against = format!("--json --tokens 8 --against {}", testdata("tiny-scout").display());
    let done = verify(&source, &against);
    only_problem(&done, "side_file", "tokenizer.json", &["is missing"]);
    assert_eq!(done.json()["tokens"], 8);
    fs::write(source.join("tokenizer.json"), "{}").unwrap();
    verify(&source, &text).refused(&["tokenizer.json` is no tokenizer"]);
    // The form of the original repository serves engines, but it is not read here.
    fs::rename(source.join("tokenizer.json"), source.join("tokenizer.model")).unwrap();
    assert_eq!(problems(&verify(&source, "--json")), []);
    edit_config(&source, |config| config["model_type"] = "llama".into());
    verify(&source, "").refused(&["config.json", "llama"]);
}
