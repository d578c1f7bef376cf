//! Files of ranks that do not make up a model: some are missing, of another model, or one is there twice.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Scratch, assert_nothing, l4tool, read_model, run, testdata};
use l4::checkpoint::Checkpoint;

fn convert(source: &Path, out: &Path) -> Command {
    let mut command = l4tool("convert --to hf");
    command.arg(source).arg("-o").arg(out);
    command
}

fn file(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("consolidated.{rank:02}.pth"))
}

#[test]
fn a_rank_between_others_and_one_of_another_model_are_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let source = scratch.testdata("meta-tiny");
    fs::rename(file(&source, 3), scratch.path("aside")).unwrap();
    run(&mut convert(&source, &out)).refused(&["rank 3 of ranks 0 to 7", "fetch the missing file"]);
    fs::rename(scratch.path("aside"), file(&source, 3)).unwrap();
    // A rank of a model of the same shape.
    let mut other = fs::read(file(&source, 7)).unwrap();
    let norm = final_norm();
    let at = other.windows(norm.len()).position(|bytes| bytes == norm).unwrap();
    other[at] ^= 1;
    fs::write(file(&source, 7), other).unwrap();
    run(&mut convert(&source, &out))
        .refused(&["differs between `consolidated.00.pth` and `consolidated.07.pth`", "not from the same model"]);
    assert_nothing(&out);
}

/// The bytes of meta-tiny's final norm, which every rank has.
fn final_norm() -> Vec<u8> {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    run(&mut convert(&testdata("meta-tiny"), &out)).ok();
    read_model(&out)["language_model.model.norm.weight"].data.clone()
}

/// What shows the number of meta-tiny's ranks.
const SIGN: &str = "these are ranks of 8 (`tok_embeddings.weight` has 320 of 2560 rows in each), and ";

#[test]
fn missing_last_ranks_are_told_by_their_numbers() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let source = scratch.testdata("meta-tiny");
    let remove = |ranks: Range<usize>| ranks.for_each(|rank| fs::remove_file(file(&source, rank)).unwrap());
    remove(7..8);
    let hint = "hint: fetch `consolidated.07.pth` from where the others came from";
    run(&mut convert(&source, &out)).refused(&[&format!("{SIGN}07 is missing"), hint]);
    remove(4..7);
    let words = [&format!("{SIGN}04 to 07 are missing"), "hint: fetch the missing `consolidated.*.pth` from where"];
    run(&mut convert(&source, &out)).refused(&words);
    run(l4tool("inspect").arg(&source)).refused(&words);
    run(l4tool("verify").arg(&source)).refused(&words);
    run(l4tool("diff").arg(testdata("meta-tiny")).arg(&source)).refused(&words);
    remove(1..4);
    let words = [&format!("{SIGN}01 to 07 are missing"), "hint: fetch the missing"];
    run(&mut convert(&source, &out)).refused(&words);
    // Named itself, it is no more of a model.
    run(&mut convert(&file(&source, 0), &out)).refused(&words);
    assert_nothing(&out);
}

#[test]
fn half_of_two_ranks_is_not_a_model_in_a_single_file() {
    let scratch = Scratch::new();
    let source = scratch.testdata("meta-fp8");
    fs::remove_file(file(&source, 1)).unwrap();
    fs::remove_file(source.join("fp8_scales_1.pt")).unwrap();
    let sign = "these are ranks of 2 (`tok_embeddings.weight` has 1160 of 2320 rows in each), and 01 is missing";
    run(&mut convert(&source, &scratch.path("out"))).refused(&[sign, "hint: fetch `consolidated.01.pth`"]);
}

#[test]
fn one_rank_of_a_whole_folder_can_be_inspected_and_not_converted() {
    let scratch = Scratch::new();
    let source = testdata("meta-tiny");
    for rank in [0, 3, 7] {
        let words =
            [&format!("`consolidated.{rank:02}.pth` is one rank of 8 ("), "): name the folder, where the others"];
        run(&mut convert(&file(&source, rank), &scratch.path("out"))).refused(&words);
        let done = run(l4tool("inspect --json").arg(file(&source, rank)));
        assert_eq!(done.code, Some(1), "{}", done.stderr);
        let report = done.json();
        assert_eq!(report["complete"], false);
        let names: Vec<_> = report["problems"].as_array().unwrap().iter().map(|problem| &problem["name"]).collect();
        assert_eq!(*names[0], format!("consolidated.{rank:02}.pth"), "{names:?}");
    }
}

#[test]
fn without_metas_config_its_name_is_told() {
    let scratch = Scratch::new();
    let source = scratch.testdata("meta-tiny");
    fs::remove_file(source.join("params.json")).unwrap();
    let words = ["`params.json` is missing beside Meta's files", "hint: fetch `params.json` from where the weights"];
    for path in [source.clone(), file(&source, 5)] {
        for command in [&mut convert(&path, &scratch.path("out")), l4tool("inspect").arg(&path)] {
            let done = run(command).refused(&words);
            assert!(!done.stderr.contains("config.json"), "{}", done.stderr);
        }
    }
}

#[test]
fn a_copy_of_another_rank_is_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    for (name, from, to) in [("meta-tiny", 3, 2), ("meta-tiny", 0, 7), ("meta-fp8", 0, 1)] {
        let source = scratch.testdata(name);
        fs::copy(file(&source, from), file(&source, to)).unwrap();
        let (a, b) = (from.min(to), from.max(to));
        run(&mut convert(&source, &out)).refused(&[
            &format!("`consolidated.{a:02}.pth` and `consolidated.{b:02}.pth` begin with the same numbers"),
            "in `tok_embeddings.weight` and 3 more tensors",
            "hint: one of the two is a copy of the other; fetch both again",
        ]);
        assert_nothing(&out);
        fs::remove_dir_all(source).unwrap();
    }
}

#[test]
fn ranks_that_are_alike_because_they_are_zero_are_no_copies() {
    let scratch = Scratch::new();
    let source = scratch.testdata("meta-fp8");
    let zero = ["tok_embeddings", "output", "layers.0.attention.wqkv", "layers.0.attention.wo"];
    for rank in 0..2 {
        let path = file(&source, rank);
        let ranges: Vec<Range<usize>> = {
            let checkpoint = Checkpoint::open(&source).unwrap();
            let range = |module: &&str| {
                let name = format!("consolidated.{rank:02}.pth:{module}.weight");
                let tensor = &checkpoint.tensors()[checkpoint.find(&name).unwrap()];
                tensor.offset as usize..(tensor.offset + tensor.bytes) as usize
            };
            zero.iter().map(range).collect()
        };
        let mut bytes = fs::read(&path).unwrap();
        ranges.into_iter().for_each(|range| bytes[range].fill(0));
        fs::write(&path, bytes).unwrap();
    }
    let out = scratch.path("out");
    run(&mut convert(&source, &out)).ok();
    assert!(read_model(&out)["lm_head.weight"].data.iter().all(|&byte| byte == 0));
}
