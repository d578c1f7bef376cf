//! Opening good, damaged and hostile checkpoints. Files are written by hand, byte for byte: no writer of ours is involved.

mod folders;
mod gguf;
mod headers;
mod large;
mod later;
mod torch;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// A safetensors file: length, header as given, `data` bytes that count up from 0.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

/// A file with one-dimensional U8 tensors of these sizes, one after the other.
fn file_of(tensors: &[(&str, usize)]) -> Vec<u8> {
    let mut begin = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, size)| {
            let end = begin + size;
            let entry = format!(r#""{name}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{begin},{end}]}}"#);
            begin = end;
            entry
        })
        .collect();
    file(&format!("{{{}}}", entries.join(",")), begin)
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// An index of tensors and their files.
fn index_of(entries: &[(&str, &str)]) -> Vec<u8> {
    let entries: Vec<String> = entries.iter().map(|(tensor, shard)| format!(r#""{tensor}":"{shard}""#)).collect();
    format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{}}}}}"#, entries.join(",")).into_bytes()
}

/// Why a path cannot be opened, with `DIR` for `base`, and the causes after colons.
fn refusal(path: &Path, base: &Path) -> String {
    let error = match Checkpoint::open(path) {
        Ok(checkpoint) => panic!("{} opens with {} tensors", path.display(), checkpoint.tensors().len()),
        Err(error) => error,
    };
    let message = format!("{:#}", anyhow::Error::from(error));
    message.replace(&*base.to_string_lossy(), "DIR").replace(&*base.canonicalize().unwrap().to_string_lossy(), "DIR")
}

/// Why a folder with these files cannot be opened.
fn refused_folder(files: &[(&str, &[u8])]) -> String {
    let folder = folder(files);
    refusal(folder.path(), folder.path())
}

/// Why these bytes are no safetensors file.
fn refused_file(bytes: &[u8]) -> String {
    let folder = folder(&[("m.safetensors", bytes)]);
    let message = refusal(&folder.path().join("m.safetensors"), folder.path());
    message.strip_prefix("`DIR/m.safetensors`").unwrap().to_string()
}
