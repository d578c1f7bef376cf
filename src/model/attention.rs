//! Causal grouped-query attention as Llama 4 does it: chunked with RoPE, or full with temperature tuning and no positions.
//!
//! Works on plain slices of projected queries, keys and values; knows no weight and no file. Memory beyond the arguments is
//! `QUERIES * heads per key head * keys` floats for each thread, never the square of the sequence.

use super::rope::RopeTable;
use crate::kernels::gemm::{Layout, View, ViewMut, matmul_serial};
use crate::kernels::rows;
use rayon::prelude::*;
use std::ops::Range;

/// What one layer's attention is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Epsilon of the weightless norm of queries and keys after the rotation, where the layer has one.
    pub qk_norm_eps: Option<f32>,
    /// A query sees only keys of its own chunk of this many positions; `None` for all earlier ones.
    pub chunk: Option<usize>,
    /// Temperature tuning of the queries (layers without RoPE).
    pub temperature: Option<Temperature>,
}

/// `q *= ln(1 + floor((position + 1) / floor_scale)) * attn_scale + 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Positions per step.
    pub floor_scale: f32,
    /// Growth per step of the logarithm.
    pub attn_scale: f32,
}

impl Temperature {
    /// The factor at `position`.
    pub fn factor(&self, position: usize) -> f32 {
        // The logarithm in float64, rounded once: no version of the C library shows in it.
        let steps = ((position as f32 + 1.0) / self.floor_scale).floor();
        f64::from(steps).ln_1p() as f32 * self.attn_scale + 1.0
    }
}

/// Queries of one unit of work.
const QUERIES: usize = 32;

/// Attention over `sequences`, ranges of rows that start at position 0 each and follow one another without gaps.
///
/// `q` is `[rows, heads * head_dim]`, `k` and `v` are `[rows, kv_heads * head_dim]`; `q` and `k` are rotated (by `rope`, on
/// RoPE layers), normalized and scaled in place; `out` is like `q`.
///
/// # Panics
/// If lengths or ranges do not agree, or `rope` ends before the longest sequence.
pub fn attend(
    options: &AttentionOptions,
    rope: Option<&RopeTable>,
    sequences: &[Range<usize>],
    q: &mut [f32],
    k: &mut [f32],
    v: &[f32],
    out: &mut [f32],
) {
    let (width, kv_width) = (options.heads * options.head_dim, options.kv_heads * options.head_dim);
    assert!(options.heads.is_multiple_of(options.kv_heads), "query heads are shared out evenly");
    let rows = sequences.last().map_or(0, |sequence| sequence.end);
    assert!(q.len() == rows * width && out.len() == q.len(), "q and out are [rows, heads * head_dim]");
    assert!(k.len() == rows * kv_width && v.len() == k.len(), "k and v are [rows, kv_heads * head_dim]");

    let positions = positions(sequences);
    let scale = (options.head_dim as f64).powf(-0.5) as f32;
    q.par_chunks_mut(width).zip(&positions).for_each(|(row, &position)| {
        prepare(options, rope, position, row);
        let factor = scale * options.temperature.map_or(1.0, |temperature| temperature.factor(position));
        row.iter_mut().for_each(|value| *value *= factor);
    });
    k.par_chunks_mut(kv_width).zip(&positions).for_each(|(row, &position)| prepare(options, rope, position, row));

    let (q, k) = (&*q, &*k);
    let mut rest = out;
    let mut work = Vec::new();
    for block in blocks(sequences, options.chunk) {
        let (out, tail) = rest.split_at_mut(block.queries.len() * width);
        work.push((block, out));
        rest = tail;
    }
    work.into_par_iter().for_each(|(block, out)| attend_block(options, &block, q, k, v, out));
}

/// The position of each row in its sequence.
fn positions(sequences: &[Range<usize>]) -> Vec<usize> {
    let mut end = 0;
    for sequence in sequences {
        assert!(sequence.start == end && sequence.end >= end, "sequences follow one another without gaps");
        end = sequence.end;
    }
    sequences.iter().flat_map(|sequence| 0..sequence.len()).collect()
}

/// Rotation and norm of one row's heads.
fn prepare(options: &AttentionOptions, rope: Option<&RopeTable>, position: usize, row: &mut [f32]) {
    if let Some(rope) = rope {
        rope.rotate(row, position);
    }
    if let Some(eps) = options.qk_norm_eps {
        row.chunks_exact_mut(options.head_dim).for_each(|head| rows::normalize(head, eps));
    }
}

/// Neighbouring queries that are worked on together, and the first key that any of them sees.
struct Block {
    queries: Range<usize>,
    first_key: usize,
}

/// Cuts sequences into chunks and chunks into blocks of queries, in order.
fn blocks(sequences: &[Range<usize>], chunk: Option<usize>) -> Vec<Block> {
    let mut blocks = Vec::new();
    for sequence in sequences {
        let chunk = chunk.unwrap_or(usize::MAX).clamp(1, sequence.len().max(1));
        for first_key in sequence.clone().step_by(chunk) {
            let end = sequence.end.min(first_key + chunk);
            for start in (first_key..end).step_by(QUERIES) {
                blocks.push(Block { queries: start..end.min(start + QUERIES), first_key });
            }
        }
    }
    blocks
}

/// All heads of one block of queries; `out` is `[queries, heads * head_dim]`.
fn attend_block(options: &AttentionOptions, block: &Block, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
    let dim = options.head_dim;
    let group = options.heads / options.kv_heads;
    let (width, kv_width) = (options.heads * dim, options.kv_heads * dim);
    let (count, keys) = (block.queries.len(), block.queries.end - block.first_key);
    // Rows are [query][head of the group]: all heads that share a key head go through one product.
    let mut stacked = vec![0.0f32; count * group * dim];
    let mut scores = vec![0.0f32; count * group * keys];
    for head in 0..options.kv_heads {
        let own = head * group * dim..(head + 1) * group * dim;
        for (row, stacked) in block.queries.clone().zip(stacked.chunks_exact_mut(group * dim)) {
            stacked.copy_from_slice(&q[row * width..][own.clone()]);
        }
        let start = block.first_key * kv_width + head * dim;
        let key = View::new(&k[start..], keys, dim, kv_width);
        let value = View::new(&v[start..], keys, dim, kv_width);
        let queries = View::dense(&stacked, count * group, dim);
        matmul_serial(queries, key, Layout::OutIn, ViewMut::dense(&mut scores, count * group, keys));
        for (index, row) in scores.chunks_exact_mut(keys).enumerate() {
            let visible = block.queries.start - block.first_key + index / group + 1;
            rows::softmax(&mut row[..visible]);
            row[visible..].fill(0.0);
        }
        let weights = View::dense(&scores, count * group, keys);
        matmul_serial(weights, value, Layout::InOut, ViewMut::dense(&mut stacked, count * group, dim));
        for (out, stacked) in out.chunks_exact_mut(width).zip(stacked.chunks_exact(group * dim)) {
            out[own.clone()].copy_from_slice(stacked);
        }
    }
}
