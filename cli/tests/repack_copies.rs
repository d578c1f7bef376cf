//! Redundant experts under `repack`: where copies go, what memory they take, how many are refused.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Scratch, assert_nothing, quantize, read_model, repack, run, testdata};
use serde_json::{Value, json};

/// Experts and layers of the model, `tiny-scout`.
const EXPERTS: usize = 16;
const LAYERS: usize = 4;

/// Ranks that it is spread over.
const RANKS: usize = 4;

/// Tokens of each expert: a few have most of them.
fn tokens(layer: usize) -> Vec<u64> {
    (0..EXPERTS).map(|e| ((e * 7 + layer * 5) % 11 * (e % 5) * 13) as u64).collect()
}

/// The flags that spread experts by these tokens.
fn flags(scratch: &Scratch) -> String {
    let stats = scratch.path("loads.json");
    let layers: Vec<Value> = (0..LAYERS).map(|layer| json!({"layer": layer, "tokens": tokens(layer)})).collect();
    fs::write(&stats, json!({"schema": "l4tool.expert-loads/1", "layers": layers}).to_string()).unwrap();
    format!("--layout maverick-8xh100 --placement balanced --stats {}", stats.display())
}

/// What `repack` would do with so many copies.
fn plan(scratch: &Scratch, source: &Path, extra: usize) -> Value {
    let mut command = repack(source, &scratch.path("out"), &format!("{} --ranks {RANKS}", flags(scratch)));
    run(command.args(["--dry-run", "--json", "--redundant-experts", &extra.to_string()])).ok().json()
}

fn layers(plan: &Value) -> impl Iterator<Item = (usize, &Value)> {
    let layers = plan["placement"]["layers"].as_array().unwrap().iter();
    layers.map(|layer| (layer["layer"].as_u64().unwrap() as usize, layer))
}

fn numbers(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as usize).collect()
}

/// An engine that loads the output knows experts by its numbers alone, so only loads in the output's order give the imbalance.
#[test]
fn places_of_copies_go_by_the_numbers_of_the_output() {
    let scratch = Scratch::new();
    for extra in [4, 20, 44] {
        let plan = plan(&scratch, &testdata("tiny-scout"), extra);
        let mut moved = false;
        for (layer, entry) in layers(&plan) {
            let order = numbers(&entry["order"]);
            moved |= !order.is_sorted();
            let loads: Vec<u64> = order.iter().map(|&expert| tokens(layer)[expert]).collect();
            let redundant = &entry["redundant"];
            let (places, copies) = (numbers(&redundant["physical_to_logical"]), numbers(&redundant["copies"]));
            assert_eq!((places.len(), copies.len()), (EXPERTS + extra, EXPERTS));
            for (expert, &count) in copies.iter().enumerate() {
                assert_eq!(places.iter().filter(|&&there| there == expert).count(), count, "expert {expert}");
            }
            let mut largest = 0.0_f64;
            for rank in places.chunks(places.len() / RANKS) {
                assert_eq!(rank.iter().collect::<BTreeSet<_>>().len(), rank.len(), "layer {layer}: {rank:?}");
                largest = largest.max(rank.iter().map(|&expert| loads[expert] as f64 / copies[expert] as f64).sum());
            }
            let wanted = largest * RANKS as f64 / loads.iter().sum::<u64>() as f64;
            assert!((redundant["imbalance"].as_f64().unwrap() - wanted).abs() < 1e-9, "layer {layer}: {wanted}");
        }
        assert!(moved, "the output's numbers are the model's own");
    }
}

/// `tiny-scout` with experts of two sizes, so that a rank's weights depend on which ones it has.
fn mixed(scratch: &Scratch) -> PathBuf {
    let (out, recipe) = (scratch.path("mixed"), scratch.path("recipe.toml"));
    let text = r"
        [[rule]]
        match = 'experts\.\d+\.'
        scheme = 'fp8-dynamic'
        method = 'rtn'
        [[rule]]
        match = 'experts\.(5|12|15)\.'
        keep = true
    ";
    fs::write(&recipe, text).unwrap();
    run(&mut quantize(&testdata("tiny-scout"), &out, &format!("--recipe {}", recipe.display()))).ok();
    out
}

/// Bytes of each expert in each layer.
fn sizes(model: &Path) -> Vec<Vec<u64>> {
    let mut sizes = vec![vec![0; EXPERTS]; LAYERS];
    for (name, tensor) in read_model(model) {
        let Some((layer, expert)) = name.split_once(".feed_forward.experts.") else { continue };
        let layer: usize = layer.rsplit('.').next().unwrap().parse().unwrap();
        let expert: usize = expert.split('.').next().unwrap().parse().unwrap();
        sizes[layer][expert] += tensor.data.len() as u64;
    }
    sizes
}

/// What experts take on the fullest rank: by `order` without copies, by `physical_to_logical` with them.
fn fullest(plan: &Value, sizes: &[Vec<u64>]) -> u64 {
    let mut ranks = [0; RANKS];
    for (layer, entry) in layers(plan) {
        let order = numbers(&entry["order"]);
        let places = match entry.get("redundant") {
            Some(redundant) => numbers(&redundant["physical_to_logical"]),
            None => (0..EXPERTS).collect(),
        };
        for (sum, rank) in ranks.iter_mut().zip(places.chunks(places.len() / RANKS)) {
            *sum += rank.iter().map(|&place| sizes[layer][order[place]]).sum::<u64>();
        }
    }
    ranks.into_iter().max().unwrap()
}

#[test]
fn copies_take_memory_on_the_ranks_that_have_them() {
    let scratch = Scratch::new();
    let source = mixed(&scratch);
    let sizes = sizes(&source);
    assert!(sizes.iter().all(|layer| layer[5] > layer[2] && layer[2] > 0), "{sizes:?}");
    let weights = |plan: &Value| plan["fit"]["weights_bytes_per_gpu"].as_u64().unwrap();
    let without = plan(&scratch, &source, 0);
    let shared = weights(&without) - fullest(&without, &sizes);
    for extra in [4, 12, 20, 44] {
        let with = plan(&scratch, &source, extra);
        assert_eq!(weights(&with), shared + fullest(&with, &sizes), "{extra} copies");
        assert!(with["fit"]["notes"].to_string().contains(&format!("{extra} copies")), "{}", with["fit"]);
    }
    // Three more copies of each: every rank has every expert.
    let most = plan(&scratch, &source, (RANKS - 1) * EXPERTS);
    assert_eq!(weights(&most), shared + sizes.iter().flatten().sum::<u64>());
    // It is the same of a source whose experts were moved.
    let moved = scratch.path("moved");
    let flags = format!("{} --ranks {RANKS} --redundant-experts 12", flags(&scratch));
    run(&mut repack(&source, &moved, &flags)).ok();
    assert_eq!(plan(&scratch, &moved, 12)["fit"], plan(&scratch, &source, 12)["fit"]);
}

#[test]
fn more_copies_than_ranks_have_use_for_are_refused() {
    let scratch = Scratch::new();
    let (flags, out) = (flags(&scratch), scratch.path("no"));
    let refused = |more: &str, words: &[&str]| {
        run(&mut repack(&testdata("tiny-scout"), &out, &format!("{flags} {more}"))).refused(words);
        assert_nothing(&out);
    };
    let most = "`--redundant-experts 120`: 16 experts on 8 ranks have use for at most 112 copies";
    refused("--redundant-experts 120", &[most, "hint: ", "`--redundant-experts 112`"]);
    refused("--redundant-experts 113", &["at most 112 copies"]);
    refused("--ranks 1 --redundant-experts 1", &["at most 0 copies", "hint: leave"]);
}
