//! `repack`: every layout and back, which rank reads which file, placement, what fits, what is refused.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{
    Done, Scratch, Tensor, assert_nothing, assert_same, edit, journal_lines, l4tool, quantize, read_file, read_json,
    read_model, run, start, tensor, testdata, tiny, wait_until,
};
use l4_testkit::Spec;
use serde_json::{Value, json};

const LAYOUTS: [&str; 5] = ["scout-1xh100", "maverick-8xh100", "hf", "tp8 --ranks 2", "tp8 --ranks 1"];

fn repack(source: &Path, out: &Path, flags: &str) -> Command {
    let mut command = l4tool("repack");
    command.arg(source).arg("-o").arg(out).args(flags.split_whitespace());
    command
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
    let sources = [("scout", testdata("tiny-scout")), ("maverick", maverick(&scratch))];
    for (name, source) in sources {
        let variants = [None, Some("--int4 --group-size 32"), Some("--scheme w4a16-asym --group-size 32"), Some("--fp8")];
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
                run(l4tool("verify").arg(&there)).ok();
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

/// Name, first byte in the file, and size of every tensor, by position.
fn positions(path: &Path) -> Vec<(String, u64, u64)> {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let header: Value = serde_json::from_slice(&bytes[8..8 + length as usize]).unwrap();
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    let mut positions: Vec<_> = tensors
        .map(|(name, entry)| {
            let at = |index: usize| entry["data_offsets"][index].as_u64().unwrap();
            (name.clone(), 8 + length + at(0), at(1) - at(0))
        })
        .collect();
    positions.sort_by_key(|(_, start, _)| *start);
    positions
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
    let source = testdata("tiny-scout");
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
    // A record of another model is refused.
    let broken = testdata("tiny-scout");
    let copy = scratch.path("copy");
    common::copy_folder(&broken, &copy);
    fs::write(copy.join("expert_placement.json"), r#"{"schema":"l4tool.expert-placement/1","layers":[]}"#).unwrap();
    run(&mut repack(&copy, &scratch.path("no"), "--layout hf")).refused(&["expert_placement.json", "layer 0", "hint"]);
}

/// The numbers of gigabytes are those of the fact sheet: computed there from shapes, by hand.
#[test]
fn whole_models_take_the_gigabytes_that_their_shapes_give() {
    let scratch = Scratch::new();
    for (kind, experts, bf16, fp8, int4) in [("scout", 16, "25.30", "13.35", "7.56"), ("maverick", 128, "93.5", "47.5", "25.2")] {
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
            let parts = plan["files"].as_array().unwrap().iter().filter(|file| file["name"].as_str().unwrap().contains("-ep"));
            let modules = per_layer * experts * 3;
            let tensors: u64 = parts.map(|file| file["tensors"].as_u64().unwrap()).sum();
            let each = if wanted == int4 { 3 } else if wanted == fp8 { 2 } else { 1 };
            assert_eq!(tensors, modules * each, "{}", source.display());
        }
    }
}

#[test]
fn what_does_not_fit_is_not_written_and_the_context_that_does_is_told() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let spec = Spec { max_position_embeddings: 1 << 20, ..tiny() };
    let source = scratch.checkpoint("source", &spec);
    let flags = "--layout scout-1xh100 --gpu-memory 4.5GiB --context 1048576 --sequences 4 --json";
    let done = run(&mut repack(&source, &out, flags));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert_nothing(&out);
    let fit = &done.json()["fit"];
    assert_eq!(fit["fits"], false);
    let most = fit["context_max"].as_u64().unwrap();
    let with = |context: u64, more: &str| -> Done {
        let flags = format!("--layout scout-1xh100 --gpu-memory 4.5GiB --sequences 4 --dry-run --json --context {context}");
        run(repack(&source, &out, &flags).args(more.split_whitespace()))
    };
    assert_eq!(with(most, "").ok().json()["fit"]["fits"], true);
    assert_eq!(with(most + 1, "").code, Some(1));
    assert_eq!(with(most + 1, "--kv-dtype fp8").ok().json()["fit"]["kv_dtype"], "fp8");
    assert_eq!(with(most + 1, "--ignore-fit").code, Some(0));
    let done = run(&mut repack(&source, &out, &flags.replace("4.5GiB", "1GiB")));
    assert_eq!((done.code, &done.json()["fit"]["context_max"]), (Some(1), &json!(0)));
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
}

/// Columns `columns` of `rows` rows of `width` elements.
fn columns(tensor: &Tensor, rows: usize, columns: &[Range<usize>]) -> Vec<u8> {
    let size = tensor.width();
    let width = tensor.data.len() / size / rows;
    let stretch = |row: usize, range: &Range<usize>| {
        tensor.data[(row * width + range.start) * size..(row * width + range.end) * size].to_vec()
    };
    (0..rows).flat_map(|row| columns.iter().flat_map(move |range| stretch(row, range))).collect()
}

/// The rules are Meta's, written down once more: what each rank has of a plain and of a quantized model.
#[test]
fn rank_shards_are_cut_as_meta_cuts_them() {
    let scratch = Scratch::new();
    let source = testdata("tiny-scout");
    let (plain, quantized, int4) = (scratch.path("plain"), scratch.path("quantized"), scratch.path("int4"));
    run(&mut repack(&source, &plain, "--layout tp8 --ranks 2")).ok();
    run(&mut quantize(&source, &quantized, "--scheme w4a16-asym --group-size 64")).ok();
    run(&mut repack(&quantized, &int4, "--layout tp8 --ranks 2")).ok();
    assert!(!plain.join("model.safetensors.index.json").exists());
    let part = |folder: &Path, rank: usize, name: &str| {
        let tensors = read_file(&folder.join(format!("consolidated.{rank:02}.safetensors")));
        tensors.into_iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no {name}"))
    };
    let half = |n: usize, rank: usize| rank * n / 2..(rank + 1) * n / 2;
    for rank in 0..2 {
        let whole = read_model(&source);
        let layer = "language_model.model.layers.1.";
        let check = |name: &str, shape: &[usize], data: Vec<u8>| {
            let is = part(&plain, rank, name);
            assert_eq!(is.shape, shape, "{name}");
            assert!(is.data == data, "{name}, rank {rank}");
        };
        for (name, rows) in [("self_attn.q_proj", 256), ("self_attn.k_proj", 64), ("feed_forward.shared_expert.up_proj", 128)] {
            let name = format!("{layer}{name}.weight");
            let data = &whole[&name].data;
            check(&name, &[rows / 2, 256], data[half(data.len(), rank)].to_vec());
        }
        for (name, rows, width) in [("self_attn.o_proj", 256, 256), ("feed_forward.shared_expert.down_proj", 256, 128)] {
            let name = format!("{layer}{name}.weight");
            check(&name, &[rows, width / 2], columns(&whole[&name], rows, &[half(width, rank)]));
        }
        for name in ["input_layernorm", "feed_forward.router"] {
            let name = format!("{layer}{name}.weight");
            check(&name, &whole[&name].shape, whole[&name].data.clone());
        }
        let (gate_up, down) = (format!("{layer}feed_forward.experts.gate_up_proj"), format!("{layer}feed_forward.experts.down_proj"));
        let (gate, up) = (half(128, rank), half(128, rank).start + 128..half(128, rank).end + 128);
        check(&gate_up, &[16, 256, 128], columns(&whole[&gate_up], 16 * 256, &[gate, up]));
        check(&down, &[16, 64, 256], columns(&whole[&down], 16, &[half(128 * 256, rank)]));
        let whole = read_model(&quantized);
        let module = format!("{layer}feed_forward.experts.5.down_proj");
        for (suffix, shape) in [("weight_packed", [256, 8]), ("weight_scale", [256, 1]), ("weight_zero_point", [32, 1])] {
            let name = format!("{module}.{suffix}");
            let is = part(&int4, rank, &name);
            assert_eq!(is.shape, shape, "{name}");
            assert!(is.data == columns(&whole[&name], shape[0], &[half(2 * shape[1], rank)]), "{name}");
        }
        let shape = part(&int4, rank, &format!("{module}.weight_shape")).data;
        assert_eq!(shape, [256_u64, 64].map(u64::to_le_bytes).concat());
    }
}

#[test]
fn rank_shards_that_do_not_belong_together_are_refused() {
    let scratch = Scratch::new();
    let source = testdata("tiny-scout");
    let refused = |folder: &Path, words: &[&str]| {
        for command in ["verify", "inspect"] {
            run(l4tool(command).arg(folder)).refused(words);
        }
        run(&mut repack(folder, &scratch.path("no"), "--layout hf")).refused(words);
        assert_nothing(&scratch.path("no"));
    };
    let shards = |name: &str, source: &Path| {
        let out = scratch.path(name);
        run(&mut repack(source, &out, "--layout tp8 --ranks 2")).ok();
        out
    };
    let ours = shards("ours", &source);
    let file = |folder: &Path, rank: usize| folder.join(format!("consolidated.{rank:02}.safetensors"));
    let (first, second) = (shards("first", &source), shards("second", &source));
    fs::remove_file(file(&first, 0)).unwrap();
    refused(&first, &["the file of rank 0 is missing", "hint"]);
    fs::remove_file(file(&second, 1)).unwrap();
    refused(&second, &["files of 1 ranks", "one of 2"]);
    // The same shapes, other numbers.
    let tuned = scratch.testdata("tiny-scout");
    let name = fs::read_dir(&tuned).unwrap().map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().contains("-00001-of")).unwrap();
    let mut tensors = read_file(&name);
    let count = tensors[0].data.len() / 2;
    for element in 0..count {
        tensors[0].set(element, &[0, 0x3c]);
    }
    common::write_file(&name, &tensors);
    let theirs = shards("theirs", &tuned);
    fs::copy(file(&theirs, 1), file(&second, 1)).unwrap();
    refused(&second, &["are of different models", "consolidated.01"]);
    // A norm that was changed in one of the files.
    let path = file(&ours, 1);
    let mut bytes = fs::read(&path).unwrap();
    let (_, start, _) =
        positions(&path).into_iter().find(|(name, ..)| name.ends_with("layers.2.input_layernorm.weight")).unwrap();
    bytes[start as usize] ^= 1;
    fs::write(&path, bytes).unwrap();
    run(&mut repack(&ours, &scratch.path("no"), "--layout hf")).refused(&["another", "layers.2.input_layernorm"]);
    let out = scratch.path("out");
    run(&mut repack(&source, &out, "--layout tp8 --ranks 3")).refused(&["8 query heads and 2 KV heads", "3 ranks"]);
    let quantized = scratch.path("quantized");
    run(&mut quantize(&source, &quantized, "--int4")).ok();
    run(&mut repack(&quantized, &out, "--layout tp8 --ranks 2")).refused(&["cannot be cut for 2 ranks", "--group-size"]);
    let theirs = scratch.path("theirs");
    run(&mut repack(&theirs, &out, "--layout scout-1xh100")).refused(&["holds rank shards", "--layout hf"]);
    run(&mut quantize(&theirs, &out, "--int4")).refused(&["holds rank shards", "--layout hf"]);
    assert_nothing(&out);
}

#[test]
fn a_number_that_is_none_stops_it() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    edit(&source, |tensors: &mut Vec<Tensor>| tensor(tensors, "layers.1.feed_forward.experts.down_proj").set(77, &[0xc0, 0x7f]));
    let out = scratch.path("out");
    for layout in LAYOUTS {
        run(&mut repack(&source, &out, &format!("--layout {layout}"))).refused(&["NaN", "layers.1.feed_forward.experts"]);
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
