//! Plans and their execution: every byte is written once, where a task ends does not matter, files are laid out as the
//! format wants them.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use l4_testkit::{Spec, write_sparse_maverick, write_sparse_scout};

use super::executor;
use super::journal::Identity;
use super::modules::{Target, plan_copy_as, plan_in_tasks_of, plan_weights};
use super::partial::{self, Existing, Partial};
use super::plan::{Plan, PlanBuilder};
use super::preflight;
use crate::dtype::Dtype;
use crate::kernels::Float;
use crate::llama4::{Llama4, Weight};
use crate::progress::{Control, Silent};
use crate::quant::Method;
use crate::quant::scheme::Scheme;

const SCHEMES: [Scheme; 4] = [
    Scheme::W4A16 { group_size: 32, symmetric: true },
    Scheme::W4A16 { group_size: 32, symmetric: false },
    Scheme::Fp8Dynamic,
    Scheme::Fp8Block { rows: 128, cols: 128 },
];

fn targets(model: &Llama4, scheme: Scheme, wanted: impl Fn(&Weight) -> bool) -> Vec<Option<Target>> {
    let target = Target { scheme, method: Method::Search };
    model.weights.iter().map(|weight| wanted(weight).then_some(target)).collect()
}

fn control<'a>(stop: &'a AtomicBool, memory: u64) -> Control<'a> {
    Control { progress: &Silent, stop, threads: 2, memory }
}

/// A plan that copies every tensor, and looks at its numbers if they are in a known format.
fn copies(model: &Llama4, float: Option<Float>) -> Plan {
    let mut builder = PlanBuilder::new(5_000_000_000);
    for (id, info) in model.checkpoint.tensors().iter().enumerate() {
        builder.begin_module();
        plan_copy_as(info.name.clone(), &mut builder, model, id, float).unwrap();
    }
    builder.finish().unwrap()
}

/// Executes a plan; gives its files and their digests.
fn execute(plan: &Plan, model: &Llama4, out: &Path) -> (BTreeMap<String, Vec<u8>>, Vec<String>) {
    let stop = AtomicBool::new(false);
    let (partial, finished) = Partial::open(out, &Identity::new(), Existing::default()).unwrap();
    let control = control(&stop, 1 << 30);
    let run = executor::Run::open(plan, model, &partial, finished, &control).unwrap();
    executor::fill(&run).unwrap();
    let filled = run.close(&[]).unwrap();
    let read = |name: &String| (name.clone(), std::fs::read(partial.model().join(name)).unwrap());
    let files = plan.files.iter().map(|file| read(&file.name)).collect();
    (files, filled.digests)
}

#[test]
fn where_a_task_ends_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    // 288 rows are tasks of 128, 128 and 32 rows.
    let spec = Spec {
        hidden_size: 288,
        intermediate_size: 160,
        intermediate_size_mlp: 320,
        experts: 3,
        layers: 2,
        ..Spec::default()
    };
    Spec { interleave_moe_layer_step: 2, vision: None, text_only: true, ..spec }.write(&source).unwrap();
    let model = Llama4::open(&source).unwrap();
    model.require_complete().unwrap();
    for scheme in SCHEMES {
        // One expert stays plain, and is taken out of the fused tensor.
        let targets = targets(&model, scheme, |weight| weight.role.is_feed_forward() && weight.expert != Some(1));
        let plan = |bytes_max: u64| {
            let mut builder = PlanBuilder::new(u64::MAX);
            plan_in_tasks_of(bytes_max, &mut builder, &model, &targets).unwrap();
            builder.finish().unwrap()
        };
        let (whole, cut) = (plan(1 << 40), plan(1));
        assert!(cut.tasks.len() > whole.tasks.len() + 10, "{} and {} tasks", cut.tasks.len(), whole.tasks.len());
        assert_eq!(whole.source_bytes(), cut.source_bytes());
        covers_every_byte(&cut);
        let of_whole = execute(&whole, &model, &folder.path().join(format!("{scheme}-whole")));
        let of_cut = execute(&cut, &model, &folder.path().join(format!("{scheme}-cut")));
        assert!(of_whole == of_cut, "{scheme}");
    }
}

/// Header, literals and the regions of all tasks must fill every file exactly, without an overlap.
fn covers_every_byte(plan: &Plan) {
    let mut spans: Vec<(usize, u64, u64)> = Vec::new();
    for (index, file) in plan.files.iter().enumerate() {
        spans.push((index, 0, file.header.len() as u64));
    }
    for tensor in plan.tensors.iter().filter(|tensor| tensor.literal.is_some()) {
        spans.push((tensor.file, tensor.offset, tensor.offset + tensor.bytes));
    }
    for region in plan.tasks.iter().flat_map(|task| &task.writes) {
        let (file, start) = plan.place(region);
        assert!(region.start + region.bytes <= plan.tensors[region.tensor].bytes);
        spans.push((file, start, start + region.bytes));
    }
    spans.sort_unstable();
    let mut ends = vec![0; plan.files.len()];
    for (file, start, end) in spans {
        assert_eq!(start, ends[file], "a gap or an overlap in `{}`", plan.files[file].name);
        ends[file] = end;
    }
    assert!(ends.iter().zip(&plan.files).all(|(end, file)| *end == file.bytes));
}

#[test]
fn plans_of_the_real_models_cover_every_byte_in_bounded_memory() {
    let folder = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    for (name, write, experts) in
        [("scout", write_sparse_scout as fn(&Path) -> anyhow::Result<()>, 16), ("maverick", write_sparse_maverick, 128)]
    {
        let source = folder.path().join(name);
        write(&source).unwrap();
        let model = Llama4::open(&source).unwrap();
        model.require_complete().unwrap();
        for scheme in SCHEMES {
            for keep in [None, Some(experts - 1)] {
                let targets = targets(&model, scheme, |weight| weight.role.is_feed_forward() && weight.expert != keep);
                let mut builder = PlanBuilder::new(5_000_000_000);
                plan_weights(&mut builder, &model, &targets).unwrap();
                let plan = builder.finish().unwrap();
                covers_every_byte(&plan);
                // Every byte of the model is accounted for once.
                assert_eq!(plan.source_bytes(), model.checkpoint.tensor_bytes(), "{name} {scheme}");
                assert!(plan.files.iter().all(|file| file.bytes - file.header.len() as u64 <= 5_000_000_000));
                // Two threads, and one more worker while one of them waits for the disk.
                assert_eq!(preflight::workers(&plan, &control(&stop, 1 << 30)).unwrap(), 3, "{name} {scheme}");
            }
        }
    }
}

#[test]
fn more_workers_copy_than_compute_and_memory_limits_them() {
    let folder = tempfile::tempdir().unwrap();
    Spec::default().write(folder.path()).unwrap();
    let model = Llama4::open(folder.path()).unwrap();
    let plan = copies(&model, None);
    let stop = AtomicBool::new(false);
    let workers = |memory| preflight::workers(&plan, &control(&stop, memory)).unwrap();
    assert_eq!(workers(1 << 30), 5);
    let each = plan.memory_min() + preflight::BOUNCE_BYTES;
    assert_eq!(workers(preflight::BASE_BYTES + 4 * each - 1), 3);
}

#[test]
fn a_task_that_fails_keeps_no_other_waiting_to_hash() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    Spec { vocab_size: 100_000, ..Spec::default() }.write(&source).unwrap();
    let model = Llama4::open(&source).unwrap();
    let plan = copies(&model, Some(Float::BF16));
    // At the end of the embeddings: others have long finished what comes next by then.
    let first = &plan.tensors[plan.tasks[0].writes[0].tensor].name;
    let info = &model.checkpoint.tensors()[model.checkpoint.find(first).unwrap()];
    let file = std::fs::File::options().write(true).open(&model.checkpoint.files()[info.file].path).unwrap();
    file.write_all_at(&[0xc0, 0x7f], info.offset + info.bytes - 2).unwrap();
    let stop = AtomicBool::new(false);
    let (partial, finished) = Partial::open(&folder.path().join("out"), &Identity::new(), Existing::default()).unwrap();
    let control = control(&stop, 1 << 30);
    let run = executor::Run::open(&plan, &model, &partial, finished, &control).unwrap();
    let error = format!("{:#}", executor::fill(&run).unwrap_err());
    assert!(error.contains(first) && error.contains("not finite"), "{error}");
}

#[test]
fn files_are_cut_between_modules_and_aligned() {
    let mut builder = PlanBuilder::new(100);
    for module in 0..4 {
        builder.begin_module();
        builder.tensor(format!("{module}.codes"), Dtype::F8_E4M3, vec![3, 11]).unwrap();
        builder.tensor(format!("{module}.scale"), Dtype::BF16, vec![3]).unwrap();
        let shape = builder.tensor(format!("{module}.shape"), Dtype::I64, vec![1]).unwrap();
        builder.literal(shape, vec![0; 8]);
    }
    builder.begin_module();
    builder.tensor("large".into(), Dtype::U8, vec![1000]).unwrap();
    builder.begin_module();
    builder.tensor("empty".into(), Dtype::F32, vec![0, 5]).unwrap();
    let plan = builder.finish().unwrap();
    // 47 bytes a module: two fit 100 bytes, and the large one has a file of its own.
    let sizes: Vec<usize> = plan.files.iter().map(|file| file.tensors.len()).collect();
    assert_eq!(sizes, [6, 6, 1, 1]);
    assert_eq!(plan.data_bytes(), 4 * 47 + 1000);
    for file in &plan.files {
        assert!(file.header.len().is_multiple_of(8));
        assert_eq!(file.header[..8], (file.header.len() as u64 - 8).to_le_bytes());
        let mut end = file.header.len() as u64;
        for tensor in file.tensors.iter().map(|&id| &plan.tensors[id]) {
            assert_eq!(tensor.offset, end, "{}", tensor.name);
            assert!(tensor.offset.is_multiple_of(tensor.dtype.block_bits() / 8), "{} is not aligned", tensor.name);
            end += tensor.bytes;
        }
        assert_eq!(end, file.bytes);
    }
}

#[test]
fn what_cannot_be_laid_out_is_refused() {
    let mut builder = PlanBuilder::new(100);
    for _ in 0..2 {
        builder.begin_module();
        builder.tensor("twice".into(), Dtype::U8, vec![1]).unwrap();
    }
    assert!(builder.finish().unwrap_err().to_string().contains("`twice`"));
    let mut builder = PlanBuilder::new(100);
    assert!(builder.tensor("huge".into(), Dtype::F32, vec![u64::MAX, 2]).unwrap_err().to_string().contains("`huge`"));
    builder.begin_module();
    for name in ["a", "b"] {
        builder.tensor(name.into(), Dtype::U8, vec![u64::MAX / 16]).unwrap();
    }
    assert!(builder.finish().unwrap_err().to_string().contains("larger than any file"));
    let empty = PlanBuilder::new(100).finish().unwrap();
    assert_eq!((empty.bytes(), empty.files.len(), empty.memory_min()), (0, 0, 0));
}

#[test]
fn an_output_that_appeared_meanwhile_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let open = || Partial::open(&out, &Identity::new(), Existing::default()).unwrap().0;
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("theirs"), "content").unwrap();
    assert!(open().publish(Existing::default()).is_err());
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
    // An empty folder appeared: it is somebody's, too.
    std::fs::remove_file(out.join("theirs")).unwrap();
    assert!(open().publish(Existing::default()).is_err());
    std::fs::write(open().model().join("ours"), "content").unwrap();
    open().publish(Existing { force: true, restart: false }).unwrap();
    assert!(out.join("ours").exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(partial::reserved_bytes(&out), 0);
}
