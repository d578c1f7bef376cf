//! GGUF output: llama.cpp's bytes, types, keys and sizes; one result whatever the layout of the source and the machine.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::gguf_file::{self, GgufFile, Value, convert, eyes, golden};
use common::{Scratch, journal_lines, l4tool, partial, quantize, run, start, testdata, wait_until};
use l4::output::hash::sha256;
use l4_testkit::{Shards, Spec};

/// The random model of `testdata/make_gguf_goldens.sh`.
fn random() -> Spec {
    Spec {
        hidden_size: 256,
        layers: 8,
        heads: 8,
        kv_heads: 2,
        head_dim: 32,
        intermediate_size: 256,
        intermediate_size_mlp: 256,
        experts: 4,
        interleave_moe_layer_step: 1,
        use_qk_norm: true,
        vocab_size: 2048,
        attention_chunk_size: 8192,
        floor_scale: 8192,
        text_only: true,
        vision: None,
        tokenizer: true,
        shards: Shards::Single,
        ..Spec::scout_like()
    }
}

/// Every tensor of every preset in the golden has llama.cpp's type and bytes, in llama.cpp's order.
fn has_llama_cpp_s_bytes(name: &str, source: &Path, scratch: &Scratch) {
    let plain = scratch.path("plain.gguf");
    convert(source, &plain, "").ok();
    let imatrix = scratch.path("imatrix.gguf");
    gguf_file::write_imatrix(&gguf_file::read(&plain), &imatrix);
    let golden = golden(name);
    for preset in golden[0].1.keys() {
        let out = scratch.path("out.gguf");
        let (scheme, importance) = preset.strip_suffix("+im").map_or((preset.as_str(), false), |scheme| (scheme, true));
        let mut command = quantize(source, &out, &format!("--force --scheme {scheme}"));
        if importance {
            command.arg("--stats").arg(&imatrix).args(["--imatrix-fallback", "ones"]);
        }
        run(&mut command).ok();
        let made = gguf_file::read(&out);
        assert_eq!(made.tensors.len(), golden.len(), "{preset}");
        for (tensor, (name, cells)) in made.tensors.iter().zip(&golden) {
            let digest = format!("{}:{}", tensor.kind, &sha256(&tensor.data)[..16]);
            assert_eq!((&tensor.name, &digest), (name, &cells[preset]), "{preset}");
        }
    }
}

#[test]
fn tiny_scout_has_llama_cpp_s_bytes() {
    has_llama_cpp_s_bytes("tiny-scout", &testdata("tiny-scout"), &Scratch::new());
}

#[test]
fn tiny_maverick_has_llama_cpp_s_bytes() {
    has_llama_cpp_s_bytes("tiny-maverick", &testdata("tiny-maverick"), &Scratch::new());
}

#[test]
fn a_random_model_has_llama_cpp_s_bytes() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &random());
    has_llama_cpp_s_bytes("random", &source, &scratch);
}

/// The keys are those of llama.cpp's converter, in its order; what differs is listed here.
#[test]
fn keys_are_the_converter_s() {
    let scratch = Scratch::new();
    let random = scratch.checkpoint("random", &random());
    for (name, source, flags) in [
        ("tiny-scout", testdata("tiny-scout"), ""),
        ("tiny-maverick", testdata("tiny-maverick"), ""),
        ("random", random, ""),
        ("mmproj-tiny-scout", testdata("tiny-scout"), "--mmproj"),
        ("mmproj-eyes", eyes(&scratch), "--mmproj"),
    ] {
        let out = scratch.path(&format!("{name}.gguf"));
        convert(&source, &out, flags).ok();
        let made = gguf_file::read(&out);
        let ours = ["general.license", "general.license.name"];
        assert!(ours.iter().all(|key| made.key(key).is_some()));
        let spelled = |(key, kind, value): &(String, String, Value)| {
            let value = match value {
                Value::One(number) if kind == "FLOAT32" => {
                    if number.parse::<f32>().unwrap() == 1e-5 {
                        "1e-05".to_owned()
                    } else {
                        number.clone()
                    }
                }
                Value::One(one) => one.clone(),
                Value::Many(all) => format!("{}:{}", all.len(), &sha256(all.join("\n").as_bytes())[..16]),
            };
            format!("{key}\t{kind}\t{value}")
        };
        let lines: Vec<String> = made.keys.iter().filter(|key| !ours.contains(&key.0.as_str())).map(spelled).collect();
        let theirs = fs::read_to_string(testdata(&format!("gguf/keys-{name}.tsv"))).unwrap();
        assert_eq!(lines, theirs.lines().collect::<Vec<_>>(), "{name}");
    }
}

/// Types, sizes and order of every tensor of the whole models, from headers alone. The oracle is `llama-quantize --dry-run`: the types in
/// `gguf/types-*.tsv`, and the sizes that it printed, in MiB.
#[test]
fn a_dry_run_of_whole_models_has_llama_cpp_s_types_and_sizes() {
    let sizes: [(&str, [(&str, u64); 5]); 2] = [
        ("scout", [("q8_0", 109_213), ("q6_k", 84_323), ("q5_k_m", 72_988), ("q4_k_m", 62_320), ("mxfp4", 60_253)]),
        ("maverick", [("q8_0", 406_078), ("q6_k", 313_530), ("q4_k_m", 231_508), ("q4_0", 215_266), ("q2_k", 138_886)]),
    ];
    let scratch = Scratch::new();
    let kinds: BTreeMap<String, (u64, u64)> =
        gguf_file::kinds().into_values().map(|(name, elements, bytes)| (name, (elements, bytes))).collect();
    for (model, presets) in sizes {
        let source = scratch.path(model);
        if model == "scout" {
            l4_testkit::write_sparse_scout(&source)
        } else {
            l4_testkit::write_sparse_maverick(&source)
        }
        .unwrap();
        let text = fs::read_to_string(testdata(&format!("gguf/types-{model}.tsv"))).unwrap();
        let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split('\t').collect()).collect();
        for (preset, mebibytes) in presets {
            let flags = format!("--dry-run --json --scheme {preset}");
            let report = run(&mut quantize(&source, &scratch.path("out.gguf"), &flags));
            // The disk of a test has no room for it.
            let report = report.json();
            let wanted = if preset == "mxfp4" { "MXFP4_MOE".to_owned() } else { preset.to_uppercase() };
            let column = rows[0].iter().position(|&cell| cell == wanted).unwrap();
            let tensors = report["tensor_list"].as_array().unwrap();
            assert_eq!(tensors.len(), rows.len() - 1);
            let mut total = 0;
            for (tensor, row) in tensors.iter().zip(&rows[1..]) {
                let extents: Vec<u64> =
                    tensor["extents"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
                let all: Vec<u64> = row[1].split(',').map(|n| n.parse().unwrap()).collect();
                let kind = tensor["dtype"].as_str().unwrap();
                assert_eq!(
                    (tensor["name"].as_str().unwrap(), kind.to_lowercase()),
                    (row[0], row[column].to_lowercase())
                );
                assert_eq!(extents, all[..extents.len()], "{}", row[0]);
                let (elements, bytes) = kinds[kind];
                let bytes = extents.iter().product::<u64>() / elements * bytes;
                assert_eq!(tensor["bytes"], bytes, "{}", row[0]);
                total += bytes;
            }
            assert_eq!(report["tensor_bytes"], total);
            assert_eq!((total as f64 / f64::from(1 << 20)).round() as u64, mebibytes, "{model} {preset}");
            assert!(report["memory_bytes"].as_u64().unwrap() < 1 << 30, "{}", report["memory_bytes"]);
        }
    }
}

#[test]
fn the_layout_of_the_source_and_the_machine_do_not_show() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { layers: 2, ..random() });
    let file = |name: &str, source: &Path, flags: &str| {
        let out = scratch.path(name);
        run(&mut quantize(source, &out, &format!("--scheme q4_k_m {flags}"))).ok();
        fs::read(out).unwrap()
    };
    let expected = file("a.gguf", &source, "--threads 1");
    assert!(expected == file("b.gguf", &source, "--threads 7 --memory 200M"));
    assert!(expected == file("c.gguf", &source, "--threads 2 --kernels scalar"));
    let unfused = scratch.path("unfused");
    run(l4tool("convert --to hf --experts per-expert").arg(&source).arg("-o").arg(&unfused)).ok();
    assert!(expected == file("d.gguf", &unfused, ""));
}

#[test]
fn a_quantized_source_is_dequantized_and_not_quantized_twice_unasked() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { layers: 2, ..random() });
    let (int4, plain) = (scratch.path("int4"), scratch.path("plain"));
    run(&mut quantize(&source, &int4, "--int4 --method rtn")).ok();
    run(l4tool("convert --to hf").arg(&int4).arg("-o").arg(&plain)).ok();
    let (of_int4, of_plain) = (scratch.path("int4.gguf"), scratch.path("plain.gguf"));
    convert(&int4, &of_int4, "").ok();
    convert(&plain, &of_plain, "").ok();
    assert!(fs::read(&of_int4).unwrap() == fs::read(&of_plain).unwrap());
    let out = scratch.path("again.gguf");
    run(&mut quantize(&int4, &out, "--scheme q4_0")).refused(&["is quantized already", "--requantize"]);
    run(&mut quantize(&int4, &out, "--scheme q4_0 --requantize")).ok();
    let direct = scratch.path("direct.gguf");
    run(&mut quantize(&plain, &direct, "--scheme q4_0")).ok();
    let (again, direct) = (gguf_file::read(&out), gguf_file::read(&direct));
    for (a, b) in again.tensors.iter().zip(&direct.tensors) {
        assert!(a.name == b.name && a.kind == b.kind && a.data == b.data, "{}", a.name);
    }
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { layers: 4, ..random() });
    let flags = "--scheme q4_k_m --threads 1";
    let (expected, out) = (scratch.path("expected.gguf"), scratch.path("out.gguf"));
    run(&mut quantize(&source, &expected, flags)).ok();
    for lines in [2, 30, 70] {
        let mut child = start(&mut quantize(&source, &out, flags));
        assert!(wait_until(&mut child, || journal_lines(&out) >= lines), "the run is too short for this test");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!out.exists());
    }
    run(&mut quantize(&source, &out, "--scheme q6_k")).refused(&["scheme"]);
    let report = run(quantize(&source, &out, flags).arg("--json")).ok().json();
    assert_eq!(report["resumed"], true);
    assert!(fs::read(&out).unwrap() == fs::read(&expected).unwrap());
    assert!(!partial(&out).exists());
    let beside = |path: &Path| fs::read(format!("{}.l4tool.manifest.json", path.display())).unwrap();
    assert!(
        String::from_utf8(beside(&out)).unwrap()
            == String::from_utf8(beside(&expected)).unwrap().replace("expected.gguf", "out.gguf")
    );
    // In place of another one, in one step.
    run(&mut quantize(&source, &out, "--scheme q8_0")).refused(&["exists"]);
    run(&mut quantize(&source, &out, "--scheme q8_0 --force")).ok();
    assert_eq!(gguf_file::read(&out).tensor("output.weight").kind, "Q8_0");
    assert!(!partial(&out).exists());
}

#[test]
fn files_of_at_most_a_size_hold_together_what_one_holds() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { layers: 2, ..random() });
    let (one, folder) = (scratch.path("one.gguf"), scratch.path("parts"));
    run(&mut quantize(&source, &one, "--scheme q8_0")).ok();
    run(&mut quantize(&source, &folder, "--scheme q8_0 --split-max-size 1M")).ok();
    let one = gguf_file::read(&one);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    paths.sort();
    let parts: Vec<GgufFile> = paths.iter().map(|path| gguf_file::read(path)).collect();
    assert!(parts.len() > 2);
    for (number, (part, path)) in parts.iter().zip(&paths).enumerate() {
        let name = format!("parts-{:05}-of-{:05}.gguf", number + 1, parts.len());
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), name);
        let own = |key: &str| part.keys.iter().find(|entry| entry.0 == key).cloned().unwrap();
        let is = |kind: &str, value: usize| (kind.to_owned(), Value::One(value.to_string()));
        let entry = |key: &str| (own(key).1, own(key).2);
        assert_eq!(entry("split.no"), is("UINT16", number));
        assert_eq!(entry("split.count"), is("UINT16", parts.len()));
        assert_eq!(entry("split.tensors.count"), is("INT32", one.tensors.len()));
        assert_eq!(part.keys.len(), if number == 0 { one.keys.len() + 3 } else { 3 });
        let bytes: usize = part.tensors.iter().map(|tensor| tensor.data.len()).sum();
        assert!(bytes <= 1 << 20 || part.tensors.len() == 1, "{bytes}");
    }
    let all: Vec<_> = parts.iter().flat_map(|part| &part.tensors).collect();
    assert_eq!(all.len(), one.tensors.len());
    for (part, whole) in all.iter().zip(&one.tensors) {
        assert!(part.name == whole.name && part.data == whole.data, "{}", whole.name);
    }
    assert!(folder.join("l4tool.manifest.json").exists() && folder.join("NOTICE").exists());
    // Both hold up: checksums, values, every weight.
    for (out, checksums) in [(&folder, paths.len() + 1), (&scratch.path("one.gguf"), 1)] {
        let report = run(l4tool("verify --json").arg(out)).ok().json();
        assert_eq!(report["checksums"], checksums, "{report}");
    }
}

#[test]
fn experts_without_data_get_what_their_layer_sees() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { layers: 2, ..random() });
    let plain = scratch.path("plain.gguf");
    convert(&source, &plain, "").ok();
    let imatrix = scratch.path("imatrix.gguf");
    gguf_file::write_imatrix(&gguf_file::read(&plain), &imatrix);
    let made = |name: &str, flags: &str| {
        let out = scratch.path(name);
        let mut command = quantize(&source, &out, &format!("--json --scheme q4_0 {flags}"));
        let report = run(command.arg("--stats").arg(&imatrix)).ok().json();
        (gguf_file::read(&out), report)
    };
    let (pooled, report) = made("pooled.gguf", "");
    let (ones, _) = made("ones.gguf", "--imatrix-fallback ones");
    // The last of four experts has none, in both layers.
    assert_eq!(report["experts_without_data"], 2);
    let name = "blk.1.ffn_up_exps.weight";
    let (pooled, ones) = (&pooled.tensor(name).data, &ones.tensor(name).data);
    let expert = pooled.len() / 4;
    assert!(pooled[..3 * expert] == ones[..3 * expert] && pooled[3 * expert..] != ones[3 * expert..]);
    let weights = report["weights"].as_array().unwrap();
    let policy = |name: &str| weights.iter().find(|weight| weight["name"] == name).unwrap()["policy"].clone();
    assert_eq!(policy("layers.1.feed_forward.experts.3.up_proj"), "importance of the layer");
    assert_eq!(policy("layers.1.feed_forward.experts.2.up_proj"), "importance");
    assert_eq!(policy("lm_head"), "plain");
}

#[test]
fn rules_go_before_the_preset() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { layers: 2, ..random() });
    let recipe = scratch.path("recipe.toml");
    let write = |rules: &str| fs::write(&recipe, format!("preset = 'q4_0'\n{rules}")).unwrap();
    let flags = format!("--recipe {} --force", recipe.display());
    let out = scratch.path("out.gguf");
    write("[[rule]]\nmatch = 'self_attn'\nscheme = 'q8_0'\n[[rule]]\nmatch = 'lm_head|router'\nkeep = true");
    run(&mut quantize(&source, &out, &flags)).ok();
    let made = gguf_file::read(&out);
    let kind = |name: &str| made.tensor(name).kind.as_str();
    assert_eq!((kind("blk.0.attn_v.weight"), kind("output.weight")), ("Q8_0", "BF16"));
    assert_eq!((kind("blk.0.ffn_gate_inp.weight"), kind("blk.1.ffn_up_exps.weight")), ("F32", "Q4_0"));
    write("[[rule]]\nmatch = 'experts\\.1\\.'\nscheme = 'q8_0'");
    run(&mut quantize(&source, &out, &flags)).refused(&["lie in one tensor of GGUF", "`blk.0.ffn_down_exps.weight`"]);
    write("[[rule]]\nmatch = 'nothing'\nscheme = 'q8_0'");
    run(&mut quantize(&source, &out, &flags)).refused(&["`nothing` matches no weight"]);
    run(&mut quantize(&source, &out, "--scheme q4_k_m --pure --force --exclude ^layers\\.0\\.")).ok();
    let made = gguf_file::read(&out);
    let kind = |name: &str| made.tensor(name).kind.as_str();
    assert_eq!(
        (kind("output.weight"), kind("blk.0.attn_q.weight"), kind("blk.1.attn_v.weight")),
        ("Q4_K", "BF16", "Q4_K")
    );
}

#[test]
fn what_gguf_cannot_hold_is_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out.gguf");
    let refused = |name: &str, spec: &Spec, flags: &str, words: &[&str]| {
        let source = scratch.checkpoint(name, spec);
        run(&mut quantize(&source, &out, &format!("--scheme q4_0 {flags}"))).refused(words);
        common::assert_nothing(&out);
    };
    let small = || Spec { layers: 2, hidden_size: 64, intermediate_size: 32, ..random() };
    refused(
        "norm",
        &Spec { use_qk_norm: false, ..small() },
        "",
        &["llama.cpp cannot run this model", "4, and does not"],
    );
    refused("none", &Spec { tokenizer: false, ..small() }, "", &["tokenizer.json` is missing"]);
    refused("split", &small(), "--split-max-size 1G", &["is one file", "without `.gguf`"]);
    refused("method", &small(), "--method rtn", &["`--method` does not go with the scheme q4_0"]);
    refused("fallback", &small(), "--imatrix-fallback ones", &["name some with `--stats`"]);
    let source = scratch.checkpoint("cut", &small());
    let text = fs::read_to_string(source.join("tokenizer.json")).unwrap();
    fs::write(source.join("tokenizer.json"), text.replace("{1,3}", "{1,2}")).unwrap();
    run(&mut quantize(&source, &out, "--scheme q4_0")).refused(&["cuts texts in another way", "--pre-tokenizer"]);
    run(&mut quantize(&source, &out, "--scheme q4_0 --pre-tokenizer gpt-4o --name Mine")).ok();
    let made = gguf_file::read(&out);
    assert_eq!(made.key("tokenizer.ggml.pre"), Some(&Value::One("gpt-4o".into())));
    assert_eq!(made.key("general.name"), Some(&Value::One("Mine".into())));
    run(&mut quantize(&source, &out, "--scheme q4_0 --pre-tokenizer gpt-4o")).refused(&["exists", "--force"]);
    fs::write(&out, "something else").unwrap();
    let force = "--scheme q4_0 --pre-tokenizer gpt-4o --force";
    run(&mut quantize(&source, &out, force)).refused(&["no GGUF file"]);
    let warned = run(&mut quantize(&testdata("tiny-scout"), &scratch.path("b.gguf"), "--scheme q4_0"));
    assert!(
        warned.stderr.contains("chunks of 8192 for granted") && warned.stderr.contains("mmproj"),
        "{}",
        warned.stderr
    );
    warned.ok();
}
