//! Sizes of real checkpoints, over sparse files that take no disk.

use std::os::unix::fs::FileExt;

use super::*;

const GIB: u64 = 1 << 30;

/// A sparse file with BF16 tensors of these sizes in bytes.
fn sparse(path: &Path, tensors: &[(String, u64)]) -> u64 {
    let mut begin = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, bytes)| {
            let end = begin + bytes;
            let entry =
                format!(r#""{name}":{{"dtype":"BF16","shape":[{}],"data_offsets":[{begin},{end}]}}"#, bytes / 2);
            begin = end;
            entry
        })
        .collect();
    let head = file(&format!("{{{}}}", entries.join(",")), 0);
    fs::write(path, &head).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_len(head.len() as u64 + begin).unwrap();
    head.len() as u64
}

#[test]
fn offsets_beyond_32_bits_reach_their_bytes() {
    let folder = folder(&[]);
    let path = folder.path().join("m.safetensors");
    let names = ["small", "huge", "last"].map(str::to_string);
    let [small, huge, last] = names.clone();
    let head = sparse(&path, &[(small, 6), (huge, 20 * GIB), (last, 4)]);
    let writer = fs::File::options().write(true).open(&path).unwrap();
    for (at, text) in [(6, b"AB"), (6 + 5 * GIB, b"CD"), (6 + 20 * GIB - 2, b"EF"), (6 + 20 * GIB, b"GH")] {
        writer.write_all_at(text, head + at).unwrap();
    }

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let [small, huge, last] = names.map(|name| checkpoint.find(&name).unwrap());
    assert_eq!(checkpoint.bytes(small), [0; 6]);
    assert_eq!(checkpoint.bytes(huge).len() as u64, 20 * GIB);
    assert_eq!(checkpoint.range(huge, 0..3), *b"AB\0");
    assert_eq!(checkpoint.range(huge, 5 * GIB - 1..5 * GIB + 3), *b"\0CD\0");
    assert_eq!(checkpoint.range(huge, 20 * GIB - 3..20 * GIB), *b"\0EF");
    assert_eq!(checkpoint.bytes(last), *b"GH\0\0");
    assert_eq!(checkpoint.tensors()[last].offset, head + 6 + 20 * GIB);
}

#[test]
fn a_truncated_giant_is_named_with_both_sizes() {
    let folder = folder(&[]);
    let path = folder.path().join("m.safetensors");
    let head = sparse(&path, &[("a".to_string(), 20 * GIB), ("b".to_string(), 20 * GIB)]);
    fs::File::options().write(true).open(&path).unwrap().set_len(head + 21 * GIB).unwrap();
    let (expected, actual) = (head + 40 * GIB, head + 21 * GIB);
    assert_eq!(
        refusal(&path, folder.path()),
        format!(
            "`DIR/m.safetensors`, tensor `b`: truncated: the header promises {expected} bytes, the file has {actual}"
        )
    );
}

/// Resident bytes of the maps of a file, as Linux counts them.
#[cfg(target_os = "linux")]
fn resident(path: &Path) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let path = path.canonicalize().unwrap();
    let mut inside = false;
    let mut kilobytes = 0;
    for line in maps.lines() {
        if line.split_whitespace().next().is_some_and(|first| !first.ends_with(':')) {
            inside = line.ends_with(&*path.to_string_lossy());
        } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| inside) {
            kilobytes += size.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    kilobytes * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_taken_by_touching_and_given_back_by_release() {
    const MIB: u64 = 1 << 20;
    let folder = folder(&[]);
    let path = folder.path().join("m.safetensors");
    sparse(&path, &[("a".to_string(), 32 * MIB + 2), ("b".to_string(), 32 * MIB)]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(resident(&path), 0, "opening maps nothing in");

    let sum = |id| checkpoint.bytes(id).iter().map(|byte| u64::from(*byte)).sum::<u64>();
    checkpoint.will_need(0, 0..32 * MIB);
    assert_eq!(sum(0) + sum(1), 0);
    assert!(resident(&path) >= 64 * MIB);

    // `a` ends inside a page of `b`: kept with the one, dropped with the other.
    let page = rustix::param::page_size() as u64;
    checkpoint.release(0, 0..32 * MIB + 2, Edges::Keep);
    let after_keep = resident(&path);
    assert!((32 * MIB..33 * MIB).contains(&after_keep), "{after_keep}");
    checkpoint.release(0, 0..32 * MIB + 2, Edges::Drop);
    assert_eq!(after_keep - resident(&path), 2 * page);

    // In stripes, nothing is left over; what was dropped comes back when touched.
    for begin in (0..32 * MIB).step_by(4 * MIB as usize) {
        checkpoint.release(1, begin..begin + 4 * MIB, Edges::Drop);
    }
    assert_eq!(resident(&path), 0);
    assert_eq!(checkpoint.range(1, 0..2), [0, 0]);
    assert_ne!(resident(&path), 0);
    checkpoint.release(1, 0..4 * MIB, Edges::Drop);
    assert_eq!(resident(&path), 0);
}

/// The text model of Maverick with its real shapes (24 layers with 128 experts in fused tensors of 20 and 10 GiB), 111 files.
#[test]
fn a_full_size_model_opens() {
    let (hidden, expert, experts, vocabulary) = (5120u64, 8192u64, 128u64, 202_048u64);
    let mut tensors =
        vec![("embed".to_string(), 2 * vocabulary * hidden), ("head".to_string(), 2 * vocabulary * hidden)];
    for layer in 0..48 {
        if layer % 2 == 1 {
            tensors.push((format!("{layer}.experts.gate_up"), 2 * experts * hidden * 2 * expert));
            tensors.push((format!("{layer}.experts.down"), 2 * experts * expert * hidden));
        }
        let dense = if layer % 2 == 1 { expert } else { 2 * expert };
        tensors.extend(["gate", "up", "down"].map(|name| (format!("{layer}.{name}"), 2 * dense * hidden)));
        tensors.extend((0..12).map(|part| (format!("{layer}.part{part}"), 2 * hidden * hidden)));
    }
    let folder = folder(&[]);
    let mut index = Vec::new();
    let per_file = tensors.len().div_ceil(111);
    for (number, chunk) in tensors.chunks(per_file).enumerate() {
        let name = format!("model-{number:05}.safetensors");
        sparse(&folder.path().join(&name), chunk);
        index.extend(chunk.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
    }
    let index: Vec<_> = index.iter().map(|(tensor, name)| (tensor.as_str(), name.as_str())).collect();
    fs::write(folder.path().join(INDEX_NAME), index_of(&index)).unwrap();

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().len(), tensors.len());
    assert_eq!(checkpoint.tensor_bytes(), tensors.iter().map(|(_, bytes)| bytes).sum::<u64>());
    assert!(checkpoint.tensor_bytes() > 780_000_000_000);
    let gate_up = checkpoint.find("47.experts.gate_up").unwrap();
    assert_eq!(checkpoint.range(gate_up, 20 * GIB - 2..20 * GIB), [0, 0]);
    // Ten more times, in the time that a person does not notice; the bound is wide for machines under load.
    let start = std::time::Instant::now();
    for _ in 0..10 {
        Checkpoint::open(folder.path()).unwrap();
    }
    let each = start.elapsed() / 10;
    println!("opening {} files: {each:?}", checkpoint.files().len());
    assert!(each.as_millis() < 500, "{each:?}");
}
