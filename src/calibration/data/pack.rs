//! Documents to sequences of one length.
//!
//! Documents follow one another in a sequence, each behind the tokens that begin a text (Llama's `<|begin_of_text|>`); a sequence
//! always begins with them too, because attention leans on the first token. What is cut off goes on in the next sequence.

/// Tokens of a document, and how they join what came before.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// A text of its own.
    Begins(Vec<u32>),
    /// More of the text before.
    Runs(Vec<u32>),
    /// A sequence of its own, as it is.
    Stands(Vec<u32>),
}

impl Piece {
    pub(super) fn tokens(&self) -> usize {
        match self {
            Self::Begins(tokens) | Self::Runs(tokens) | Self::Stands(tokens) => tokens.len(),
        }
    }
}

/// Packs pieces into sequences of `length` tokens; the last may be shorter, and so may what stands alone.
pub(super) fn pack(pieces: impl IntoIterator<Item = Piece>, begin: &[u32], length: usize) -> Vec<Vec<u32>> {
    assert!(length > begin.len(), "a sequence holds more than what begins it");
    let mut packer = Packer { begin, length, sequences: Vec::new(), open: Vec::new() };
    for piece in pieces {
        match piece {
            // Nothing begins with a text that is empty.
            Piece::Begins(tokens) if tokens.is_empty() => {}
            Piece::Begins(tokens) => {
                if !tokens.starts_with(begin) {
                    packer.push(begin);
                }
                packer.push(&tokens);
            }
            Piece::Runs(tokens) => packer.push(&tokens),
            Piece::Stands(tokens) => {
                packer.close();
                packer.sequences.extend(tokens.chunks(length).map(<[u32]>::to_vec));
            }
        }
    }
    packer.close();
    packer.sequences
}

struct Packer<'a> {
    begin: &'a [u32],
    length: usize,
    sequences: Vec<Vec<u32>>,
    open: Vec<u32>,
}

impl Packer<'_> {
    fn push(&mut self, mut tokens: &[u32]) {
        while !tokens.is_empty() {
            if self.open.is_empty() && !tokens.starts_with(self.begin) {
                self.open.extend_from_slice(self.begin);
            }
            let room = (self.length - self.open.len()).min(tokens.len());
            self.open.extend_from_slice(&tokens[..room]);
            tokens = &tokens[room..];
            if self.open.len() == self.length {
                self.sequences.push(std::mem::take(&mut self.open));
            }
        }
    }

    /// Ends the open sequence, unless it holds nothing but a beginning.
    fn close(&mut self) {
        let open = std::mem::take(&mut self.open);
        if open.len() > self.begin.len() {
            self.sequences.push(open);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Piece::{Begins, Runs, Stands};

    #[test]
    fn sequences_are_full_and_begin_as_texts_do() {
        let pieces = [Begins(vec![1, 2, 3]), Runs(vec![4, 5]), Begins(vec![6, 7, 8]), Begins(vec![0, 9])];
        assert_eq!(pack(pieces, &[0], 4), [vec![0, 1, 2, 3], vec![0, 4, 5, 0], vec![0, 6, 7, 8], vec![0, 9]]);
        assert_eq!(pack([Begins(vec![1, 2, 3])], &[], 2), [vec![1, 2], vec![3]]);
    }

    #[test]
    fn what_stands_alone_is_not_touched() {
        let pieces = [Begins(vec![1]), Stands(vec![5, 6, 7, 8, 9]), Runs(vec![2])];
        assert_eq!(pack(pieces, &[0], 4), [vec![0, 1], vec![5, 6, 7, 8], vec![9], vec![0, 2]]);
    }

    #[test]
    fn a_beginning_alone_is_no_sequence() {
        assert!(pack([Begins(vec![]), Begins(vec![])], &[0], 4).is_empty());
        assert_eq!(pack([Begins(vec![1, 2, 3]), Begins(vec![])], &[0], 4), [vec![0, 1, 2, 3]]);
    }
}
