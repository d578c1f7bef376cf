//! `diff`: what it calls identical, equal and different, and the numbers that it gives, on differences made by hand.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::oracle::{floats, source_matrix};
use common::{
    Done, Scratch, Tensor, copy_folder, edit, edit_config, l4tool, quantize, read_file, read_model, run, tensor,
    testdata, tiny, write_file,
};
use l4_testkit::{Shards, Spec};
use serde_json::Value;

fn diff(a: &Path, b: &Path, flags: &str) -> Done {
    run(l4tool("diff").arg(a).arg(b).args(flags.split_whitespace()))
}

/// The report; asserts that exit code and verdict agree.
#[track_caller]
fn report(a: &Path, b: &Path) -> Value {
    let done = diff(a, b, "--json");
    let report = done.json();
    let same = report["same"].as_bool().unwrap();
    assert_eq!(done.code, Some(i32::from(!same)), "{}", done.stderr);
    report
}

/// The weights with this status, by name.
fn with_status(report: &Value, status: &str) -> Vec<String> {
    let weights = report["weights"].as_array().unwrap().iter();
    weights.filter(|weight| weight["status"] == status).map(|weight| weight["name"].as_str().unwrap().into()).collect()
}

fn weight<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["weights"].as_array().unwrap().iter().find(|weight| weight["name"] == name).unwrap()
}

/// Two copies of a small checkpoint.
fn two(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let a = scratch.checkpoint("a", &tiny());
    let b = scratch.path("b");
    copy_folder(&a, &b);
    (a, b)
}

fn bf16(value: f32) -> [u8; 2] {
    ((value.to_bits() >> 16) as u16).to_le_bytes()
}

#[test]
fn the_same_model_in_other_files_is_identical() {
    let scratch = Scratch::new();
    let a = scratch.checkpoint("a", &tiny());
    let b = scratch.checkpoint("b", &Spec { shards: Shards::Split(7), ..tiny() });
    let report = report(&a, &b);
    assert_eq!(report["same"], true);
    assert_eq!(with_status(&report, "identical").len(), report["weights"].as_array().unwrap().len());
    let text = diff(&a, &b, "").ok().stdout;
    assert!(text.ends_with("the same\n"), "{text}");
}

#[test]
fn numbers_of_a_difference_are_what_plain_arithmetic_gives() {
    let scratch = Scratch::new();
    let (a, b) = two(&scratch);
    // A column of the up half of a fused tensor: output 5, inputs 3 and 9 of expert 2.
    let name = "layers.1.feed_forward.experts.2.up_proj";
    let physical = "layers.1.feed_forward.experts.gate_up_proj";
    edit(&b, |tensors| {
        let fused = tensor(tensors, physical);
        let [_, inputs, columns] = fused.shape[..] else { panic!("{:?}", fused.shape) };
        let at = |input: usize| (2 * inputs + input) * columns + columns / 2 + 5;
        fused.set(at(9), &bf16(4.0));
        fused.set(at(3), &bf16(-0.5));
    });
    let report = report(&a, &b);
    assert_eq!(with_status(&report, "different"), [name]);
    assert_eq!(report["components"]["routed_experts"]["different"], 1);
    let found = &weight(&report, name)["difference"];
    let module = format!("language_model.model.{name}");
    let [one, other] = [&a, &b].map(|path| source_matrix(&read_model(path), &module));
    let pairs = || one.iter().zip(&other).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let largest = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let relative = pairs().filter(|(a, b)| a != b).map(|(a, b)| (a - b).abs() / a.abs().max(b.abs()));
    let sum = |term: fn(f64, f64) -> f64| pairs().map(|(a, b)| term(a, b)).sum::<f64>();
    let close = |field: &str, wanted: f64| {
        let is = found[field].as_f64().unwrap();
        assert!((is - wanted).abs() <= 1e-6 * wanted.abs(), "{field}: {is}, {wanted}");
    };
    close("max_abs_error", largest);
    close("max_rel_error", relative.fold(0.0, f64::max));
    close("rel_rms_error", (sum(|a, b| (a - b).powi(2)) / sum(|a, _| a * a)).sqrt());
    close("cosine", sum(|a, b| a * b) / (sum(|a, _| a * a) * sum(|_, b| b * b)).sqrt());
    assert_eq!((&found["differing"], &found["elements"]), (&2.into(), &(one.len()).into()));
    let inputs = 64;
    assert_eq!(found["first"]["index"], serde_json::json!([5, 3]));
    assert_eq!(found["first"]["a"].as_f64().unwrap() as f32, one[5 * inputs + 3]);
    assert_eq!(found["first"]["b"], -0.5);
}

#[test]
fn other_bits_for_the_same_numbers_are_equal() {
    let scratch = Scratch::new();
    let (a, b) = two(&scratch);
    edit(&a, |tensors| tensor(tensors, "layers.0.self_attn.q_proj.weight").set(7, &bf16(0.0)));
    edit(&b, |tensors| {
        tensor(tensors, "layers.0.self_attn.q_proj.weight").set(7, &bf16(-0.0));
        // BF16 is the upper half of F32.
        let wider = tensor(tensors, "layers.1.feed_forward.experts.down_proj");
        wider.data = floats(wider).iter().flat_map(|value| value.to_le_bytes()).collect();
        wider.dtype = "F32".into();
    });
    let report = report(&a, &b);
    assert_eq!(report["same"], true);
    let equal = with_status(&report, "equal");
    assert_eq!(equal.len(), 1 + 4, "{equal:?}");
    assert_eq!(weight(&report, "layers.1.feed_forward.experts.3.down_proj")["b"], "f32");
}

#[test]
fn a_fused_matrix_is_identical_to_the_same_matrix_as_a_module() {
    let scratch = Scratch::new();
    let (a, b) = two(&scratch);
    edit(&b, unfuse);
    let report = report(&a, &b);
    assert_eq!((&report["same"], with_status(&report, "equal").len()), (&true.into(), 0));
}

/// Replaces fused tensors by one module for each expert, turned by plain loops.
fn unfuse(tensors: &mut Vec<Tensor>) {
    let model = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.clone())).collect();
    let fused: Vec<Tensor> = tensors.extract_if(.., |tensor| tensor.name.contains(".experts.")).collect();
    for tensor in fused {
        let (layer, kind) = tensor.name.rsplit_once('.').unwrap();
        let [experts, inputs, columns] = tensor.shape[..] else { panic!("{:?}", tensor.shape) };
        let modules: &[&str] = if kind == "gate_up_proj" { &["gate_proj", "up_proj"] } else { &["down_proj"] };
        for expert in 0..experts {
            for module in modules {
                let module = format!("{layer}.{expert}.{module}");
                let data = source_matrix(&model, &module).into_iter().flat_map(bf16).collect();
                let shape = vec![columns / modules.len(), inputs];
                tensors.push(Tensor { name: format!("{module}.weight"), dtype: "BF16".into(), shape, data });
            }
        }
    }
}

/// What compressed-tensors decompresses is the oracle: a checkpoint of these numbers must be equal to the quantized one.
#[test]
fn quantized_weights_are_equal_to_what_compressed_tensors_decompresses() {
    for name in ["ct-w4a16", "ct-w4a16-asym", "ct-fp8-channel", "ct-fp8-block", "ct-fp8-tensor"] {
        let scratch = Scratch::new();
        let (a, b) = (scratch.testdata(name), scratch.path("plain"));
        copy_folder(&a, &b);
        let golden = read_file(&a.join("golden.safetensors"));
        std::fs::remove_file(a.join("golden.safetensors")).unwrap();
        std::fs::remove_file(b.join("golden.safetensors")).unwrap();
        let mut count = 0;
        edit(&b, |tensors| {
            let plain = golden.iter().filter_map(|tensor| Some((tensor.name.strip_prefix("weight.")?, tensor)));
            for (module, tensor) in plain {
                tensors.retain(|part| part.name.rsplit_once('.').unwrap().0 != module);
                tensors.push(Tensor { name: format!("{module}.weight"), ..tensor.clone() });
                count += 1;
            }
        });
        edit_config(&b, |config| drop(config.as_object_mut().unwrap().remove("quantization_config")));
        let report = report(&a, &b);
        assert_eq!(report["same"], true, "{name}: {:?}", with_status(&report, "different"));
        assert_eq!(with_status(&report, "equal").len(), count, "{name}");
    }
}

#[test]
fn a_quantized_model_differs_by_the_error_that_quantize_reports() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let source = testdata("tiny-scout");
    let told = run(&mut quantize(&source, &out, "--int4 --json")).ok().json();
    let report = report(&source, &out);
    assert_eq!(report["same"], false);
    let weights = told["weights"].as_array().unwrap();
    assert_eq!(with_status(&report, "different").len(), weights.len());
    for told in weights {
        let found = &weight(&report, told["name"].as_str().unwrap())["difference"];
        // `quantize` measures before the product is rounded to BF16.
        let (is, wanted) = (found["rel_rms_error"].as_f64().unwrap(), told["rel_rms_error"].as_f64().unwrap());
        assert!((is - wanted).abs() < 1e-3 * wanted, "{}: {is}, {wanted}", told["name"]);
    }
}

#[test]
fn what_is_missing_misshapen_or_not_a_number_is_told() {
    let scratch = Scratch::new();
    let (a, b) = two(&scratch);
    edit(&a, |tensors| {
        tensors.retain(|tensor| !tensor.name.ends_with("language_model.model.layers.1.self_attn.k_proj.weight"))
    });
    edit(&b, |tensors| {
        tensors.retain(|tensor| !tensor.name.ends_with("language_model.model.layers.0.self_attn.v_proj.weight"));
        tensor(tensors, "layers.0.feed_forward.router.weight").set(3, &bf16(f32::NAN));
        tensor(tensors, "language_model.model.layers.1.input_layernorm.weight").shape = vec![2, 32];
        let extra = Tensor { name: "language_model.model.extra".into(), ..tensors[0].clone() };
        tensors.push(extra);
    });
    let report = report(&a, &b);
    assert_eq!(report["same"], false);
    assert_eq!(with_status(&report, "only_in_a"), ["layers.0.self_attn.v_proj"]);
    assert_eq!(with_status(&report, "only_in_b"), ["layers.1.self_attn.k_proj"]);
    assert_eq!(with_status(&report, "unreadable"), ["layers.1.input_layernorm"]);
    let router = &weight(&report, "layers.0.feed_forward.router")["difference"];
    assert_eq!((&router["differing"], &router["nonfinite"]), (&1.into(), &1.into()));
    assert_eq!(router["first"]["index"], serde_json::json!([0, 3]));
    assert!(report["notes"].to_string().contains("language_model.model.extra"), "{}", report["notes"]);
    let text = diff(&a, &b, "").stdout;
    for words in ["only in A", "only in B", "in B it has the wrong shape", "\ndifferent\n"] {
        assert!(text.contains(words), "no `{words}` in: {text}");
    }
}

#[test]
fn settings_that_change_the_computation_count_and_others_do_not() {
    let scratch = Scratch::new();
    let (a, b) = two(&scratch);
    edit_config(&b, |config| {
        config["text_config"]["max_position_embeddings"] = 8192.into();
        config["text_config"]["bos_token_id"] = 1.into();
        config["torch_dtype"] = "float32".into();
    });
    assert_eq!(report(&a, &b)["same"], true);
    edit_config(&b, |config| {
        config["text_config"]["rope_theta"] = 10_000.0.into();
        config["text_config"]["use_qk_norm"] = false.into();
        config["text_config"]["no_rope_layers"] = serde_json::json!([0, 1]);
    });
    let report = report(&a, &b);
    assert_eq!((&report["same"], with_status(&report, "identical").len() > 10), (&false.into(), true));
    let fields: Vec<&str> =
        report["config"].as_array().unwrap().iter().map(|setting| setting["field"].as_str().unwrap()).collect();
    for field in ["text_config.rope_theta", "text_config.use_qk_norm", "text_config.no_rope_layers"] {
        assert!(fields.contains(&field), "{fields:?}");
    }
}

#[test]
fn threads_and_memory_do_not_change_the_answer_and_too_little_memory_is_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let source = testdata("tiny-scout");
    run(&mut quantize(&source, &out, "--fp8")).ok();
    let answer = |flags: &str| diff(&source, &out, &format!("--json {flags}")).json()["weights"].clone();
    assert_eq!(answer("--threads 1 --memory 256M"), answer("--threads 4 --memory 4G --kernels scalar"));
    diff(&source, &out, "--memory 1M").refused(&["memory bound", "hint: use `--memory"]);
    diff(&source, &scratch.path("nowhere"), "").refused(&["nowhere"]);
}

#[test]
fn a_single_file_can_be_a_side() {
    let scratch = Scratch::new();
    let (a, b) = two(&scratch);
    write_file(&b.join("copy.safetensors"), &read_file(&b.join("model.safetensors")));
    assert_eq!(report(&a, &b.join("copy.safetensors"))["same"], true);
}

/// `convert` is held against hashes of the model that Meta's files were written from (`convert.rs`); so this is `diff` against that model.
#[test]
fn metas_files_equal_the_model_that_they_were_written_from() {
    let scratch = Scratch::new();
    for (name, same) in [("meta-tiny", true), ("meta-fp8", false)] {
        let (source, out) = (testdata(name), scratch.path(name));
        run(l4tool("convert --to hf").arg(&source).arg("-o").arg(&out)).ok();
        let report = report(&source, &out);
        assert_eq!((&report["same"], &report["config"]), (&same.into(), &serde_json::json!([])), "{name}");
        // Plain numbers keep their bits on the way.
        assert_eq!(
            with_status(&report, "equal").is_empty() && with_status(&report, "different").is_empty(),
            same,
            "{name}"
        );
        assert!(!with_status(&report, "identical").is_empty(), "{name}");
        assert!(
            with_status(&report, "only_in_a").is_empty() && with_status(&report, "unreadable").is_empty(),
            "{name}"
        );
        // What was in FP8 is rounded to BF16 on the way.
        for name in with_status(&report, "different") {
            let error = weight(&report, &name)["difference"]["max_rel_error"].as_f64().unwrap();
            assert!(name.contains(".experts.") && error <= f64::from(1 << 8).recip(), "{name}: {error}");
        }
    }
}
