//! Thousands of damaged headers: none panics, none takes memory beyond its own size, and what opens is consistent.
//!
//! Alone in its process, so that the address space that it asks for can be measured.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use l4::checkpoint::Checkpoint;

const GOOD: &str = concat!(
    r#"{"__metadata__":{"format":"pt","total":"12"},"#,
    r#""model.layers.0.mlp.up_proj.weight":{"dtype":"BF16","shape":[4,8],"data_offsets":[0,64]},"#,
    r#""model.layers.10.mlp.up_proj.weight":{"dtype":"F8_E4M3","shape":[64],"data_offsets":[64,128]},"#,
    r#""\u00e9scalar":{"dtype":"I64","shape":[],"data_offsets":[128,136]},"#,
    r#""packed":{"dtype":"F4","shape":[2,7],"data_offsets":[136,143]},"#,
    r#""empty":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[143,143]}}   "#
);
const DATA: usize = 143;

/// What a damage puts into the header: the tokens that parsers stumble over.
const SPLICES: &[&str] = &[
    "",
    "0",
    "-1",
    "1e999",
    "18446744073709551615",
    "18446744073709551616",
    "null",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "\\",
    "\\u0000",
    "\\ud800",
    "[[[[[[[[",
    "{\"a\":{\"a\":",
    "\u{202e}",
    "9999999999",
    "\"dtype\":",
    "\"shape\":[1],",
    "\"__metadata__\":{},",
    "\"packed\":",
    "4294967296,4294967296",
];

/// xorshift64*: the same damages on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % bound
    }
}

fn damaged(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] = random.below(256) as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at.max(1)),
            3 => {
                let end = (at + random.below(20)).min(bytes.len());
                bytes.drain(at..end.max(at + 1));
            }
            4 => {
                let splice = SPLICES[random.below(SPLICES.len())].as_bytes();
                let end = (at + random.below(8)).min(bytes.len());
                bytes.splice(at..end, splice.iter().copied());
            }
            _ => {
                let from = random.below(bytes.len());
                let piece = bytes[from..(from + random.below(60)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
        if bytes.is_empty() {
            bytes.push(b'{');
        }
    }
    bytes
}

/// The most address space that this process has had, in kB.
#[cfg(target_os = "linux")]
fn address_space_peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(not(target_os = "linux"))]
fn address_space_peak() -> u64 {
    0
}

/// Opens a file; what opens has tensors that lie behind the header, inside the file, with the size of their dtype and shape.
fn opens(path: &Path, bytes: &[u8]) -> bool {
    // A new file each time: writing over an old one makes some file systems wait for the disk.
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
    match Checkpoint::open(path) {
        Ok(checkpoint) => {
            let sum: u64 = checkpoint.tensors().iter().map(|tensor| tensor.bytes).sum();
            assert_eq!(checkpoint.files()[0].header_bytes + sum, bytes.len() as u64);
            for (id, tensor) in checkpoint.tensors().iter().enumerate() {
                assert_eq!(Some(tensor.bytes), tensor.dtype.bytes_of(&tensor.shape));
                assert_eq!(checkpoint.bytes(id).len() as u64, tensor.bytes);
                assert_eq!(checkpoint.find(&tensor.name), Some(id));
            }
            true
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains(|c: char| c.is_control()), "{message:?}");
            assert!(message.len() < 2000, "{message}");
            false
        }
    }
}

#[test]
fn damaged_headers_are_refused_or_consistent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let whole = |header: &[u8]| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend([7; DATA]);
        bytes
    };
    let good = whole(GOOD.as_bytes());
    assert!(opens(&path, &good));

    let before = address_space_peak();
    let mut random = Random(0x4c4c_414d_4134);
    let (mut opened, mut agreed) = (0, 0);
    const ROUNDS: usize = 12_000;
    for round in 0..ROUNDS {
        // Half of the damages keep the length field right, so that they reach the JSON behind it.
        let bytes =
            if round % 2 == 0 { whole(&damaged(GOOD.as_bytes(), &mut random)) } else { damaged(&good, &mut random) };
        let ours = opens(&path, &bytes);
        opened += usize::from(ours);
        // What opens here opens in the `safetensors` crate too; it is the laxer one.
        let theirs = safetensors::SafeTensors::deserialize(&bytes).is_ok();
        assert!(theirs || !ours, "{}", String::from_utf8_lossy(&bytes));
        agreed += usize::from(ours == theirs);
    }
    // Not every damage hits something that matters, and most do.
    assert!((100..ROUNDS / 2).contains(&opened), "{opened}");
    assert!(agreed > ROUNDS * 99 / 100, "{agreed}");
    let grown = address_space_peak() - before;
    assert!(grown < 64 * 1024, "{grown} kB");
}
