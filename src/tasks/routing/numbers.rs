//! Numbers about distributions of tokens over experts. Knows counts and nothing else.

use crate::calibration::statistics::{SCORE_BINS, score_at};

/// How evenly tokens are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    /// Shannon entropy of the shares, in bits.
    pub(super) entropy_bits: f64,
    /// Largest count over the mean.
    pub(super) max_over_mean: f64,
    /// Standard deviation over the mean.
    pub(super) variation: f64,
}

/// How evenly `counts` are spread; all zero if there is nothing.
pub(super) fn spread(counts: &[u64]) -> Spread {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return Spread { entropy_bits: 0.0, max_over_mean: 0.0, variation: 0.0 };
    }
    let mean = total as f64 / counts.len() as f64;
    let shares = counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / total as f64);
    let variance = counts.iter().map(|&count| (count as f64 - mean).powi(2)).sum::<f64>() / counts.len() as f64;
    Spread {
        // Not -0 for a single expert.
        entropy_bits: 0.0 - shares.map(|share| share * share.log2()).sum::<f64>(),
        max_over_mean: counts.iter().copied().max().unwrap_or(0) as f64 / mean,
        variation: variance.sqrt() / mean,
    }
}

/// Share of tokens that would have to go elsewhere to make `a` spread like `b`: half the sum of differences of shares.
pub(super) fn distance(a: &[u64], b: &[u64]) -> f64 {
    let total = |counts: &[u64]| (counts.iter().sum::<u64>() as f64).max(1.0);
    let (sum_a, sum_b) = (total(a), total(b));
    a.iter().zip(b).map(|(&a, &b)| (a as f64 / sum_a - b as f64 / sum_b).abs()).sum::<f64>() / 2.0
}

/// The score below which a share `q` of a histogram lies, as finely as its bins tell.
pub(super) fn percentile(bins: &[u64], q: f64) -> Option<f64> {
    let total: u64 = bins.iter().sum();
    let target = q * total as f64;
    let mut before = 0.0;
    for (index, &count) in bins.iter().enumerate().filter(|(_, count)| **count > 0) {
        if before + count as f64 >= target {
            return Some(score_at(index as f64 + (target - before) / count as f64));
        }
        before += count as f64;
    }
    (total > 0).then(|| score_at(SCORE_BINS as f64))
}

/// Bits that one layer's expert tells about the next one's: mutual information of a matrix of counts.
pub(super) fn mutual_information(counts: &[u64], width: usize) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let rows: Vec<f64> = counts.chunks_exact(width).map(|row| row.iter().sum::<u64>() as f64).collect();
    let column = |index: usize| counts.iter().skip(index).step_by(width).sum::<u64>() as f64;
    let columns: Vec<f64> = (0..width).map(column).collect();
    let mut bits = 0.0;
    for (row, counts) in rows.iter().zip(counts.chunks_exact(width)) {
        for (column, &count) in columns.iter().zip(counts).filter(|(_, count)| **count > 0) {
            let count = count as f64;
            bits += count / total * (count * total / (row * column)).log2();
        }
    }
    bits.max(0.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn spreads_by_hand() {
        let even = spread(&[5, 5, 5, 5]);
        assert_eq!((even.entropy_bits, even.max_over_mean, even.variation), (2.0, 1.0, 0.0));
        let one = spread(&[0, 8, 0, 0]);
        assert_eq!((one.entropy_bits, one.max_over_mean), (0.0, 4.0));
        assert!(one.entropy_bits.is_sign_positive());
        assert!((one.variation - 3.0_f64.sqrt()).abs() < 1e-15);
        // Shares 1/2, 1/4, 1/4.
        assert_eq!(spread(&[4, 2, 2, 0]).entropy_bits, 1.5);
        assert_eq!(spread(&[0, 0]).entropy_bits, 0.0);
    }

    #[test]
    fn distances_and_information_by_hand() {
        assert_eq!(distance(&[1, 1], &[10, 10]), 0.0);
        assert_eq!(distance(&[3, 0], &[0, 7]), 1.0);
        assert_eq!(distance(&[1, 1], &[1, 3]), 0.25);
        assert_eq!(mutual_information(&[5, 0, 0, 5], 2), 1.0);
        assert_eq!(mutual_information(&[1, 1, 1, 1], 2), 0.0);
        assert_eq!(mutual_information(&[0, 0, 0, 0], 2), 0.0);
    }

    #[test]
    fn percentiles_lie_in_their_bin() {
        let mut bins = vec![0; SCORE_BINS];
        assert_eq!(percentile(&bins, 0.5), None);
        bins[128] = 4;
        bins[136] = 4;
        // Half of the first four: the middle of the bin that begins at score 1/2.
        assert_eq!(percentile(&bins, 0.25), Some(score_at(128.5)));
        assert_eq!(percentile(&bins, 1.0), Some(score_at(137.0)));
        assert_eq!(percentile(&bins, 0.0), Some(0.5));
    }
}
