//! GGUF files, read and written in a few lines of their own: a second opinion, which must not use the library `l4`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use l4_testkit::{Shards, Spec, Vision};

use super::{Done, Scratch, l4tool, run, testdata};

/// A file, taken apart.
#[derive(Debug)]
pub(crate) struct GgufFile {
    /// Keys in their order, with the type and the value as the goldens spell them.
    pub(crate) keys: Vec<(String, String, Value)>,
    /// Tensors in the order of the table.
    pub(crate) tensors: Vec<GgufTensor>,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug)]
pub(crate) struct GgufTensor {
    pub(crate) name: String,
    /// The fastest-varying first.
    pub(crate) extents: Vec<u64>,
    /// ggml's name.
    pub(crate) kind: String,
    pub(crate) data: Vec<u8>,
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> String {
        let length = self.u64() as usize;
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    /// A value of the types that are written, with the type's name.
    fn value(&mut self, kind: u32) -> (String, Value) {
        let (name, one) = match kind {
            2 => ("UINT16", u16::from_le_bytes(self.take(2).try_into().unwrap()).to_string()),
            4 => ("UINT32", self.u32().to_string()),
            5 => ("INT32", (self.u32() as i32).to_string()),
            6 => ("FLOAT32", format!("{}", f32::from_bits(self.u32()))),
            7 => ("BOOL", if self.take(1)[0] == 1 { "True" } else { "False" }.to_owned()),
            8 => ("STRING", self.string()),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                let values: Vec<(String, Value)> = (0..count).map(|_| self.value(kind)).collect();
                let name = format!("[{}]", values[0].0);
                let one = |(_, value)| match value {
                    Value::One(one) => one,
                    Value::Many(_) => panic!("an array in an array"),
                };
                return (name, Value::Many(values.into_iter().map(one).collect()));
            }
            other => panic!("a value of type {other}"),
        };
        (name.to_owned(), Value::One(one))
    }
}

/// Number, name, elements and bytes of a block of every type (`testdata/gguf/types.tsv`, from the Python package).
pub(crate) fn kinds() -> BTreeMap<u32, (String, u64, u64)> {
    let text = fs::read_to_string(super::testdata("gguf/types.tsv")).unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('\t').collect();
        (cells[0].parse().unwrap(), (cells[1].to_owned(), cells[2].parse().unwrap(), cells[3].parse().unwrap()))
    };
    text.lines().map(row).collect()
}

/// Reads a file; asserts that tensors follow each other at multiples of 32 and that nothing but zeros lies between.
pub(crate) fn read(path: &Path) -> GgufFile {
    let bytes = fs::read(path).unwrap();
    let mut cursor = Cursor(&bytes);
    assert_eq!(cursor.take(4), b"GGUF");
    assert_eq!(cursor.u32(), 3);
    let (tensors, keys) = (cursor.u64(), cursor.u64());
    let mut key = || {
        let name = cursor.string();
        let kind = cursor.u32();
        let (kind, value) = cursor.value(kind);
        (name, kind, value)
    };
    let keys = (0..keys).map(|_| key()).collect();
    let kinds = kinds();
    let mut table = Vec::new();
    for _ in 0..tensors {
        let name = cursor.string();
        let dimensions = cursor.u32();
        let extents: Vec<u64> = (0..dimensions).map(|_| cursor.u64()).collect();
        let (kind, elements, size) = kinds[&cursor.u32()].clone();
        let bytes = extents.iter().product::<u64>() / elements * size;
        table.push((name, extents, kind, cursor.u64() as usize, bytes as usize));
    }
    let start = (bytes.len() - cursor.0.len()).next_multiple_of(32);
    let data = &bytes[start..];
    let (mut end, mut tensors) = (0_usize, Vec::new());
    for (name, extents, kind, offset, size) in table {
        assert_eq!(offset, end.next_multiple_of(32), "{name}");
        assert!(data[end..offset].iter().all(|&byte| byte == 0), "before {name}");
        end = offset + size;
        tensors.push(GgufTensor { name, extents, kind, data: data[offset..end].to_vec() });
    }
    assert_eq!(data.len(), end.next_multiple_of(32));
    assert!(data[end..].iter().all(|&byte| byte == 0));
    GgufFile { keys, tensors }
}

impl GgufFile {
    pub(crate) fn tensor(&self, name: &str) -> &GgufTensor {
        self.tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    pub(crate) fn key(&self, name: &str) -> Option<&Value> {
        self.keys.iter().find(|key| key.0 == name).map(|key| &key.2)
    }
}

/// Writes an importance matrix for the layers' matrices of `model` by the formula of `interop/gguf.py`: every fourth expert has seen
/// nothing.
pub(crate) fn write_imatrix(model: &GgufFile, path: &Path) {
    let mut tensors = Vec::new();
    for tensor in model.tensors.iter().filter(|tensor| tensor.name.starts_with("blk.") && tensor.extents.len() > 1) {
        let (inputs, matrices) = (tensor.extents[0], tensor.extents.get(2).copied().unwrap_or(1));
        let count = |matrix: u64| if matrix % 4 == 3 { 0 } else { matrix + 1 };
        let sum = |matrix: u64, input: u64| {
            let value = (input * 31 + matrix * 17 + tensor.name.len() as u64 * 7) % 97 + 1;
            (value * count(matrix)) as f32
        };
        let counts = (0..matrices).map(|matrix| count(matrix) as f32).collect::<Vec<_>>();
        let sums = (0..matrices).flat_map(|matrix| (0..inputs).map(move |input| sum(matrix, input)));
        tensors.push((format!("{}.counts", tensor.name), [1, matrices], counts));
        tensors.push((format!("{}.in_sum2", tensor.name), [inputs, matrices], sums.collect()));
    }
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    let string = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend([string("general.type"), 8_u32.to_le_bytes().to_vec(), string("imatrix")].concat());
    let mut data: Vec<u8> = Vec::new();
    for (name, extents, values) in tensors {
        bytes.extend(string(&name));
        bytes.extend(2_u32.to_le_bytes());
        extents.iter().for_each(|extent| bytes.extend(extent.to_le_bytes()));
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend((data.len() as u64).to_le_bytes());
        data.extend(values.into_iter().flat_map(f32::to_le_bytes));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

/// Converts a checkpoint to GGUF.
pub(crate) fn convert(source: &Path, out: &Path, flags: &str) -> Done {
    let mut command = l4tool("convert --to gguf");
    run(command.arg(source).arg("-o").arg(out).args(flags.split_whitespace()))
}

/// The rows of a golden, by tensor and preset.
pub(crate) fn golden(name: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let text = fs::read_to_string(testdata(&format!("gguf/goldens-{name}.tsv"))).unwrap();
    let mut lines = text.lines();
    let presets: Vec<&str> = lines.next().unwrap().split('\t').skip(1).collect();
    let row = |line: &str| {
        let mut cells = line.split('\t');
        let tensor = cells.next().unwrap().to_owned();
        (tensor, presets.iter().map(|&preset| preset.to_owned()).zip(cells.map(str::to_owned)).collect())
    };
    lines.map(row).collect()
}

/// A model with a vision part whose rows are whole blocks, with layers of two digits, and colours of its own.
pub(crate) fn eyes(scratch: &Scratch) -> PathBuf {
    let vision = Vision { layers: 12, heads: 4, hidden_size: 256, intermediate_size: 1024, ..Vision::tiny() };
    let spec = Spec { vision: Some(vision), shards: Shards::Single, ..Spec::default() };
    let folder = scratch.checkpoint("eyes", &spec);
    let colours = r#"{"image_processor": {"image_mean": [0.25, 0.5, 0.75], "image_std": [0.5, 0.25, 0.125]}}"#;
    fs::write(folder.join("processor_config.json"), colours).unwrap();
    folder
}
