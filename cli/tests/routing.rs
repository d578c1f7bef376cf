//! `calibrate` and `routing` from outside.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;

use common::{Done, Scratch, l4tool, run, testdata, tiny};

/// `l4tool calibrate tiny-scout` over two labels.
fn calibrate(scratch: &Scratch, out: &str, flags: &str) -> (PathBuf, Done) {
    fs::write(scratch.path("code.txt"), "fn main() { println!(\"{}\", 1 + 1); }\n".repeat(200)).unwrap();
    let out = scratch.path(out);
    let mut command = l4tool(&format!("calibrate --samples 8 --seq-len 128 {flags}"));
    command.arg(testdata("tiny-scout")).arg("--data").arg(format!("code={}", scratch.path("code.txt").display()));
    command.arg("--data").arg(format!("prose={}", testdata("text/eval.txt").display())).arg("-o").arg(&out);
    (out, run(&mut command))
}

fn routing(source: &std::path::Path, flags: &str) -> Done {
    // The source first: `--data` takes all that follows.
    run(l4tool("routing").arg(source).args(flags.split_whitespace()))
}

#[test]
fn what_calibrate_writes_routing_shows() {
    let scratch = Scratch::new();
    let (out, done) = calibrate(&scratch, "stats", "");
    let text = done.ok().stdout;
    assert!(text.contains("1,024 tokens in 8 sequences (code 512, prose 512)"), "{text}");
    let report = routing(&out, "--json").ok().json();
    assert_eq!(report["schema"], "l4tool.routing/1");
    assert_eq!(report["tokens"], 1024);
    assert_eq!(report["layers"].as_array().unwrap().len(), 4);
    for layer in report["layers"].as_array().unwrap() {
        let loads: u64 = layer["loads"].as_array().unwrap().iter().map(|load| load.as_u64().unwrap()).sum();
        assert_eq!(loads, 1024);
        assert_eq!(layer["labels"].as_array().unwrap().len(), 2);
        let share = layer["entropy_share"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&share));
    }
    // In a pipe: one line per expert, without a header, fit for sort and awk.
    let rows = routing(&out, "").ok().stdout;
    assert_eq!(rows.lines().count(), 64);
    let mut tokens = 0;
    for line in rows.lines() {
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells.len(), 11, "{line}");
        let number = |index: usize| cells[index].parse::<u64>().unwrap();
        assert_eq!(number(9) + number(10), number(2));
        tokens += number(2);
    }
    assert_eq!(tokens, 4 * 1024);
    // A person sees layers and a heat map instead.
    let seen = routing(&out, "--color always").ok().stdout;
    assert!(seen.contains("of most") && seen.contains("\u{1b}[48;5;"), "{seen}");
    let selected = routing(&out, "--layer 1,2 --sort tokens --top 3 --format csv").ok().stdout;
    let lines: Vec<&str> = selected.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[0].starts_with("layer,expert,tokens,share,load,score_mean,"), "{selected}");
    assert!(lines[0].ends_with(",tokens_code,tokens_prose"), "{selected}");
    let counts: Vec<u64> = lines[1..].iter().map(|line| line.split(',').nth(2).unwrap().parse().unwrap()).collect();
    assert!(counts.is_sorted_by(|a, b| a >= b), "{selected}");
    assert!(lines[1..].iter().all(|line| line.starts_with("1,") || line.starts_with("2,")), "{selected}");
    let svg = routing(&out, "--format svg").ok().stdout;
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert_eq!(svg.matches("<title>").count(), 3 * 64, "a cell for each expert, for all text and for each label");
    assert_eq!(svg.matches("<g>").count(), svg.matches("</g>").count());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let scratch = Scratch::new();
    let (out, done) = calibrate(&scratch, "stats", "");
    done.ok();
    let mut child =
        l4tool("routing --format csv").arg(&out).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!((child.wait().unwrap().code(), errors.as_str()), (Some(0), ""));
}

#[test]
fn the_same_text_gives_the_same_bytes_and_nothing_is_replaced_unasked() {
    let scratch = Scratch::new();
    let (first, done) = calibrate(&scratch, "first", "");
    done.ok();
    let (second, done) = calibrate(&scratch, "second", "--threads 1");
    done.ok();
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());
    let (_, done) = calibrate(&scratch, "first", "");
    done.refused(&["exists", "--force"]);
    calibrate(&scratch, "first", "--force").1.ok();
    let (dry, done) = calibrate(&scratch, "dry", "--dry-run");
    assert!(done.ok().stdout.contains("would write"));
    assert!(!dry.exists());
    let merged = scratch.path("merged");
    let mut command = l4tool("calibrate --merge");
    let done = run(command.arg(&first).arg(&second).arg("-o").arg(&merged)).ok();
    assert!(done.stdout.contains("2,048 tokens") && done.stdout.contains("over the same tokens"), "{}", done.stdout);
    assert_eq!(routing(&merged, "--json").ok().json()["tokens"], 2048);
    let left: Vec<_> = fs::read_dir(scratch.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
}

#[test]
fn routing_straight_from_a_checkpoint_says_what_text_it_used() {
    let done = routing(&testdata("tiny-maverick"), "--samples 2 --seq-len 256 --top 3").ok();
    assert!(done.stderr.contains("built-in text"), "{}", done.stderr);
    assert_eq!(done.stdout.lines().count(), 3);
    let overview = routing(&testdata("tiny-maverick"), "--samples 2 --seq-len 256 --color always").ok().stdout;
    assert!(overview.contains("dead experts") && overview.contains("more"), "{overview}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let scratch = Scratch::new();
    let (out, done) = calibrate(&scratch, "stats", "");
    done.ok();
    routing(&out, "--data x.txt").refused(&["statistics file", "leave `--data` out"]);
    routing(&out, "--layer 9").refused(&["no layer 9"]);
    routing(&out, "--expert 16").refused(&["no expert 16"]);
    routing(&scratch.path("none"), "").refused(&["neither statistics nor a checkpoint"]);
    let model = scratch.checkpoint("random", &tiny());
    let mut command = l4tool("calibrate --memory 20M --samples 2 --seq-len 64 --data");
    run(command.arg(testdata("text/eval.txt")).arg("-o").arg(scratch.path("x")).arg(&model))
        .refused(&["tokenizer.json"]);
    let mut command = l4tool("calibrate --memory 20M --samples 2 --seq-len 64");
    run(command.arg(testdata("tiny-scout")).arg("-o").arg(scratch.path("x")))
        .refused(&["bytes of memory, the bound is 20971520", "allow more `--memory`"]);
    assert!(!scratch.path("x").exists());
}
