//! Rotary position embedding: frequencies with the llama3 scaling, and the rotation of adjacent pairs.
//!
//! Knows head dimensions and positions; must not know a layer, a weight or a file.

/// The llama3 scaling of long wavelengths (`rope_scaling` with `rope_type: llama3`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Divides the frequency of long waves.
    pub factor: f32,
    /// Waves longer than `original_positions / low_freq_factor` are scaled in full.
    pub low_freq_factor: f32,
    /// Waves shorter than `original_positions / high_freq_factor` stay.
    pub high_freq_factor: f32,
    /// `original_max_position_embeddings`.
    pub original_positions: f32,
}

/// What the frequencies follow from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeOptions {
    /// Elements of a head; even.
    pub head_dim: usize,
    /// The base, `rope_theta`.
    pub theta: f32,
    /// Long-context scaling, if any.
    pub scaling: Option<Scaling>,
}

/// The angle per position of each pair of elements, `head_dim / 2` of them.
///
/// In float32 throughout, as `transformers` computes them (`modeling_rope_utils.py`): at positions in the thousands a
/// better-rounded frequency would turn by a visibly different angle.
pub fn frequencies(options: &RopeOptions) -> Vec<f32> {
    let plain = (0..options.head_dim / 2).map(|i| {
        let exponent = (2 * i) as f32 / options.head_dim as f32;
        1.0 / options.theta.powf(exponent)
    });
    match options.scaling {
        None => plain.collect(),
        Some(scaling) => plain.map(|frequency| scale(frequency, &scaling)).collect(),
    }
}

fn scale(frequency: f32, scaling: &Scaling) -> f32 {
    let Scaling { factor, low_freq_factor, high_freq_factor, original_positions } = *scaling;
    let wavelength = 2.0 * std::f32::consts::PI / frequency;
    if wavelength > original_positions / low_freq_factor {
        frequency / factor
    } else if wavelength < original_positions / high_freq_factor || low_freq_factor == high_freq_factor {
        frequency
    } else {
        let smooth = (original_positions / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// Cosines and sines of positions `0..positions`.
pub struct RopeTable {
    half: usize,
    /// `[position][pair]`, each `[cos, sin]`.
    turns: Vec<[f32; 2]>,
}

impl RopeTable {
    /// Tables for positions `0..positions`: `8 * positions * head_dim / 2` bytes.
    pub fn new(options: &RopeOptions, positions: usize) -> Self {
        let frequencies = frequencies(options);
        let turns = (0..positions)
            .flat_map(|position| {
                frequencies.iter().map(move |frequency| {
                    // The angle is a float32 product in the reference; its cosine is then as exact as can be.
                    let angle = f64::from(position as f32 * frequency);
                    [angle.cos() as f32, angle.sin() as f32]
                })
            })
            .collect();
        Self { half: frequencies.len(), turns }
    }

    /// Turns the pairs `(2i, 2i + 1)` of each head in `heads` (`[any number, head_dim]`) by the angles of `position`.
    ///
    /// # Panics
    /// If the table ends before `position`.
    pub fn rotate(&self, heads: &mut [f32], position: usize) {
        let turns = &self.turns[position * self.half..(position + 1) * self.half];
        for head in heads.chunks_exact_mut(2 * self.half) {
            for (pair, [cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
            }
        }
    }
}
