//! Pieces of large text files: any piece can be read without reading what lies before it.
//!
//! A file is cut at multiples of a step, and each cut moves on to a place where words and the tokenizer's own splits end:
//! behind a line break and before a letter or digit where there is one nearby. So pieces that are read one after the other
//! give the tokens of the whole. Lines of JSON belong to the piece that they begin in.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::inputs::{Input, Place};
use crate::error::hint;

/// The longest line of a JSON Lines file.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// How far a cut may move.
const WINDOW_BYTES: u64 = 4096;

/// Bytes with a name, read at any offset.
pub(super) enum Bytes {
    File { path: PathBuf, file: File, bytes: u64 },
    Memory { name: &'static str, text: &'static str },
}

impl Bytes {
    pub(super) fn open(input: &Input) -> Result<Self> {
        Ok(match &input.place {
            Place::File(path) => {
                let file = File::open(path).with_context(|| format!("opening `{}`", path.display()))?;
                Self::File { path: path.clone(), file, bytes: input.bytes }
            }
            Place::Memory(name, text) => Self::Memory { name, text },
        })
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File { bytes, .. } => *bytes,
            Self::Memory { text, .. } => text.len() as u64,
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Memory { name, .. } => (*name).to_owned(),
        }
    }

    /// The bytes from `start` up to `end` or the end of the file.
    pub(super) fn read(&self, start: u64, end: u64) -> Result<Cow<'_, [u8]>> {
        let end = end.min(self.len());
        let start = start.min(end);
        match self {
            Self::Memory { text, .. } => Ok(text.as_bytes()[start as usize..end as usize].into()),
            Self::File { path, file, .. } => {
                let mut buffer = vec![0; (end - start) as usize];
                file.read_exact_at(&mut buffer, start).with_context(|| format!("reading `{}`", path.display()))?;
                Ok(buffer.into())
            }
        }
    }
}

/// Number of pieces of a file of `bytes`.
pub(super) fn pieces(bytes: u64, step: u64) -> u64 {
    bytes.div_ceil(step)
}

/// Piece `index` of a running text.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub(super) fn text_piece(bytes: &Bytes, index: u64, step: u64) -> Result<String> {
    let window = WINDOW_BYTES.min(step / 2);
    let first = (index * step).saturating_sub(1);
    let read = bytes.read(first, (index + 1) * step + window)?;
    let cut = |at: u64| -> usize {
        if at == 0 {
            return 0;
        }
        let local = (at - first) as usize;
        if at >= bytes.len() {
            read.len()
        } else {
            local + shift(&read[local - 1..(local + window as usize).min(read.len())])
        }
    };
    let (start, end) = (cut(index * step), cut((index + 1) * step));
    let mut piece = &read[start..end.max(start)];
    if index == 0 {
        // A byte order mark is no text.
        piece = piece.strip_prefix(b"\xef\xbb\xbf").unwrap_or(piece);
    }
    match std::str::from_utf8(piece) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(hint(
            format!("`{}`: no UTF-8 at byte {}", bytes.name(), first + (start + error.valid_up_to()) as u64),
            "convert the file with iconv",
        )),
    }
}

/// How far a cut moves: `around` begins with the byte before it.
fn shift(around: &[u8]) -> usize {
    let at = |good: fn(u8, u8) -> bool| around.windows(2).position(|pair| good(pair[0], pair[1]));
    at(|before, after| before == b'\n' && after.is_ascii_alphanumeric())
        .or_else(|| at(|before, _| before == b'\n'))
        // A byte that begins a character.
        .or_else(|| at(|_, after| after & 0xc0 != 0x80))
        // Nothing but the rest of the file's last character.
        .unwrap_or(around.len() - 1)
}

/// The lines that begin in piece `index`, each with the offset of its first byte.
///
/// # Errors
/// A line is too long, or cannot be read.
pub(super) fn line_piece(bytes: &Bytes, index: u64, step: u64) -> Result<Vec<(u64, Vec<u8>)>> {
    let (begin, end) = (index * step, ((index + 1) * step).min(bytes.len()));
    let Some(mut start) = line_start(bytes, begin, end)? else { return Ok(Vec::new()) };
    // Lines are short as a rule, so the piece and a little more has them all.
    let mut read = bytes.read(start, end + WINDOW_BYTES)?.into_owned();
    let mut base = start;
    let mut lines = Vec::new();
    while start < end {
        let local = (start - base) as usize;
        let known_end = base + read.len() as u64;
        match read[local..].iter().position(|&byte| byte == b'\n') {
            Some(length) => {
                lines.push((start, read[local..local + length].to_vec()));
                start += length as u64 + 1;
            }
            None if known_end == bytes.len() => {
                lines.push((start, read[local..].to_vec()));
                break;
            }
            None if known_end - start > LINE_BYTES_MAX => {
                bail!("`{}`: the line at byte {start} is longer than {LINE_BYTES_MAX} bytes", bytes.name());
            }
            None => {
                let wanted = ((known_end - start) * 2).max(step);
                read = bytes.read(start, start + wanted)?.into_owned();
                base = start;
            }
        }
    }
    Ok(lines)
}

/// The first byte of a line from `begin` on, if one begins before `end`.
fn line_start(bytes: &Bytes, begin: u64, end: u64) -> Result<Option<u64>> {
    if begin == 0 {
        return Ok((end > 0).then_some(0));
    }
    let read = bytes.read(begin - 1, end - 1)?;
    Ok(read.iter().position(|&byte| byte == b'\n').map(|position| begin + position as u64).filter(|&start| start < end))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn memory(text: &'static str) -> Bytes {
        Bytes::Memory { name: "test", text }
    }

    #[test]
    fn pieces_of_a_text_are_the_text() {
        let texts = [
            "",
            "a",
            "ein\nzwei\n\n drei\nvier\r\nfünf, sechs ääääääääääää\n日本語日本語日本語日本語\nend",
            "ääääääääääääääääää",
        ];
        for text in texts {
            for step in 8..40 {
                let bytes = memory(text);
                let count = pieces(bytes.len(), step);
                let parts: Vec<String> = (0..count).map(|index| text_piece(&bytes, index, step).unwrap()).collect();
                assert_eq!(parts.concat(), text, "step {step}");
            }
        }
    }

    #[test]
    fn cuts_move_to_the_beginning_of_a_line() {
        let bytes = memory("aaaa bbbb cccc dddd\n eeee\nffff gggg hhhh iiii jjjj kkkk");
        assert_eq!(text_piece(&bytes, 0, 18).unwrap(), "aaaa bbbb cccc dddd\n eeee\n");
    }

    #[test]
    fn every_line_belongs_to_one_piece() {
        let text = "{\"a\":1}\n\n{\"b\":\"a long line that passes many pieces of the file\"}\n{\"c\":3}\nlast";
        for step in 1..80 {
            let bytes = memory(text);
            let lines = (0..pieces(bytes.len(), step)).flat_map(|index| line_piece(&bytes, index, step).unwrap());
            let lines: Vec<String> = lines.map(|(_, line)| String::from_utf8(line).unwrap()).collect();
            assert_eq!(lines, text.split('\n').collect::<Vec<_>>(), "step {step}");
        }
    }
}
