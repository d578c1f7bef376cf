//! The tokens of a calibration: sequences that each begin at position 0. It knows no text and no tokenizer.

use std::ops::Range;

use anyhow::{Result, ensure};

/// Tokens, sequence after sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequences {
    /// The tokens of all sequences, one after the other.
    pub ids: Vec<u32>,
    /// The length of each sequence; none is empty, and they add up to `ids.len()`.
    pub lengths: Vec<usize>,
}

impl Sequences {
    /// Sequences of these lengths.
    ///
    /// # Errors
    /// There is no token, a sequence is empty, or the lengths do not add up to the tokens.
    pub fn new(ids: Vec<u32>, lengths: Vec<usize>) -> Result<Self> {
        ensure!(!ids.is_empty(), "there is not one token to calibrate with");
        ensure!(!lengths.contains(&0), "a sequence without tokens");
        let total = lengths.iter().try_fold(0usize, |sum, &length| sum.checked_add(length));
        ensure!(total == Some(ids.len()), "sequences of {total:?} tokens, and {} tokens", ids.len());
        ensure!(u32::try_from(ids.len()).is_ok(), "{} tokens are more than can be counted in 32 bits", ids.len());
        Ok(Self { ids, lengths })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Length of the longest sequence.
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Runs of whole sequences with at least `rows` tokens each, except the last: for each its tokens, and its sequences
    /// counted from its first token.
    pub fn chunks(&self, rows: usize) -> Vec<(Range<usize>, Vec<Range<usize>>)> {
        let mut chunks: Vec<(Range<usize>, Vec<Range<usize>>)> = Vec::new();
        let mut end = 0;
        for &length in &self.lengths {
            match chunks.last_mut() {
                Some((tokens, sequences)) if tokens.len() < rows => {
                    sequences.push(tokens.len()..tokens.len() + length);
                    tokens.end += length;
                }
                _ => chunks.push((end..end + length, std::iter::once(0..length).collect())),
            }
            end += length;
        }
        chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_whole_sequences() {
        let sequences = Sequences::new(vec![7; 15], vec![4, 4, 5, 2]).unwrap();
        let chunks = sequences.chunks(5);
        assert_eq!(chunks[0], (0..8, vec![0..4, 4..8]));
        assert_eq!(chunks[1..].iter().map(|(tokens, _)| tokens.clone()).collect::<Vec<_>>(), [8..13, 13..15]);
        assert_eq!(chunks[1..].iter().flat_map(|(_, inside)| inside.clone()).collect::<Vec<_>>(), [0..5, 0..2]);
        assert_eq!(sequences.chunks(1).len(), 4);
        assert_eq!(sequences.chunks(100), [(0..15, vec![0..4, 4..8, 8..13, 13..15])]);
        assert_eq!(sequences.longest(), 5);
    }

    #[test]
    fn lengths_must_fit() {
        assert!(Sequences::new(vec![], vec![]).is_err());
        assert!(Sequences::new(vec![1, 2], vec![1]).is_err());
        assert!(Sequences::new(vec![1, 2], vec![2, 0]).is_err());
    }
}
