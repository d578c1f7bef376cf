//! Our reader on what the Python package `gguf` wrote, our writer through our reader, and hostile bytes.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::dtype::Dtype;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/gguf").join(name)
}

#[test]
fn a_file_of_the_python_package_is_read() {
    let gguf = Gguf::open(&testdata("sample.gguf")).unwrap();
    let value = |key: &str| gguf.keys().value(key).unwrap().clone();
    assert_eq!(value("general.architecture").as_str(), Some("llama4"));
    assert_eq!(value("a.u8"), Value::U8(200));
    assert_eq!(value("a.i8"), Value::I8(-5));
    assert_eq!(value("a.u16"), Value::U16(60_000));
    assert_eq!(value("a.i16"), Value::I16(-30_000));
    assert_eq!(value("a.u32").as_u64(), Some(4_000_000_000));
    assert_eq!(value("a.i32"), Value::I32(-2_000_000_000));
    assert_eq!(value("a.u64"), Value::U64((1 << 63) + 5));
    assert_eq!(value("a.i64"), Value::I64(-(1 << 62)));
    assert_eq!(value("a.f32"), Value::F32(0.5));
    assert_eq!(value("a.f64"), Value::F64(-0.1));
    assert_eq!(value("a.bool"), Value::Bool(true));
    assert_eq!(value("a.string").as_str(), Some("größer"));
    assert_eq!(gguf.keys().strings("a.strings").unwrap().collect::<Vec<_>>(), ["one", "", "drei"]);
    assert!(gguf.keys().strings("a.numbers").is_none());
    let tensor = |name: &str| gguf.tensor(name).unwrap();
    assert_eq!((tensor("first").extents.as_slice(), tensor("first").dtype.name()), ([3, 2].as_slice(), "F32"));
    let values: Vec<u8> = (0..6).flat_map(|value| (value as f32).to_le_bytes()).collect();
    assert_eq!(gguf.bytes(tensor("first")), values);
    assert_eq!((tensor("second").bytes, tensor("third").bytes), (10, 4 * 68));
    assert_eq!(tensor("third").extents, [64, 4]);
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let list = ["x".to_owned(), "yy".to_owned()];
    let keys = [
        ("general.type".to_owned(), Content::Value(Value::String("imatrix".into()))),
        ("list".to_owned(), Content::Strings(list.to_vec())),
        ("numbers".to_owned(), Content::Numbers(vec![1, -2])),
        ("floats".to_owned(), Content::Floats(vec![0.5, -1.5])),
        ("n".to_owned(), Content::Value(Value::U32(7))),
    ];
    let kind = Dtype::F32;
    let tensors = [("one".to_owned(), vec![3], kind), ("two".to_owned(), vec![2, 2], kind)];
    let layout = encode(&keys, &tensors);
    let mut bytes = layout.head.clone();
    bytes.resize(layout.bytes as usize, 0);
    bytes[layout.offsets[1] as usize..][..4].copy_from_slice(&2.5_f32.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.keys().value("n"), Some(&Value::U32(7)));
    let floats: Vec<Value> = gguf.keys().numbers("floats").unwrap().collect();
    assert_eq!(floats, [Value::F32(0.5), Value::F32(-1.5)]);
    assert_eq!(gguf.keys().strings("list").unwrap().collect::<Vec<_>>(), list);
    assert_eq!(gguf.tensors.iter().map(|tensor| tensor.offset).collect::<Vec<_>>(), layout.offsets);
    assert_eq!(gguf.bytes(gguf.tensor("two").unwrap())[..4], 2.5_f32.to_le_bytes());
}

/// Of a file that lies elsewhere, any beginning tells what it is, what is wrong, or how much more is needed.
#[test]
fn beginnings_of_files_are_described_or_ask_for_more() {
    let path = testdata("sample.gguf");
    let (whole, bytes) = (Gguf::open(&path).unwrap(), fs::read(&path).unwrap());
    let size = bytes.len() as u64;
    let mut asked = 0;
    for length in 0..bytes.len() {
        match Gguf::describe(&path, bytes[..length].to_vec(), size).unwrap() {
            Ok(file) => {
                assert_eq!(file.tensors, whole.tensors);
                assert_eq!(file.keys().values(), whole.keys().values());
            }
            Err((back, least)) => {
                assert_eq!(back, bytes[..length]);
                assert!(length < least as usize && least <= whole.head.bytes, "{length} {least}");
                asked += 1;
            }
        }
    }
    // What pads the head is not waited for.
    assert!((whole.head.bytes - 32..=whole.head.bytes).contains(&asked), "{asked}");
    for position in 0..whole.head.bytes as usize {
        let mut broken = bytes.clone();
        broken[position] ^= 0x81;
        let local = parsed(&broken);
        let remote = match Gguf::describe(&path, broken[..whole.head.bytes as usize].to_vec(), size) {
            Ok(Ok(_)) => None,
            Ok(Err((_, least))) => {
                assert!(least <= size);
                continue;
            }
            Err(error) => Some(error.kind.to_string()),
        };
        assert_eq!(remote, local, "{position}");
    }
}

/// What is wrong with a whole file.
fn parsed(bytes: &[u8]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    fs::write(&path, bytes).unwrap();
    Gguf::open(&path).err().map(|error| error.kind.to_string())
}

#[test]
fn hostile_bytes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let good = fs::read(testdata("sample.gguf")).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Gguf::open(&path).map(|_| ()).map_err(|error| error.to_string())
    };
    refused(&good).unwrap();
    // Cut anywhere before the last tensor's end.
    let end = good.len() - 16;
    for cut in (0..end).step_by(7) {
        assert!(refused(&good[..cut]).is_err(), "cut at {cut}");
    }
    let patched = |at: usize, bytes: &[u8]| {
        let mut copy = good.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    for (at, bytes, words) in [
        (0, b"GGML".as_slice(), "does not begin"),
        (4, &[1, 0, 0, 0], "version 1"),
        (4, &[0, 0, 0, 3], "big-endian"),
        (8, &[0xff; 8], ""),
        (16, &[0xff; 8], ""),
        (24, &[0xff; 8], "bytes should follow"),
    ] {
        let error = refused(&patched(at, bytes)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    // Any byte of the head may be wrong: an error or another reading, never a panic.
    let head = Gguf::open(&testdata("sample.gguf")).unwrap().tensors[0].offset as usize;
    for at in 0..head {
        for byte in [0, 0x7f, 0xff] {
            let _ = refused(&patched(at, &[byte]));
        }
    }
}
