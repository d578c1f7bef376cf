//! Drawing sequences from files, with tiny-scout's tokenizer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::*;
use crate::llama4::Llama4;
use crate::progress::Silent;

fn scout() -> Llama4 {
    Llama4::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny-scout")).unwrap()
}

fn draw(data: &[String], samples: usize, seq_len: usize, seed: u64) -> Result<CalibrationData> {
    let model = scout();
    let stop = AtomicBool::new(false);
    let control = Control { progress: &Silent, stop: &stop, threads: 1, memory: 1 << 30 };
    let options = DataOptions { data: data.to_vec(), samples, seq_len: Some(seq_len), seed };
    load(&options, &model.checkpoint, &model.config.text, &control)
}

fn write(folder: &tempfile::TempDir, name: &str, text: &str) -> (PathBuf, String) {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    let argument = path.to_str().unwrap().to_owned();
    (path, argument)
}

/// Tiny-scout's `<|begin_of_text|>`, from its tokenizer.json.
const BEGIN: u32 = 2033;

#[test]
fn a_text_that_fits_is_the_tokenizer_s_tokens() {
    let folder = tempfile::tempdir().unwrap();
    // Longer than several pieces, so that the cuts between them show if they change a token.
    let text = include_str!("../../../testdata/text/eval.txt");
    let (_, path) = write(&folder, "a.txt", text);
    let drawn = draw(&[path], 64, 1024, 5).unwrap();
    let mut expected = Tokenizer::of(&scout().checkpoint).unwrap().encode(text).unwrap();
    let joined: Vec<u32> = drawn
        .samples
        .iter()
        .flat_map(|sample| {
            assert_eq!(sample.tokens[0], BEGIN);
            sample.tokens[1..].to_vec()
        })
        .collect();
    assert_eq!(expected.remove(0), BEGIN);
    assert_eq!(joined, expected);
    assert!(drawn.samples[..drawn.samples.len() - 1].iter().all(|sample| sample.tokens.len() == 1024));
    assert!(drawn.notes[0].contains("all of it is used"), "{:?}", drawn.notes);
    // sha256sum of testdata/text/eval.txt, and its size.
    assert_eq!(drawn.files.len(), 1);
    assert_eq!(drawn.files[0].bytes, text.len() as u64);
}

#[test]
fn the_same_seed_draws_the_same_and_another_does_not() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..20 {
        let text: String = (0..2000).map(|line| format!("file {index} line {line} says {}\n", line * line)).collect();
        write(&folder, &format!("{index}.txt"), &text);
    }
    let path = folder.path().to_str().unwrap().to_owned();
    let digest = |seed| draw(std::slice::from_ref(&path), 6, 128, seed).unwrap();
    let first = digest(1);
    assert_eq!(first.samples.len(), 6);
    assert!(first.samples.iter().all(|sample| sample.tokens.len() == 128));
    assert_eq!(first.samples, digest(1).samples);
    assert_ne!(first.sha256(), digest(2).sha256());
    // Six sequences do not all come from one place.
    assert!(first.files.len() > 1, "{:?}", first.files);
}

#[test]
fn labels_get_equal_shares() {
    let folder = tempfile::tempdir().unwrap();
    let (_, long) = write(&folder, "long.txt", &"many words in here\n".repeat(2000));
    let (_, short) = write(&folder, "short.txt", "three short words");
    let drawn = draw(&[format!("a={long}"), format!("b={short}")], 7, 64, 0).unwrap();
    assert_eq!(drawn.labels, ["a", "b"]);
    let of = |label| drawn.samples.iter().filter(|sample| sample.label == label).count();
    assert_eq!((of(0), of(1)), (4, 1));
    assert!(drawn.notes.iter().any(|note| note.contains("`b` has text for 1 of 3")), "{:?}", drawn.notes);
}

#[test]
fn conversations_and_tokens_are_read_from_lines() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"text\":\"hello\"}\n{\"input_ids\":[7,8,9]}\n";
    let (_, path) = write(&folder, "a.jsonl", lines);
    let drawn = draw(&[path], 9, 64, 0).unwrap();
    let mut hello = Tokenizer::of(&scout().checkpoint).unwrap().encode("hello").unwrap();
    assert_eq!(hello[0], BEGIN);
    assert_eq!(
        drawn.samples.iter().map(|sample| sample.tokens.clone()).collect::<Vec<_>>(),
        [std::mem::take(&mut hello), vec![7, 8, 9]]
    );
    let (_, chat) = write(&folder, "b.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n");
    let error = format!("{:#}", draw(&[chat], 9, 64, 0).unwrap_err());
    assert!(error.contains("no chat template"), "{error}");
    let (_, wrong) = write(&folder, "c.jsonl", "{\"text\":\"a\"}\n{\"input_ids\":[2048]}\n");
    let error = format!("{:#}", draw(&[wrong], 9, 64, 0).unwrap_err());
    assert!(error.contains("the line at byte 13") && error.contains("token 2048"), "{error}");
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_, empty) = write(&folder, "empty.txt", "");
    let (_, text) = write(&folder, "text.txt", "words");
    let refused = |data: &[String], samples, seq_len, words: &str| {
        let error = format!("{:#}", draw(data, samples, seq_len, 0).unwrap_err());
        assert!(error.contains(words), "{error}");
    };
    refused(&[empty], 1, 64, "hold no text");
    refused(std::slice::from_ref(&text), 0, 64, "0 sequences");
    refused(std::slice::from_ref(&text), 1, 1, "nothing but the beginning");
    refused(std::slice::from_ref(&text), 1, 5000, "context is 4096");
    refused(&[format!("a={text}"), format!("b={text}")], 1, 64, "cannot be shared out");
    refused(&["none.txt".into()], 1, 64, "does not exist");
    fs::write(folder.path().join("bad.txt"), [b"text ".repeat(3000), vec![0xff]].concat()).unwrap();
    refused(&[folder.path().join("bad.txt").to_str().unwrap().to_owned()], 99, 64, "no UTF-8 at byte 15000");
}

#[test]
fn the_built_in_set_is_enough_to_begin_with() {
    let drawn = draw(&[], 1000, 2048, 0).unwrap();
    assert!(drawn.tokens() > 10_000, "{}", drawn.tokens());
    assert_eq!(drawn.files.len(), 7);
}

fn testdata(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/data").join(name).to_str().unwrap().to_owned()
}

#[test]
fn parquet_files_give_their_texts() {
    let drawn = draw(&[testdata("sample.parquet")], 1000, 64, 0).unwrap();
    // What make_data.py wrote, row by row; every seventh is null.
    let tokenizer = Tokenizer::of(&scout().checkpoint).unwrap();
    let texts = (0..100).filter(|row| row % 7 != 3).map(|row| format!("row {row} says größer {}", row * row));
    let expected: Vec<u32> = texts.flat_map(|text| tokenizer.encode(&text).unwrap()).collect();
    let joined: Vec<u32> = drawn.samples.iter().flat_map(|sample| sample.tokens.iter().copied()).collect();
    let without = |tokens: &[u32]| tokens.iter().copied().filter(|&token| token != BEGIN).collect::<Vec<u32>>();
    assert_eq!(without(&joined), without(&expected));
    let few = draw(&[testdata("sample.parquet")], 2, 64, 3).unwrap();
    assert_eq!(few.samples.len(), 2);
    let error = format!("{:#}", draw(&[testdata("no-text.parquet")], 2, 64, 3).unwrap_err());
    assert!(error.contains("no column `text`") && error.contains("`content`"), "{error}");
}

#[test]
fn damaged_parquet_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = fs::read(testdata("sample.parquet")).unwrap();
    let path = folder.path().join("bad.parquet");
    let argument = path.to_str().unwrap().to_owned();
    for cut in [0, 3, 100, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..cut]).unwrap();
        assert!(draw(std::slice::from_ref(&argument), 1000, 64, 0).is_err(), "cut at {cut}");
    }
    // Any byte may be wrong: an error or other text, never a panic.
    for at in (0..good.len()).step_by(41) {
        let mut copy = good.clone();
        copy[at] ^= 0x55;
        fs::write(&path, &copy).unwrap();
        let _ = draw(std::slice::from_ref(&argument), 1000, 64, 0);
    }
}
