//! Runs the quantizers over the source, stripe by stripe.
//!
//! A fused tensor is walked along its inputs, once for all matrices that lie in the same rows (and once before, where a
//! scale needs the largest value of a whole row); a linear layer along its outputs. Weights that are quantized already
//! are dequantized stripe by stripe. Pages are given back behind the walk. GPTQ needs whole rows: its only stripe is all of
//! the task's.

use std::ops::Range;

use anyhow::Result;
use half::bf16;

use super::evidence::{Evidence, Inputs, Rescale};
use super::modules::Target;
use super::work::{BadWeight, Quantized, STRIPE_BYTES, Slot, in_out_bytes, room};
use crate::checkpoint::Edges;
use crate::dtype::int4::words;
use crate::kernels::Float;
use crate::llama4::{Coding, Llama4, Plane, Weight};
use crate::quant::int4::{self, Int4Out, Params};
use crate::quant::scheme::Scheme;
use crate::quant::{Block, ErrorSums, Errors, Layout, Method, NonFinite, STRIPE_INPUTS, fp8, gptq};

/// Memory for unpacked zero points.
pub(super) fn zero_point_bytes(model: &Llama4, part: &Quantized) -> u64 {
    let (_, input) = model.weights[part.weight].matrix();
    match part.target.scheme {
        Scheme::W4A16 { group_size, symmetric: false } => (part.outs.len() * (input / group_size)) as u64,
        _ => 0,
    }
}

/// Memory that solving `part` takes: whole rows of its source instead of stripes, and the solver's own.
pub(super) fn solving_bytes(model: &Llama4, part: &Quantized) -> u64 {
    if part.target.method != Method::Gptq {
        return 0;
    }
    let weight = &model.weights[part.weight];
    let (_, input) = weight.matrix();
    let values = input as u64 * part.outs.len() as u64;
    let source = match weight.coding {
        // Pages hold the neighbours in the same rows too.
        Coding::Plain(plane) if plane.layout == Layout::InOut => {
            plane.stride as u64 * input as u64 * plane.float.bytes() as u64
        }
        Coding::Plain(plane) => values * plane.float.bytes() as u64,
        _ => values * 3,
    };
    source + gptq::working_bytes(input)
}

/// Memory that a search for scales takes, which are not INT4's.
pub(super) fn searching_bytes(model: &Llama4, part: &Quantized) -> u64 {
    let searched = part.target.scheme.is_fp8() && part.target.method == Method::Search;
    if searched { fp8::ScaleSearch::bytes(part.outs.len(), model.weights[part.weight].matrix().1) } else { 0 }
}

/// Rows that a stripe has at least: stored rows must not cut a group or a block in two.
pub(super) fn stripe_rows_min(parts: &[Quantized]) -> usize {
    parts.iter().map(|part| stripe_unit(part.target)).fold(STRIPE_INPUTS, lcm)
}

fn stripe_unit(target: Target) -> usize {
    match target.scheme {
        Scheme::W4A16 { group_size, .. } => group_size,
        Scheme::Fp8Block { rows, cols } => lcm(rows, cols),
        Scheme::Fp8Dynamic | Scheme::Fp8Tensor { .. } => 1,
        Scheme::Blocks(dtype) => dtype.block_len() as usize,
    }
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

/// Quantizes `parts` into `slots`: for each part its codes, its scales and, if it has them, zero points.
///
/// # Errors
/// [`BadWeight`] names the weight, the place and the value.
pub(super) fn run(
    model: &Llama4,
    parts: &[Quantized],
    slots: Vec<Slot<'_>>,
    decoded: &mut Vec<u64>,
    evidence: &dyn Evidence,
) -> Result<Vec<Errors>> {
    let mut slots = slots.into_iter();
    let outputs = parts.iter().map(|part| Output::new(model, part, &mut slots, evidence));
    let mut outputs: Vec<Output<'_>> = outputs.collect::<Result<_>>()?;
    match model.weights[parts[0].weight].coding {
        Coding::Plain(plane) if plane.layout == Layout::InOut => along_inputs(model, &mut outputs)?,
        _ => {
            for output in &mut outputs {
                along_outputs(model, output, decoded)?;
            }
        }
    }
    Ok(outputs.into_iter().map(Output::finish).collect())
}

/// The quantized rows of one matrix in the making.
struct Output<'a> {
    weight: &'a Weight,
    outs: Range<usize>,
    input: usize,
    target: Target,
    codes: Slot<'a>,
    scales: Slot<'a>,
    packed_zero_points: Option<Slot<'a>>,
    zero_points: Vec<i8>,
    sums: ErrorSums,
    /// Round-to-nearest's error, where the sums know only that of other scales.
    error_rtn: Option<f64>,
    /// What calibration knows.
    inputs: Inputs<'a>,
}

/// A piece of a matrix: outputs counted from the part's first, and inputs.
#[derive(Clone)]
struct Piece {
    outs: Range<usize>,
    inputs: Range<usize>,
}

impl<'a> Output<'a> {
    fn new(
        model: &'a Llama4,
        part: &Quantized,
        slots: &mut impl Iterator<Item = Slot<'a>>,
        evidence: &'a dyn Evidence,
    ) -> Result<Self> {
        let weight = &model.weights[part.weight];
        let mut next = || slots.next().expect("the plan has a region for each");
        let (codes, scales) = (next(), next());
        let inputs = evidence.of(part.weight)?;
        if part.target.scheme == (Scheme::Fp8Tensor { static_input: true }) {
            let amax = inputs.amax.expect("the plan of a static scheme is performed with calibration alone");
            next().get_mut::<bf16>()[0] = fp8::input_scale(amax);
        }
        let asymmetric = matches!(part.target.scheme, Scheme::W4A16 { symmetric: false, .. });
        Ok(Self {
            weight,
            outs: part.outs.clone(),
            input: weight.matrix().1,
            target: part.target,
            codes,
            scales,
            packed_zero_points: asymmetric.then(next),
            zero_points: vec![0; zero_point_bytes(model, part) as usize],
            sums: ErrorSums::new(part.outs.len()),
            error_rtn: None,
            inputs,
        })
    }

    /// Whether a scale covers all inputs of a row, so that the largest value of the row must be known first.
    fn needs_maxima(&self) -> bool {
        matches!(self.target.scheme, Scheme::Fp8Dynamic | Scheme::Fp8Tensor { .. })
    }

    /// Whether it is quantized from second moments, all inputs and outputs at once.
    fn solves(&self) -> bool {
        self.target.method == Method::Gptq && self.inputs.factor.is_some() && !self.target.scheme.is_fp8()
    }

    /// Whether the largest value of the whole matrix must be known before any of it is quantized.
    fn needs_maximum(&self) -> bool {
        matches!(self.target.scheme, Scheme::Fp8Tensor { .. })
    }

    /// Quantizes one piece of the matrix, times its factors where it has some.
    fn quantize(&mut self, block: &Block<'_>, piece: &Piece) -> Result<(), NonFinite> {
        let (first_out, first_in) = (self.outs.start + piece.outs.start, piece.inputs.start);
        let values = match self.inputs.rescale {
            None => return self.quantize_as_is(block, piece),
            Some(Rescale::Inputs(factors)) => block.scaled(|_, input| factors[first_in + input]),
            Some(Rescale::Outputs(divisors)) => block.scaled(|out, _| 1.0 / divisors[first_out + out]),
        };
        let (layout, shape) = (block.layout(), (block.outs(), block.ins()));
        let stride = if layout == Layout::OutIn { shape.1 } else { shape.0 };
        self.quantize_as_is(&Block::new(bytemuck::cast_slice(&values), Float::F32, layout, stride, shape), piece)
    }

    fn quantize_as_is(&mut self, block: &Block<'_>, piece: &Piece) -> Result<(), NonFinite> {
        let (outs, inputs) = (piece.outs.clone(), piece.inputs.clone());
        let sums = self.sums.rows(outs.start, outs.len());
        let input = self.input;
        let codes = |bytes| fp8::Codes { bytes, stride: input };
        match self.target.scheme {
            Scheme::Blocks(_) => unreachable!("blocks of ggml are written to GGUF files alone"),
            Scheme::W4A16 { group_size, symmetric } => {
                let (word_stride, groups) = (words(input), input / group_size);
                let at = outs.start * groups + inputs.start / group_size;
                let out = Int4Out {
                    packed: &mut self.codes.get_mut()[outs.start * word_stride + inputs.start / 8..],
                    packed_stride: word_stride,
                    scales: &mut self.scales.get_mut()[at..],
                    scale_stride: groups,
                    zero_points: (!symmetric).then(|| &mut self.zero_points[at..]),
                };
                if let (Method::Gptq, Some(factor)) = (self.target.method, self.inputs.factor) {
                    let params = gptq::Params { group_size, symmetric };
                    let mut weighted = vec![0.0; outs.len()];
                    return gptq::quantize_int4(block, factor, &params, out, sums, &mut weighted);
                }
                // Without second moments GPTQ is a search; AWQ is one after its factors.
                let method = if self.target.method == Method::Rtn { Method::Rtn } else { Method::Search };
                let params = Params { group_size, symmetric, method };
                let importance = self.inputs.importance.as_ref().map(|importance| &importance[inputs]);
                int4::quantize_weighted(block, &params, importance, out, sums)
            }
            Scheme::Fp8Dynamic => {
                let bytes = &mut self.codes.get_mut()[outs.start * input + inputs.start..];
                fp8::quantize_channel(block, &self.scales.get::<bf16>()[outs], codes(bytes), sums)
            }
            Scheme::Fp8Block { rows: height, cols: width } => {
                let stride = input.div_ceil(width);
                let at = outs.start / height * stride + inputs.start / width;
                let scales = &mut self.scales.get_mut()[at..];
                let bytes = &mut self.codes.get_mut()[outs.start * input + inputs.start..];
                fp8::quantize_block(block, fp8::BlockScales { scales, stride, height, width }, codes(bytes), sums)
            }
            Scheme::Fp8Tensor { .. } => {
                let scale = self.scales.get::<bf16>()[0];
                let bytes = &mut self.codes.get_mut()[outs.start * input + inputs.start..];
                fp8::quantize_tensor(block, scale, codes(bytes), sums)
            }
        }
    }

    /// Turns the largest value of each row into its scale, or those of all rows into the matrix's.
    fn set_scales(&mut self, first: usize, maxima: &[f32]) {
        if self.needs_maximum() {
            self.scales.get_mut()[0] = fp8::scale(maxima.iter().copied().fold(0.0, f32::max));
            return;
        }
        for (scale, &amax) in self.scales.get_mut::<bf16>()[first..].iter_mut().zip(maxima) {
            *scale = fp8::scale(amax);
        }
    }

    /// A search for better scales than those of [`Output::set_scales`], where there is something to search by.
    fn search(&self, maxima: &[f32]) -> Option<fp8::ScaleSearch> {
        let importance = self.inputs.importance.as_ref()?;
        if self.target.method != Method::Search || !self.needs_maxima() {
            return None;
        }
        let most = maxima.iter().copied().fold(0.0, f32::max);
        let shared = self.needs_maximum().then(|| vec![most; maxima.len()]);
        Some(fp8::ScaleSearch::new(shared.as_deref().unwrap_or(maxima), importance))
    }

    /// Takes what a search has found for the outputs from `first` on.
    fn set_found(&mut self, first: usize, search: &fp8::ScaleSearch, outs: usize) {
        if self.needs_maximum() {
            self.scales.get_mut()[0] = search.tensor();
        } else {
            search.channels(&mut self.scales.get_mut()[first..first + outs]);
        }
        self.error_rtn = Some(self.error_rtn.unwrap_or(0.0) + search.error_rtn());
    }

    fn bad(&self, place: NonFinite, piece: &Piece) -> anyhow::Error {
        let place = NonFinite {
            out: place.out + self.outs.start + piece.outs.start,
            input: place.input + piece.inputs.start,
            ..place
        };
        BadWeight::new(&self.weight.name, place.to_string()).into()
    }

    fn finish(self) -> Errors {
        if let (Some(mut packed), Scheme::W4A16 { group_size, .. }) = (self.packed_zero_points, self.target.scheme) {
            int4::pack_zero_points(&self.zero_points, self.outs.len(), self.input / group_size, packed.get_mut());
        }
        let mut errors = self.sums.finish();
        errors.sum_sq_error_rtn = self.error_rtn.unwrap_or(errors.sum_sq_error_rtn);
        errors
    }
}

/// Walks a fused tensor's rows, which are inputs, for all `outputs` at once.
fn along_inputs(model: &Llama4, outputs: &mut [Output<'_>]) -> Result<()> {
    let unit = outputs.iter().map(|output| stripe_unit(output.target)).fold(STRIPE_INPUTS, lcm);
    let (plane, input) = (plane(outputs[0].weight), outputs[0].input);
    let mut step = (STRIPE_BYTES / (plane.stride * plane.float.bytes()) / unit * unit).max(unit);
    if outputs.iter().any(Output::solves) {
        step = input;
    }
    let stripes = || (0..input).step_by(step).map(|first| first..(first + step).min(input));
    if outputs.iter().any(Output::needs_maxima) {
        let mut maxima: Vec<_> = outputs.iter().map(|output| vec![0.0; output.outs.len()]).collect();
        for inputs in stripes() {
            walk(model, outputs, &inputs, |index, output, block, piece| {
                fp8::absmax(block, &mut maxima[index]).map_err(|place| output.bad(place, piece))
            })?;
        }
        for (output, maxima) in outputs.iter_mut().zip(&maxima).filter(|(output, _)| output.needs_maxima()) {
            output.set_scales(0, maxima);
        }
        let mut searches: Vec<_> = outputs.iter().zip(&maxima).map(|(output, maxima)| output.search(maxima)).collect();
        if searches.iter().any(Option::is_some) {
            for inputs in stripes() {
                walk(model, outputs, &inputs, |index, _, block, piece| {
                    if let Some(search) = &mut searches[index] {
                        search.add(block, (0, piece.inputs.start));
                    }
                    Ok(())
                })?;
            }
        }
        for (output, search) in outputs.iter_mut().zip(&searches) {
            if let Some(search) = search {
                output.set_found(0, search, output.outs.len());
            }
        }
    }
    for inputs in stripes() {
        walk(model, outputs, &inputs, |_, output, block, piece| {
            output.quantize(block, piece).map_err(|place| output.bad(place, piece))
        })?;
    }
    Ok(())
}

/// Shows one stripe of inputs to every output, then gives its pages back.
fn walk(
    model: &Llama4,
    outputs: &mut [Output<'_>],
    inputs: &Range<usize>,
    mut step: impl FnMut(usize, &mut Output<'_>, &Block<'_>, &Piece) -> Result<()>,
) -> Result<()> {
    // The disk reads the next stripe while this one is worked on.
    let next = inputs.end..(inputs.end + inputs.len()).min(outputs[0].input);
    if !next.is_empty() {
        let plane = plane(outputs[0].weight);
        model.checkpoint.will_need(plane.tensor, in_out_bytes(&plane, &next, &outputs[0].outs));
    }
    for (index, output) in outputs.iter_mut().enumerate() {
        let plane = plane(output.weight);
        let range = in_out_bytes(&plane, inputs, &output.outs);
        let bytes = model.checkpoint.range(plane.tensor, range);
        let shape = (output.outs.len(), inputs.len());
        let block = Block::new(bytes, plane.float, Layout::InOut, plane.stride, shape);
        let piece = Piece { outs: 0..output.outs.len(), inputs: inputs.clone() };
        step(index, output, &block, &piece)?;
    }
    for output in outputs {
        let plane = plane(output.weight);
        model.checkpoint.release(plane.tensor, in_out_bytes(&plane, inputs, &output.outs), Edges::Drop);
    }
    Ok(())
}

/// Walks a linear layer's rows, which are outputs.
fn along_outputs(model: &Llama4, output: &mut Output<'_>, decoded: &mut Vec<u64>) -> Result<()> {
    let unit = match output.target.scheme {
        Scheme::Fp8Block { rows, .. } => lcm(rows, STRIPE_INPUTS),
        _ => STRIPE_INPUTS,
    };
    let row_bytes = output.input * size_of::<f32>();
    let mut step = (STRIPE_BYTES / row_bytes / unit * unit).max(unit);
    let count = output.outs.len();
    if output.solves() {
        step = count;
    }
    if output.needs_maximum() {
        let mut maxima = vec![0.0; count];
        let mut walk = |each: &mut dyn FnMut(&Block<'_>, &Piece) -> Result<(), NonFinite>| -> Result<()> {
            for first in (0..count).step_by(step) {
                let piece = Piece { outs: first..(first + step).min(count), inputs: 0..output.input };
                let rows = output.outs.start + piece.outs.start..output.outs.start + piece.outs.end;
                let block = linear_block(model, output.weight, &rows, decoded);
                each(&block, &piece).map_err(|place| output.bad(place, &piece))?;
                release_linear(model, output.weight, rows);
            }
            Ok(())
        };
        walk(&mut |block, piece| fp8::absmax(block, &mut maxima[piece.outs.clone()]))?;
        let mut search = output.search(&maxima);
        if let Some(search) = &mut search {
            walk(&mut |block, piece| {
                search.add(block, (piece.outs.start, 0));
                Ok(())
            })?;
        }
        output.set_scales(0, &maxima);
        if let Some(search) = &search {
            output.set_found(0, search, count);
        }
    }
    for first in (0..count).step_by(step) {
        let piece = Piece { outs: first..(first + step).min(count), inputs: 0..output.input };
        let rows = output.outs.start + piece.outs.start..output.outs.start + piece.outs.end;
        let next = rows.end..(rows.end + rows.len()).min(output.outs.end);
        if let (Coding::Plain(plane), false) = (output.weight.coding, next.is_empty()) {
            model.checkpoint.will_need(plane.tensor, linear_bytes(&plane, &next));
        }
        let block = linear_block(model, output.weight, &rows, decoded);
        let mut quantize = || {
            if output.needs_maxima() && !output.needs_maximum() {
                let mut maxima = vec![0.0; piece.outs.len()];
                fp8::absmax(&block, &mut maxima)?;
                output.set_scales(first, &maxima);
                if let Some(mut search) = output.search(&maxima) {
                    search.add(&block, (0, 0));
                    output.set_found(first, &search, maxima.len());
                }
            }
            output.quantize(&block, &piece)
        };
        let result = quantize();
        result.map_err(|place| output.bad(place, &piece))?;
        release_linear(model, output.weight, rows);
    }
    Ok(())
}

/// Rows of a linear layer, dequantized into `decoded` if need be.
fn linear_block<'a>(model: &'a Llama4, weight: &Weight, rows: &Range<usize>, decoded: &'a mut Vec<u64>) -> Block<'a> {
    let (_, input) = weight.matrix();
    let shape = (rows.len(), input);
    if let Coding::Plain(plane) = weight.coding {
        let bytes = model.checkpoint.range(plane.tensor, linear_bytes(&plane, rows));
        return Block::new(bytes, plane.float, Layout::OutIn, plane.stride, shape);
    }
    let values = rows.len() * input;
    let decoded: &mut [bf16] = bytemuck::cast_slice_mut(room(decoded, (values * size_of::<bf16>()).div_ceil(8)));
    model.dequantize(weight, rows.clone(), &mut decoded[..values]);
    Block::new(bytemuck::cast_slice(decoded), Float::BF16, Layout::OutIn, input, shape)
}

fn release_linear(model: &Llama4, weight: &Weight, rows: Range<usize>) {
    match weight.coding {
        Coding::Plain(plane) => {
            model.checkpoint.release(plane.tensor, linear_bytes(&plane, &rows), Edges::Drop);
        }
        _ => model.release_rows(weight, rows),
    }
}

fn linear_bytes(plane: &Plane, rows: &Range<usize>) -> Range<u64> {
    let row = plane.stride as u64 * plane.float.bytes() as u64;
    plane.offset + rows.start as u64 * row..plane.offset + rows.end as u64 * row
}

/// Where a fused weight lies.
fn plane(weight: &Weight) -> Plane {
    match weight.coding {
        Coding::Plain(plane) => plane,
        _ => unreachable!("only plain weights are fused"),
    }
}
