//! Rank shards: which part of each weight a rank has, and what is refused.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use common::{
    Scratch, Tensor, assert_nothing, edit, l4tool, positions, quantize, read_file, read_model, repack, run, tensor,
    testdata, tiny,
};
use serde_json::Value;

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

/// The same bits in rank shards are identical to `diff`, plain or quantized, and a changed bit is not, even if no number changes.
#[test]
fn rank_shards_are_held_against_whole_files_bit_by_bit() {
    let scratch = Scratch::new();
    let plain = scratch.testdata("tiny-scout");
    let (int4, fp8) = (scratch.path("int4"), scratch.path("fp8"));
    run(&mut quantize(&plain, &int4, "--scheme w4a16-asym --group-size 64")).ok();
    run(&mut quantize(&plain, &fp8, "--fp8")).ok();
    let others = |a: &Path, b: &Path| {
        let report = run(l4tool("diff").arg(a).arg(b).arg("--json")).json();
        let weights = report["weights"].as_array().unwrap().iter();
        let text = |weight: &Value, field: &str| weight[field].as_str().unwrap().to_owned();
        let of = |weight: &Value| format!("{} {}", text(weight, "name"), text(weight, "status"));
        weights.filter(|weight| weight["status"] != "identical").map(of).collect::<Vec<String>>()
    };
    let shards_of = |source: &Path| source.with_extension("shards");
    for source in [&plain, &int4, &fp8] {
        let shards = shards_of(source);
        run(&mut repack(source, &shards, "--layout tp8 --ranks 2")).ok();
        for [a, b] in [[source, &shards], [&shards, source], [&shards, &shards]] {
            assert_eq!(others(a, b), Vec::<String>::new(), "{} and {}", a.display(), b.display());
        }
    }
    // The last code of a matrix that is cut along its inputs, and of one that is cut along its outputs.
    let flip = |bytes: &mut [u8]| *bytes.last_mut().unwrap() ^= 0x10;
    edit_bytes(&int4, "layers.1.feed_forward.experts.5.down_proj.weight_packed", flip);
    edit_bytes(&fp8, "layers.1.feed_forward.experts.5.gate_proj.weight", flip);
    edit_bytes(&fp8, "layers.2.feed_forward.experts.3.down_proj.weight", flip);
    assert_eq!(others(&int4, &shards_of(&int4)), ["layers.1.feed_forward.experts.5.down_proj different"]);
    let found = others(&fp8, &shards_of(&fp8));
    let names = ["layers.1.feed_forward.experts.5.gate_proj", "layers.2.feed_forward.experts.3.down_proj"];
    assert_eq!(found, names.map(|name| format!("{name} different")));
    // Zeros of either sign are the same number.
    let name = "language_model.model.layers.1.self_attn.o_proj.weight";
    let zero = |sign: u8| move |bytes: &mut [u8]| bytes[18..20].copy_from_slice(&[0, sign]);
    edit_bytes(&plain, name, zero(0));
    fs::remove_dir_all(shards_of(&plain)).unwrap();
    run(&mut repack(&plain, &shards_of(&plain), "--layout tp8 --ranks 2")).ok();
    assert_eq!(others(&plain, &shards_of(&plain)), Vec::<String>::new());
    edit_bytes(&plain, name, zero(0x80));
    assert_eq!(others(&plain, &shards_of(&plain)), ["layers.1.self_attn.o_proj equal"]);
}

/// Changes the bytes of the tensor whose name ends so.
fn edit_bytes(folder: &Path, end: &str, change: impl FnOnce(&mut [u8])) {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let weights = files.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    let place = |file: PathBuf| {
        let (_, start, bytes) = positions(&file).into_iter().find(|(name, ..)| name.ends_with(end))?;
        Some((file, start as usize..(start + bytes) as usize))
    };
    let (file, range) = weights.into_iter().find_map(place).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    change(&mut bytes[range]);
    fs::write(&file, bytes).unwrap();
}

/// Wider floats in rank shards are rounded with the same account as in whole files.
#[test]
fn floats_of_rank_shards_are_cast_as_those_of_whole_files() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    let name = "language_model.model.layers.1.self_attn.o_proj.weight";
    let wider = |values: &[(usize, f32)]| {
        edit(&source, |tensors| {
            let tensor = tensor(tensors, name);
            if tensor.dtype == "BF16" {
                tensor.data = tensor.data.chunks(2).flat_map(|half| [0, 0, half[0], half[1]]).collect();
                tensor.dtype = "F32".into();
            }
            values.iter().for_each(|&(at, value)| tensor.set(at, &value.to_le_bytes()));
        });
    };
    let shards = scratch.path("shards");
    let convert = |from: &Path, to: &str, flags: &str| {
        let _ = fs::remove_dir_all(scratch.path(to));
        run(l4tool("convert --to hf --dtype bf16 --json")
            .args(flags.split_whitespace())
            .arg(from)
            .arg("-o")
            .arg(scratch.path(to)))
    };
    for (values, flags, overflows) in [(&[(3, 1.001), (70, -3.0e-3)][..], "", 0), (&[(5, 3.402e38)], "--clamp", 1)] {
        wider(values);
        let _ = fs::remove_dir_all(&shards);
        run(&mut repack(&source, &shards, "--layout tp8 --ranks 2")).ok();
        let (whole, parts) =
            (convert(&source, "whole", flags).ok().json(), convert(&shards, "parts", flags).ok().json());
        assert_eq!(whole["rounded"].as_array().unwrap().len(), 1, "{whole}");
        assert_eq!(parts["rounded"], whole["rounded"]);
        assert_eq!((&parts["overflows"], &whole["overflows"]), (&overflows.into(), &overflows.into()));
        assert_eq!(read_model(&scratch.path("parts")), read_model(&scratch.path("whole")));
    }
    convert(&shards, "parts", "").refused(&["3.402e38", "the largest of BF16", "--dtype f32", "--clamp"]);
}
