//! Llama 4's mixture of experts: which token goes where, and what goes in and comes out.
//!
//! The router's score multiplies the expert's *input*: `out = shared(x) + sum over chosen e of expert_e(score_e * x)`. SwiGLU is not
//! homogeneous, so this is another function than weighting the output. Tokens are sorted by expert, so that a layer costs what its routed
//! tokens cost. Knows no weight and no file.

use crate::kernels::rows;

/// The routed tokens of a layer, sorted by expert and by token within one.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Where each expert's part of `tokens` and `scores` starts; one more entry than experts.
    starts: Vec<usize>,
    tokens: Vec<u32>,
    scores: Vec<f32>,
}

/// What one expert is to work on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share<'a> {
    /// Rows of the layer's input, ascending.
    pub tokens: &'a [u32],
    /// The sigmoid of each one's logit.
    pub scores: &'a [f32],
}

impl Routing {
    /// Sends every row of `logits` `[rows, experts]` to its `top_k` largest; among equals the lower index wins.
    ///
    /// # Panics
    /// If `logits` is not whole rows, or `top_k` exceeds the number of experts.
    pub fn new(logits: &[f32], experts: usize, top_k: usize) -> Self {
        assert!(experts > 0 && logits.len().is_multiple_of(experts) && top_k <= experts, "logits are [rows, experts]");
        let chosen: Vec<usize> = logits.chunks(experts).flat_map(|row| chosen(row, top_k)).collect();
        let mut starts = vec![0usize; experts + 1];
        chosen.iter().for_each(|&expert| starts[expert + 1] += 1);
        for expert in 0..experts {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let (mut tokens, mut scores) = (vec![0u32; chosen.len()], vec![0.0f32; chosen.len()]);
        for (index, &expert) in chosen.iter().enumerate() {
            let row = index / top_k;
            tokens[next[expert]] = u32::try_from(row).expect("rows fit memory as whole activations, so they are fewer");
            scores[next[expert]] = rows::sigmoid(logits[row * experts + expert]);
            next[expert] += 1;
        }
        Self { starts, tokens, scores }
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.starts.len() - 1
    }

    /// The tokens of one expert.
    ///
    /// # Panics
    /// If there is no such expert.
    pub fn share(&self, expert: usize) -> Share<'_> {
        let range = self.starts[expert]..self.starts[expert + 1];
        Share { tokens: &self.tokens[range.clone()], scores: &self.scores[range] }
    }
}

/// The experts that one token goes to: indices of the `count` largest logits, in ascending order. A NaN counts as larger than any number,
/// as in `torch.topk`.
pub fn chosen(row: &[f32], count: usize) -> Vec<usize> {
    let key = |value: f32| if value.is_nan() { f32::INFINITY } else { value };
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| key(row[b]).total_cmp(&key(row[a])).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

impl Share<'_> {
    /// The expert's input: its tokens' rows of `x` `[rows, hidden]`, each times its score.
    ///
    /// # Panics
    /// If `x` has fewer rows than were routed.
    pub fn gather(&self, x: &[f32], hidden: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.tokens.len() * hidden);
        for (&token, &score) in self.tokens.iter().zip(self.scores) {
            out.extend(x[token as usize * hidden..][..hidden].iter().map(|value| value * score));
        }
        out
    }

    /// Adds the expert's output to its tokens' rows of `out` `[rows, hidden]`.
    ///
    /// # Panics
    /// If `out` has fewer rows than were routed.
    pub fn scatter_add(&self, result: &[f32], hidden: usize, out: &mut [f32]) {
        for (&token, result) in self.tokens.iter().zip(result.chunks_exact(hidden)) {
            let out = &mut out[token as usize * hidden..][..hidden];
            out.iter_mut().zip(result).for_each(|(out, result)| *out += result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_sorted_by_expert_and_scored_by_sigmoid() {
        #[rustfmt::skip]
        let logits = [
            0.0, 2.0, -1.0,
            3.0, 3.0, 3.0,
            -5.0, -4.0, -0.5,
            0.0, 9.0, 1.0,
        ];
        let routing = Routing::new(&logits, 3, 1);
        assert_eq!(routing.share(0).tokens, [1]);
        assert_eq!(routing.share(1).tokens, [0, 3]);
        assert_eq!(routing.share(2).tokens, [2]);
        // 1 / (1 + e^-2) and 1 / (1 + e^0.5), by hand.
        assert!((routing.share(1).scores[0] - 0.880_797).abs() < 1e-6);
        assert!((routing.share(2).scores[0] - 0.377_541).abs() < 1e-6);

        let two = Routing::new(&logits, 3, 2);
        assert_eq!(two.share(0).tokens, [0, 1]);
        assert_eq!(two.share(1).tokens, [0, 1, 2, 3]);
        assert_eq!(two.share(2).tokens, [2, 3]);
    }

    #[test]
    fn scores_multiply_the_input_and_outputs_are_added() {
        let routing = Routing::new(&[0.0, -9.0, 0.0, -9.0], 2, 1);
        let share = routing.share(0);
        assert_eq!(share.gather(&[2.0, 4.0, 6.0, 8.0], 2), [1.0, 2.0, 3.0, 4.0]);
        let mut out = [1.0; 4];
        share.scatter_add(&[1.0, 2.0, 3.0, 4.0], 2, &mut out);
        assert_eq!(out, [2.0, 3.0, 4.0, 5.0]);
        assert!(routing.share(1).tokens.is_empty());
    }

    #[test]
    fn a_nan_is_chosen_and_seen() {
        let routing = Routing::new(&[1.0, f32::NAN, 2.0], 3, 1);
        assert!(routing.share(1).scores[0].is_nan());
    }
}
