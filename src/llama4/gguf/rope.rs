//! `rope_freqs.weight` as the scaling that it was computed from.
//!
//! llama.cpp's converter writes by what each frequency is divided (`conversion/llama.py`, `generate_extra_tensors`), and the
//! parameters are lost. Any parameters that give the same divisors give the same model; those of the published models come first.

use std::f64::consts::PI;

use crate::llama4::config::Llama3Scaling;

/// The context of pretraining of the Llamas whose rope is scaled.
const USUAL_POSITIONS: u64 = 8192;

/// The scaling whose divisors are `factors`, for each pair of elements of a head; `None` if nothing is scaled.
///
/// # Errors
/// A sentence, if no scaling of the kind `llama3` gives these divisors.
pub(super) fn scaling(factors: &[f32], head_dim: usize, theta: f64) -> Result<Option<Llama3Scaling>, String> {
    if let Some(bad) = factors.iter().find(|factor| !factor.is_finite() || **factor <= 0.0) {
        return Err(format!("`{bad}` is no divisor of a frequency"));
    }
    if factors.iter().all(|factor| *factor == 1.0) {
        return Ok(None);
    }
    let waves: Vec<f64> = (0..head_dim / 2).map(|pair| wavelength(pair, head_dim, theta)).collect();
    let found = candidates(factors, &waves)
        .into_iter()
        .find(|scaling| factors.iter().zip(&waves).all(|(&factor, &wave)| divisor(scaling, wave) as f32 == factor));
    found.map(Some).ok_or_else(|| "holds divisors that no `llama3` scaling gives".to_owned())
}

/// Positions after which a pair of elements has turned once.
fn wavelength(pair: usize, head_dim: usize, theta: f64) -> f64 {
    // In float32 as in the converter, because a wave may lie at the very edge of the band.
    let exponent = (2 * pair) as f32 / head_dim as f32;
    let frequency = 1.0 / (theta.powf(f64::from(exponent)) as f32);
    2.0 * PI / f64::from(frequency)
}

/// By what the frequency of a wave is divided.
fn divisor(scaling: &Llama3Scaling, wave: f64) -> f64 {
    let Llama3Scaling { factor, low_freq_factor: low, high_freq_factor: high, .. } = *scaling;
    let positions = scaling.original_max_position_embeddings as f64;
    if wave < positions / high {
        1.0
    } else if wave > positions / low {
        factor
    } else {
        let smooth = (positions / wave - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

/// Parameters that may have given these divisors, the most usual ones first.
fn candidates(factors: &[f32], waves: &[f64]) -> Vec<Llama3Scaling> {
    // Long waves are stretched in full, by a round number.
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let with = |low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: u64| Llama3Scaling {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings,
    };
    let mut list = vec![with(1.0, 1.0, USUAL_POSITIONS), with(1.0, 4.0, USUAL_POSITIONS)];
    let powers = (0..40).map(|power| 1_u64 << power);
    list.extend(powers.clone().map(|positions| with(1.0, 1.0, positions)));
    list.extend(powers.map(|positions| with(1.0, 4.0, positions)));
    // Between the last wave that stays and the first that is stretched, where no power of two lies.
    if let Some(first) = factors.iter().position(|divisor| *divisor != 1.0) {
        let positions = if first == 0 { waves[0] / 2.0 } else { (waves[first - 1] + waves[first]) / 2.0 };
        list.push(with(1.0, 1.0, positions as u64));
    }
    list.extend(solved(factors, waves, factor).map(|(high, positions)| with(1.0, high, positions)));
    list
}

/// Two waves inside the band determine its edges, up to a common factor of both and of the context.
fn solved(factors: &[f32], waves: &[f64], factor: f64) -> Option<(f64, u64)> {
    let inside = |&(divisor, _): &(&f32, &f64)| *divisor > 1.0 && f64::from(*divisor) < factor;
    let mut band = factors.iter().zip(waves).filter(inside);
    let (first, last) = (band.next()?, band.next_back()?);
    let smooth = |divisor: f32| (1.0 / f64::from(divisor) - 1.0 / factor) / (1.0 - 1.0 / factor);
    // smooth = a / wave - b, with a = positions / (high - low) and b = low / (high - low).
    let a = (smooth(*first.0) - smooth(*last.0)) / (1.0 / first.1 - 1.0 / last.1);
    let b = a / first.1 - smooth(*first.0);
    let (high, positions) = (1.0 + 1.0 / b, a / b);
    // Parameters are round numbers; what rounding has cost shows when the divisors are computed again.
    let high = (high * 1024.0).round() / 1024.0;
    (high.is_finite() && high > 1.0 && (1.0..1e12).contains(&positions)).then(|| (high, positions.round() as u64))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Divisors of Scout's rope, and of one with a band, are those that the converter's formula gives for these parameters.
    #[test]
    fn published_parameters_are_found_again() {
        for (factor, high, positions, head_dim) in [
            (16.0, 1.0, 8192, 128),
            (8.0, 4.0, 8192, 128),
            (32.0, 4.0, 4096, 64),
            (8.0, 1.0, 256, 32),
            (16.0, 2.5, 3000, 128),
        ] {
            let wanted = Llama3Scaling {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: high,
                original_max_position_embeddings: positions,
            };
            let waves = (0..head_dim / 2).map(|pair| wavelength(pair, head_dim, 500_000.0));
            let factors: Vec<f32> = waves.map(|wave| divisor(&wanted, wave) as f32).collect();
            let found = scaling(&factors, head_dim, 500_000.0).unwrap().unwrap();
            assert_eq!((found.factor, found.low_freq_factor), (factor, 1.0));
            if high != 1.0 {
                assert_eq!((found.high_freq_factor, found.original_max_position_embeddings), (high, positions));
            }
        }
    }

    #[test]
    fn what_no_scaling_gives_is_refused() {
        assert_eq!(scaling(&[1.0; 16], 32, 500_000.0), Ok(None));
        let mut odd = [1.0; 16];
        odd[3] = 7.0;
        assert!(scaling(&odd, 32, 500_000.0).is_err());
        for bad in [0.0, f32::NAN, f32::INFINITY, -1.0] {
            odd[3] = bad;
            assert!(scaling(&odd, 32, 500_000.0).unwrap_err().contains("no divisor"));
        }
    }
}
