//! `repack`: every layout and back, which rank reads which file, placement, what fits, what is refused.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use common::{
    Done, Scratch, Tensor, assert_nothing, assert_same, edit, journal_lines, l4tool, positions, quantize, read_file,
    read_json, read_model, repack, run, start, tensor, testdata, tiny, wait_until,
};
use l4_testkit::Spec;
use serde_json::{Value, json};

const LAYOUTS: [&str; 4] = ["scout-1xh100", "maverick-8xh100", "hf", "tp8 --ranks 2"];

/// The trained model without the goldens that lie beside it.
fn scout(scratch: &Scratch) -> PathBuf {
    let path = scratch.testdata("tiny-scout");
    fs::remove_file(path.join("golden.safetensors")).unwrap();
    path
}

/// A random model of Maverick's shape that has a tokenizer.
fn maverick(scratch: &Scratch) -> PathBuf {
    let spec = Spec {
        vocab_size: 2048,
        intermediate_size: 64,
        tokenizer: true,
        text_only: true,
        vision: None,
        ..Spec::maverick_like()
    };
    scratch.checkpoint("maverick", &spec)
}

/// Numbers of tokens that are spread as unevenly as they are in practice, as a file.
fn statistics(path: &Path, layers: &[usize], experts: usize) -> BTreeMap<usize, Vec<u64>> {
    let tokens = |layer: usize| (0..experts).map(|e| ((e * 7 + layer * 5) % 11 * (e % 5) * 13) as u64).collect();
    let loads: BTreeMap<usize, Vec<u64>> = layers.iter().map(|&layer| (layer, tokens(layer))).collect();
    let layers: Vec<Value> = loads.iter().map(|(layer, tokens)| json!({"layer": layer, "tokens": tokens})).collect();
    fs::write(path, json!({"schema": "l4tool.expert-loads/1", "layers": layers}).to_string()).unwrap();
    loads
}

#[track_caller]
fn assert_same_tensors(expected: &Path, actual: &Path, what: &str) {
    let (expected, actual) = (read_model(expected), read_model(actual));
    assert!(expected.keys().eq(actual.keys()), "{what}");
    for (name, tensor) in &expected {
        assert!(tensor == &actual[name], "{what}: `{name}`");
    }
}

#[test]
fn every_layout_and_back_gives_the_same_tensors() {
    let scratch = Scratch::new();
    let sources = [
        ("scout", scout(&scratch), [None, Some("--int4 --group-size 64")]),
        ("maverick", maverick(&scratch), [Some("--fp8"), Some("--scheme w4a16-asym --group-size 32")]),
    ];
    for (name, source, variants) in sources {
        for (variant, flags) in variants.into_iter().enumerate() {
            let start = match flags {
                Some(flags) => {
                    let out = scratch.path(&format!("{name}-{variant}"));
                    run(&mut quantize(&source, &out, flags)).ok();
                    out
                }
                None => source.clone(),
            };
            for layout in LAYOUTS {
                let what = format!("{name}, {flags:?}, {layout}");
                let (there, back) = (scratch.path("there"), scratch.path("back"));
                run(&mut repack(&start, &there, &format!("--layout {layout}"))).ok();
                run(l4tool("diff").arg(&start).arg(&there)).ok();
                run(&mut repack(&there, &back, "--layout hf")).ok();
                assert_same_tensors(&start, &back, &what);
                for folder in [there, back] {
                    fs::remove_dir_all(folder).unwrap();
                }
            }
        }
    }
}

/// The forward pass is `verify`'s, which is held against transformers elsewhere.
#[test]
fn a_repacked_model_computes_the_same_also_with_its_experts_in_another_order() {
    let scratch = Scratch::new();
    let stats = scratch.path("loads.json");
    for (source, layers, experts) in
        [(testdata("tiny-scout"), vec![0, 1, 2, 3], 16), (maverick(&scratch), vec![1, 3], 128)]
    {
        statistics(&stats, &layers, experts);
        let balanced = format!("--layout maverick-8xh100 --placement balanced --stats {}", stats.display());
        let layouts = LAYOUTS.map(|layout| format!("--layout {layout}"));
        for flags in layouts.iter().chain([&balanced]) {
            let out = scratch.path("out");
            run(&mut repack(&source, &out, flags)).ok();
            let verdict = run(l4tool("verify --tokens 128 --json --against").arg(&source).arg(&out)).ok().json();
            // Another order of addition may change the last bits of a logit.
            assert!(verdict["logits"]["kl_max"].as_f64().unwrap() < 1e-9, "{flags}: {}", verdict["logits"]);
            assert_eq!(verdict["logits"]["top1_agreement"], 1.0, "{flags}");
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

/// vLLM's linear placement (`expert_map_manager.py`, `determine_expert_map`).
fn local_experts(experts: usize, ranks: usize, rank: usize) -> Range<usize> {
    let (base, remainder) = (experts / ranks, experts % ranks);
    let first = rank * base + rank.min(remainder);
    first..first + base + usize::from(rank < remainder)
}

fn expert_of(name: &str) -> Option<usize> {
    name.split_once(".experts.")?.1.split('.').next()?.parse().ok()
}

/// vLLM's filter (`default_loader.py`): a rank skips the heavy tensors of experts that are not its own.
#[test]
fn each_rank_reads_its_own_files_and_no_others() {
    let scratch = Scratch::new();
    for (source, flags, ranks, experts) in [
        (testdata("tiny-scout"), "--int4", 8, 16),
        (testdata("tiny-scout"), "--fp8", 3, 16),
        (maverick(&scratch), "--int4 --group-size 32", 8, 128),
        (maverick(&scratch), "--fp8", 7, 128),
    ] {
        let (quantized, out) = (scratch.path("quantized"), scratch.path("out"));
        run(&mut quantize(&source, &quantized, flags)).ok();
        run(&mut repack(&quantized, &out, &format!("--layout maverick-8xh100 --ranks {ranks}"))).ok();
        let index = read_json(&out.join("model.safetensors.index.json"));
        let map = index["weight_map"].as_object().unwrap();
        let mut seen = BTreeSet::new();
        for rank in 0..ranks {
            let local = local_experts(experts, ranks, rank);
            let reads = |name: &str| {
                let heavy = name.ends_with(".weight") || name.ends_with(".weight_packed");
                expert_of(name).is_some_and(|expert| heavy && local.contains(&expert))
            };
            let files: BTreeSet<&str> =
                map.iter().filter(|(name, _)| reads(name)).map(|(_, file)| file.as_str().unwrap()).collect();
            assert_eq!(files.iter().copied().collect::<Vec<_>>(), [format!("model-ep{rank}.safetensors")]);
            for tensor in read_file(&out.join(files.first().unwrap())) {
                // Scales lie with their codes; and nothing else is in the file.
                assert!(expert_of(&tensor.name).is_some_and(|expert| local.contains(&expert)), "{}", tensor.name);
                assert!(seen.insert(tensor.name));
            }
        }
        for tensor in read_file(&out.join("model-shared.safetensors")) {
            assert!(expert_of(&tensor.name).is_none(), "{}", tensor.name);
            assert!(seen.insert(tensor.name));
        }
        assert!(seen.iter().eq(map.keys().collect::<BTreeSet<_>>()));
        for folder in [quantized, out] {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

#[test]
fn one_gpu_reads_a_file_from_front_to_back() {
    let scratch = Scratch::new();
    // As in the real models every large tensor is a whole number of pages.
    let spec = Spec {
        hidden_size: 512,
        intermediate_size: 512,
        intermediate_size_mlp: 512,
        layers: 2,
        text_only: true,
        vision: None,
        ..Spec::default()
    };
    let (source, quantized, out) = (scratch.checkpoint("s", &spec), scratch.path("q"), scratch.path("out"));
    run(&mut quantize(&source, &quantized, "--int4 --group-size 64")).ok();
    run(&mut repack(&quantized, &out, "--layout scout-1xh100")).ok();
    let positions = positions(&out.join("model.safetensors"));
    assert!(positions[0].1.is_multiple_of(4096), "the data begin at {}", positions[0].1);
    let experts: Vec<&str> = positions
        .iter()
        .filter(|(name, ..)| name.contains("layers.1.feed_forward.experts.") && !name.ends_with("_shape"))
        .map(|(name, ..)| name.split_once(".experts.").unwrap().1)
        .collect();
    let expected: Vec<String> = (0..4)
        .flat_map(|expert| ["gate", "up", "down"].map(|part| format!("{expert}.{part}_proj")))
        .flat_map(|module| ["weight_packed", "weight_scale"].map(|part| format!("{module}.{part}")))
        .collect();
    assert_eq!(experts, expected);
    for (name, start, bytes) in &positions {
        assert!(!bytes.is_multiple_of(4096) || start.is_multiple_of(4096), "{name} begins at {start}");
    }
    // Layer by layer: what belongs to a layer lies together.
    let layers: Vec<&str> = positions
        .iter()
        .filter(|(_, _, bytes)| bytes.is_multiple_of(4096))
        .filter_map(|(name, ..)| name.split_once(".layers.").map(|(_, rest)| rest.split('.').next().unwrap()))
        .collect();
    assert!(layers.is_sorted(), "{layers:?}");
}

#[test]
fn a_balanced_placement_is_recorded_applied_to_the_router_and_undone() {
    let scratch = Scratch::new();
    let source = scout(&scratch);
    let (stats, out, back) = (scratch.path("loads.json"), scratch.path("out"), scratch.path("back"));
    let loads = statistics(&stats, &[0, 1, 2, 3], 16);
    let flags = format!("--layout maverick-8xh100 --ranks 4 --placement balanced --stats {}", stats.display());
    let report = run(repack(&source, &out, &flags).args(["--redundant-experts", "4", "--json"])).ok().json();
    let placement = read_json(&out.join("expert_placement.json"));
    assert_eq!(report["placement"], placement);
    let (before, after) = (read_model(&source), read_model(&out));
    for entry in placement["layers"].as_array().unwrap() {
        let layer = entry["layer"].as_u64().unwrap() as usize;
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let order: Vec<usize> = entry["order"].as_array().unwrap().iter().map(number).collect();
        assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), (0..16).collect());
        let loads = &loads[&layer];
        let mean = loads.iter().sum::<u64>() as f64 / 4.0;
        let largest = |order: &[usize]| order.chunks(4).map(|rank| rank.iter().map(|&e| loads[e]).sum::<u64>()).max();
        let own: Vec<usize> = (0..16).collect();
        for (field, order) in [("imbalance_before", &own), ("imbalance_after", &order)] {
            let wanted = largest(order).unwrap() as f64 / mean;
            assert!((entry[field].as_f64().unwrap() - wanted).abs() < 1e-9, "layer {layer}: {field}");
        }
        assert!(entry["imbalance_after"].as_f64() < entry["imbalance_before"].as_f64(), "layer {layer}");
        assert_eq!(entry["redundant"]["physical_to_logical"].as_array().unwrap().len(), 20);
        let router = format!("language_model.model.layers.{layer}.feed_forward.router.weight");
        let row = before[&router].data.len() / 16;
        for (position, &expert) in order.iter().enumerate() {
            let rows = [(&before, expert), (&after, position)].map(|(model, e)| &model[&router].data[e * row..][..row]);
            assert_eq!(rows[0], rows[1], "layer {layer}");
        }
    }
    // Going back undoes it; moving experts once more starts from the model's own order.
    run(&mut repack(&out, &back, "--layout hf")).ok();
    assert_same_tensors(&source, &back, "back");
    assert!(!back.join("expert_placement.json").exists());
    let again = scratch.path("again");
    run(repack(&out, &again, &flags).args(["--redundant-experts", "4"])).ok();
    assert_same_tensors(&out, &again, "again");
    assert_eq!(read_json(&again.join("expert_placement.json")), placement);
    // A record of another model is refused.
    let copy = scratch.path("copy");
    common::copy_folder(&source, &copy);
    fs::write(copy.join("expert_placement.json"), r#"{"schema":"l4tool.expert-placement/1","layers":[]}"#).unwrap();
    run(&mut repack(&copy, &scratch.path("no"), "--layout hf")).refused(&["expert_placement.json", "layer 0", "hint"]);
}

#[test]
fn statistics_that_calibrate_wrote_are_read_and_held_against_the_model() {
    let scratch = Scratch::new();
    let (source, stats, quantized) = (scout(&scratch), scratch.path("stats"), scratch.path("quantized"));
    let mut calibrate = l4tool("calibrate --samples 8 --seq-len 128");
    calibrate.arg(&source).arg("--data").arg(testdata("text/eval.txt")).arg("-o").arg(&stats);
    run(&mut calibrate).ok();
    let routing = run(l4tool("routing --json").arg(&stats)).ok().json();
    run(&mut quantize(&source, &quantized, "--fp8")).ok();
    let flags = format!("--layout maverick-8xh100 --placement balanced --stats {} --json", stats.display());
    let (out, again) = (scratch.path("out"), scratch.path("again"));
    let report = run(&mut repack(&quantized, &out, &flags)).ok().json();
    let layers = report["placement"]["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    for (layer, told) in layers.iter().zip(routing["layers"].as_array().unwrap()) {
        let loads: Vec<f64> = told["loads"].as_array().unwrap().iter().map(|load| load.as_f64().unwrap()).collect();
        let mean = loads.iter().sum::<f64>() / 8.0;
        let largest = loads.chunks(2).map(|rank| rank.iter().sum::<f64>()).fold(0.0, f64::max);
        let before = layer["imbalance_before"].as_f64().unwrap();
        assert!((before - largest / mean).abs() < 1e-9, "{layer}");
        assert!(layer["imbalance_after"].as_f64().unwrap() <= before, "{layer}");
    }
    // Another order is another numbering, which the statistics are not by; and another model is another model.
    run(&mut repack(&out, &again, &flags)).refused(&["statistics", "router"]);
    run(&mut repack(&maverick(&scratch), &again, &flags)).refused(&["statistics are of another model"]);
    assert_nothing(&again);
}

/// The numbers of gigabytes are those of the fact sheet: computed there from shapes, by hand.
#[test]
fn whole_models_take_the_gigabytes_that_their_shapes_give() {
    let scratch = Scratch::new();
    for (kind, experts, bf16, fp8, int4) in
        [("scout", 16, "25.30", "13.35", "7.56"), ("maverick", 128, "93.5", "47.5", "25.2")]
    {
        let whole = scratch.path(kind);
        let write = if kind == "scout" { l4_testkit::write_sparse_scout } else { l4_testkit::write_sparse_maverick };
        write(&whole).unwrap();
        let quantized = ["fp8", "int4"].map(|scheme| {
            let out = scratch.path(&format!("{kind}-{scheme}"));
            common::sparse::quantized(&whole, &out, scheme);
            out
        });
        for (source, wanted) in [(&whole, bf16), (&quantized[0], fp8), (&quantized[1], int4)] {
            let flags = "--layout maverick-8xh100 --dry-run --json --context 131072 --ignore-fit";
            let plan = run(&mut repack(source, &scratch.path("out"), flags)).json();
            let gibi = |bytes: &Value| bytes.as_f64().unwrap() / f64::from(1 << 30);
            let each = gibi(&plan["fit"]["weights_bytes_per_gpu"]);
            let digits = wanted.split_once('.').unwrap().1.len();
            assert_eq!(format!("{each:.digits$}"), wanted, "{}", source.display());
            assert_eq!(format!("{:.2}", gibi(&plan["fit"]["kv_bytes_per_gpu"])), "0.89");
            assert_eq!(format!("{:.2}", gibi(&plan["fit"]["kv_bytes_per_sequence"])), "7.12");
            assert_eq!(plan["fit"]["fits"], wanted != "93.5");
            let per_layer = if kind == "scout" { 48 } else { 24 };
            let parts =
                plan["files"].as_array().unwrap().iter().filter(|file| file["name"].as_str().unwrap().contains("-ep"));
            let modules = per_layer * experts * 3;
            let tensors: u64 = parts.map(|file| file["tensors"].as_u64().unwrap()).sum();
            let each = if wanted == int4 {
                3
            } else if wanted == fp8 {
                2
            } else {
                1
            };
            assert_eq!(tensors, modules * each, "{}", source.display());
        }
    }
}

#[test]
fn what_does_not_fit_is_not_written_and_the_context_that_does_is_told() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    // The fourth layer attends to all that came before.
    let spec = Spec { max_position_embeddings: 1 << 20, layers: 4, ..tiny() };
    let source = scratch.checkpoint("source", &spec);
    let flags = "--layout scout-1xh100 --gpu-memory 4.5GiB --context 1048576 --sequences 4 --json";
    let done = run(&mut repack(&source, &out, flags));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert_nothing(&out);
    let fit = &done.json()["fit"];
    assert_eq!(fit["fits"], false);
    let most = fit["context_max"].as_u64().unwrap();
    let with = |context: u64, more: &str| -> Done {
        let flags =
            format!("--layout scout-1xh100 --gpu-memory 4.5GiB --sequences 4 --dry-run --json --context {context}");
        run(repack(&source, &out, &flags).args(more.split_whitespace()))
    };
    assert_eq!(with(most, "").ok().json()["fit"]["fits"], true);
    assert_eq!(with(most + 1, "").code, Some(1));
    assert_eq!(with(most + 1, "--kv-dtype fp8").ok().json()["fit"]["kv_dtype"], "fp8");
    assert_eq!(with(most + 1, "--ignore-fit").code, Some(0));
    let done = run(&mut repack(&source, &out, &flags.replace("4.5GiB", "1GiB")));
    assert_eq!((done.code, &done.json()["fit"]["context_max"]), (Some(1), &json!(0)));
    for (more, reason) in [
        ("--gpu-memory 1GiB", "it does not fit; not even the weights do"),
        ("--gpu-memory 8GiB --sequences 1000000000", "it does not fit; no context does with so many sequences"),
    ] {
        let done = run(&mut repack(&source, &out, &format!("--layout scout-1xh100 --dry-run {more}")));
        assert!(done.code == Some(1) && done.stdout.contains(reason), "{}", done.stdout);
    }
    run(&mut repack(&source, &out, &format!("{flags} --ignore-fit"))).ok();
    assert!(out.exists());
}

#[test]
fn what_makes_no_sense_is_refused_with_a_way_out() {
    let scratch = Scratch::new();
    let source = testdata("tiny-scout");
    let out = scratch.path("out");
    let refused = |flags: &str, words: &[&str]| {
        run(&mut repack(&source, &out, flags)).refused(words);
        assert_nothing(&out);
    };
    let stats = scratch.path("loads.json");
    let balanced = format!("--layout maverick-8xh100 --placement balanced --stats {}", stats.display());
    refused("--layout tensor", &["there is no layout `tensor`", "maverick-8xh100"]);
    refused("--layout maverick-8xh100 --ranks 17", &["16 experts", "17 ranks", "hint: use from 1 to 16"]);
    refused("--layout hf --ranks 2", &["`hf` has no ranks"]);
    refused("--layout maverick-8xh100 --placement balanced", &["--stats"]);
    refused("--layout maverick-8xh100 --stats x", &["--placement balanced"]);
    refused(&balanced, &["loads.json"]);
    statistics(&stats, &[1, 3], 128);
    refused(&balanced, &["the statistics are of another model", "layer 0"]);
    statistics(&stats, &[0, 1, 2, 3], 8);
    refused(&balanced, &["layer 0 has 8 experts there, 16 here"]);
    statistics(&stats, &[0, 1, 2, 3, 4], 16);
    refused(&balanced, &["layer 4 has no experts here"]);
    statistics(&stats, &[0, 1, 2, 3], 16);
    refused(&format!("{balanced} --redundant-experts 3"), &["16 experts and 3 copies", "--redundant-experts 8"]);
    refused(&format!("{balanced} --layout hf").replace("--layout maverick-8xh100", ""), &["no ranks to spread"]);
    fs::write(&stats, r#"{"schema":"something/1","layers":[]}"#).unwrap();
    refused(&balanced, &["something/1", "docs/repack.md"]);
    refused("--layout hf --memory 1M", &["memory bound"]);
    refused("--layout tp8 --ranks 2 --shard-size 1M", &["`--shard-size` has no meaning", "hint"]);
    // A pipe would keep it waiting, and a device has no end.
    fs::remove_file(&stats).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&stats).status().unwrap().success());
    refused(&balanced, &["loads.json", "not a regular file"]);
    refused(&balanced.replace(stats.to_str().unwrap(), "/dev/zero"), &["/dev/zero", "not a regular file"]);
}

#[test]
fn a_number_that_is_none_stops_it() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    edit(&source, |tensors: &mut Vec<Tensor>| {
        tensor(tensors, "layers.1.feed_forward.experts.down_proj").set(77, &[0xc0, 0x7f])
    });
    let out = scratch.path("out");
    for layout in ["scout-1xh100", "maverick-8xh100 --ranks 2", "hf", "tp8 --ranks 2"] {
        run(&mut repack(&source, &out, &format!("--layout {layout}")))
            .refused(&["NaN", "layers.1.feed_forward.experts"]);
        assert_nothing(&out);
    }
}

#[test]
fn threads_memory_and_kills_do_not_change_a_byte() {
    let scratch = Scratch::new();
    let source = common::slow_source();
    let flags = "--layout maverick-8xh100 --ranks 4 --shard-size 2MB";
    let expected = scratch.path("expected");
    run(&mut repack(&source, &expected, flags)).ok();
    let other = scratch.path("other");
    run(&mut repack(&source, &other, &format!("{flags} --threads 5 --memory 256M --kernels scalar"))).ok();
    assert_same(&expected, &other, "other threads and memory");
    let mut resumed = 0;
    for round in 0..8 {
        let out = scratch.path(&format!("out{round}"));
        let mut child = start(&mut repack(&source, &out, &format!("{flags} --threads 1")));
        wait_until(&mut child, || journal_lines(&out) > 3 + 9 * round);
        // It may have ended already.
        let _ = child.kill();
        child.wait().unwrap();
        if out.exists() {
            fs::remove_dir_all(&out).unwrap();
            continue;
        }
        let done = run(repack(&source, &out, flags).arg("--json")).ok().json();
        resumed += usize::from(done["resumed"] == true);
        assert_same(&expected, &out, &format!("after kill {round}"));
        fs::remove_dir_all(&out).unwrap();
    }
    assert!(resumed > 0, "no kill came in the middle");
    // Another command does not take up this one's work.
    run(&mut repack(&source, &expected, "--layout hf")).refused(&["exists"]);
}
