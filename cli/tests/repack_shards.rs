//! Rank shards: which part of each weight a rank has, and what is refused.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::ops::Range;
use std::path::Path;

use common::{
    Scratch, Tensor, assert_nothing, l4tool, positions, quantize, read_file, read_model, repack, run, testdata,
};

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
        for (name, rows) in
            [("self_attn.q_proj", 256), ("self_attn.k_proj", 64), ("feed_forward.shared_expert.up_proj", 128)]
        {
            let name = format!("{layer}{name}.weight");
            let data = &whole[&name].data;
            check(&name, &[rows / 2, 256], data[half(data.len(), rank)].to_vec());
        }
        for (name, rows, width) in [("self_attn.o_proj", 256, 256), ("feed_forward.shared_expert.down_proj", 256, 128)]
        {
            let name = format!("{layer}{name}.weight");
            check(&name, &[rows, width / 2], columns(&whole[&name], rows, &[half(width, rank)]));
        }
        for name in ["input_layernorm", "feed_forward.router"] {
            let name = format!("{layer}{name}.weight");
            check(&name, &whole[&name].shape, whole[&name].data.clone());
        }
        let (gate_up, down) =
            (format!("{layer}feed_forward.experts.gate_up_proj"), format!("{layer}feed_forward.experts.down_proj"));
        let (gate, up) = (half(128, rank), half(128, rank).start + 128..half(128, rank).end + 128);
        check(&gate_up, &[16, 256, 128], columns(&whole[&gate_up], 16 * 256, &[gate, up]));
        check(&down, &[16, 64, 256], columns(&whole[&down], 16, &[half(128 * 256, rank)]));
        let whole = read_model(&quantized);
        let module = format!("{layer}feed_forward.experts.5.down_proj");
        for (suffix, shape) in [("weight_packed", [256, 8]), ("weight_scale", [256, 1]), ("weight_zero_point", [32, 1])]
        {
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
    let name = fs::read_dir(&tuned)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_string_lossy().contains("-00001-of"))
        .unwrap();
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
    run(&mut repack(&quantized, &out, "--layout tp8 --ranks 2"))
        .refused(&["cannot be cut for 2 ranks", "--group-size"]);
    let theirs = scratch.path("theirs");
    run(&mut repack(&theirs, &out, "--layout scout-1xh100")).refused(&["holds rank shards", "--layout hf"]);
    run(&mut quantize(&theirs, &out, "--int4")).refused(&["holds rank shards", "--layout hf"]);
    assert_nothing(&out);
}
