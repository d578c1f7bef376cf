//! What a run has written, read back: a quantized weight as whoever loads the output will see it, before the output exists.
//!
//! It reads the files of a [`Run`] by the regions of its plan; the numbers mean what `quant` says.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::Result;
use half::bf16;

use super::executor::Run;
use super::plan::Region;
use super::work::{Quantized, Work};
use crate::kernels::Float;
use crate::quant::scheme::Scheme;
use crate::quant::{fp8, int4};

/// Rows that [`Written::blocks`] cuts at: rows of an FP8 block, and of packed zero points.
const ROWS_TOGETHER: usize = 128;

/// The quantized weights of a run.
pub struct Written<'r, 'a> {
    run: &'r Run<'a>,
    /// For each weight that tasks quantize: the tasks, by ascending rows, and which part of each it is.
    tasks: HashMap<usize, Vec<(usize, usize)>>,
}

impl<'r, 'a> Written<'r, 'a> {
    /// The weights that the plan of `run` quantizes.
    pub fn new(run: &'r Run<'a>) -> Self {
        let mut tasks: HashMap<usize, Vec<(usize, usize)>> = HashMap::new();
        for (task, planned) in run.plan().tasks.iter().enumerate() {
            let Work::Quantize(parts) = &planned.work else { continue };
            for (part, quantized) in parts.iter().enumerate() {
                tasks.entry(quantized.weight).or_default().push((task, part));
            }
        }
        for tasks in tasks.values_mut() {
            tasks.sort_by_key(|&(task, part)| parts(run, task)[part].outs.start);
        }
        Self { run, tasks }
    }

    /// The tasks that write a weight; none, if it is not quantized.
    pub fn tasks(&self, weight: usize) -> impl Iterator<Item = usize> {
        self.tasks.get(&weight).into_iter().flatten().map(|&(task, _)| task)
    }

    /// Ranges of a weight's outputs that [`Written::dequantize`] takes, of about `rows` each.
    pub fn blocks(&self, weight: usize, rows: usize) -> Vec<Range<usize>> {
        let step = rows.next_multiple_of(ROWS_TOGETHER);
        let tasks = self.tasks.get(&weight).into_iter().flatten();
        let cut = |outs: &Range<usize>| {
            let end = outs.end;
            outs.clone().step_by(step).map(move |first| first..(first + step).min(end)).collect::<Vec<_>>()
        };
        tasks.flat_map(|&(task, part)| cut(&parts(self.run, task)[part].outs)).collect()
    }

    /// Dequantizes outputs `outs`, one of [`Written::blocks`], into `to`, `[outs, in]`. The tasks must be finished.
    ///
    /// # Errors
    /// A file cannot be read back.
    ///
    /// # Panics
    /// The weight is not quantized, or `outs` is no such range.
    pub fn dequantize(&self, weight: usize, outs: &Range<usize>, to: &mut [bf16]) -> Result<()> {
        let covers = |&&(task, part): &&(usize, usize)| {
            let all = &parts(self.run, task)[part].outs;
            all.start <= outs.start && outs.end <= all.end
        };
        let &(task, part) = self.tasks[&weight].iter().find(covers).expect("outputs of one task");
        let quantized = &parts(self.run, task)[part];
        let piece = Piece { written: self, quantized, outs };
        let mut regions = self.run.plan().tasks[task].writes.iter();
        for before in &parts(self.run, task)[..part] {
            regions.nth(regions_of(before.target.scheme) - 1);
        }
        let mut next = || regions.next().expect("a region for each tensor");
        let (codes, scales) = (next(), next());
        let (_, ins) = self.run.model().weights[weight].matrix();
        let codes = piece.read(codes, 1)?;
        match quantized.target.scheme {
            Scheme::W4A16 { group_size, symmetric } => {
                let scales = piece.read(scales, 1)?;
                let groups = ins / group_size;
                let zero_points = (!symmetric).then(|| piece.read(next(), 8)).transpose()?;
                let zero_points = zero_points.map(|words| {
                    let mut zero_points = vec![0; outs.len() * groups];
                    int4::unpack_zero_points(&words, outs.len(), groups, &mut zero_points);
                    zero_points
                });
                let packed = int4::Packed {
                    codes: &codes,
                    scales: &scales,
                    float: Float::BF16,
                    zero_points: zero_points.as_deref(),
                    rows: outs.len(),
                    ins,
                    group_size,
                };
                int4::dequantize(&packed, to);
            }
            scheme => {
                let (block, together) = match scheme {
                    Scheme::Fp8Block { rows, cols } => ((rows, cols), rows),
                    Scheme::Fp8Tensor { .. } => ((outs.len(), ins), quantized.outs.len()),
                    _ => ((1, ins), 1),
                };
                let scales = piece.read(scales, together)?;
                let (rows, float) = (outs.len(), Float::BF16);
                let coded = fp8::Coded { codes: &codes, scales: &scales, float, block, first_row: 0, rows, ins };
                fp8::dequantize(&coded, to);
            }
        }
        Ok(())
    }
}

fn parts<'a>(run: &Run<'a>, task: usize) -> &'a [Quantized] {
    match &run.plan().tasks[task].work {
        Work::Quantize(parts) => parts,
        _ => unreachable!("only tasks that quantize are listed"),
    }
}

/// Tensors of a module that a task writes.
fn regions_of(scheme: Scheme) -> usize {
    match scheme {
        Scheme::W4A16 { symmetric: false, .. } | Scheme::Fp8Tensor { static_input: true } => 3,
        _ => 2,
    }
}

/// Some of the rows that a task writes of one matrix.
struct Piece<'p, 'r, 'a> {
    written: &'p Written<'r, 'a>,
    quantized: &'p Quantized,
    outs: &'p Range<usize>,
}

impl Piece<'_, '_, '_> {
    /// The part of a region that holds the rows, of which `together` share a stored row.
    fn read(&self, region: &Region, together: usize) -> Result<Vec<u8>> {
        let all = &self.quantized.outs;
        let row = region.bytes / all.len().div_ceil(together) as u64;
        let (first, end) = ((self.outs.start - all.start) / together, (self.outs.end - all.start).div_ceil(together));
        self.written.run.read_back(region, first as u64 * row..end as u64 * row)
    }
}
