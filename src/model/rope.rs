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
        // The power of the float32 exponent, rounded once: no version of the C library shows in it.
        1.0 / f64::from(options.theta).powf(f64::from(exponent)) as f32
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Scout's parameters, and a set with a middle band between short and long waves: `ROPE_INIT_FUNCTIONS["llama3"]` of
    /// `transformers` 5.17 printed these.
    #[test]
    fn frequencies_agree_with_transformers() {
        let options = |factor, high, positions| RopeOptions {
            head_dim: 128,
            theta: 500_000.0,
            scaling: Some(Scaling {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: high,
                original_positions: positions,
            }),
        };
        let scout = [(0, 1.0), (1, 0.8146172165870667), (10, 0.12868738174438477), (33, 0.001152042648755014)];
        let scout_long = [(34, 0.0009384738514199853), (35, 4.778106085723266e-05), (63, 1.5344629389346665e-07)];
        check_frequencies(&options(16.0, 1.0, 8192.0), &scout);
        check_frequencies(&options(16.0, 1.0, 8192.0), &scout_long);
        let band = [(28, 0.0032114461064338684), (29, 0.0021665706299245358), (31, 0.0008567514596506953)];
        let band_long = [(33, 0.0003126936999029398), (34, 0.0001785077911335975), (35, 9.556212171446532e-05)];
        check_frequencies(&options(8.0, 4.0, 8192.0), &band);
        check_frequencies(&options(8.0, 4.0, 8192.0), &band_long);
    }

    fn check_frequencies(options: &RopeOptions, expected: &[(usize, f64)]) {
        let got = frequencies(options);
        assert_eq!(got.len(), 64);
        for &(index, expected) in expected {
            // One unit in the last place of a float32 and a half.
            let error = (f64::from(got[index]) - expected).abs() / expected;
            assert!(error < 1.8e-7, "frequency {index} is {}, not {expected}", got[index]);
        }
    }
}
