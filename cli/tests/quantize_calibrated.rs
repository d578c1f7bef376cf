//! `quantize` with calibration data: the same bytes whatever the machine does, and what is said about every weight.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::oracle::{int4_matrix, source_matrix};
use common::{
    Scratch, assert_same, contents, journal_lines, l4tool, partial, quantize, read_json, read_model, run, start,
    testdata, wait_until,
};
use l4_testkit::{Rng, Spec};
use serde_json::Value;

/// The models in `testdata/`, with options that suit their shapes.
const SCOUT: (&str, &str) = ("tiny-scout", "--int4 --calibrate --samples 4 --seq-len 48");
const MAVERICK: (&str, &str) = ("tiny-maverick", "--int4 --group-size 32 --calibrate --samples 3 --seq-len 40");

const AWQ: (&str, &str) = ("tiny-scout", "--int4 --method awq --calibrate --samples 4 --seq-len 48");

/// The note about every weight in the headers of the weight files.
fn notes(folder: &Path) -> BTreeMap<String, String> {
    let mut notes = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let text = header["__metadata__"]["l4tool.weights"].as_str().unwrap_or_default();
        notes.extend(
            text.split("; ").filter_map(|note| note.split_once(": ")).map(|(name, note)| (name.into(), note.into())),
        );
    }
    notes
}

#[test]
fn threads_memory_and_kernels_do_not_show() {
    let scratch = Scratch::new();
    let others = [
        ("tiny-maverick", "--scheme fp8-static --calibrate --samples 3 --seq-len 40"),
        ("tiny-scout", "--scheme fp8-static --method search --calibrate --samples 3 --seq-len 40"),
        ("tiny-maverick", "--fp8 --method search --calibrate --samples 3 --seq-len 40"),
        ("tiny-maverick", "--scheme w4a16-asym --group-size 32 --method awq --calibrate --samples 3 --seq-len 40"),
    ];
    for (name, flags) in [SCOUT, MAVERICK, AWQ].into_iter().chain(others) {
        let reference = scratch.path(&format!("{name}-{}", flags.len()));
        run(&mut quantize(&testdata(name), &reference, &format!("{flags} --threads 1"))).ok();
        let machine =
            ["--threads 2 --memory 200M --kernels avx2", "--threads 7 --memory 3G", "--threads 2 --kernels scalar"];
        for machine in machine {
            let out = scratch.path("out");
            run(&mut quantize(&testdata(name), &out, &format!("{flags} {machine}"))).ok();
            assert_same(&reference, &out, machine);
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

/// Bytes between two layers' states, and states themselves, come and go; the result must not depend on where a kill hits.
#[test]
fn killed_at_random_moments_and_run_again_gives_the_same_bytes() {
    let scratch = Scratch::new();
    let mut rng = Rng::new(11, "calibrated kills");
    for (model, flags) in [SCOUT, MAVERICK, AWQ] {
        let (source, name) = (testdata(model), format!("{model}-{}", flags.len()));
        let expected = scratch.path(&format!("expected-{name}"));
        let began = Instant::now();
        run(&mut quantize(&source, &expected, flags)).ok();
        let length = began.elapsed();
        let total = read_json(&expected.join("l4tool.manifest.json"))["weights"].as_array().unwrap().len();
        let mut in_the_middle = 0;
        for round in 0..6 {
            let out = scratch.path(&format!("out-{name}-{round}"));
            let mut kills = 0;
            // The last rounds kill one run several times.
            while kills <= round / 2 {
                let mut child = start(&mut quantize(&source, &out, flags));
                let lines = journal_lines(&out) + 1 + rng.below(total / 2);
                if round % 2 == 0 {
                    wait_until(&mut child, || journal_lines(&out) >= lines);
                } else {
                    std::thread::sleep(length.mul_f32(rng.uniform()));
                }
                std::thread::sleep(Duration::from_micros(rng.below(3000) as u64));
                let _ = child.kill();
                child.wait().unwrap();
                kills += 1;
            }
            in_the_middle += usize::from(journal_lines(&out) > 1);
            if !out.exists() {
                run(&mut quantize(&source, &out, flags)).ok();
            }
            assert_same(&expected, &out, &format!("{name}, round {round}"));
            assert!(!partial(&out).join("scratch").exists());
        }
        assert!(in_the_middle >= 2, "only {in_the_middle} kills came in the middle of {length:?}");
    }
}

/// What a layer's end left behind may be damaged; then the layers are run again.
#[test]
fn a_damaged_state_is_not_used() {
    let scratch = Scratch::new();
    let (name, flags) = SCOUT;
    let expected = scratch.path("expected");
    run(&mut quantize(&testdata(name), &expected, flags)).ok();
    let damage: [fn(&Path); 3] = [
        |layer| fs::write(layer, b"short").unwrap(),
        |layer| {
            let mut bytes = fs::read(layer).unwrap();
            bytes[100] ^= 1;
            fs::write(layer, bytes).unwrap();
        },
        |layer| fs::write(layer.with_file_name("state.json"), "{}").unwrap(),
    ];
    for (round, damage) in damage.into_iter().enumerate() {
        let out = scratch.path(&format!("out{round}"));
        let state = partial(&out).join("scratch/state.json");
        let mut child = start(&mut quantize(&testdata(name), &out, flags));
        assert!(wait_until(&mut child, || state.exists()), "the run is too short for this test");
        child.kill().unwrap();
        child.wait().unwrap();
        let layers = || {
            contents(&partial(&out).join("scratch"))
                .into_keys()
                .filter(|name| name.to_str().unwrap().starts_with("layer-"))
        };
        for layer in layers().collect::<Vec<PathBuf>>() {
            damage(&partial(&out).join("scratch").join(layer));
        }
        run(&mut quantize(&testdata(name), &out, flags)).ok();
        assert_same(&expected, &out, &format!("damage {round}"));
    }
}

/// 120 tokens for 128 experts, data shorter than one sequence: most experts see nothing, some see one token.
#[test]
fn experts_that_saw_little_or_nothing_are_quantized_and_told_of() {
    let scratch = Scratch::new();
    let text = scratch.path("short.txt");
    fs::write(&text, "It was a dark and stormy night; the rain fell in torrents.").unwrap();
    let schemes = [
        "--int4 --group-size 32",
        "--int4 --group-size 32 --method search",
        "--int4 --group-size 32 --method awq",
        "--fp8 --method search",
        "--scheme fp8-static",
    ];
    for scheme in schemes {
        let out = scratch.path("out");
        let flags = format!("{scheme} --data {} --seq-len 500 --json", text.display());
        let report = run(&mut quantize(&testdata("tiny-maverick"), &out, &flags)).ok().json();
        let tokens: u64 = report["weights"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|weight| weight["layer"] == 0)
            .map(|weight| weight["tokens"].as_u64().unwrap())
            .max()
            .unwrap();
        let mut policies = BTreeMap::<String, usize>::new();
        let manifest = read_json(&out.join("l4tool.manifest.json"));
        let notes = notes(&out);
        let mut routed = BTreeMap::<u64, u64>::new();
        for (weight, record) in
            report["weights"].as_array().unwrap().iter().zip(manifest["weights"].as_array().unwrap())
        {
            for field in ["name", "policy", "tokens"] {
                assert_eq!(weight[field], record[field]);
            }
            let (name, policy) = (weight["name"].as_str().unwrap(), weight["policy"].as_str().unwrap());
            assert_eq!(notes[name], format!("{policy}, {} tokens", weight["tokens"]), "{name}");
            assert!(weight["rel_rms_error"].as_f64().unwrap().is_finite());
            *policies.entry(policy.into()).or_default() += 1;
            if weight["role"] == "expert_gate" {
                *routed.entry(weight["layer"].as_u64().unwrap()).or_default() += weight["tokens"].as_u64().unwrap();
            }
            let unseen = policy.ends_with("-pooled");
            assert_eq!(unseen, weight["tokens"] == 0, "{name}: {policy}");
        }
        assert!(routed.values().all(|&sum| sum == tokens), "{routed:?} of {tokens}");
        assert_eq!(manifest["weights"].as_array().unwrap().len(), notes.len());
        assert!(policies.keys().any(|policy| policy.ends_with("-pooled")), "{policies:?}");
        assert!(policies.keys().any(|policy| policy.ends_with("-blended")), "{policies:?}");
        // Nothing is left out, and no scale is NaN or zero: the command checks that, and so does this one.
        run(l4tool("verify").arg(&out)).ok();
        fs::remove_dir_all(&out).unwrap();
    }
}

/// Layer 0 sees the embeddings whatever was quantized: its inputs are those of the plain model, which `verify` runs.
#[test]
fn static_scales_are_stored_once_for_each_matrix() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    run(&mut quantize(&testdata("tiny-scout"), &out, "--scheme fp8-static --calibrate --samples 4 --seq-len 64")).ok();
    let tensors = read_model(&out);
    let codes: Vec<_> = tensors.values().filter(|tensor| tensor.dtype == "F8_E4M3").collect();
    assert_eq!(codes.len(), 4 * (16 + 1) * 3);
    for tensor in codes {
        for part in ["weight_scale", "input_scale"] {
            let scale = &tensors[&tensor.name.replace(".weight", &format!(".{part}"))];
            assert_eq!((scale.dtype.as_str(), &scale.shape[..]), ("BF16", &[1][..]));
            let value = f32::from_bits(u32::from(u16::from_le_bytes([scale.data[0], scale.data[1]])) << 16);
            assert!(value > 0.0 && value < 1.0, "{}: {value}", scale.name);
        }
    }
    let config = read_json(&out.join("config.json"));
    let group = &config["quantization_config"]["config_groups"]["group_0"];
    assert_eq!(group["input_activations"]["strategy"], "tensor");
    assert_eq!(group["input_activations"]["dynamic"], false);
}

#[test]
fn a_bound_that_calibration_cannot_keep_is_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let words = ["76546048", "too small for calibration", "hint: use `--memory"];
    run(&mut quantize(&testdata("tiny-scout"), &out, "--int4 --calibrate --memory 73M")).refused(&words);
    assert!(!out.exists());
}

/// The order that data must make: by divergence from the source on text that it was not calibrated with.
#[test]
fn gptq_beats_search_and_search_beats_rounding() {
    let scratch = Scratch::new();
    let nine = testdata("text/nine");
    let mut kinds: Vec<_> = fs::read_dir(nine.join("eval")).unwrap().map(|entry| entry.unwrap().path()).collect();
    kinds.sort();
    let text: Vec<u8> = kinds.iter().flat_map(|kind| fs::read(kind).unwrap()).collect();
    let unseen = scratch.path("unseen.txt");
    fs::write(&unseen, text).unwrap();
    let divergence = |name: &str, flags: &str| {
        let out = scratch.path(name);
        run(&mut quantize(&testdata("tiny-scout"), &out, flags)).ok();
        // Fewer tokens than all nine kinds of text have do not tell the search from rounding.
        let mut verify = l4tool("verify --tokens 8000 --json");
        let report = run(verify.arg(&out).arg("--against").arg(testdata("tiny-scout")).arg("--text").arg(&unseen)).ok();
        report.json()["logits"]["kl_mean"].as_f64().unwrap()
    };
    let data = format!("--data {} --samples 16 --seq-len 256", nine.join("calib").display());
    let rtn = divergence("rtn", "--int4 --method rtn");
    let search = divergence("search", &format!("--int4 --method search {data}"));
    let gptq = divergence("gptq", &format!("--int4 {data}"));
    assert!(gptq < 0.9 * search && search < rtn, "gptq {gptq}, search {search}, rtn {rtn}");
    let awq = divergence("awq", &format!("--int4 --method awq {data}"));
    assert!(gptq < awq && awq < search, "gptq {gptq}, awq {awq}, search {search}");
}

/// For each row or column of a matrix, its values in `values` over those in `source`, by least squares.
fn ratios(source: &[f32], values: &[f32], columns: usize, by_row: bool) -> Vec<f64> {
    let count = if by_row { source.len() / columns } else { columns };
    let (mut both, mut own) = (vec![0.0; count], vec![0.0; count]);
    for (index, (w, v)) in source.iter().zip(values).enumerate() {
        let at = if by_row { index / columns } else { index % columns };
        both[at] += f64::from(*w) * f64::from(*v);
        own[at] += f64::from(*w) * f64::from(*w);
    }
    both.iter().zip(own).map(|(both, own)| both / own).collect()
}

/// What `down`'s inputs are multiplied with, `up`'s outputs are divided by, in every network; and the model computes the same.
#[test]
fn awq_divides_up_by_what_it_multiplies_down_with() {
    let scratch = Scratch::new();
    let spec = Spec {
        vocab_size: 2048,
        tokenizer: true,
        hidden_size: 64,
        intermediate_size: 128,
        intermediate_size_mlp: 192,
        ..Spec::maverick_like()
    };
    let random = scratch.checkpoint("random", &spec);
    let text = scratch.path("long.txt");
    fs::write(&text, fs::read(testdata("text/eval.txt")).unwrap()).unwrap();
    let data = format!("--data {} --samples 8 --seq-len 128", text.display());
    // Random weights make inner activations that hardly differ.
    for (source, scheme, least) in [
        (testdata("tiny-scout"), "--int4", 300),
        (random.clone(), "--scheme w4a16-asym --group-size 32", 20),
        (random, "--int4 --group-size 64", 0),
    ] {
        let out = scratch.path("out");
        let divergence = |method: &str| {
            let _ = fs::remove_dir_all(&out);
            run(&mut quantize(&source, &out, &format!("{scheme} --method {method} {data}"))).ok();
            let mut verify = l4tool("verify --tokens 2000 --json");
            let report = run(verify.arg(&out).arg("--against").arg(&source).arg("--text").arg(&text)).ok().json();
            report["logits"]["kl_mean"].as_f64().unwrap()
        };
        let (search, awq) = (divergence("search"), divergence("awq"));
        assert!(awq < 1.1 * search, "{scheme}: {awq}, {search} without factors");
        let (plain, quantized) = (read_model(&source), read_model(&out));
        let ups = quantized.keys().filter_map(|name| name.strip_suffix("up_proj.weight_packed"));
        let (mut networks, mut far) = (0, 0);
        for network in ups {
            let ratios = |name: &str, by_row: bool| {
                let module = format!("{network}{name}");
                let values = int4_matrix(&quantized, &module);
                let columns = quantized[&format!("{module}.weight_packed")].shape[1] * 8;
                ratios(&source_matrix(&plain, &module), &values, columns, by_row)
            };
            for (up, down) in ratios("up_proj", true).into_iter().zip(ratios("down_proj", false)) {
                assert!((up * down - 1.0).abs() < 0.15, "{network}: {up} {down}");
                far += usize::from((up - 1.0).abs() > 0.2);
            }
            assert!(ratios("gate_proj", true).iter().all(|ratio| (ratio - 1.0).abs() < 0.1), "{network}");
            networks += 1;
        }
        assert!(networks >= 68 && far >= least, "{networks} {far}");
        fs::remove_dir_all(&out).unwrap();
    }
}

/// Factors need both matrices; what else is asked for is searched, and said.
#[test]
fn awq_without_its_pair_is_a_search() {
    let scratch = Scratch::new();
    let source = testdata("tiny-scout");
    let data = "--calibrate --samples 4 --seq-len 48 --include shared_expert.down --include o_proj";
    let (awq, search) = (scratch.path("awq"), scratch.path("search"));
    let done = run(&mut quantize(&source, &awq, &format!("--int4 --method awq {data}"))).ok();
    assert!(done.stderr.contains("8 weights with the method awq get no factors"), "{}", done.stderr);
    run(&mut quantize(&source, &search, &format!("--int4 --method search {data}"))).ok();
    let (awq, search) = (read_model(&awq), read_model(&search));
    assert!(awq.iter().all(|(name, tensor)| tensor.data == search[name].data));
}

/// Hessians that were written before serve GPTQ as the text itself would: wherever no weight before was quantized, to the last bit.
#[test]
fn stored_hessians_stand_for_text() {
    let scratch = Scratch::new();
    let source = testdata("tiny-scout");
    let (stats, live, stored) = (scratch.path("a.stats"), scratch.path("live"), scratch.path("stored"));
    run(l4tool("calibrate --hessians --samples 4 --seq-len 64 -o").arg(&stats).arg(&source)).ok();
    // Each expert alone, as pools are summed in another order.
    let flags = "--int4 --expert-tokens 1 --shrink 0 --json";
    let text = run(&mut quantize(&source, &live, &format!("{flags} --calibrate --samples 4 --seq-len 64"))).ok().json();
    let flags = format!("{flags} --stats {}", stats.display());
    let report = run(&mut quantize(&source, &stored, &format!("{flags} --threads 1"))).ok().json();
    assert_eq!((&report["method"], &text["method"]), (&"gptq".into(), &"gptq".into()));
    let (of_text, of_file) = (read_model(&live), read_model(&stored));
    let (mut alike, mut others) = (0, 0);
    for (name, tensor) in of_text.iter().filter(|(name, _)| name.contains("experts.") && name.contains("packed")) {
        let same = tensor.data == of_file[name].data;
        let first = name.contains("layers.0.") && !name.contains("down_proj");
        // Experts without a token have what all others see, summed in another order.
        let unseen =
            |weight: &&serde_json::Value| weight["tokens"] == 0 && name.contains(weight["name"].as_str().unwrap());
        if first && !text["weights"].as_array().unwrap().iter().any(|weight| unseen(&weight)) {
            assert!(same, "{name}");
            alike += 1;
        }
        others += usize::from(!same);
    }
    assert!(alike >= 20 && others > 0, "{alike} {others}");
    // Routers of later layers see what quantizing has changed.
    for (a, b) in text["weights"].as_array().unwrap().iter().zip(report["weights"].as_array().unwrap()) {
        let evidence = |weight: &Value| (weight["name"].clone(), weight["policy"].clone(), weight["tokens"].clone());
        assert!(a["layer"] != 0 || evidence(a) == evidence(b), "{a} {b}");
    }
    let again = scratch.path("again");
    run(&mut quantize(&source, &again, &format!("{flags} --threads 7 --memory 200M"))).ok();
    assert!(read_model(&again).iter().all(|(name, tensor)| tensor.data == of_file[name].data));
    // Scales of activations are in it as well; AWQ's inner activations are not.
    let out = scratch.path("out");
    run(&mut quantize(&source, &out, &format!("--scheme fp8-static --stats {}", stats.display()))).ok();
    run(&mut quantize(&source, &scratch.path("no"), &format!("--int4 --method awq --stats {}", stats.display())))
        .refused(&["the method `awq` needs calibration data"]);
    let plain = scratch.path("plain.stats");
    run(l4tool("calibrate --samples 1 --seq-len 64 -o").arg(&plain).arg(&source)).ok();
    run(&mut quantize(&source, &scratch.path("no"), &format!("--int4 --method gptq --stats {}", plain.display())))
        .refused(&["the method `gptq` needs calibration data", "for gptq with `--hessians`"]);
}

/// Experts that are treated in different ways share a pool that serves all of them.
#[test]
fn a_pool_holds_what_every_expert_needs() {
    let scratch = Scratch::new();
    let source = testdata("tiny-maverick");
    let recipe = scratch.path("recipe.toml");
    let text = r#"
[[rule]]
match = 'feed_forward\..*_proj'
scheme = "w4a16"
group_size = 32
method = "gptq"

[[rule]]
match = 'experts\.[0-9]\.'
scheme = "w4a16"
group_size = 32
method = "search"
"#;
    fs::write(&recipe, text).unwrap();
    let flags = "--int4 --group-size 32 --calibrate --samples 3 --seq-len 40 --json";
    let report = |out: &Path, flags: &str| run(&mut quantize(&source, out, flags)).ok().json()["weights"].clone();
    let uniform = report(&scratch.path("uniform"), flags);
    let (out, given) = (scratch.path("mixed"), recipe.display());
    let mixed = report(&out, &format!("--recipe {given} --calibrate --samples 3 --seq-len 40 --json"));
    // Of the first layer with experts, all sees the same; the pool is the sum over all tokens, whoever is asked first.
    let pooled = |weights: &Value| -> BTreeMap<String, Value> {
        let weights = weights.as_array().unwrap().iter();
        let first = weights.filter(|weight| weight["layer"] == 1 && weight["policy"] == "gptq-pooled");
        let gate = first.filter(|weight| weight["role"] == "expert_gate");
        gate.map(|weight| (weight["name"].as_str().unwrap().to_owned(), weight["rel_rms_error"].clone())).collect()
    };
    let (uniform, mixed) = (pooled(&uniform), pooled(&mixed));
    assert!(mixed.len() > 10);
    for (name, error) in &mixed {
        let (a, b) = (error.as_f64().unwrap(), uniform[name].as_f64().unwrap());
        assert!((a - b).abs() < 1e-9 * b, "{name}: {a} {b}");
    }
}

/// With pools, and through a kill, the same as without.
#[test]
fn a_killed_run_by_stored_hessians_goes_on_to_the_same_bytes() {
    let scratch = Scratch::new();
    let source = testdata("tiny-scout");
    let (stats, expected, out) = (scratch.path("a.stats"), scratch.path("expected"), scratch.path("out"));
    run(l4tool("calibrate --hessians --samples 4 --seq-len 64 -o").arg(&stats).arg(&source)).ok();
    let flags = format!("--int4 --threads 1 --stats {}", stats.display());
    let report = run(&mut quantize(&source, &expected, &format!("{flags} --json"))).ok().json();
    let policies: Vec<&str> =
        report["weights"].as_array().unwrap().iter().map(|weight| weight["policy"].as_str().unwrap()).collect();
    assert!(policies.contains(&"gptq-blended"), "{policies:?}");
    for lines in [5, 60, 150] {
        let mut child = start(&mut quantize(&source, &out, &flags));
        assert!(wait_until(&mut child, || journal_lines(&out) >= lines), "the run is too short for this test");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let resumed = run(&mut quantize(&source, &out, &format!("{flags} --json"))).ok().json();
    assert_eq!(resumed["resumed"], true);
    assert_eq!(resumed["weights"], report["weights"]);
    let (expected, out) = (read_model(&expected), read_model(&out));
    assert!(expected.iter().all(|(name, tensor)| tensor.data == out[name].data));
}

/// Statistics that were written before serve the search as the text itself would.
#[test]
fn statistics_stand_for_text() {
    let scratch = Scratch::new();
    let (stats, imatrix, out) = (scratch.path("a.stats"), scratch.path("a.gguf"), scratch.path("out"));
    let mut calibrate = l4tool("calibrate --samples 4 --seq-len 64 -o");
    run(calibrate.arg(&stats).arg("--imatrix").arg(&imatrix).arg(testdata("tiny-scout"))).ok();
    let mut outputs = Vec::new();
    for (file, flags) in [(&stats, "--int4"), (&imatrix, "--int4 --threads 1")] {
        let report =
            run(&mut quantize(&testdata("tiny-scout"), &out, &format!("{flags} --json --stats {}", file.display())))
                .ok();
        let weights = report.json()["weights"].as_array().unwrap().clone();
        assert!(weights.iter().all(|weight| {
            let policy = weight["policy"].as_str().unwrap();
            policy == if weight["tokens"] == 0 { "search-unseen" } else { "search-weighted" }
                || weight["expert"].is_null()
        }));
        outputs.push(read_model(&out));
        fs::remove_dir_all(&out).unwrap();
    }
    // llama.cpp's file holds float32 where ours holds float64: nearly all codes are the same.
    let (ours, theirs) = (&outputs[0], &outputs[1]);
    let differing: usize = ours
        .iter()
        .map(|(name, tensor)| tensor.data.iter().zip(&theirs[name].data).filter(|(a, b)| a != b).count())
        .sum();
    let total: usize = ours.values().map(|tensor| tensor.data.len()).sum();
    assert!(differing * 1000 < total, "{differing} of {total} bytes");
    // FP8's scales can be searched by them as well.
    let flags = format!("--fp8 --method search --json --stats {}", stats.display());
    let report = run(&mut quantize(&testdata("tiny-scout"), &out, &flags)).ok().json();
    assert!(report["rel_rms_error"].as_f64().unwrap() < 1.1 * report["rel_rms_error_rtn"].as_f64().unwrap());
    assert_eq!(report["weights"][0]["policy"], "search-weighted");
    fs::remove_dir_all(&out).unwrap();
    run(&mut quantize(
        &testdata("tiny-maverick"),
        &out,
        &format!("--int4 --group-size 32 --stats {}", stats.display()),
    ))
    .refused(&["a.stats"]);
}
