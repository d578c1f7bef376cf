//! Calibration data: from what the user names to sequences of tokens, the same on every machine.
//!
//! Text is cut into pieces that can be read on their own; a seeded permutation says which come first; they are turned into tokens until there are
//! enough, put back into the order of the files, and packed into sequences of one length. So a folder of any size costs the reading of
//! what is used. Data under several labels give equal shares. Knows the tokenizer, and nothing else of the model.

mod builtin;
mod chat;
mod draw;
mod inputs;
mod lines;
mod pack;
mod parquet;
mod record;
mod text;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use anyhow::{Context, Result, bail};

pub use chat::ChatTemplate;
pub use inputs::{DEFAULT_LABEL, LABELS_MAX, is_label};
pub use record::{FileRecord, tokens_sha256};

use crate::calibration::Sequences;
use crate::checkpoint::Checkpoint;
use crate::error::{Interrupted, hint};
use crate::llama4::config::TextConfig;
use crate::llama4::tokenizer::Tokenizer;
use crate::progress::{Control, Unit};
use draw::Permutation;
use inputs::{Input, Kind, Labelled, Place};
use lines::Document;
use pack::Piece;

/// Sequences that are drawn if the user names no number.
pub const DEFAULT_SAMPLES: usize = 128;

/// Tokens of a sequence if the user names no number.
pub const DEFAULT_SEQ_LEN: usize = 2048;

/// Most tokens of one run. They are held in memory, four bytes each.
const TOKENS_MAX: usize = 1 << 30;

/// Which data, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataOptions {
    /// Files, folders and globs, with or without a label (`code=src.txt`); none stands for the built-in set.
    pub data: Vec<String>,
    /// Sequences to draw, shared out evenly among labels.
    pub samples: usize,
    /// Tokens of a sequence; `None` stands for [`DEFAULT_SEQ_LEN`], or the model's context if that is less.
    pub seq_len: Option<usize>,
    /// Says which parts of the data are drawn when there is more than enough.
    pub seed: u64,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self { data: Vec::new(), samples: DEFAULT_SAMPLES, seq_len: None, seed: 0 }
    }
}

/// One sequence of tokens under a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Index into [`CalibrationData::labels`].
    pub label: usize,
    /// The tokens; never empty.
    pub tokens: Vec<u32>,
}

/// What was drawn.
#[derive(Clone, Debug, Default)]
pub struct CalibrationData {
    /// The labels, in the order in which they were named.
    pub labels: Vec<String>,
    /// The sequences: by label, then in the order of the files.
    pub samples: Vec<Sample>,
    /// The files that tokens were taken from.
    pub files: Vec<FileRecord>,
    /// What is worth knowing: files left out, labels with too little data.
    pub notes: Vec<String>,
}

impl CalibrationData {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> u64 {
        self.samples.iter().map(|sample| sample.tokens.len() as u64).sum()
    }

    /// The sequences, for a [`Pass`](crate::calibration::Pass).
    ///
    /// # Errors
    /// There are too many tokens to count in 32 bits, or none.
    pub fn sequences(&self) -> Result<Sequences> {
        let ids = self.samples.iter().flat_map(|sample| sample.tokens.iter().copied()).collect();
        Sequences::new(ids, self.samples.iter().map(|sample| sample.tokens.len()).collect())
    }

    /// SHA-256 of the sequences; see [`tokens_sha256`].
    pub fn sha256(&self) -> String {
        tokens_sha256(self.samples.iter().map(|sample| sample.tokens.as_slice()))
    }
}

/// Draws sequences for a model.
///
/// # Errors
/// Data that are missing, no text, or damaged; a model without tokenizer, or without a chat template where one is needed; options that
/// the model cannot follow; [`Interrupted`].
pub fn load(
    options: &DataOptions,
    checkpoint: &Checkpoint,
    config: &TextConfig,
    control: &Control<'_>,
) -> Result<CalibrationData> {
    let tokenizer = Tokenizer::of(checkpoint)?;
    let begin = tokenizer.beginning()?;
    let seq_len = options.seq_len.unwrap_or_else(|| {
        usize::try_from(config.max_position_embeddings).map_or(DEFAULT_SEQ_LEN, |context| context.min(DEFAULT_SEQ_LEN))
    });
    check(options.samples, seq_len, config, &begin)?;
    let mut data = CalibrationData::default();
    let labelled = match options.data.is_empty() {
        true => builtin::inputs(),
        false => inputs::resolve(&options.data, &mut data.notes)?,
    };
    if options.samples < labelled.len() {
        return Err(hint(
            format!("{} sequences cannot be shared out among {} labels", options.samples, labelled.len()),
            "draw more `--samples`",
        ));
    }
    let total = options.samples as u64 * seq_len as u64;
    control.progress.start("reading text", total, 0, Unit::Tokens);
    let mut reader =
        Reader { tokenizer, begin, seq_len, checkpoint, chat: None, table: None, vocabulary: config.vocab_size };
    for (index, entry) in labelled.iter().enumerate() {
        let share = options.samples / labelled.len() + usize::from(index < options.samples % labelled.len());
        let (sequences, used) = reader.draw(entry, options.seed.wrapping_add(index as u64), share, control)?;
        if sequences.is_empty() {
            return Err(hint(format!("the data under `{}` hold no text", entry.label), "name files with text in them"));
        }
        if sequences.len() < share {
            let found = sequences.len();
            data.notes.push(format!("`{}` has text for {found} of {share} sequences: all of it is used", entry.label));
        }
        data.labels.push(entry.label.clone());
        data.samples.extend(sequences.into_iter().map(|tokens| Sample { label: index, tokens }));
        for input in used {
            data.files.push(FileRecord::of(&entry.inputs[input], &entry.label)?);
        }
    }
    control.progress.finish();
    Ok(data)
}

fn check(samples: usize, seq_len: usize, config: &TextConfig, begin: &[u32]) -> Result<()> {
    if seq_len as u64 > config.max_position_embeddings {
        return Err(hint(
            format!("sequences of {} tokens, and the model's context is {}", seq_len, config.max_position_embeddings),
            "choose a smaller `--seq-len`",
        ));
    }
    if seq_len <= begin.len() {
        bail!("sequences of {seq_len} tokens hold nothing but the beginning of a text");
    }
    if samples == 0 || samples.checked_mul(seq_len).is_none_or(|total| total > TOKENS_MAX) {
        bail!("{samples} sequences of {seq_len} tokens: between one token and {TOKENS_MAX} can be run");
    }
    Ok(())
}

/// Turns pieces of files into tokens.
struct Reader<'a> {
    tokenizer: Tokenizer,
    begin: Vec<u32>,
    seq_len: usize,
    checkpoint: &'a Checkpoint,
    /// Loaded when the first conversation comes.
    chat: Option<ChatTemplate>,
    /// The table that was read last, with its input.
    table: Option<(usize, parquet::Table)>,
    vocabulary: usize,
}

impl Reader<'_> {
    /// Up to `share` sequences of one label, and which of its inputs they come from.
    fn draw(
        &mut self,
        entry: &Labelled,
        seed: u64,
        share: usize,
        control: &Control<'_>,
    ) -> Result<(Vec<Vec<u32>>, Vec<usize>)> {
        self.table = None;
        let step = (self.seq_len as u64 * 4).clamp(512, 1 << 20);
        let mut starts = vec![0];
        for (index, input) in entry.inputs.iter().enumerate() {
            let pieces = self.pieces(index, input, step)?;
            starts.push(starts[index] + pieces);
        }
        let count = starts[entry.inputs.len()];
        let order = Permutation::new(count, seed);
        let (mut chosen, mut tokens) = (Vec::new(), 0);
        for turn in 0..count {
            if control.stop_requested() {
                return Err(Interrupted.into());
            }
            let piece = order.at(turn);
            let input = starts.partition_point(|&start| start <= piece) - 1;
            let documents = self.read(input, &entry.inputs[input], piece - starts[input], step)?;
            let found: usize = documents.iter().map(Piece::tokens).sum();
            control.progress.advance(found.min(share * self.seq_len - tokens) as u64);
            tokens += found;
            chosen.push((piece, input, documents));
            if tokens >= share * self.seq_len {
                break;
            }
        }
        chosen.sort_unstable_by_key(|&(piece, ..)| piece);
        let mut used: Vec<usize> = chosen.iter().map(|&(_, input, _)| input).collect();
        used.dedup();
        let mut sequences = pack::pack(joined(chosen), &self.begin, self.seq_len);
        sequences.truncate(share);
        Ok((sequences, used))
    }

    fn pieces(&mut self, index: usize, input: &Input, step: u64) -> Result<u64> {
        Ok(match input.kind {
            Kind::Parquet => self.table(index, input)?.slices(),
            Kind::Text | Kind::JsonLines => text::pieces(input.bytes, step),
        })
    }

    fn table(&mut self, index: usize, input: &Input) -> Result<&parquet::Table> {
        if self.table.as_ref().is_none_or(|&(open, _)| open != index) {
            let Place::File(path) = &input.place else { unreachable!("what is built in is text") };
            self.table = Some((index, parquet::Table::open(path)?));
        }
        Ok(&self.table.as_ref().expect("it was opened above").1)
    }

    fn read(&mut self, index: usize, input: &Input, piece: u64, step: u64) -> Result<Vec<Piece>> {
        match input.kind {
            Kind::Parquet => {
                let documents = self.table(index, input)?.read(piece, step)?;
                documents.into_iter().map(|document| self.tokens(document)).collect()
            }
            Kind::Text => {
                let text = text::text_piece(&text::Bytes::open(input)?, piece, step)?;
                let document = if piece == 0 { Document::Text(text) } else { Document::Running(text) };
                Ok(vec![self.tokens(document)?])
            }
            Kind::JsonLines => {
                let bytes = text::Bytes::open(input)?;
                let mut pieces = Vec::new();
                for (start, line) in text::line_piece(&bytes, piece, step)? {
                    let place = || format!("`{}`, the line at byte {start}", bytes.name());
                    let document = lines::parse(&line).with_context(place)?;
                    pieces.extend(document.map(|document| self.tokens(document)).transpose().with_context(place)?);
                }
                Ok(pieces)
            }
        }
    }

    fn tokens(&mut self, document: Document) -> Result<Piece> {
        match document {
            Document::Text(text) => Ok(Piece::Begins(self.tokenizer.encode_plain(&text)?)),
            Document::Running(text) => Ok(Piece::Runs(self.tokenizer.encode_plain(&text)?)),
            Document::Messages(messages) => {
                if self.chat.is_none() {
                    self.chat = Some(ChatTemplate::of(self.checkpoint)?);
                }
                let chat = self.chat.as_ref().expect("it was loaded above");
                Ok(Piece::Begins(self.tokenizer.encode_plain(&chat.render(&messages)?)?))
            }
            Document::Tokens(tokens) => match tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
                Some(token) => bail!("token {token} is outside the model's vocabulary of {}", self.vocabulary),
                None => Ok(Piece::Stands(tokens)),
            },
        }
    }
}

/// The documents in order; what runs on from a piece that was not drawn begins anew.
fn joined(chosen: Vec<(u64, usize, Vec<Piece>)>) -> impl Iterator<Item = Piece> {
    let mut before = None;
    chosen.into_iter().flat_map(move |(piece, _, documents)| {
        let follows = before.is_some_and(|before: u64| before + 1 == piece);
        before = Some(piece);
        documents.into_iter().map(move |document| match document {
            Piece::Runs(tokens) if !follows => Piece::Begins(tokens),
            document => document,
        })
    })
}
