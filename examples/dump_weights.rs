//! Writes what l4 says the weights of a checkpoint are: every quantized matrix, dequantized to BF16, under its logical name.
//!
//! `cargo run --release --example dump_weights -- CHECKPOINT FILE.safetensors`
//!
//! For `interop/check_output.py`, which compares it with what compressed-tensors makes of the same files. It holds one
//! matrix at a time, but the output is one file of BF16: use it on small models.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use half::bf16;
use l4::llama4::Llama4;
use serde_json::{Map, Value, json};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let source = arguments.next().context("usage: dump_weights CHECKPOINT FILE.safetensors")?;
    let target = arguments.next().context("usage: dump_weights CHECKPOINT FILE.safetensors")?;
    let model = Llama4::open(Path::new(&source))?;
    let quantized = || model.weights.iter().filter(|weight| weight.coding.scheme().is_some());
    let mut header = Map::new();
    let mut offset = 0;
    for weight in quantized() {
        let end = offset + 2 * weight.numel();
        let entry = json!({"dtype": "BF16", "shape": weight.shape, "data_offsets": [offset, end]});
        header.insert(weight.name.clone(), entry);
        offset = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = std::io::BufWriter::new(std::fs::File::create(target)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for weight in quantized() {
        let (out, input) = weight.matrix();
        let mut rows = vec![bf16::ZERO; out * input];
        model.dequantize(weight, 0..out, &mut rows);
        for value in rows {
            file.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(file.flush()?)
}
