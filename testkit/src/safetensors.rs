//! A safetensors writer of our own, dense and sparse. It must not know what the tensors mean.
//!
//! Layout of a file (<https://github.com/huggingface/safetensors#format>): eight bytes little-endian header length, the
//! header as JSON padded with spaces to a multiple of eight, then the data of all tensors without gaps.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

/// Dtype of a tensor: those that a model is published in, and those that quantized ones need.
#[expect(missing_docs, non_camel_case_types, reason = "these are the format's own names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    BF16,
    F16,
    F32,
    F8_E4M3,
    I64,
    I32,
    I8,
    U8,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::F8_E4M3 | Self::I8 | Self::U8 => 1,
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDef {
    /// Name in the file.
    pub name: String,
    /// Dtype; its Rust name is also its name in the header.
    pub dtype: Dtype,
    /// Shape, row-major.
    pub shape: Vec<usize>,
}

impl TensorDef {
    /// Bytes of the tensor.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product::<u64>() * self.dtype.bytes() as u64
    }
}

/// Length prefix and header of a file that holds `tensors` in this order.
fn header(tensors: &[TensorDef], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut map = Map::new();
    if !metadata.is_empty() {
        let entries: Map<String, Value> = metadata.iter().map(|&(k, v)| (k.to_owned(), json!(v))).collect();
        map.insert("__metadata__".to_owned(), Value::Object(entries));
    }
    let mut begin = 0;
    for t in tensors {
        let end = begin + t.bytes();
        let entry = json!({"dtype": format!("{:?}", t.dtype), "shape": t.shape, "data_offsets": [begin, end]});
        map.insert(t.name.clone(), entry);
        begin = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    bytes
}

/// Writes one file. `fill(i, writer)` writes the data of tensor `i`, in order; it is an error if it writes more or less
/// than the tensor has. Published models have the metadata `[("format", "pt")]`.
pub fn write_safetensors(
    path: &Path,
    tensors: &[TensorDef],
    metadata: &[(&str, &str)],
    mut fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut out = Counted { inner: BufWriter::with_capacity(1 << 20, file), written: 0 };
    out.write_all(&header(tensors, metadata))?;
    for (i, t) in tensors.iter().enumerate() {
        let before = out.written;
        fill(i, &mut out).with_context(|| format!("writing `{}` to {}", t.name, path.display()))?;
        let written = out.written - before;
        ensure!(written == t.bytes(), "`{}` has {} bytes, but {written} were written", t.name, t.bytes());
    }
    out.flush().with_context(|| format!("writing {}", path.display()))
}

/// Writes one file whose data is a hole: all zeros, and no disk taken.
pub fn write_sparse_safetensors(path: &Path, tensors: &[TensorDef], metadata: &[(&str, &str)]) -> Result<()> {
    let header = header(tensors, metadata);
    let length = header.len() as u64 + tensors.iter().map(TensorDef::bytes).sum::<u64>();
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.write_all(&header)?;
    file.set_len(length).with_context(|| format!("extending {} to {length} bytes", path.display()))
}

struct Counted<W> {
    inner: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Vec<TensorDef> {
        vec![
            TensorDef { name: "a".into(), dtype: Dtype::U8, shape: vec![3] },
            TensorDef { name: "b".into(), dtype: Dtype::BF16, shape: vec![1, 2] },
        ]
    }

    /// Spelled out by hand after the format's description.
    #[test]
    fn a_file_byte_by_byte() {
        let path = tempfile::tempdir().unwrap();
        let path = path.path().join("x.safetensors");
        write_safetensors(&path, &two(), &[("format", "pt")], |i, w| {
            w.write_all(if i == 0 { b"\x01\x02\x03" } else { b"\x04\x05\x06\x07" })
        })
        .unwrap();
        let text = concat!(
            r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"#,
            r#""b":{"dtype":"BF16","shape":[1,2],"data_offsets":[3,7]}}"#
        );
        let padded = text.len().next_multiple_of(8);
        let mut expected = (padded as u64).to_le_bytes().to_vec();
        expected.extend(format!("{text:padded$}").bytes());
        expected.extend([1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }

    #[test]
    fn a_fill_that_is_short_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = write_safetensors(&dir.path().join("x"), &two(), &[], |_, w| w.write_all(&[0])).unwrap_err();
        assert!(error.to_string().contains("`a` has 3 bytes, but 1 were written"), "{error}");
    }
}
