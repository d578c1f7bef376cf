//! `verify` with a forward pass: against a reference, with thresholds, with a file of logits.
//!
//! The numbers are held to transformers' logits and to plain arithmetic over whole files of logits.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{
    Done, Scratch, assert_nothing, edit, edit_config, l4tool, oracle, partial, quantize, read_file, run, tensor,
    testdata,
};
use serde_json::Value;

fn verify(checkpoint: &Path, flags: &str) -> Done {
    run(l4tool("verify").arg(checkpoint).args(flags.split_whitespace()))
}

fn against(checkpoint: &Path, reference: &Path, flags: &str) -> Done {
    run(l4tool("verify").arg(checkpoint).arg("--against").arg(reference).args(flags.split_whitespace()))
}

/// tiny-scout as INT4.
fn int4(scratch: &Scratch) -> PathBuf {
    let out = scratch.path("int4");
    run(&mut quantize(&testdata("tiny-scout"), &out, "--int4 --group-size 32 --method rtn")).ok();
    out
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

#[track_caller]
fn near(is: &Value, wanted: f64, bound: f64) {
    assert!((number(is) - wanted).abs() <= bound, "{is}, not {wanted}");
}

/// Token numbers and rows of logits of a file that `--logits` wrote.
fn read_logits(path: &Path) -> (Vec<usize>, Vec<Vec<f64>>) {
    let tensors = read_file(path);
    let found: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.dtype.as_str(), t.shape.len())).collect();
    assert_eq!(found, [("input_ids", "I64", 1), ("logits", "F32", 2)]);
    let ids: Vec<_> =
        tensors[0].data.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes).try_into().unwrap()).collect();
    assert_eq!(tensors[1].shape, [ids.len(), 2048]);
    let values: Vec<f64> = oracle::floats(&tensors[1]).into_iter().map(f64::from).collect();
    (ids, values.chunks_exact(2048).map(<[f64]>::to_vec).collect())
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    row.iter().map(|x| x - max - log_sum).collect()
}

fn argmax(row: &[f64]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}

fn perplexity(ids: &[usize], logits: &[Vec<f64>]) -> f64 {
    let loss = |at: usize| -log_softmax(&logits[at])[ids[at + 1]];
    let count = ids.len() - 1;
    ((0..count).map(loss).sum::<f64>() / count as f64).exp()
}

#[test]
fn logits_are_those_of_transformers() {
    let scratch = Scratch::new();
    let (source, logits) = (testdata("tiny-maverick"), scratch.path("logits.safetensors"));
    // The golden was made from the same text.
    let flags =
        format!("--json --text {} --tokens 200 --logits {}", testdata("text/eval.txt").display(), logits.display());
    let report = verify(&source, &flags).ok().json();
    let (ids, rows) = read_logits(&logits);
    let golden = read_file(&source.join("golden.safetensors"));
    let golden = |name: &str| golden.iter().find(|tensor| tensor.name == name).unwrap();
    assert_eq!(golden("text.input_ids").data, read_file(&logits)[0].data);
    let wanted: Vec<f64> = oracle::floats(golden("text.logits")).into_iter().map(f64::from).collect();
    let error = rows.concat().iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(error < 1e-4, "{error}");
    let wanted: Vec<Vec<f64>> = wanted.chunks_exact(2048).map(<[f64]>::to_vec).collect();
    let wanted = perplexity(&ids, &wanted);
    near(&report["perplexity"]["candidate"], wanted, 1e-4 * wanted);
    assert!(report["perplexity"]["reference"].is_null() && report["logits"].is_null());
    assert_eq!(report["tokens"], 200);
    assert!(number(&report["tokens_per_second"]) > 0.0);
    assert!(!partial(&logits).exists());

    // Nobody's file is replaced.
    fs::write(&logits, "content").unwrap();
    verify(&source, &flags).refused(&["logits.safetensors` exists", "hint: "]);
    assert_eq!(fs::read(&logits).unwrap(), b"content");
    assert!(!partial(&logits).exists());
    // A run that fails after the file was begun leaves nothing.
    let broken = scratch.testdata("tiny-maverick");
    edit_config(&broken, |config| config["hidden_act"] = "gelu".into());
    let other = scratch.path("other.safetensors");
    verify(&broken, &format!("--tokens 4 --logits {}", other.display())).refused(&["hidden_act", "gelu"]);
    assert_nothing(&other);
    let nowhere = scratch.path("no/such/folder.safetensors");
    verify(&source, &format!("--tokens 4 --logits {}", nowhere.display())).refused(&["no/such/folder.safetensors"]);
}

#[test]
fn a_checkpoint_is_itself() {
    for name in ["tiny-scout", "tiny-maverick"] {
        let source = testdata(name);
        let report = against(&source, &source, "--json --tokens 100 --max-kl 0 --min-top1 1 --max-ppl-increase 0");
        let report = report.ok().json();
        let logits = &report["logits"];
        for field in ["kl_mean", "kl_p99", "kl_max", "max_abs_diff"] {
            assert_eq!(logits[field], 0.0, "{name}: {field}");
        }
        assert_eq!(logits["top1_agreement"], 1.0);
        assert_eq!(report["perplexity"]["reference"], report["perplexity"]["candidate"]);
        for (index, layer) in report["layers"].as_array().unwrap().iter().enumerate() {
            assert_eq!(layer["layer"], index);
            assert_eq!(layer["rel_rms_error"], 0.0);
            near(&layer["cosine"], 1.0, 1e-12);
            let dense = name == "tiny-maverick" && index % 2 == 0;
            assert_eq!(layer["router_agreement"], if dense { Value::Null } else { 1.0.into() }, "{name}: {index}");
        }
    }
}

#[test]
fn distances_are_what_plain_arithmetic_says() {
    let scratch = Scratch::new();
    let (source, out) = (testdata("tiny-scout"), int4(&scratch));
    let files = [scratch.path("is.safetensors"), scratch.path("wanted.safetensors")];
    let report = against(&out, &source, &format!("--json --tokens 250 --logits {}", files[0].display())).ok().json();
    let alone = verify(&source, &format!("--json --tokens 250 --logits {}", files[1].display())).ok().json();
    let [(ids, is), (other_ids, wanted)] = files.map(|file| read_logits(&file));
    assert_eq!((ids.len(), &ids), (250, &other_ids));

    let mut divergences = Vec::new();
    let (mut same, mut furthest) = (0, 0.0_f64);
    for (is, wanted) in is.iter().zip(&wanted) {
        let (p, q) = (log_softmax(wanted), log_softmax(is));
        divergences.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
        same += usize::from(argmax(is) == argmax(wanted));
        furthest = is.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(furthest, f64::max);
    }
    divergences.sort_by(f64::total_cmp);
    // 248 of 250 are more than 99 %, 247 are fewer.
    let logits = &report["logits"];
    near(&logits["kl_mean"], divergences.iter().sum::<f64>() / 250.0, 1e-6);
    near(&logits["kl_p99"], divergences[247], 1e-6);
    near(&logits["kl_max"], divergences[249], 1e-6);
    near(&logits["top1_agreement"], same as f64 / 250.0, 1e-12);
    near(&logits["max_abs_diff"], furthest, 1e-6);
    let perplexities = &report["perplexity"];
    near(&perplexities["candidate"], perplexity(&ids, &is), 1e-6);
    near(&perplexities["reference"], perplexity(&ids, &wanted), 1e-6);
    assert_eq!(alone["perplexity"]["candidate"], perplexities["reference"]);

    let mean = number(&logits["kl_mean"]);
    assert!(mean > 1e-4 && mean < 0.1, "{mean}");
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    for layer in layers {
        let (error, cosine) = (number(&layer["rel_rms_error"]), number(&layer["cosine"]));
        assert!(error > 0.01 && error < 0.2 && cosine > 0.98 && cosine < 1.0, "{layer}");
        // For a small error across the residual stream, 1 - cosine is about half of its square.
        assert!(1.0 - cosine < error * error, "{layer}");
        assert!(number(&layer["router_agreement"]) > 0.8, "{layer}");
    }
    // No router comes before what was quantized first.
    assert_eq!(layers[0]["router_agreement"], 1.0);
    assert!(layers.iter().any(|layer| layer["router_agreement"] != 1.0));
}

#[test]
fn thresholds() {
    let scratch = Scratch::new();
    let (source, out) = (testdata("tiny-scout"), int4(&scratch));
    let done = against(&out, &source, "--tokens 64 --max-kl 1 --min-top1 0.5 --max-ppl-increase 0.5").ok();
    assert!(done.stdout.ends_with("\nok\n"), "{}", done.stdout);
    for (flags, name, words) in [
        ("--max-kl 1e-9", "max_kl", "the mean KL divergence is 0.0"),
        ("--min-top1 1", "min_top1", "top-1 agreement is 0."),
        ("--max-ppl-increase=-0.9", "max_ppl_increase", "perplexity rises by "),
    ] {
        let done = against(&out, &source, &format!("--tokens 64 {flags}"));
        assert_eq!(done.code, Some(1), "{}{}", done.stdout, done.stderr);
        let line = format!("problem: threshold: `{name}` {words}");
        assert!(done.stdout.contains(&line) && done.stdout.ends_with("\nnot ok\n"), "{}", done.stdout);
        let report = against(&out, &source, &format!("--tokens 64 --json {flags}")).json();
        assert_eq!((report["ok"].as_bool(), report["problems"].as_array().unwrap().len()), (Some(false), 1));
        verify(&out, flags).refused(&["--against"]);
    }
    // Limits that would say nothing.
    for flags in ["--max-kl nan", "--min-top1 nan", "--max-ppl-increase nan", "--min-top1 90", "--min-top1=-1"] {
        against(&out, &source, flags).refused(&["threshold", "hint: "]);
    }
    // What is not a number is within no threshold.
    let broken = scratch.testdata("tiny-maverick");
    edit(&broken, |tensors| tensor(tensors, "model.norm.weight").set(3, &0x7fc0_u16.to_le_bytes()));
    let flags = "--tokens 16 --max-kl 100 --min-top1 0 --max-ppl-increase 100";
    let done = against(&broken, &testdata("tiny-maverick"), &format!("{flags} --json"));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let report = done.json();
    let found: Vec<_> = report["problems"].as_array().unwrap().iter().map(|problem| &problem["name"]).collect();
    assert_eq!(found, ["model.norm.weight", "logits", "max_kl", "max_ppl_increase"]);
    for field in ["kl_mean", "kl_p99", "kl_max", "max_abs_diff"] {
        assert!(report["logits"][field].is_null(), "{field}: {}", report["logits"]);
    }
}

#[test]
fn models_that_cannot_be_compared() {
    let scratch = Scratch::new();
    let (scout, maverick) = (testdata("tiny-scout"), testdata("tiny-maverick"));
    against(&scout, &maverick, "").refused(&["cannot be compared", "`hidden_size` is 256, and 64"]);
    against(&maverick, &scout, "--json").refused(&["cannot be compared", "`hidden_size` is 64, and 256"]);
    against(&scout, &scratch.path("nowhere"), "").refused(&["nowhere"]);
}

#[test]
fn threads_and_kernels_change_no_result() {
    let scratch = Scratch::new();
    let (source, out) = (testdata("tiny-scout"), int4(&scratch));
    let run = |flags: &str| against(&out, &source, &format!("--json {flags}")).ok().json();
    let compare = |one: &Value, two: &Value, bound: f64| {
        for field in ["kl_mean", "kl_p99", "kl_max", "top1_agreement", "max_abs_diff"] {
            near(&two["logits"][field], number(&one["logits"][field]), bound);
        }
        for field in ["reference", "candidate"] {
            let wanted = number(&one["perplexity"][field]);
            near(&two["perplexity"][field], wanted, bound * wanted);
        }
        for (one, two) in one["layers"].as_array().unwrap().iter().zip(two["layers"].as_array().unwrap()) {
            near(&two["rel_rms_error"], number(&one["rel_rms_error"]), bound);
        }
    };
    compare(&run("--tokens 150 --threads 1"), &run("--tokens 150 --threads 2"), 1e-9);
    compare(&run("--tokens 24 --threads 2"), &run("--tokens 24 --threads 2 --kernels scalar"), 1e-4);
}

#[test]
fn numbers_of_tokens() {
    let scratch = Scratch::new();
    let source = testdata("tiny-maverick");
    let text = scratch.path("text");
    fs::write(&text, "It was a dark and stormy night; the rain fell in torrents.").unwrap();
    let with = |flags: &str| verify(&source, &format!("--text {} {flags}", text.display()));
    let logits = scratch.path("logits.safetensors");
    let report = with(&format!("--json --tokens 100000 --logits {}", logits.display())).ok().json();
    let (ids, rows) = read_logits(&logits);
    assert!(ids.len() > 10 && ids.len() < 59, "{ids:?}");
    assert_eq!(report["tokens"], ids.len());
    let wanted = perplexity(&ids, &rows);
    near(&report["perplexity"]["candidate"], wanted, 1e-6 * wanted);
    // Fewer tokens are the first ones.
    let report = with("--json --tokens 2").ok().json();
    assert_eq!(report["tokens"], 2);
    let wanted = perplexity(&ids[..2], &rows);
    near(&report["perplexity"]["candidate"], wanted, 1e-5 * wanted);
    let report = verify(&source, &format!("--json --against {}", source.display())).ok().json();
    assert_eq!(report["tokens"], 512);

    let done = with("--tokens 1");
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("--tokens"), "{}", done.stderr);
    with("--memory 10K").refused(&["tokens need about", "the bound is 10240", "hint: run fewer `--tokens`"]);
    fs::write(&text, "").unwrap();
    with("").refused(&["fewer than two tokens", "hint: "]);
    fs::write(&text, [0xff, 0xfe]).unwrap();
    with("").refused(&["reading the text", "text"]);
    fs::remove_file(&text).unwrap();
    with("").refused(&["reading the text", "No such file"]);
}

#[test]
fn report_for_people() {
    let scratch = Scratch::new();
    let out = int4(&scratch);
    let text = against(&out, &testdata("tiny-scout"), "--tokens 32").ok().stdout;
    let starts = |start: &str| text.lines().any(|line| line.starts_with(start));
    for start in ["KL divergence  mean 0.0", "next token     the same on ", "perplexity     ", "tokens         32, "] {
        assert!(starts(start), "no `{start}` in: {text}");
    }
    assert!(starts("time           ") && text.ends_with("\nok\n"), "{text}");
    let header = text.lines().find(|line| line.contains("layer")).unwrap();
    assert_eq!(header.split_whitespace().collect::<Vec<_>>(), ["layer", "error", "cosine", "same", "experts"]);
    for layer in 0..4 {
        let row = text.lines().find(|line| line.trim_start().starts_with(&format!("{layer} "))).unwrap();
        assert!(row.trim_end().ends_with(" %"), "{row}");
    }
}
