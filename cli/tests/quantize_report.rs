//! What `quantize` says, on both streams.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use common::{Scratch, quantize, run, tiny};
use serde_json::Value;

const INT4: &str = "--int4 --group-size 32";

#[test]
fn the_report_has_every_field_of_the_contract() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    let done = run(&mut quantize(&source, &scratch.path("out"), &format!("{INT4} --json -q"))).ok();
    assert_eq!(done.stderr, "");
    let report = done.json();
    assert_eq!(report["schema"], "l4tool.quantize/1");
    assert_eq!(report["source"], source.to_str().unwrap());
    assert_eq!(report["output"], scratch.path("out").to_str().unwrap());
    assert_eq!(report["scheme"], "w4a16-g32");
    assert_eq!(report["method"], "search");
    assert_eq!(report["resumed"], false);
    for field in ["bytes_in", "bytes_out", "bits_per_weight", "seconds", "bytes_in_per_second", "peak_memory_bytes"] {
        assert!(report[field].as_f64().is_some_and(|value| value > 0.0), "{field}: {}", report[field]);
    }
    // 32 codes of 4 bits and a scale of 16 make 4.5 bits a weight.
    assert!((4.4..5.0).contains(&report["bits_per_weight"].as_f64().unwrap()));
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    let weights = report["weights"].as_array().unwrap();
    // Two layers, each with four experts and a shared one, three matrices each.
    assert_eq!(weights.len(), 2 * 5 * 3);
    for weight in weights {
        for field in ["name", "role", "scheme", "policy"] {
            assert!(weight[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {weight}");
        }
        assert!(weight["layer"].is_u64(), "{weight}");
        assert_eq!(weight["expert"].is_u64(), weight["name"].as_str().unwrap().contains(".experts."), "{weight}");
        assert!(weight.as_object().unwrap().contains_key("tokens"), "{weight}");
        let error = |field: &str| weight[field].as_f64().unwrap();
        assert!(error("rel_rms_error") > 0.0 && error("rel_rms_error") <= error("rel_rms_error_rtn"), "{weight}");
    }
}

#[test]
fn quiet_says_nothing_and_progress_speaks_json() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    let done = run(&mut quantize(&source, &scratch.path("quiet"), &format!("{INT4} -q"))).ok();
    assert_eq!(done.stderr, "");
    assert!(done.stdout.contains("bits per quantized weight"));
    // Warnings are notes, too.
    let flags = format!(r"{INT4} --exclude experts\.0\.");
    let done = run(&mut quantize(&source, &scratch.path("warned"), &format!("{flags} -q"))).ok();
    assert_eq!(done.stderr, "");
    let done = run(&mut quantize(&source, &scratch.path("again"), &flags)).ok();
    assert!(done.stderr.contains("warning: layers.0: "), "{}", done.stderr);
    let done = run(&mut quantize(&source, &scratch.path("json"), &format!("{INT4} --progress json"))).ok();
    let events: Vec<Value> = done.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for phase in ["writing", "syncing", "checking scales"] {
        let of = |kind: &str| events.iter().find(|event| event["event"] == kind && event["phase"] == phase).unwrap();
        assert_eq!(of("start")["done"], 0);
        assert_eq!(of("finish")["done"], of("start")["total"], "{phase}");
        assert!(of("finish")["unit"].is_string());
    }
    for mode in ["plain", "none", "bar"] {
        run(&mut quantize(&source, &scratch.path(mode), &format!("{INT4} --progress {mode}"))).ok();
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    for (name, flags) in [("text", ""), ("json", "--json"), ("plan", "--dry-run")] {
        let out = scratch.path(name);
        let mut command = quantize(&source, &out, &format!("{INT4} {flags}"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(child.wait().unwrap().success(), "{stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("panicked"), "{stderr}");
        assert_eq!(out.exists(), name != "plan");
    }
    // Nor is a standard error that nobody reads, and `| head -1` reads one line.
    let out = scratch.path("deaf");
    let mut command = quantize(&source, &out, &format!("{INT4} --progress json"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("source -> "), "{line}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn names_are_relative_to_the_working_folder() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    for (out, found) in
        [("out", "out"), ("./dot", "dot"), ("slash/", "slash"), ("new/deep", "new/deep"), ("source/../up", "up")]
    {
        let mut command = quantize("source".as_ref(), out.as_ref(), INT4);
        run(command.current_dir(scratch.path(""))).ok();
        assert!(scratch.path(found).join("l4tool.manifest.json").exists(), "{out}");
    }
    for out in [".", "..", "source/..", "source/out", "../source/out", ""] {
        let mut command = quantize(".".as_ref(), out.as_ref(), INT4);
        run(command.current_dir(&source)).refused(&[]);
    }
    assert!(!source.join("out.partial").exists());
}

#[test]
fn a_dry_run_writes_nothing_and_tells_what_would_be() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    let out = scratch.path("out");
    let plan = run(&mut quantize(&source, &out, &format!("{INT4} --dry-run --json"))).ok().json();
    common::assert_nothing(&out);
    assert_eq!(plan["schema"], "l4tool.quantize-plan/1");
    assert_eq!(plan["disk_fits"], true);
    assert!(plan["memory_bytes"].as_u64().unwrap() <= 4 << 30);
    let text = run(&mut quantize(&source, &out, &format!("{INT4} --dry-run"))).ok().stdout;
    assert!(text.contains("model.safetensors") && text.contains("it fits"), "{text}");
    let report = run(&mut quantize(&source, &out, &format!("{INT4} --json"))).ok().json();
    for field in ["bytes_in", "bytes_out", "bits_per_weight"] {
        assert_eq!(plan[field], report[field], "{field}");
    }
    // The bound on memory is a bound.
    let report =
        run(&mut quantize(&source, &scratch.path("small"), &format!("{INT4} --memory 128M --json"))).ok().json();
    assert!(report["peak_memory_bytes"].as_u64().unwrap() <= 128 << 20, "{}", report["peak_memory_bytes"]);
}
