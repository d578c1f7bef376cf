//! Encodes rows to blocks of a ggml type, or decodes blocks, from standard input to standard output, for `interop/ggml_blocks.py`.
//!
//!     ggml_blocks encode TYPE ROW_LEN WEIGHTED < [ROW_LEN floats of importance, if WEIGHTED is 1] rows > blocks
//!     ggml_blocks decode TYPE < blocks > floats
//!
//! TYPE is ggml's number. `testdata/ggml/oracle.c` takes the same words and calls llama.cpp.

use std::io::{Read, Write};

use anyhow::{Context, bail};
use l4::dtype::Dtype;
use l4::dtype::ggml::dtype_of;
use l4::quant::ggml::{decode, encode};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let output = match args[..] {
        ["encode", dtype, row_len, weighted] => encoded(parse(dtype)?, row_len.parse()?, weighted == "1", &input),
        ["decode", dtype] => decoded(parse(dtype)?, &input),
        _ => bail!("usage: ggml_blocks encode TYPE ROW_LEN WEIGHTED | ggml_blocks decode TYPE"),
    };
    std::io::stdout().write_all(&output)?;
    Ok(())
}

fn parse(number: &str) -> anyhow::Result<Dtype> {
    dtype_of(number.parse()?).context("no type of ggml has this number")
}

fn encoded(dtype: Dtype, row_len: usize, weighted: bool, input: &[u8]) -> Vec<u8> {
    let floats: Vec<f32> = input.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    let (importance, rows) = floats.split_at(if weighted { row_len } else { 0 });
    let mut blocks = vec![0; rows.len() / dtype.block_len() as usize * (dtype.block_bits() / 8) as usize];
    encode(dtype, rows, row_len, weighted.then_some(importance), &mut blocks);
    blocks
}

fn decoded(dtype: Dtype, input: &[u8]) -> Vec<u8> {
    let mut values = vec![0.0_f32; input.len() / (dtype.block_bits() / 8) as usize * dtype.block_len() as usize];
    decode(dtype, input, &mut values);
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
