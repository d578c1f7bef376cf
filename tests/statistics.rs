//! Statistics against transformers: token counts and transitions exactly, sums to the precision of float32 activations; and merging.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::testdata;
use l4::calibration::data::DataOptions;
use l4::calibration::evidence::Evidence;
use l4::calibration::statistics::{SCORE_BINS, Statistics};
use l4::calibration::{Place, Site};
use l4::llama4::Llama4;
use l4::progress::{Control, Silent};
use l4::tasks::calibrate::{self, Options, Source};
use l4::tasks::routing;
use safetensors::SafeTensors;

/// What `make_routing_goldens.py` wrote.
struct Golden(Vec<u8>);

impl Golden {
    fn open(model: &str) -> Self {
        Self(fs::read(testdata("routing-goldens").join(format!("{model}.safetensors"))).unwrap())
    }

    fn whole(&self, name: &str) -> Option<(Vec<usize>, Vec<u64>)> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).ok()?;
        let values = tensor.data().as_chunks::<8>().0.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect();
        Some((tensor.shape().to_vec(), values))
    }

    fn floats(&self, name: &str) -> Option<Vec<f64>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).ok()?;
        Some(tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect())
    }

    /// The sequences, as lines of JSON.
    fn lines(&self, sequences: std::ops::Range<usize>) -> String {
        let (shape, ids) = self.whole("input_ids").unwrap();
        let rows = ids.chunks_exact(shape[1]).skip(sequences.start).take(sequences.len());
        rows.map(|row| format!("{{\"input_ids\": {row:?}}}\n")).collect()
    }
}

fn run(options: &Options, threads: usize, memory: u64) -> anyhow::Result<calibrate::Report> {
    let stop = AtomicBool::new(false);
    calibrate::run(options, &Control { progress: &Silent, stop: &stop, threads, memory })
}

fn options(source: Source, out: &Path) -> Options {
    let temporary = out.parent().unwrap().to_owned();
    Options {
        source,
        out: Some(out.to_owned()),
        imatrix: None,
        hessians: false,
        force: false,
        temporary,
        dry_run: false,
    }
}

/// Statistics of a model on files of sequences, each under a label.
fn calibrated(model: &str, folder: &Path, files: &[(&str, String)], out: &str) -> PathBuf {
    let mut data = Vec::new();
    for (label, lines) in files {
        let path = folder.join(format!("{out}-{label}.jsonl"));
        fs::write(&path, lines).unwrap();
        data.push(format!("{label}={}", path.display()));
    }
    let data = DataOptions { data, samples: 600, seq_len: None, seed: 0 };
    let out = folder.join(out);
    run(&options(Source::Run { checkpoint: testdata(model), data }, &out), 2, 1 << 30).unwrap();
    out
}

fn close(is: &[f64], wanted: &[f64], what: &str) {
    assert_eq!(is.len(), wanted.len(), "{what}");
    let largest = wanted.iter().copied().fold(0.0, f64::max);
    for (index, (a, b)) in is.iter().zip(wanted).enumerate() {
        assert!((a - b).abs() <= 1e-4 * b.abs() + 1e-7 * largest, "{what}[{index}]: {a} and {b}");
    }
}

fn check_against_transformers(model: &str) {
    let folder = tempfile::tempdir().unwrap();
    let golden = Golden::open(model);
    let files = [("first", golden.lines(0..2)), ("second", golden.lines(2..6))];
    let statistics = Statistics::open(&calibrated(model, folder.path(), &files, "stats")).unwrap();
    assert_eq!(statistics.meta.labels.iter().map(|label| label.tokens).collect::<Vec<_>>(), [2 * 192, 4 * 192]);
    let key = &statistics.meta.model;
    let experts = key.num_local_experts;
    let mut layers = 0;
    for layer in 0..key.moe_layers.len() {
        let name = |what: &str| format!("layers.{layer}.{what}");
        let floats = |what: &str| golden.floats(&name(what)).unwrap();
        let sum2 = |place| statistics.sum2(Site { layer, place }).unwrap();
        close(&sum2(Place::AttentionInput), &floats("self_attn.qkv_proj"), &name("qkv"));
        close(&sum2(Place::AttentionOutput), &floats("self_attn.o_proj"), &name("o"));
        let Some((shape, counts)) = golden.whole(&name("tokens")) else {
            close(&sum2(Place::DenseGateUp), &floats("feed_forward.gate_up_proj"), &name("gate_up"));
            close(&sum2(Place::DenseDown), &floats("feed_forward.down_proj"), &name("down"));
            continue;
        };
        assert_eq!(shape, [6, experts]);
        let routing = &statistics.routing[layers];
        assert_eq!(routing.layer, layer);
        let of =
            |rows: std::ops::Range<usize>, expert: usize| rows.map(|row| counts[row * experts + expert]).sum::<u64>();
        for expert in 0..experts {
            assert_eq!(routing.tokens[expert], of(0..2, expert), "layer {layer}, expert {expert}");
            assert_eq!(routing.tokens[experts + expert], of(2..6, expert), "layer {layer}, expert {expert}");
            assert_eq!(statistics.loads()[layers].1[expert], of(0..6, expert));
            let bins = &routing.histogram[expert * SCORE_BINS..][..SCORE_BINS];
            assert_eq!(bins.iter().sum::<u64>(), of(0..6, expert));
        }
        let scores: Vec<f64> =
            (0..experts).map(|expert| routing.score_sum[expert] + routing.score_sum[experts + expert]).collect();
        close(&scores, &floats("score_sum"), &name("score_sum"));
        assert_eq!(routing.transitions, golden.whole(&name("transitions")).map(|(_, counts)| counts));
        close(&sum2(Place::SharedGateUp), &floats("feed_forward.shared_expert.gate_up_proj"), &name("shared"));
        close(&sum2(Place::SharedDown), &floats("feed_forward.shared_expert.down_proj"), &name("shared down"));
        for (what, place) in [
            ("feed_forward.experts.gate_up_proj", Place::ExpertGateUp as fn(usize) -> Place),
            ("feed_forward.experts.down_proj", Place::ExpertDown),
        ] {
            let all: Vec<f64> = (0..experts).flat_map(|expert| sum2(place(expert))).collect();
            close(&all, &floats(what), &name(what));
        }
        layers += 1;
    }
    assert_eq!(layers, statistics.routing.len());
    assert!(layers > 0);
}

#[test]
fn tiny_scout_is_counted_as_transformers_counts() {
    check_against_transformers("tiny-scout");
}

#[test]
fn tiny_maverick_is_counted_as_transformers_counts() {
    check_against_transformers("tiny-maverick");
}

#[test]
fn merging_gives_the_statistics_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Golden::open("tiny-scout");
    let part = |label, range, out| calibrated("tiny-scout", folder.path(), &[(label, golden.lines(range))], out);
    let (a, b, c) = (part("x", 0..2, "a"), part("y", 2..3, "b"), part("x", 3..6, "c"));
    let merged = |parts: &[&PathBuf], out: &str| {
        let out = folder.path().join(out);
        let parts = parts.iter().map(|&part| part.clone()).collect();
        run(&options(Source::Merge(parts), &out), 1, 1 << 30).unwrap();
        out
    };
    let left = merged(&[&merged(&[&a, &b], "ab"), &c], "ab-c");
    let right = merged(&[&a, &merged(&[&c, &b], "cb")], "a-cb");
    let left = Statistics::open(&left).unwrap();
    let right = Statistics::open(&right).unwrap();
    assert_eq!(left.meta, right.meta);
    let files = [("x", golden.lines(0..2) + &golden.lines(3..6)), ("y", golden.lines(2..3))];
    let whole = Statistics::open(&calibrated("tiny-scout", folder.path(), &files, "whole")).unwrap();
    assert_eq!(left.meta.labels, whole.meta.labels);
    for ((left, right), whole) in left.routing.iter().zip(&right.routing).zip(&whole.routing) {
        assert_eq!(
            (&left.tokens, &left.histogram, &left.transitions),
            (&right.tokens, &right.histogram, &right.transitions)
        );
        assert_eq!(
            (&left.tokens, &left.histogram, &left.transitions),
            (&whole.tokens, &whole.histogram, &whole.transitions)
        );
        close(&left.score_sum, &whole.score_sum, "score_sum");
    }
    for place in [Place::AttentionOutput, Place::SharedDown, Place::ExpertGateUp(3), Place::ExpertDown(15)] {
        let site = Site { layer: 2, place };
        let sums = left.sum2(site).unwrap();
        close(&sums, &whole.sum2(site).unwrap(), "sum2");
        for (a, b) in sums.iter().zip(right.sum2(site).unwrap()) {
            assert!((a - b).abs() <= 4.0 * f64::EPSILON * b, "{a} and {b}");
        }
        assert_eq!(left.amax(site).unwrap(), whole.amax(site).unwrap());
        assert_eq!(left.amax(site).unwrap(), right.amax(site).unwrap());
    }
    // Two files in either order are the same bytes.
    let (ab, ba) = (merged(&[&a, &b], "ab2"), merged(&[&b, &a], "ba2"));
    assert!(fs::read(ab).unwrap() == fs::read(ba).unwrap());
}

#[test]
fn statistics_of_different_models_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    let part = |model: &str| {
        calibrated(model, folder.path(), &[("x", Golden::open(model).lines(0..1))], &format!("{model}.stats"))
    };
    let (scout, maverick) = (part("tiny-scout"), part("tiny-maverick"));
    let out = folder.path().join("out");
    let error = run(&options(Source::Merge(vec![scout.clone(), maverick.clone()]), &out), 1, 1 << 30).unwrap_err();
    assert!(format!("{error:#}").contains("another model: `hidden_size` is 64, and 256"), "{error:#}");
    assert!(!out.exists());
    let model = Llama4::open(&testdata("tiny-scout")).unwrap();
    Evidence::open(&scout).unwrap().check_model(&model).unwrap();
    assert!(Evidence::open(&maverick).unwrap().check_model(&model).is_err());
    // The same shape with other routers: one number of one router.
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    for entry in fs::read_dir(testdata("tiny-scout")).unwrap() {
        let entry = entry.unwrap();
        fs::write(other.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
    let router = model.named("layers.1.feed_forward.router").unwrap();
    let l4::llama4::Coding::Plain(plane) = router.coding else { panic!("routers are plain") };
    let tensor = &model.checkpoint.tensors()[plane.tensor];
    let path = other.join(&model.checkpoint.files()[tensor.file].name);
    let mut bytes = fs::read(&path).unwrap();
    bytes[tensor.offset as usize + 100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = Evidence::open(&scout).unwrap().check_model(&Llama4::open(&other).unwrap()).unwrap_err();
    assert!(format!("{error:#}").contains("its routers have other weights"), "{error:#}");
}

#[test]
fn importance_is_the_mean_square_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Golden::open("tiny-maverick");
    let lines = folder.path().join("data.jsonl");
    fs::write(&lines, golden.lines(0..6)).unwrap();
    let data = DataOptions { data: vec![lines.display().to_string()], samples: 6, seq_len: None, seed: 0 };
    let (stats, imatrix) = (folder.path().join("stats"), folder.path().join("imatrix.gguf"));
    let source = Source::Run { checkpoint: testdata("tiny-maverick"), data };
    run(&Options { imatrix: Some(imatrix.clone()), ..options(source, &stats) }, 2, 1 << 30).unwrap();
    let model = Llama4::open(&testdata("tiny-maverick")).unwrap();
    let (ours, theirs) = (Evidence::open(&stats).unwrap(), Evidence::open(&imatrix).unwrap());
    assert!(matches!((&ours, &theirs), (Evidence::Statistics(_), Evidence::Imatrix(_))));
    assert_eq!(ours.loads(&model).unwrap(), theirs.loads(&model).unwrap());
    let (_, counts) = golden.whole("layers.1.tokens").unwrap();
    let sums = golden.floats("layers.1.feed_forward.experts.down_proj").unwrap();
    let mut unseen = 0;
    for expert in 0..128 {
        let rows: u64 = counts.iter().skip(expert).step_by(128).sum();
        let weight = model.named(&format!("layers.1.feed_forward.experts.{expert}.down_proj")).unwrap();
        let importance = [ours.importance(weight).unwrap(), theirs.importance(weight).unwrap()];
        if rows == 0 {
            assert_eq!(importance, [None, None]);
            unseen += 1;
            continue;
        }
        let wanted: Vec<f64> = sums[expert * 32..][..32].iter().map(|sum| sum / rows as f64).collect();
        for importance in importance {
            let is: Vec<f64> = importance.unwrap().into_iter().map(f64::from).collect();
            close(&is, &wanted, &weight.name);
        }
    }
    assert!(unseen > 0, "the model was to have experts that see nothing");
    for (name, known) in
        [("layers.0.feed_forward.up_proj", true), ("layers.3.feed_forward.router", true), ("lm_head", false)]
    {
        let weight = model.named(name).unwrap();
        for evidence in [&ours, &theirs] {
            assert_eq!(evidence.importance(weight).unwrap().is_some(), known, "{name}");
        }
    }
}

#[test]
fn hessians_hold_the_sums_of_squares_and_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Golden::open("tiny-maverick");
    let run = |range: std::ops::Range<usize>, name: &str, threads| {
        let lines = folder.path().join(format!("{name}.jsonl"));
        fs::write(&lines, golden.lines(range)).unwrap();
        let data = DataOptions { data: vec![lines.display().to_string()], samples: 6, seq_len: None, seed: 0 };
        let out = folder.path().join(name);
        let source = Source::Run { checkpoint: testdata("tiny-maverick"), data };
        run(&Options { hessians: true, ..options(source, &out) }, threads, 1 << 30).unwrap();
        out
    };
    let (whole, first, second) = (run(0..6, "whole", 2), run(0..2, "first", 1), run(2..6, "second", 3));
    let merged = folder.path().join("merged");
    self::run(&options(Source::Merge(vec![first, second]), &merged), 1, 1 << 30).unwrap();
    let (whole, merged) = (Statistics::open(&whole).unwrap(), Statistics::open(&merged).unwrap());
    let sites = [(0, Place::DenseDown, 96), (1, Place::ExpertGateUp(0), 64), (3, Place::SharedGateUp, 64)];
    for (layer, place, width) in sites {
        let site = Site { layer, place };
        let hessian = whole.hessian(site).unwrap().unwrap();
        assert_eq!(hessian.len(), width * width);
        let floats = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
        let diagonal: Vec<f32> = hessian.iter().copied().step_by(width + 1).collect();
        close(&floats(&diagonal), &whole.sum2(site).unwrap(), "the diagonal");
        let other = merged.hessian(site).unwrap().unwrap();
        let largest = diagonal.iter().copied().fold(0.0_f32, f32::max);
        for (a, b) in hessian.iter().zip(&other) {
            assert!((a - b).abs() <= 1e-5 * largest, "{a} and {b}");
        }
        assert!(hessian[1] == 0.0 && hessian[width] != 0.0 || whole.rows(site) == 0, "the lower triangle counts");
    }
}

#[test]
fn threads_and_memory_do_not_show() {
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("data.jsonl");
    fs::write(&lines, Golden::open("tiny-scout").lines(0..6)).unwrap();
    let data = DataOptions { data: vec![lines.display().to_string()], samples: 6, seq_len: None, seed: 0 };
    let bytes = |threads, memory: u64| {
        let out = folder.path().join(format!("{threads}-{memory}"));
        let source = Source::Run { checkpoint: testdata("tiny-scout"), data: data.clone() };
        run(&options(source, &out), threads, memory).unwrap();
        fs::read(out).unwrap()
    };
    let wanted = bytes(1, 1 << 30);
    assert!(wanted == bytes(3, 1 << 30));
    // So little that activations go to files.
    assert!(wanted == bytes(2, 86 << 20));
}

#[test]
fn hostile_statistics_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = calibrated("tiny-scout", folder.path(), &[("x", Golden::open("tiny-scout").lines(0..1))], "good");
    let bytes = fs::read(&good).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let path = folder.path().join("bad");
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Statistics::open(&path).map(|_| ()).map_err(|error| format!("{error:#}"))
    };
    refused(&bytes).unwrap();
    assert!(refused(&bytes[..bytes.len() - 1]).unwrap_err().contains("truncated"));
    let replaced = |from: &str, to: &str| {
        let text = String::from_utf8(bytes[8..header].to_vec()).unwrap();
        assert!(text.contains(from), "{from}");
        let text = text.replacen(from, to, 1);
        [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[header..]].concat()
    };
    for (from, to, words) in [
        ("\"l4tool.statistics\":\"1\"", "\"l4tool.statistics\":\"9\"", "version `9`"),
        ("\"l4tool.statistics\"", "\"something\"", "no statistics file"),
        ("\\\"num_local_experts\\\":16", "\\\"num_local_experts\\\":99999999", "experts"),
        ("\\\"num_local_experts\\\":16", "\\\"num_local_experts\\\":8", "is F32 [16] and should be F32 [8]"),
        ("\\\"tokens\\\":192", "\\\"tokens\\\":191", "tokens"),
        ("layers.0.feed_forward.router.tokens", "layers.0.feed_forward.router.tokenz", "belongs to no statistics"),
        ("\\\"label\\\":\\\"x\\\",\\\"sequences", "\\\"label\\\":\\\"\\\\u001b\\\",\\\"sequences", "is no label"),
    ] {
        let error = refused(&replaced(from, to)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    // The first tensor is the tokens of layer 0: one more of them does not add up.
    let mut counts = bytes.clone();
    counts[header] ^= 1;
    assert!(refused(&counts).unwrap_err().contains("do not add up"));
    counts[header..header + 8].fill(0xff);
    assert!(refused(&counts).unwrap_err().contains("do not add up"));
    // A sum of squares that is not a number shows when it is read.
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let name = "layers.1.self_attn.qkv_proj.in_sum2";
    let at = file.tensor(name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    let mut sums = bytes.clone();
    sums[at..at + 8].copy_from_slice(&f64::NAN.to_le_bytes());
    refused(&sums).unwrap();
    let error = Statistics::open(&path).unwrap().importance("layers.1.self_attn.q_proj").unwrap_err();
    assert!(format!("{error:#}").contains("no sum of squares"), "{error:#}");
}

#[test]
fn routing_reports_what_transformers_counted() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Golden::open("tiny-maverick");
    let lines = folder.path().join("data.jsonl");
    fs::write(&lines, golden.lines(0..6)).unwrap();
    let data = DataOptions { data: vec![format!("x={}", lines.display())], samples: 6, seq_len: None, seed: 0 };
    let options = routing::Options {
        source: testdata("tiny-maverick"),
        data: Some(data),
        layers: vec![3],
        sort: routing::Sort::Tokens,
        top: Some(4),
        temporary: folder.path().to_owned(),
        ..routing::Options::default()
    };
    let stop = AtomicBool::new(false);
    let report =
        routing::run(&options, &Control { progress: &Silent, stop: &stop, threads: 2, memory: 1 << 30 }).unwrap();
    let (_, counts) = golden.whole("layers.3.tokens").unwrap();
    let loads: Vec<u64> = (0..128).map(|expert| counts.iter().skip(expert).step_by(128).sum()).collect();
    let [layer] = &report.layers[..] else { panic!("one layer was asked for") };
    assert_eq!((layer.layer, &layer.loads), (3, &loads));
    assert_eq!(layer.dead, (0..128).filter(|&expert| loads[expert] == 0).collect::<Vec<_>>());
    assert_eq!(layer.used + layer.dead.len(), 128);
    let mut sorted = loads.clone();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(report.experts.iter().map(|row| row.tokens).collect::<Vec<_>>(), sorted[..4]);
    let scores = golden.floats("layers.3.score_sum").unwrap();
    for row in &report.experts {
        let mean = scores[row.expert] / loads[row.expert] as f64;
        assert!((row.score_mean.unwrap() - mean).abs() < 1e-6);
        // The percentiles come from bins of a logit's eighth: the median is no further from the mean than the extremes.
        let [p5, p50, p95] = [row.score_p5, row.score_p50, row.score_p95].map(Option::unwrap);
        assert!(p5 <= p50 && p50 <= p95 && p5 <= mean && mean <= p95, "{row:?}");
    }
    let missing = routing::Options { layers: vec![2], ..options };
    let error =
        routing::run(&missing, &Control { progress: &Silent, stop: &stop, threads: 2, memory: 1 << 30 }).unwrap_err();
    assert!(error.to_string().contains("layer 2 has no routed experts"), "{error}");
}
