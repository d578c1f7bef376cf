//! `tasks::inspect` on whole models without weights, on quantized checkpoints of another program, and on damaged ones.
//!
//! The numbers of the real models are from transformers' own classes (`testdata/full-size/`) and from arithmetic on the
//! published dimensions, done by hand in the comments.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use l4::calibration::data::DataOptions;
use l4::checkpoint::Checkpoint;
use l4::llama4::ProblemKind;
use l4::output::partial::Existing;
use l4::progress::{Control, Silent};
use l4::quant::Method;
use l4::quant::scheme::Scheme;
use l4::tasks::inspect::{Fit, Options, Report, SchemeMemory, run};
use l4::tasks::quantize;
use l4_testkit::{Dtype, Spec, TensorDef, write_sparse_maverick, write_sparse_safetensors, write_sparse_scout};

const GIB: f64 = (1u64 << 30) as f64;

fn inspect(source: &Path) -> Report {
    run(&Options { source: source.to_path_buf() }).unwrap()
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn sparse(write: fn(&Path) -> anyhow::Result<()>) -> Report {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).unwrap();
    inspect(dir.path())
}

fn scheme<'a>(report: &'a Report, name: &str) -> &'a SchemeMemory {
    report.memory.schemes.iter().find(|memory| memory.scheme == name).unwrap()
}

fn fit<'a>(memory: &'a SchemeMemory, gpus: u64, kv_dtype: &str) -> &'a Fit {
    memory.fits.iter().find(|fit| fit.gpus == gpus && fit.kv_dtype == kv_dtype).unwrap()
}

/// Two decimals, as published tables have them.
fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[test]
fn scout_has_its_published_numbers() {
    let report = sparse(write_sparse_scout);
    assert!(report.complete && report.problems.is_empty());
    assert_eq!(report.parameters.total, 108_641_793_536);
    assert_eq!(report.parameters.promised, 108_641_793_536);
    assert_eq!(report.parameters.text, 107_769_861_120);
    assert_eq!(report.parameters.active, 17_172_894_720);
    assert_eq!((report.tensors.len(), report.bytes, report.files.len()), (1133, 217_283_587_072, 50));
    let roles: Vec<(&str, u64)> = report.parameters.by_role.iter().map(|(&role, &count)| (role, count)).collect();
    let expected = [
        ("attention", 3_019_898_880),
        ("embedding", 1_034_485_760),
        ("lm_head", 1_034_485_760),
        ("norms", 496_640),
        ("projector", 20_971_520),
        ("routed_experts", 96_636_764_160),
        ("router", 3_932_160),
        ("shared_experts", 6_039_797_760),
        ("vision", 850_960_896),
    ];
    assert_eq!(roles, expected);
    assert_eq!(report.experts.len(), 48);
    // 3 * 5120 * 8192 numbers of two bytes.
    assert!(report.experts.iter().all(|layer| layer.fused && layer.bytes_per_expert == 251_658_240));
    assert!(report.quantization.schemes.is_empty());
}

#[test]
fn maverick_has_its_published_numbers() {
    let report = sparse(write_sparse_maverick);
    assert!(report.complete && report.problems.is_empty());
    assert_eq!(report.parameters.total, 401_583_781_376);
    assert_eq!(report.parameters.text, 400_711_848_960);
    assert_eq!(report.parameters.active, 17_184_691_200);
    assert_eq!((report.tensors.len(), report.bytes), (1061, 803_167_562_752));
    assert_eq!(report.parameters.by_role["routed_experts"], 386_547_056_640);
    assert_eq!(report.parameters.by_role["dense_ffn"], 6_039_797_760);
    assert_eq!(report.config.moe_layers, Vec::from_iter((1..48).step_by(2)));
    let fused =
        report.tensors.iter().find(|line| line.name.ends_with("layers.1.feed_forward.experts.gate_up_proj")).unwrap();
    assert_eq!((fused.role, fused.layer, fused.expert), (Some("routed_experts"), Some(1), None));
    assert_eq!((fused.part, fused.weights), (Some("gate_up_proj"), 256));
    assert_eq!(fused.module.as_deref(), Some("layers.1.feed_forward.experts"));
}

#[test]
fn weights_in_each_scheme_take_what_the_shapes_say() {
    // Gigabytes of all weights, and gibibytes of BF16, FP8 and W4 on each of eight GPUs.
    let table = [
        (
            sparse(write_sparse_scout),
            [("bf16", 217.28), ("fp8-dynamic", 114.64), ("w4a16", 64.87), ("w4a16-asym", 65.27)],
            [("bf16", 25.3), ("fp8-dynamic", 13.35), ("w4a16", 7.56)],
        ),
        (
            sparse(write_sparse_maverick),
            [("bf16", 803.17), ("fp8-dynamic", 407.70), ("w4a16", 215.94), ("w4a16-asym", 217.48)],
            [("bf16", 93.5), ("fp8-dynamic", 47.5), ("w4a16", 25.2)],
        ),
    ];
    for (report, totals, on_eight) in table {
        for (name, gigabytes) in totals {
            assert_eq!(rounded(scheme(&report, name).weights_bytes.unwrap() as f64 / 1e9), gigabytes, "{name}");
        }
        for (name, gibibytes) in on_eight {
            let found = fit(scheme(&report, name), 8, "bf16").weights_bytes_per_gpu as f64 / GIB;
            assert!((found - gibibytes).abs() < 0.06, "{name}: {found}");
        }
        // Channels have 8192 + 8192 + 5120 scales per expert, blocks 3 * 64 * 40: both of two bytes.
        let (channel, block) = (scheme(&report, "fp8-dynamic"), scheme(&report, "fp8-block"));
        let experts = report.experts.iter().map(|layer| layer.experts as u64 + 1).sum::<u64>();
        let dense = 48 - report.experts.len() as u64;
        let fewer = experts * (21_504 - 7_680) * 2 + dense * (16_384 * 2 + 5_120 - 3 * 128 * 40) * 2;
        assert_eq!(channel.weights_bytes.unwrap() - block.weights_bytes.unwrap(), fewer);
        assert_eq!(report.memory.stored.scheme, "bf16");
        assert_eq!(report.memory.stored.weights_bytes, Some(report.bytes));
    }
}

#[test]
fn the_cache_stops_growing_in_chunked_layers() {
    let report = sparse(write_sparse_scout);
    let cache = &report.memory.kv_cache;
    assert_eq!((cache.growing_layers, cache.chunked_layers, cache.chunk_tokens), (12, 36, Some(8192)));
    assert_eq!((cache.bf16.per_token, cache.fp8.per_token), (196_608, 98_304));
    assert_eq!((cache.bf16.growing_per_token, cache.bf16.capped_per_token), (49_152, 147_456));
    // One sequence of 128 Ki tokens: 12 layers of 4,096 bytes for each, 36 for 8 Ki of them, is 6 + 1.125 GiB.
    let bytes = cache.bf16.growing_per_token * 131_072 + cache.bf16.capped_per_token * 8_192;
    assert!((bytes as f64 / GIB - 7.125).abs() < 1e-9);
}

#[test]
fn contexts_fill_what_the_weights_leave() {
    let report = sparse(write_sparse_scout);
    let usable = report.memory.device.usable_bytes;
    let int4 = scheme(&report, "w4a16");
    let need = |tokens: u64, share: u64| (tokens * 49_152 + tokens.min(8_192) * 147_456) / share;
    let one = fit(int4, 1, "bf16");
    let room = usable - one.weights_bytes_per_gpu;
    assert!(one.fits && need(one.context, 1) <= room && room < need(one.context + 1, 1));
    assert_eq!(one.context_full_cache, room / 196_608);
    let half = fit(int4, 1, "fp8");
    assert!(need(half.context, 2) <= room && room < need(half.context + 1, 2));
    // Eight GPUs hold one of the eight KV heads each; the config's maximum ends it.
    assert_eq!(fit(int4, 8, "fp8").context, 10_485_760);
    let bf16 = fit(scheme(&report, "bf16"), 8, "bf16");
    let room = usable - bf16.weights_bytes_per_gpu;
    assert!(need(bf16.context, 8) <= room && room < need(bf16.context + 1, 8));

    assert!(!fit(&report.memory.stored, 1, "bf16").fits);
    let suggestion = report.memory.suggestion.as_ref().unwrap();
    assert_eq!((suggestion.scheme.as_str(), suggestion.gpus, suggestion.context), ("w4a16", 1, one.context));
    let maverick = sparse(write_sparse_maverick);
    assert!(!fit(scheme(&maverick, "w4a16"), 1, "fp8").fits && !fit(&maverick.memory.stored, 8, "bf16").fits);
    let suggestion = maverick.memory.suggestion.as_ref().unwrap();
    assert_eq!((suggestion.scheme.as_str(), suggestion.gpus), ("fp8-dynamic", 8));
}

#[test]
fn a_group_size_that_does_not_divide_and_heads_that_cannot_be_split_are_said() {
    let dir = tempfile::tempdir().unwrap();
    Spec::default().write_sparse(dir.path(), None).unwrap();
    let report = inspect(dir.path());
    let int4 = scheme(&report, "w4a16");
    assert_eq!(int4.weights_bytes, None);
    let reason = int4.reason.as_deref().unwrap();
    assert!(
        reason.contains("128 does not divide the 64 inputs of `layers.0.feed_forward.shared_expert.gate_proj`"),
        "{reason}"
    );
    let eight = fit(&report.memory.stored, 8, "bf16");
    assert!(!eight.fits && eight.reason.as_deref().unwrap().contains("4 query heads"));
}

/// Schemes, and what the config's dimensions give: one dense layer, four routed experts and a shared one.
#[test]
fn checkpoints_of_compressed_tensors_are_understood() {
    for (name, label, (hidden, inner, dense)) in [
        ("ct-w4a16", "w4a16-g32", (96, 32, 160)),
        ("ct-w4a16-asym", "w4a16-asym-g32", (96, 32, 160)),
        ("ct-fp8-channel", "fp8-dynamic", (96, 32, 160)),
        ("ct-fp8-block", "fp8-block", (144, 136, 160)),
        ("ct-fp8-tensor", "fp8-static", (96, 32, 160)),
    ] {
        let folder = testdata(name);
        let report = inspect(&folder.join("model.safetensors"));
        assert!(report.problems.is_empty(), "{name}: {:?}", report.problems);
        let schemes: Vec<&String> = report.quantization.schemes.keys().collect();
        assert_eq!(schemes, [label], "{name}");
        let count = &report.quantization.schemes[label];
        assert_eq!(count.by_role.values().copied().collect::<Vec<_>>(), [3, 12, 3], "{name}");
        assert_eq!(count.parameters, 3 * hidden * dense + 5 * 3 * hidden * inner, "{name}");
        assert_eq!(report.quantization.method.as_deref(), Some("compressed-tensors"), "{name}");
        let [layer] = report.experts.as_slice() else { panic!("{name}: {:?}", report.experts) };
        assert_eq!((layer.layer, layer.present, layer.fused), (1, 4, false), "{name}");
        assert_eq!(layer.stored_as[label], 4, "{name}");
        // Every byte belongs to a weight, and parameters are those before quantization.
        assert_eq!(report.components.iter().map(|component| component.bytes).sum::<u64>(), report.bytes, "{name}");
        assert_eq!(report.parameters.total, report.parameters.promised, "{name}");
        assert!(report.tensors.iter().all(|line| line.weights == 1 && line.role.is_some()), "{name}");
    }
}

/// The memory view and the writer's plan compute sizes each on their own.
#[test]
fn the_memory_view_foretells_what_quantize_writes() {
    let source = testdata("tiny-scout");
    let before = inspect(&source);
    for name in Scheme::WRITABLE {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let chosen = Scheme::parse(name, None).unwrap();
        let data = DataOptions { samples: 7, seq_len: Some(64), ..DataOptions::default() };
        let calibration = chosen.needs_data().then_some(data);
        let selection = quantize::Selection::Uniform {
            scheme: chosen,
            method: Method::Rtn,
            include: Vec::new(),
            exclude: Vec::new(),
        };
        let options = quantize::Options {
            source: source.clone(),
            out: out.clone(),
            selection,
            shard_bytes_max: 5_000_000_000,
            existing: Existing { force: false, restart: false },
            requantize: false,
            hash_source: false,
            calibration,
            stats: None,
            solver: quantize::SolverOptions::default(),
        };
        let control = Control { progress: &Silent, stop: &AtomicBool::new(false), threads: 1, memory: 1 << 30 };
        quantize::run(&options, &control).unwrap();
        let after = inspect(&out);
        assert!(after.problems.is_empty(), "{name}: {:?}", after.problems);
        assert_eq!(Some(after.bytes), scheme(&before, name).weights_bytes, "{name}");
        assert_eq!(after.memory.stored.weights_bytes, Some(after.bytes), "{name}");
        assert_eq!(after.parameters.by_role, before.parameters.by_role, "{name}");
        // Four layers of sixteen routed experts and a shared one, three matrices each.
        assert_eq!(after.quantization.schemes[name].weights, 4 * 17 * 3, "{name}");
    }
}

/// The tensors of a checkpoint as testkit defines them.
fn headers(folder: &Path) -> Vec<TensorDef> {
    let dtype = |name: &str| match name {
        "BF16" => Dtype::BF16,
        "F32" => Dtype::F32,
        "F8_E4M3" => Dtype::F8_E4M3,
        other => panic!("{other}"),
    };
    let checkpoint = Checkpoint::open(folder).unwrap();
    let tensors = checkpoint.tensors().iter().map(|tensor| TensorDef {
        name: tensor.name.clone(),
        dtype: dtype(&tensor.dtype.to_string()),
        shape: tensor.shape.iter().map(|&n| n as usize).collect(),
    });
    tensors.collect()
}

/// Inspects `ct-fp8-channel` after `change` to its tensors.
fn changed(change: impl FnOnce(&mut Vec<TensorDef>)) -> Report {
    let source = testdata("ct-fp8-channel");
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = headers(&source);
    change(&mut tensors);
    fs::copy(source.join("config.json"), dir.path().join("config.json")).unwrap();
    write_sparse_safetensors(&dir.path().join("model.safetensors"), &tensors, &[("format", "pt")]).unwrap();
    inspect(dir.path())
}

fn told(report: &Report) -> Vec<(ProblemKind, &str)> {
    report.problems.iter().map(|problem| (problem.kind, problem.name.as_str())).collect()
}

#[test]
fn a_missing_expert_is_told() {
    let report = changed(|tensors| tensors.retain(|tensor| !tensor.name.contains("experts.2.up_proj.")));
    assert_eq!(told(&report), [(ProblemKind::Missing, "layers.1.feed_forward.experts.2.up_proj")]);
    assert!(!report.complete);
    assert_eq!((report.experts[0].present, report.experts[0].missing.as_slice()), (3, &[2][..]));
    assert_eq!(report.parameters.promised - report.parameters.total, 32 * 96);
}

#[test]
fn a_missing_scale_is_told() {
    let report = changed(|tensors| tensors.retain(|tensor| !tensor.name.ends_with("experts.1.down_proj.weight_scale")));
    assert_eq!(told(&report), [(ProblemKind::Mismatch, "layers.1.feed_forward.experts.1.down_proj")]);
    assert_eq!(report.experts[0].missing, [1]);
    // The codes without scales are no weight, but their place in the model shows.
    let codes = report.tensors.iter().find(|line| line.name.ends_with("experts.1.down_proj.weight")).unwrap();
    assert_eq!((codes.role, codes.expert, codes.weights), (Some("routed_experts"), Some(1), 0));
}

#[test]
fn an_unexpected_tensor_does_no_harm() {
    let report = changed(|tensors| {
        tensors.push(TensorDef {
            name: "model.layers.0.self_attn.rotary.inv_freq".into(),
            dtype: Dtype::F32,
            shape: vec![8],
        });
        tensors.push(TensorDef { name: "optimizer.step".into(), dtype: Dtype::F32, shape: vec![1] });
    });
    let unexpected =
        ["model.layers.0.self_attn.rotary.inv_freq", "optimizer.step"].map(|name| (ProblemKind::Unexpected, name));
    assert_eq!(told(&report), unexpected);
    assert!(report.complete);
    assert_eq!(report.tensors.iter().filter(|line| line.role.is_none()).count(), 2);
}

#[test]
fn a_wrong_shape_or_dtype_is_told() {
    let report = changed(|tensors| {
        for tensor in tensors.iter_mut() {
            if tensor.name == "model.norm.weight" {
                tensor.shape = vec![95];
            } else if tensor.name == "model.layers.0.self_attn.q_proj.weight" {
                tensor.dtype = Dtype::I8;
            }
        }
    });
    assert_eq!(told(&report), [(ProblemKind::Mismatch, "layers.0.self_attn.q_proj"), (ProblemKind::Mismatch, "norm")]);
    assert!(report.problems[0].message.contains("I8") && report.problems[1].message.contains("[95]"));
}

#[test]
fn quantized_weights_need_a_config_that_says_so() {
    let source = testdata("ct-fp8-channel");
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(source.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config");
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(source.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let report = inspect(dir.path());
    assert_eq!(told(&report), [(ProblemKind::Mismatch, "quantization_config")]);
    assert!(!report.complete);
}

#[test]
fn a_missing_fused_tensor_takes_all_experts_of_its_layer() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec::default();
    let gone = "language_model.model.layers.2.feed_forward.experts.gate_up_proj";
    let tensors: Vec<TensorDef> = l4_testkit::tensors(&spec).into_iter().filter(|tensor| tensor.name != gone).collect();
    fs::write(dir.path().join("config.json"), l4_testkit::config_json(&spec).to_string()).unwrap();
    write_sparse_safetensors(&dir.path().join("model.safetensors"), &tensors, &[]).unwrap();
    let report = inspect(dir.path());
    // Gate and up of four experts.
    assert_eq!(report.problems.len(), 8);
    assert_eq!(report.experts[2].missing, [0, 1, 2, 3]);
    assert_eq!(report.parameters.promised - report.parameters.total, 4 * 2 * 32 * 64);
    assert!(report.experts[1].missing.is_empty() && report.experts[1].present == 4);
}
