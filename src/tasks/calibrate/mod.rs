//! `calibrate`: statistics of a model on some text, in a file that `quantize --stats` and `routing` read; and the sum of several.
//!
//! The model runs layer by layer, each layer's weights are read once, and a layer's sums are written when it is done. The file appears
//! when it is complete; a run that is killed leaves `NAME.partial` at most and starts again.

mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::calibration::data::{self, DataOptions};
use crate::calibration::imatrix::{ImatrixPlan, ImatrixSink};
use crate::calibration::look::look;
use crate::calibration::statistics::{self, LayerRouting, Layout, Meta, ModelKey, Output, Sink, Statistics, merged};
use crate::dtype::Dtype;
use crate::error::hint;
use crate::llama4::Llama4;
use crate::output::tensor_file::TensorFile;
use crate::output::whole_file::{WholeFile, refuse_existing};
use crate::progress::Control;

pub use report::{CoverageReport, Report};

/// Where the statistics come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Text that runs through a model.
    Run {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The text.
        data: DataOptions,
    },
    /// Statistics of the same model.
    Merge(Vec<PathBuf>),
}

/// What to do, and what to write.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the statistics come from.
    pub source: Source,
    /// The statistics file to write.
    pub out: Option<PathBuf>,
    /// llama.cpp's importance matrix to write.
    pub imatrix: Option<PathBuf>,
    /// Keep the Hessian of every weight's input as well; for a merge, the parts decide.
    pub hessians: bool,
    /// Replace files that are there.
    pub force: bool,
    /// Where activations may lie that do not fit memory.
    pub temporary: PathBuf,
    /// Say what would be done, and write nothing.
    pub dry_run: bool,
}

/// Makes or merges statistics.
///
/// # Errors
/// What cannot be read, written or run; an output that exists; statistics of different models.
pub fn run(options: &Options, control: &Control<'_>) -> Result<Report> {
    let began = Instant::now();
    let outputs: Vec<&PathBuf> = options.out.iter().chain(&options.imatrix).collect();
    let [first, rest @ ..] = &outputs[..] else {
        return Err(hint("there is nothing to write", "name a file with `-o`, or with `--imatrix`"));
    };
    if rest.contains(first) {
        bail!("`{}` cannot be both the statistics and the importance matrix", first.display());
    }
    for path in &outputs {
        refuse_existing(path, options.force)?;
    }
    let mut report = match &options.source {
        Source::Run { checkpoint, data } => calibrate(options, checkpoint, data, control)?,
        Source::Merge(parts) => merge(options, parts, control)?,
    };
    report.finish(began.elapsed());
    Ok(report)
}

fn calibrate(options: &Options, checkpoint: &Path, data: &DataOptions, control: &Control<'_>) -> Result<Report> {
    let model = Llama4::open(checkpoint)?;
    model.require_complete()?;
    let key = ModelKey::of(&model)?;
    let data = data::load(data, &model.checkpoint, &model.config.text, control)?;
    let meta = Meta::of(key.clone(), &data, options.hessians);
    let layout = Layout::new(&key, meta.labels.len(), options.hessians);
    let mut report = Report::new(options, &meta, &layout, data.notes.clone());
    report.builtin = matches!(&options.source, Source::Run { data, .. } if data.data.is_empty());
    if options.dry_run {
        return Ok(report);
    }
    let mut files = Files::create(options, &meta, &layout)?;
    let output = Output { layout: &layout, hessians: options.hessians && options.out.is_some(), sink: &mut files };
    let routing = look(&model, &key, &data, Some(output), &options.temporary, control)?;
    model.checkpoint.unchanged()?;
    files.finish()?;
    report.cover(&routing, key.num_local_experts);
    Ok(report)
}

fn merge(options: &Options, paths: &[PathBuf], control: &Control<'_>) -> Result<Report> {
    let parts = paths.iter().map(|path| Statistics::open(path)).collect::<Result<Vec<Statistics>>>()?;
    let plan = merged(&parts)?;
    let mut report = Report::new(options, &plan.meta, &plan.layout, plan.notes.clone());
    let experts = plan.meta.model.num_local_experts;
    let sums = parts.iter().flat_map(|part| &part.routing);
    report.cover(&sums.cloned().collect::<Vec<LayerRouting>>(), experts);
    if options.dry_run {
        return Ok(report);
    }
    let mut files = Files::create(options, &plan.meta, &plan.layout)?;
    statistics::merge(&parts, &plan, &mut files, control)?;
    files.finish()?;
    Ok(report)
}

/// The files that are being written.
struct Files {
    statistics: Option<TensorFile>,
    imatrix: Option<(std::sync::Arc<WholeFile>, ImatrixSink<'static>)>,
}

impl Files {
    fn create(options: &Options, meta: &Meta, layout: &Layout) -> Result<Self> {
        let tensors: Vec<(&str, Dtype, &[u64])> =
            layout.entries.iter().map(|entry| (entry.name.as_str(), entry.dtype, entry.shape.as_slice())).collect();
        let statistics = options.out.as_ref();
        let statistics = statistics
            .map(|path| TensorFile::create_with(path, &tensors, &meta.to_strings(), options.force))
            .transpose()?;
        let imatrix = options.imatrix.as_ref().map(|path| -> Result<_> {
            let plan = ImatrixPlan::new(meta, layout);
            let file = std::sync::Arc::new(WholeFile::create(path, plan.bytes(), options.force)?);
            let target = std::sync::Arc::clone(&file);
            let sink = plan.begin(Box::new(move |offset, bytes: &[u8]| target.write(offset, bytes)))?;
            Ok((file, sink))
        });
        Ok(Self { statistics, imatrix: imatrix.transpose()? })
    }

    fn finish(self) -> Result<()> {
        if let Some(file) = self.statistics {
            file.finish()?;
        }
        if let Some((file, sink)) = self.imatrix {
            drop(sink);
            std::sync::Arc::into_inner(file).expect("the sink that shared it is gone").finish()?;
        }
        Ok(())
    }
}

impl Sink for Files {
    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if let Some(file) = &self.statistics {
            file.write(index, offset, bytes)?;
        }
        match &mut self.imatrix {
            Some((_, sink)) => sink.write(index, offset, bytes),
            None => Ok(()),
        }
    }
}
