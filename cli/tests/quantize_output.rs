//! What `quantize` writes: the same bytes however it is run, and in every shape what the source had, to within what the
//! scheme can say.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::oracle::{check_matrix, check_output, floats};
use common::{
    Scratch, assert_same, contents, edit, quantize, read_file, read_json, read_model, run, tensor, testdata, tiny,
};
use l4_testkit::{Dtype, Shards, Spec, Style};

/// Divides by groups and blocks of 128, in more than one of each.
fn wide() -> Spec {
    Spec {
        hidden_size: 256,
        intermediate_size: 128,
        intermediate_size_mlp: 128,
        experts: 5,
        layers: 2,
        outliers: true,
        ..Spec::default()
    }
}

#[test]
fn threads_memory_and_kernels_do_not_change_a_byte() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &wide());
    let mut variants = vec!["--threads 2 --memory 256M", "--threads 7 --memory 4G"];
    for (name, flag, there) in [
        ("avx2", "--kernels avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("avx512", "--kernels avx512", std::arch::is_x86_feature_detected!("avx512f")),
    ] {
        if there {
            variants.push(flag);
        } else {
            eprintln!("SKIPPED: this machine has no {name}");
        }
    }
    let schemes = ["--int4", "--int4 --method rtn", "--scheme w4a16-asym", "--fp8", "--scheme fp8-block"];
    for scheme in schemes {
        let expected = scratch.path("expected");
        run(&mut quantize(&source, &expected, &format!("{scheme} --threads 1 --kernels scalar"))).ok();
        for variant in &variants {
            let out = scratch.path("out");
            run(&mut quantize(&source, &out, &format!("{scheme} {variant}"))).ok();
            assert_same(&expected, &out, &format!("{scheme} {variant}"));
            fs::remove_dir_all(out).unwrap();
        }
        fs::remove_dir_all(expected).unwrap();
    }
}

#[test]
fn how_the_source_is_cut_into_files_does_not_matter() {
    let scratch = Scratch::new();
    let single = scratch.checkpoint("single", &wide());
    let split = scratch.checkpoint("split", &Spec { shards: Shards::Split(7), ..wide() });
    let [a, b, c] = ["a", "b", "c"].map(|name| scratch.path(name));
    run(&mut quantize(&single, &a, "--int4")).ok();
    run(&mut quantize(&split, &b, "--int4")).ok();
    run(&mut quantize(&single.join("model.safetensors"), &c, "--int4")).ok();
    assert_same(&a, &c, "a file and its folder");
    // The manifest names the source's files.
    for out in [&a, &b] {
        assert_eq!(read_json(&out.join("l4tool.manifest.json"))["command"], "quantize");
        fs::remove_file(out.join("l4tool.manifest.json")).unwrap();
    }
    assert_same(&a, &b, "single and split");
}

#[test]
fn several_output_files_hold_every_tensor_once() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &wide());
    for scheme in ["--int4", "--fp8"] {
        let [whole, parts] = ["whole", "parts"].map(|name| scratch.path(&format!("{name}{scheme}")));
        run(&mut quantize(&source, &whole, scheme)).ok();
        run(&mut quantize(&source, &parts, &format!("{scheme} --shard-size 300kB"))).ok();
        let index = read_json(&parts.join("model.safetensors.index.json"));
        let listed = index["weight_map"].as_object().unwrap();
        let mut files: Vec<&str> = listed.values().map(|file| file.as_str().unwrap()).collect();
        files.sort_unstable();
        files.dedup();
        assert!(files.len() >= 4, "{files:?}");
        for (number, name) in files.iter().enumerate() {
            assert_eq!(*name, format!("model-{:05}-of-{:05}.safetensors", number + 1, files.len()));
            let tensors = read_file(&parts.join(name));
            assert!(tensors.iter().all(|tensor| listed[&tensor.name] == *name), "{name}");
            let bytes: usize = tensors.iter().map(|tensor| tensor.data.len()).sum();
            let modules: std::collections::BTreeSet<_> =
                tensors.iter().map(|tensor| tensor.name.rsplit_once('.').unwrap().0).collect();
            assert!(bytes <= 300_000 || modules.len() == 1, "{name}: {bytes}");
        }
        let (one, many) = (read_model(&whole), read_model(&parts));
        assert_eq!(one, many);
        assert!(many.keys().eq(listed.keys()));
        let total: usize = many.values().map(|tensor| tensor.data.len()).sum();
        assert_eq!(index["metadata"]["total_size"], total);
    }
}

/// Shapes unlike the published models', with the flags to try on them.
fn odd_shapes() -> Vec<(Spec, &'static str)> {
    let odd = Spec { experts: 3, heads: 6, kv_heads: 3, head_dim: 10, ..tiny() };
    vec![
        (
            Spec { hidden_size: 72, intermediate_size: 48, intermediate_size_mlp: 120, ..odd.clone() },
            "--int4 --group-size 24",
        ),
        (
            Spec { hidden_size: 60, intermediate_size: 100, intermediate_size_mlp: 20, ..odd.clone() },
            "--int4 --group-size 20",
        ),
        (
            Spec { hidden_size: 60, intermediate_size: 100, intermediate_size_mlp: 20, ..odd.clone() },
            "--scheme w4a16-asym --group-size 20",
        ),
        (
            Spec {
                hidden_size: 96,
                intermediate_size: 160,
                intermediate_size_mlp: 224,
                experts: 7,
                interleave_moe_layer_step: 2,
                layers: 4,
                dtype: Dtype::F16,
                style: Style::Transformers5,
                text_only: true,
                ..odd.clone()
            },
            "--scheme w4a16-asym --group-size 32",
        ),
        (
            Spec {
                hidden_size: 72,
                intermediate_size: 50,
                intermediate_size_mlp: 34,
                interleave_moe_layer_step: 3,
                layers: 6,
                dtype: Dtype::F32,
                style: Style::Published,
                ..odd.clone()
            },
            "--fp8",
        ),
        (
            Spec {
                hidden_size: 200,
                intermediate_size: 136,
                intermediate_size_mlp: 264,
                experts: 5,
                interleave_moe_layer_step: 2,
                style: Style::Published,
                ..odd.clone()
            },
            "--scheme fp8-block",
        ),
        (
            Spec {
                hidden_size: 130,
                intermediate_size: 257,
                intermediate_size_mlp: 3,
                experts: 1,
                dtype: Dtype::F16,
                ..odd.clone()
            },
            "--scheme fp8-block",
        ),
        (
            Spec { hidden_size: 64, intermediate_size: 17, intermediate_size_mlp: 1, text_only: true, ..odd.clone() },
            "--fp8",
        ),
        (
            Spec {
                hidden_size: 96,
                intermediate_size: 32,
                experts: 9,
                text_only: true,
                dtype: Dtype::F32,
                head_dim: 16,
                ..odd
            },
            r"--int4 --group-size 32 --include ^layers\..*_proj$",
        ),
    ]
}

#[test]
fn shapes_of_all_kinds_come_out_right() {
    for (spec, flags) in odd_shapes() {
        let scratch = Scratch::new();
        let (source, out) = (scratch.checkpoint("source", &spec), scratch.path("out"));
        let dry = run(&mut quantize(&source, &out, &format!("{flags} --dry-run --json"))).ok().json();
        let report = run(&mut quantize(&source, &out, &format!("{flags} --method rtn --json"))).ok().json();
        let schemes = check_output(&out, &source);
        let quantized: usize = schemes.iter().filter(|(name, _)| **name != "plain").map(|(_, count)| count).sum();
        assert_eq!(report["weights"].as_array().unwrap().len(), quantized, "{flags}");
        assert!(quantized >= 3 * spec.experts, "{flags}: {schemes:?}");
        // The dry run knew every file to the byte.
        let sizes: BTreeMap<String, u64> = contents(&out)
            .into_iter()
            .filter(|(name, _)| name.extension().is_some_and(|end| end == "safetensors"))
            .map(|(name, bytes)| (name.to_str().unwrap().to_owned(), bytes.len() as u64))
            .collect();
        let planned = dry["files"].as_array().unwrap().iter();
        let planned: BTreeMap<String, u64> =
            planned.map(|file| (file["name"].as_str().unwrap().to_owned(), file["bytes"].as_u64().unwrap())).collect();
        assert_eq!(sizes, planned, "{flags}");
        assert_eq!(dry["bytes_out"], sizes.values().sum::<u64>(), "{flags}");
        assert_eq!(report["bytes_out"], dry["bytes_out"]);
    }
}

#[test]
fn extreme_weights_come_out_right() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    edit(&source, |tensors| {
        // Zero rows, rows and groups of one value, the smallest and the largest numbers of BF16.
        let linear = tensor(tensors, "layers.0.feed_forward.shared_expert.up_proj.weight");
        let mut row =
            |row: usize, value: u16| (0..64).for_each(|column| linear.set(row * 64 + column, &value.to_le_bytes()));
        row(0, 0);
        row(1, 0x8000);
        row(2, 0x3f80);
        row(3, 0xbf80);
        row(4, 0x0001);
        row(5, 0x7e00);
        let fused = tensor(tensors, "layers.1.feed_forward.experts.down_proj");
        (0..64).for_each(|out| fused.set(3 * 32 * 64 + out, &0x4f00_u16.to_le_bytes()));
    });
    for flags in ["--int4 --group-size 32", "--scheme w4a16-asym --group-size 32", "--fp8", "--scheme fp8-block"] {
        for method in ["rtn", "auto"] {
            let out = scratch.path("out");
            run(&mut quantize(&source, &out, &format!("{flags} --method {method} --force"))).ok();
            let model = read_model(&out);
            let name = "language_model.model.layers.0.feed_forward.shared_expert.up_proj";
            let scales = floats(&model[&format!("{name}.weight_scale")]);
            assert!(scales.iter().all(|scale| scale.is_finite() && *scale > 0.0), "{flags} {method}: {scales:?}");
            if method == "rtn" && flags != "--scheme fp8-block" && !flags.contains("asym") {
                check_matrix(&model, &read_model(&source), name);
            }
        }
    }
}

#[test]
fn a_recipe_mixes_schemes_and_keeps() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { layers: 4, interleave_moe_layer_step: 2, ..tiny() });
    let (out, recipe) = (scratch.path("out"), scratch.path("recipe.toml"));
    let text = r"
        [[rule]]
        match = 'feed_forward\..*_proj$'
        scheme = 'fp8-dynamic'
        method = 'rtn'
        [[rule]]
        match = 'experts\.\d+\.'
        scheme = 'w4a16'
        group_size = 32
        method = 'rtn'
        [[rule]]
        match = 'self_attn.(q|k|v)_proj'
        scheme = 'fp8-dynamic'
        method = 'rtn'
        [[rule]]
        match = 'layers\.3\.feed_forward\.experts\.2\.'
        keep = true
        [[rule]]
        match = '^layers\.0\.'
        keep = true
    ";
    fs::write(&recipe, text).unwrap();
    let flags = format!(r"--recipe {} --exclude layers\.1\.feed_forward\.shared --json", recipe.display());
    let report = run(&mut quantize(&source, &out, &flags)).ok().json();
    let schemes = check_output(&out, &source);
    // Layers 1 and 3 have 4 experts, of which one is kept, and a shared expert each; layer 2 is dense, layer 0 is kept.
    // Attention of layers 1 to 3: three of four matrices.
    assert_eq!(schemes["w4a16"], 3 * 7);
    assert_eq!(schemes["fp8-dynamic"], 3 + 3 + 3 * 3);
    assert_eq!(report["scheme"], "fp8-dynamic+w4a16-g32");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("layers.3") && warnings.contains("one scheme per layer of experts"), "{warnings}");
    assert_eq!(read_json(&out.join("config.json"))["quantization_config"]["format"], "mixed-precision");
    // The kept expert: element by element from the fused tensor, which `check_output` did; here that it was one.
    let kept = "language_model.model.layers.3.feed_forward.experts.2.gate_proj.weight";
    assert_eq!(read_model(&out)[kept].dtype, "BF16");
}

#[test]
fn layers_and_experts_with_two_digits_are_told_apart() {
    let scratch = Scratch::new();
    let small = Spec { hidden_size: 32, intermediate_size: 32, intermediate_size_mlp: 32, head_dim: 8, ..tiny() };
    let source = scratch.checkpoint(
        "source",
        &Spec { layers: 12, experts: 12, text_only: true, interleave_moe_layer_step: 2, ..small },
    );
    let (out, recipe) = (scratch.path("out"), scratch.path("recipe.toml"));
    let text = r"
        [[rule]]
        match = 'feed_forward\..*_proj$'
        scheme = 'fp8-dynamic'
        method = 'rtn'
        [[rule]]
        match = 'experts\.1\.'
        keep = true
        [[rule]]
        match = '^layers\.(1|2)\.'
        scheme = 'w4a16'
        group_size = 32
        method = 'rtn'
        [[rule]]
        match = 'router|norm'
        keep = true
    ";
    fs::write(&recipe, text).unwrap();
    run(&mut quantize(&source, &out, &format!("--recipe {}", recipe.display()))).ok();
    let schemes = check_output(&out, &source);
    // Layer 1: experts, shared expert and attention; layer 2: dense and attention. Of the other layers five have 11
    // experts that are not kept and a shared one, and five are dense.
    assert_eq!(schemes["w4a16"], 13 * 3 + 4 + 3 + 4);
    assert_eq!(schemes["fp8-dynamic"], 5 * 12 * 3 + 5 * 3);
}

#[test]
fn quantized_weights_that_are_kept_stay_bit_for_bit() {
    for (name, flags) in [
        ("ct-fp8-channel", "--int4 --group-size 32"),
        ("ct-fp8-tensor", "--int4 --group-size 32"),
        ("ct-fp8-block", "--fp8"),
        ("ct-w4a16", "--fp8"),
        ("ct-w4a16-asym", "--fp8"),
    ] {
        let scratch = Scratch::new();
        let (source, out) = (testdata(name), scratch.path("out"));
        let flags = format!(r"{flags} --requantize --include ^layers\.1\.feed_forward\.shared_expert --json");
        let report = run(&mut quantize(&source, &out, &flags)).ok().json();
        assert_eq!(report["weights"].as_array().unwrap().len(), 3, "{name}");
        let (before, after) = (read_file(&source.join("model.safetensors")), read_model(&out));
        let touched = |tensor: &str| tensor.contains("layers.1.feed_forward.shared_expert");
        let mut kept = 0;
        for tensor in before.iter().filter(|tensor| !touched(&tensor.name)) {
            assert_eq!(after[&tensor.name], *tensor, "{name}");
            kept += 1;
        }
        assert_eq!(kept, after.keys().filter(|tensor| !touched(tensor)).count(), "{name}");
        let config = read_json(&out.join("config.json"))["quantization_config"].take();
        assert_eq!(config["config_groups"].as_object().unwrap().len(), 2, "{name}: {config}");
    }
}
