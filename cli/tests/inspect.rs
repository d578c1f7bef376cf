//! `l4tool inspect` as a user runs it: what it prints, and how it ends.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use l4_testkit::{Shards, Spec, TensorDef, config_json, tensors, write_sparse_safetensors};

fn l4tool(arguments: &[&str], checkpoint: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_l4tool"))
        .args(&arguments[..1])
        .arg(checkpoint)
        .args(&arguments[1..])
        .output()
        .unwrap()
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name)
}

/// Standard output of a run that ended with `code`.
fn printed(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Standard error of a run that could not do it.
fn refused(checkpoint: &Path) -> String {
    let output = l4tool(&["inspect"], checkpoint);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn assert_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|found| found == *line), "no line `{line}` in:\n{text}");
    }
}

#[test]
fn the_summary_of_tiny_scout() {
    let text = printed(&l4tool(&["inspect"], &testdata("tiny-scout")), 0);
    assert_lines(
        &text,
        &[
            "architecture   Llama4ForConditionalGeneration, text and images (56x56 pixels, 4 tokens each)",
            "layers         4: 4 with experts, 3 with attention in chunks of 128, 1 without RoPE",
            "experts        16 routed (1 per token) and 1 shared in each layer that has experts",
            "quantization   none",
            "context        4,096 tokens",
            // 2 * 4 layers * 2 heads * 32 numbers of two bytes.
            "KV cache       1,024 bytes per token in BF16: 256 (1 of 4 layers) grow with the context, 768 (3) stop at 128 tokens",
            "fits one H100 (80 GB): yes, with 4,096 tokens of context",
            "complete: every weight that the config promises is there, and nothing else",
        ],
    );
    assert!(!text.contains('\x1b'));
    let colored = printed(&l4tool(&["inspect", "--color", "always"], &testdata("tiny-scout")), 0);
    assert!(colored.contains("\x1b[32myes\x1b[0m, with 4,096"));
}

#[test]
fn quantized_checkpoints_say_how() {
    let text = printed(&l4tool(&["inspect"], &testdata("ct-fp8-channel")), 0);
    assert!(
        text.contains("fp8-dynamic: 18 matrices (3 of dense ffn, 12 of routed experts, 3 of shared experts), 8."),
        "{text}"
    );
    let text = printed(&l4tool(&["inspect", "--experts"], &testdata("ct-w4a16")), 0);
    let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    // 3 * 96 * 32 codes of half a byte, as many scales of two bytes for 32 codes each, three shapes of 16 bytes.
    assert_eq!(row[..4], ["1", "4/4", "w4a16-g32", "5,232"]);
}

#[test]
fn tensors_are_lines_for_pipes() {
    let text = printed(&l4tool(&["inspect", "--tensors"], &testdata("tiny-scout")), 0);
    let index = fs::read_to_string(testdata("tiny-scout/model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.len(), map.len());
    for row in &rows {
        assert_eq!(row.len(), 9);
        assert_eq!(map[row[0]], row[4]);
    }
    let bytes: u64 = rows.iter().map(|row| row[3].parse::<u64>().unwrap()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
    let fused = rows.iter().find(|row| row[0].ends_with("layers.2.feed_forward.experts.down_proj")).unwrap();
    assert_eq!((fused[1], fused[2], &fused[6..]), ("BF16", "[16,128,256]", &["routed_experts", "2", "-"][..]));
}

#[test]
fn the_config_is_shown_with_its_defaults() {
    let text = printed(&l4tool(&["inspect", "--config"], &testdata("tiny-maverick")), 0);
    assert_lines(
        &text,
        &[
            "experts in layers        2 of 5: 1,3",
            "RoPE in layers           4 of 5: 0-2,4",
            "chunks in layers         4 of 5: 0-2,4",
            "rope scaling             none",
            "use_qk_norm              false",
        ],
    );
}

#[test]
fn memory_is_a_view_without_a_size_and_a_bound_with_one() {
    let checkpoint = testdata("tiny-scout");
    let view = printed(&l4tool(&["inspect", "--memory"], &checkpoint), 0);
    assert!(view.starts_with("scheme") && view.contains("\nfp8-block ") && view.contains("bf16 (as stored)"), "{view}");
    let summary = printed(&l4tool(&["inspect"], &checkpoint), 0);
    assert_eq!(printed(&l4tool(&["inspect", "--memory=1G"], &checkpoint), 0), summary);
    let before =
        Command::new(env!("CARGO_BIN_EXE_l4tool")).args(["--memory", "1G", "inspect"]).arg(&checkpoint).output();
    assert_eq!(printed(&before.unwrap(), 0), summary);
    let both = Command::new(env!("CARGO_BIN_EXE_l4tool"));
    let both = { both }.args(["--memory", "1G", "inspect", "--memory"]).arg(&checkpoint).output();
    assert_eq!(printed(&both.unwrap(), 0), view);
}

#[test]
fn json_holds_the_fields_of_the_contract() {
    let text = printed(&l4tool(&["inspect", "--json"], &testdata("tiny-scout")), 0);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["schema"], "l4tool.inspect/1");
    for (field, kind) in [
        ("format", "string"),
        ("architecture", "string"),
        ("config", "object"),
        ("parameters", "object"),
        ("bytes", "number"),
        ("dtypes", "object"),
        ("quantization", "object"),
        ("tensors", "array"),
        ("memory", "object"),
        ("problems", "array"),
    ] {
        let found = match &report[field] {
            serde_json::Value::String(_) => "string",
            serde_json::Value::Object(_) => "object",
            serde_json::Value::Array(_) => "array",
            serde_json::Value::Number(_) => "number",
            _ => "another",
        };
        assert_eq!(found, kind, "{field}");
    }
    let tensor = report["tensors"][0].as_object().unwrap();
    for field in ["name", "dtype", "shape", "file", "offset", "bytes", "role", "layer", "expert"] {
        assert!(tensor.contains_key(field), "{field}");
    }
    assert_eq!(report["dtypes"]["BF16"]["bytes"], report["bytes"]);
}

/// A small checkpoint in `dir` with the tensors that `change` leaves.
fn write_changed(dir: &Path, change: impl FnOnce(&mut Vec<TensorDef>)) {
    let spec = Spec::default();
    let mut tensors = tensors(&spec);
    change(&mut tensors);
    fs::write(dir.join("config.json"), config_json(&spec).to_string()).unwrap();
    write_sparse_safetensors(&dir.join("model.safetensors"), &tensors, &[]).unwrap();
}

#[test]
fn an_incomplete_checkpoint_is_the_answer_no() {
    let dir = tempfile::tempdir().unwrap();
    write_changed(dir.path(), |tensors| {
        tensors.retain(|tensor| !tensor.name.ends_with("layers.0.feed_forward.experts.down_proj"))
    });
    let output = l4tool(&["inspect"], dir.path());
    let text = printed(&output, 1);
    // Four experts of 64 x 32.
    assert!(text.contains("not complete, 8,192 parameters are not there"), "{text}");
    assert!(
        text.contains("missing: `layers.0.feed_forward.experts.{0-3}.down_proj` is missing (shape [64, 32])\n"),
        "{text}"
    );
    let output = l4tool(&["inspect", "--experts"], dir.path());
    let table = printed(&output, 1);
    assert!(table.lines().nth(1).unwrap().ends_with("0-3"), "{table}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not complete"));
}

#[test]
fn an_unexpected_tensor_is_listed_and_the_answer_is_yes() {
    let dir = tempfile::tempdir().unwrap();
    let odd = "language_model.model.\u{1b}[31modd";
    write_changed(dir.path(), |tensors| tensors[0].name = odd.to_owned());
    // The first tensor lost its name: it is missing under it, and unexpected under the other.
    let text = printed(&l4tool(&["inspect"], dir.path()), 1);
    assert!(text.contains("unexpected: `language_model.model.\\u{1b}[31modd`") && !text.contains('\x1b'), "{text}");
    write_changed(dir.path(), |tensors| {
        let extra = TensorDef { name: "extra".into(), ..tensors[0].clone() };
        tensors.push(extra);
    });
    let text = printed(&l4tool(&["inspect"], dir.path()), 0);
    assert!(text.contains("unexpected: `extra` is not part of this model"), "{text}");
}

#[test]
fn what_is_no_llama_4_checkpoint_is_called_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = refused(dir.path());
    assert!(error.contains("no `.safetensors` file") && error.contains("hint: "), "{error}");

    fs::write(dir.path().join("model.gguf"), b"GGUF\x03\0\0\0rest of it").unwrap();
    for path in [dir.path().to_owned(), dir.path().join("model.gguf")] {
        let error = refused(&path);
        assert!(error.contains("model.gguf`: 8 bytes should follow byte 16, and 2 do"), "{error}");
    }

    let meta = tempfile::tempdir().unwrap();
    fs::write(meta.path().join("consolidated.00.pth"), b"PK\x03\x04 and the rest").unwrap();
    fs::write(meta.path().join("params.json"), b"{}").unwrap();
    let error = refused(meta.path());
    assert!(error.contains("consolidated.00.pth`: not a whole zip archive"), "{error}");
    assert!(error.contains("hint: the download did not finish"), "{error}");
    let error = refused(&meta.path().join("consolidated.00.pth"));
    assert!(error.contains("not a whole zip archive"), "{error}");
}

#[test]
fn weights_need_a_llama_4_config() {
    let dir = tempfile::tempdir().unwrap();
    write_changed(dir.path(), |_| ());
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let error = refused(dir.path());
    let count = tensors(&Spec::default()).len();
    assert!(error.contains(&format!("holds {count} tensors (`")) && error.contains("no `config.json`"), "{error}");
    assert!(error.contains("hint: "), "{error}");
    fs::write(dir.path().join("config.json"), r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}"#)
        .unwrap();
    let error = refused(dir.path());
    assert!(error.contains("`LlamaForCausalLM`") && error.contains("hint: "), "{error}");
}

#[test]
fn a_shard_that_is_not_there_cannot_be_inspected() {
    let dir = tempfile::tempdir().unwrap();
    Spec { shards: Shards::Split(3), ..Spec::default() }.write_sparse(dir.path(), None).unwrap();
    fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    let error = refused(dir.path());
    assert!(error.contains("model-00002-of-00003.safetensors") && error.contains("missing"), "{error}");
}
