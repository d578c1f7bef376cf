//! What `quantize` refuses: exit code 2, an error that names file, tensor and value, and neither OUT nor OUT.partial.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{
    Done, Scratch, Tensor, assert_nothing, contents, edit, edit_config, l4tool, quantize, run, tensor, testdata, tiny,
};
use l4_testkit::{Shards, Spec};

const INT4: &str = "--int4 --group-size 32";

/// Runs and asserts that nothing was made.
#[track_caller]
fn refused(source: &Path, out: &Path, flags: &str, words: &[&str]) -> Done {
    let done = run(&mut quantize(source, out, flags)).refused(words);
    assert_nothing(out);
    done
}

/// A tiny checkpoint, changed, must be refused.
#[track_caller]
fn refused_when(change: impl FnOnce(&mut Vec<Tensor>), flags: &str, words: &[&str]) {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    edit(&source, change);
    refused(&source, &scratch.path("out"), flags, words);
}

#[test]
fn experts_that_are_missing() {
    let fused = "layers.1.feed_forward.experts.gate_up_proj";
    let without = |tensors: &mut Vec<Tensor>| tensors.retain(|tensor| !tensor.name.ends_with(fused));
    refused_when(without, INT4, &["layers.1.feed_forward.experts.0.gate_proj", "missing", "hint:"]);
    // Fewer experts than the config promises.
    let fewer = |tensors: &mut Vec<Tensor>| {
        let tensor = tensor(tensors, fused);
        tensor.data.truncate(tensor.data.len() / 4 * 3);
        tensor.shape[0] = 3;
    };
    refused_when(fewer, INT4, &["layers.1.feed_forward.experts", "[3, 64, 64]", "[4, 64, 64]"]);
    // One expert of a checkpoint that has them one by one.
    let scratch = Scratch::new();
    let source = scratch.testdata("ct-w4a16");
    let mut gone = String::new();
    edit(&source, |tensors| {
        let part = tensors.iter().position(|t| t.name.contains(".experts.1.up_proj.weight_packed")).unwrap();
        gone = tensors.remove(part).name;
    });
    let logical = gone[gone.find("layers.").unwrap()..].strip_suffix(".weight_packed").unwrap();
    refused(&source, &scratch.path("out"), "--fp8 --requantize", &[logical, "hint:"]);
}

#[test]
fn values_that_are_not_finite() {
    const NAN: [u8; 2] = 0x7fc0_u16.to_le_bytes();
    const INFINITE: [u8; 2] = 0xff80_u16.to_le_bytes();
    // [4, 64, 64], gate in the first 32 columns: expert 2, input 5, column 40 is output 8 of its up_proj.
    let at = (2 * 64 + 5) * 64 + 40;
    let cases = [
        (
            "layers.1.feed_forward.experts.gate_up_proj",
            at,
            "layers.1.feed_forward.experts.2.up_proj",
            "output 8, input 5",
        ),
        (
            "layers.0.feed_forward.shared_expert.up_proj.weight",
            3 * 64 + 7,
            "layers.0.feed_forward.shared_expert.up_proj",
            "output 3, input 7",
        ),
        ("layers.0.self_attn.q_proj.weight", 130, "layers.0.self_attn.q_proj", "element 130"),
        ("model.norm.weight", 63, "norm", "element 63"),
        ("vision_model.class_embedding", 0, "vision_model.class_embedding", "element 0"),
    ];
    for (name, element, logical, place) in cases {
        for (value, shown) in [(NAN, "NaN"), (INFINITE, "-inf")] {
            for flags in [
                INT4,
                "--int4 --group-size 32 --method rtn",
                "--scheme w4a16-asym --group-size 32",
                "--fp8",
                "--scheme fp8-block",
            ] {
                let poison = |tensors: &mut Vec<Tensor>| tensor(tensors, name).set(element, &value);
                refused_when(poison, flags, &["model.safetensors", logical, place, shown, "hint:"]);
            }
        }
    }
    // An expert that is kept is looked at, too.
    let poison = |tensors: &mut Vec<Tensor>| tensor(tensors, cases[0].0).set(at, &NAN);
    refused_when(
        poison,
        r"--fp8 --exclude \.2\.up_proj",
        &["layers.1.feed_forward.experts.2.up_proj", "NaN", "output 8, input 5"],
    );
}

#[test]
fn options_that_fit_no_weight() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    fs::copy(testdata("tiny-scout/tokenizer.json"), source.join("tokenizer.json")).unwrap();
    let out = scratch.path("out");
    let cases: &[(&str, &[&str])] = &[
        ("--int4", &["group size of 128", "64 inputs of `layers.0.feed_forward.", "hint: use `--group-size"]),
        ("--int4 --group-size 48", &["48", "64 inputs"]),
        ("--int4 --group-size 0", &["group size of 0"]),
        ("--fp8 --group-size 32", &["fp8-dynamic", "32"]),
        ("--fp8 --include layers.7", &["`layers.7` matches no weight", "hint:"]),
        ("--fp8 --exclude lm_haed", &["`lm_haed` matches no weight", "hint:"]),
        ("--fp8 --include lm_head", &["`lm_head` matches only", "hint:"]),
        ("--fp8 --include router", &["layers.0.feed_forward.router", "hint:"]),
        ("--fp8 --include (", &["--include", "`(` is not a regex"]),
        ("--fp8 --exclude [z-a]", &["--exclude", "`[z-a]` is not a regex"]),
        ("--fp8 --exclude .", &["nothing is left to quantize", "hint:"]),
        ("--scheme int3", &["unknown scheme `int3`", "w4a16"]),
        ("--scheme fp8-static", &["fp8-static", "calibration", "fp8-dynamic"]),
        ("--fp8 --method gptq", &["fp8-dynamic", "gptq is for INT4"]),
        ("--fp8 --method search", &["without data", "fp8-dynamic", "rtn only"]),
        ("--scheme fp8-block --method search --calibrate", &["fp8-block", "rtn only"]),
        ("--int4 --group-size 32 --method awq", &["awq", "calibration", "--data", "hint:"]),
        ("--int4 --group-size 32 --method awq --stats nowhere.stats", &["nowhere.stats"]),
        ("--int4 --group-size 32 --method gptq", &["gptq", "calibration", "--data", "hint:"]),
        ("--int4 --samples 4", &["--samples", "--data", "--calibrate", "hint:"]),
        ("--fp8 --calibrate", &["makes use of calibration data", "hint:"]),
        ("--int4 --group-size 32 --method rtn --calibrate", &["makes use of calibration data", "hint:"]),
        ("--int4 --group-size 32 --calibrate --damping=-1", &["damping", "hint:"]),
        ("--int4 --group-size 32 --data nowhere.txt", &["nowhere.txt"]),
        ("--int4 --group-size 32 --stats nowhere.stats", &["nowhere.stats"]),
        ("--fp8 --method awq", &["awq is for INT4"]),
        ("--fp8 --method magic", &["magic", "search"]),
        ("--fp8 --memory 1M", &["1048576", "hint: use `--memory"]),
        ("--fp8 --memory 0", &["--memory"]),
        ("--fp8 --threads 0", &["--threads"]),
        ("--fp8 --kernels sse", &["sse"]),
        ("", &["--int4"]),
        ("--int4 --fp8", &["--fp8"]),
    ];
    for (flags, words) in cases {
        refused(&source, &out, flags, words);
        // A dry run refuses the same.
        run(&mut quantize(&source, &out, &format!("{flags} --dry-run"))).refused(words);
    }
}

#[test]
fn recipes_that_are_wrong() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    let (out, recipe) = (scratch.path("out"), scratch.path("recipe.toml"));
    let flags = format!("--recipe {}", recipe.display());
    refused(&source, &out, &flags, &["recipe.toml", "No such file"]);
    let cases: &[(&str, &[&str])] = &[
        ("", &["[[rule]]"]),
        ("[[rule", &["line 1"]),
        ("[[rule]]\nmatch = 'layers'\nscheme = 'int3'", &["rule 1", "int3"]),
        ("[[rule]]\nmatch = '('\nkeep = true", &["rule 1", "`(` is not a regex"]),
        ("[[rule]]\nmatch = 'layers'\nkeep = true\ncolour = 'red'", &["colour"]),
        ("[[rule]]\nmatch = 'layers'\nscheme = 'fp8-dynamic'\nmethod = 'magic'", &["rule 1", "magic"]),
    ];
    for (text, words) in cases {
        fs::write(&recipe, text).unwrap();
        refused(&source, &out, &flags, &[&["recipe.toml", "hint:"], *words].concat());
    }
    for (text, words) in [
        ("[[rule]]\nmatch = 'layers.9'\nscheme = 'fp8-dynamic'", "`layers.9` matches no weight"),
        ("[[rule]]\nmatch = 'norm'\nscheme = 'fp8-dynamic'", "`norm` matches only"),
        ("[[rule]]\nmatch = 'layers'\nkeep = true", "nothing is left to quantize"),
        ("[[rule]]\nmatch = 'feed_forward'\nscheme = 'w4a16'", "group size of 128"),
        ("[[rule]]\nmatch = 'feed_forward'\nscheme = 'fp8-static'", "`fp8-static` needs calibration data"),
        (
            "[[rule]]\nmatch = 'feed_forward'\nscheme = 'w4a16'\ngroup_size = 32\nmethod = 'gptq'",
            "`gptq` needs calibration data",
        ),
    ] {
        fs::write(&recipe, text).unwrap();
        refused(&source, &out, &flags, &[words, "hint:"]);
    }
    fs::write(&recipe, [0xff, 0xfe]).unwrap();
    refused(&source, &out, &flags, &["recipe.toml"]);
}

#[test]
fn outputs_that_are_in_the_way() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("nest/source", &tiny());
    let before = contents(&scratch.path("nest"));
    let nest = scratch.path("nest");
    let inside = &["lies inside", "hint:"];
    for flags in [INT4, "--fp8 --force", "--fp8 --restart --force", "--fp8 --dry-run"] {
        run(&mut quantize(&source, &source.join("out"), flags)).refused(inside);
        run(&mut quantize(&source, &source.join("new/../deeper/out"), flags)).refused(inside);
        run(&mut quantize(&source, &source, flags)).refused(&["is the source itself", "hint:"]);
        run(&mut quantize(&source, &nest, flags)).refused(inside);
        // Of a file that was named, its folder is no source; but to replace the folder would remove it.
        run(&mut quantize(&source.join("model.safetensors"), &source, flags)).refused(inside);
        run(&mut quantize(&source, Path::new("/"), flags)).refused(&["/"]);
        run(&mut quantize(&source, &nest.join(".."), flags)).refused(&["name of its own"]);
    }
    // By another way, over a link.
    let link = scratch.path("link");
    std::os::unix::fs::symlink(&source, &link).unwrap();
    run(&mut quantize(&source, &link.join("out"), INT4)).refused(inside);
    run(&mut quantize(&link, &source.join("out"), INT4)).refused(inside);
    let file = scratch.path("file");
    fs::write(&file, "content").unwrap();
    run(&mut quantize(&source, &file, INT4)).refused(&["file` exists", "hint: `--force`"]);

    // Replacing would remove somebody's files.
    let foreign = scratch.path("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    run(&mut quantize(&source, &foreign, &format!("{INT4} --force"))).refused(&["foreign` is no checkpoint", "hint:"]);
    assert!(foreign.join("thesis.txt").exists());
    run(&mut quantize(&source, &file.join("out"), INT4)).refused(&["file/out"]);
    let dangling = scratch.path("dangling");
    std::os::unix::fs::symlink("/nowhere/at/all", &dangling).unwrap();
    run(&mut quantize(&source, &dangling, INT4)).refused(&["dangling` exists"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
    assert_eq!(before, contents(&nest));
    // Folders on the way are made.
    run(&mut quantize(&source, &scratch.path("a/b/out"), INT4)).ok();
    // A place that cannot be written to, whoever runs the test.
    run(&mut quantize(&source, Path::new("/proc/out"), INT4)).refused(&["/proc/out"]);
}

#[test]
fn files_that_are_damaged() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { shards: Shards::Split(3), ..tiny() });
    let out = scratch.path("out");
    let shard = source.join("model-00002-of-00003.safetensors");
    let bytes = fs::read(&shard).unwrap();
    let (whole, cut) = (bytes.len().to_string(), (bytes.len() - 10).to_string());
    fs::write(&shard, &bytes[..bytes.len() - 10]).unwrap();
    refused(&source, &out, INT4, &["model-00002-of-00003.safetensors", &whole, &cut, "hint:"]);
    fs::write(&shard, &bytes[..4]).unwrap();
    refused(&source, &out, INT4, &["model-00002-of-00003.safetensors", "hint:"]);
    fs::remove_file(&shard).unwrap();
    refused(&source, &out, INT4, &["model-00002-of-00003.safetensors", "hint:"]);
    // Not to be read, for root either.
    fs::create_dir(&shard).unwrap();
    refused(&source, &out, INT4, &["model-00002-of-00003.safetensors"]);
    fs::remove_dir(&shard).unwrap();
    fs::write(&shard, &bytes).unwrap();
    fs::remove_file(source.join("config.json")).unwrap();
    refused(&source, &out, INT4, &["config.json"]);
    refused(&scratch.path("nowhere"), &out, INT4, &["nowhere", "No such file"]);
    fs::create_dir(scratch.path("empty")).unwrap();
    refused(&scratch.path("empty"), &out, INT4, &["empty", "hint:"]);
}

#[test]
fn files_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    let weights = source.join("model.safetensors");
    fs::set_permissions(&weights, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&weights).is_ok() {
        eprintln!("SKIPPED: this user may read every file (root), so no file can be made unreadable");
        return;
    }
    refused(&source, &scratch.path("out"), INT4, &["model.safetensors", "ermission denied", "hint:"]);
}

#[test]
fn models_of_another_kind() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    let out = scratch.path("out");
    let config = fs::read(source.join("config.json")).unwrap();
    edit_config(&source, |config| {
        config["architectures"] = serde_json::json!(["LlamaForCausalLM"]);
        config["model_type"] = "llama".into();
    });
    refused(&source, &out, INT4, &["config.json", "llama"]);
    for (text, words) in [("{}", "config.json"), ("[1, 2]", "config.json"), ("{", "config.json"), ("", "config.json")] {
        fs::write(source.join("config.json"), text).unwrap();
        refused(&source, &out, INT4, &[words]);
    }
    fs::write(source.join("config.json"), config).unwrap();
    // No tokenizer is there, and none is needed.
    assert!(!source.join("tokenizer.json").exists());
    run(&mut quantize(&source, &out, INT4)).ok();
}

#[test]
fn weights_that_are_quantized_already() {
    let scratch = Scratch::new();
    for name in ["ct-w4a16", "ct-w4a16-asym", "ct-fp8-channel", "ct-fp8-block", "ct-fp8-tensor"] {
        let source = testdata(name);
        let out = scratch.path(name);
        refused(
            &source,
            &out,
            "--fp8",
            &["layers.0.feed_forward.", "is stored as", "already", "hint: ", "--requantize"],
        );
        let done = run(&mut quantize(&source, &out, "--fp8 --requantize --json")).ok();
        assert_eq!(done.json()["scheme"], "fp8-dynamic", "{name}");
        let config = common::read_json(&out.join("config.json"));
        assert_eq!(config["quantization_config"]["format"], "float-quantized", "{name}");
    }
}

#[test]
fn a_command_line_that_is_not_complete() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    run(&mut l4tool("quantize")).refused_usage();
    run(l4tool("quantize --int4").arg(scratch.path("source"))).refused_usage();
    assert_nothing(&out);
}

impl Done {
    /// Usage errors have exit code 2 as well.
    #[track_caller]
    fn refused_usage(self) {
        assert_eq!(self.code, Some(2));
        assert!(self.stderr.starts_with("error: ") && self.stderr.contains("Usage:"), "{}", self.stderr);
    }
}
