//! The vision part as a GGUF file of its own: llama.cpp's bytes under the names that it reads, beside a text model, and what is refused.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::gguf_file::{self, convert, eyes, golden};
use common::{Scratch, l4tool, quantize, run, testdata};
use l4::output::hash::sha256;

/// Every tensor of the vision part has the type and the bytes of llama.cpp's converter, or of llama-quantize after it.
#[test]
fn vision_parts_have_llama_cpp_s_bytes() {
    let scratch = Scratch::new();
    for (name, source) in [("tiny-scout", testdata("tiny-scout")), ("eyes", eyes(&scratch))] {
        let golden: BTreeMap<_, _> = golden(&format!("mmproj-{name}")).into_iter().collect();
        assert!(golden.contains_key("v.blk.1.ln2.bias"));
        for preset in golden["v.patch_embd.weight"].keys() {
            let out = scratch.path("mmproj.gguf");
            run(&mut quantize(&source, &out, &format!("--force --mmproj --scheme {preset}"))).ok();
            let made = gguf_file::read(&out);
            let found: BTreeMap<_, _> = made
                .tensors
                .iter()
                .map(|tensor| (&tensor.name, format!("{}:{}", tensor.kind, &sha256(&tensor.data)[..16])))
                .collect();
            let wanted: BTreeMap<_, _> = golden.iter().map(|(name, cells)| (name, cells[preset].clone())).collect();
            assert_eq!(found, wanted, "{name} {preset}");
            // The order of llama-quantize.
            assert!(made.tensors.is_sorted_by_key(|tensor| &tensor.name));
        }
    }
}

#[test]
fn a_vision_part_beside_its_text_model_is_the_model() {
    let scratch = Scratch::new();
    let folder = scratch.path("both");
    fs::create_dir(&folder).unwrap();
    let source = testdata("tiny-scout");
    convert(&source, &folder.join("scout.gguf"), "").ok();
    convert(&source, &folder.join("mmproj-scout.gguf"), "--mmproj").ok();
    // GGUF cannot say what tiny-scout's chunks are; the weights are the same.
    let report = run(l4tool("diff --json").arg(&source).arg(&folder));
    assert_eq!(report.code, Some(1));
    let weights = report.json()["weights"].as_array().unwrap().clone();
    assert_eq!(weights.len(), 293);
    for weight in weights {
        assert!(["identical", "equal"].contains(&weight["status"].as_str().unwrap()), "{weight}");
    }
    let report = run(l4tool("verify --json").arg(&folder)).ok().json();
    assert_eq!((&report["checksums"], &report["notes"]), (&2.into(), &serde_json::json!([])), "{report}");
    each_file_is_held_against_its_own_manifest_or_the_folder_s(&folder);
    // A file that llama.cpp's converter made, whose names it gets wrong, is put right.
    let wrong = scratch.path("wrong");
    fs::create_dir(&wrong).unwrap();
    for name in ["cut-q4_k_m.gguf", "cut-mmproj.gguf"] {
        fs::copy(testdata("gguf").join(name), wrong.join(name)).unwrap();
    }
    let (mended, ours) = (scratch.path("mended.gguf"), folder.join("mmproj-scout.gguf"));
    convert(&wrong, &mended, "--mmproj").ok();
    let (mended, ours) = (gguf_file::read(&mended), gguf_file::read(&ours));
    assert_eq!(mended.keys, ours.keys);
    for (a, b) in mended.tensors.iter().zip(&ours.tensors) {
        assert!(a.name == b.name && a.kind == b.kind && a.data == b.data, "{}", a.name);
    }
}

fn each_file_is_held_against_its_own_manifest_or_the_folder_s(folder: &Path) {
    let [own, of_folder] =
        ["mmproj-scout.gguf.l4tool.manifest.json", "l4tool.manifest.json"].map(|name| folder.join(name));
    fs::rename(own, &of_folder).unwrap();
    let verify = || run(l4tool("verify --json").arg(folder));
    assert_eq!(verify().ok().json()["checksums"], 2);
    let text = fs::read_to_string(&of_folder).unwrap();
    fs::write(&of_folder, text.replace("mmproj-scout.gguf", "other.gguf")).unwrap();
    assert!(verify().stdout.contains("has no checksum in the manifest"));
    assert_eq!(verify().code, Some(1));
    fs::remove_file(of_folder).unwrap();
    let report = verify().ok().json();
    assert_eq!(report["checksums"], 1);
    assert!(report["notes"][0].as_str().unwrap().contains("`mmproj-scout.gguf` has no manifest"), "{report}");
}

#[test]
fn vision_parts_that_cannot_be_are_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out.gguf");
    convert(&testdata("tiny-maverick"), &out, "--mmproj").refused(&["has no vision part", "hint: "]);
    let scout = testdata("tiny-scout");
    convert(&scout, &out, "--mmproj --pre-tokenizer llama4").refused(&["`--pre-tokenizer` is about the text model"]);
    convert(&scout, &scratch.path("out"), "--mmproj --split-max-size 1M").refused(&["`--split-max-size` is about"]);
    convert(&scout, &out, "--mmproj --vision drop").refused(&["nothing"]);
    convert(&scout, &out, "--vision keep").refused(&["`--mmproj`"]);
    let other = |name: &str, from: &str, to: &str| {
        let folder = scratch.path(name);
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(&scout).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        let file = if from.contains("image_mean") { "preprocessor_config.json" } else { "config.json" };
        let text = fs::read_to_string(folder.join(file)).unwrap();
        assert!(text.contains(from));
        fs::write(folder.join(file), text.replace(from, to)).unwrap();
        convert(&folder, &out, "--mmproj")
    };
    other("act", r#""hidden_act": "gelu""#, r#""hidden_act": "relu""#).refused(&["takes GELU for granted", "`relu`"]);
    other("mean", r#""image_mean": ["#, r#""image_mean": [ 0.25,"#)
        .refused(&["`preprocessor_config.json`: `image_mean` is [0.25,0.5,", "not three numbers"]);
    assert!(!out.exists());
}
