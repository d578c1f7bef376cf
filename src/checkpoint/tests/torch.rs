//! Files that torch wrote (`testdata/make_torch.py`), and archives and pickles that nobody should write.

use std::collections::BTreeMap;

use super::*;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/torch").join(name)
}

/// Why a file of `testdata/torch` cannot be opened.
fn refused(name: &str) -> String {
    let path = testdata(name);
    let message = refusal(&path, path.parent().unwrap());
    message.strip_prefix(&format!("`DIR/{name}`")).unwrap().to_owned()
}

#[test]
fn every_dtype_and_container_is_read_as_torch_wrote_it() {
    type Listed = (String, Vec<u64>, String);
    let listing: BTreeMap<String, Listed> = serde_json::from_slice(&fs::read(testdata("good.json")).unwrap()).unwrap();
    for name in ["good.pth", "protocol4.pth"] {
        let checkpoint = Checkpoint::open(&testdata(name)).unwrap();
        let names: Vec<&str> = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, listing.keys().collect::<Vec<_>>(), "{name}");
        for (id, tensor) in checkpoint.tensors().iter().enumerate() {
            let (dtype, shape, bytes) = &listing[&tensor.name];
            let dtype = match dtype.as_str() {
                "bool" => "BOOL".to_owned(),
                "bfloat16" => "BF16".to_owned(),
                "complex64" => "C64".to_owned(),
                "float8_e4m3fn" => "F8_E4M3".to_owned(),
                other => other.to_uppercase().replace("UINT", "U").replace("INT", "I").replace("FLOAT", "F"),
            };
            assert_eq!((tensor.dtype.name(), &tensor.shape), (dtype.as_str(), shape), "{name}: {}", tensor.name);
            let read: String = checkpoint.bytes(id).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(read, *bytes, "{name}: {}", tensor.name);
        }
    }
}

#[test]
fn what_would_run_code_is_refused_by_name() {
    for (file, global) in [
        ("runs-system.pth", "posix.system"),
        ("runs-eval.pth", "__builtin__.eval"),
        ("runs-exec.pth", "__builtin__.exec"),
        ("runs-getattr.pth", "__builtin__.getattr"),
        ("runs-load.pth", "pickle.loads"),
        ("runs-class.pth", "collections.Counter"),
    ] {
        let wanted = format!(": the pickle asks for `{global}`, which is neither a tensor nor a plain container");
        assert_eq!(refused(file), wanted, "{file}");
    }
}

#[test]
fn what_torch_can_write_and_is_not_read_says_why() {
    let transposed = refused("transposed.pth");
    assert_eq!(
        transposed,
        ", tensor `weight`: a view of shape [4, 3] with strides [1, 4], whose elements do not follow each other"
    );
    assert!(refused("legacy.pth").contains("not a whole zip archive"), "{}", refused("legacy.pth"));
    assert!(refused("deflated.pth").contains("`data.pkl` is compressed"), "{}", refused("deflated.pth"));
}

/// An archive of stored entries, written by hand after the format's description; `wide`: with sizes in 64-bit fields.
fn zip(entries: &[(&str, &[u8])], wide: bool) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let header = file.len() as u64;
        let length = content.len() as u64;
        let name_length = (name.len() as u16).to_le_bytes();
        let short = |n: u64| if wide { u32::MAX } else { n as u32 }.to_le_bytes();
        let extra = match wide {
            true => [&[1, 0, 24, 0][..], &length.to_le_bytes(), &length.to_le_bytes(), &header.to_le_bytes()].concat(),
            false => Vec::new(),
        };
        // Padding in front of the data, as torch writes it.
        file.extend([b"PK\x03\x04".as_slice(), &[0; 22], &name_length, &[6, 0]].concat());
        file.extend([name.as_bytes(), b"FB\x02\0ZZ", content].concat());
        let fixed = [b"PK\x01\x02".as_slice(), &[0; 16], &short(length), &short(length), &name_length].concat();
        directory.extend([fixed, (extra.len() as u16).to_le_bytes().to_vec(), vec![0; 10]].concat());
        directory.extend([&short(header), name.as_bytes(), &extra].concat());
    }
    let (start, length) = (file.len() as u64, directory.len() as u64);
    file.extend(&directory);
    if wide {
        let end = file.len() as u64;
        let numbers = [length.to_le_bytes(), start.to_le_bytes()].concat();
        file.extend([b"PK\x06\x06".as_slice(), &[0; 36], &numbers, b"PK\x06\x07", &[0; 4]].concat());
        file.extend([end.to_le_bytes().as_slice(), &[0; 4], b"PK\x05\x06", &[0xff; 18]].concat());
    } else {
        let numbers = [(length as u32).to_le_bytes(), (start as u32).to_le_bytes()].concat();
        file.extend([b"PK\x05\x06".as_slice(), &[0; 8], &numbers, &[0; 2]].concat());
    }
    file
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(number: i32) -> Vec<u8> {
    [b"J".as_slice(), &number.to_le_bytes()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
}

/// The instructions that make one tensor.
fn tensor(kind: &str, storage: &str, offset: i32, shape: &[i32], stride: &[i32]) -> Vec<u8> {
    let name = format!("ctorch\n{kind}\n").into_bytes();
    let id = tuple(&[text("storage"), name, text(storage), text("cpu"), int(1)]);
    let numbers = |numbers: &[i32]| tuple(&Vec::from_iter(numbers.iter().map(|&number| int(number))));
    let storage = [id, b"Q".to_vec()].concat();
    let parts = [storage, int(offset), numbers(shape), numbers(stride), b"\x89".to_vec(), b"}".to_vec()];
    [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), tuple(&parts), b"R".to_vec()].concat()
}

/// A file with the dict `{"w": value}` and a storage of eight bytes.
fn file_with(value: &[u8], wide: bool) -> Vec<u8> {
    let pickle = [b"\x80\x02}".as_slice(), &text("w"), value, b"s."].concat();
    zip(&[("a/data.pkl", &pickle), ("a/data/0", &[1, 2, 3, 4, 5, 6, 7, 8])], wide)
}

fn opened(bytes: &[u8]) -> Checkpoint {
    let folder = folder(&[("m.pth", bytes)]);
    Checkpoint::open(&folder.path().join("m.pth")).unwrap()
}

fn refused_bytes(bytes: &[u8]) -> String {
    let folder = folder(&[("m.pth", bytes)]);
    let message = refusal(&folder.path().join("m.pth"), folder.path());
    message.strip_prefix("`DIR/m.pth`").unwrap().to_owned()
}

#[test]
fn an_archive_with_64_bit_sizes_is_the_same() {
    for wide in [false, true] {
        let checkpoint = opened(&file_with(&tensor("ShortStorage", "0", 1, &[3], &[1]), wide));
        assert_eq!(checkpoint.bytes(0), [3, 4, 5, 6, 7, 8]);
    }
}

#[test]
fn a_tensor_must_lie_in_its_storage() {
    for (offset, shape, stride, wanted) in [
        (2, &[3][..], &[1][..], "truncated: the header promises 10 bytes, the file has 8"),
        (0, &[5], &[1], "truncated"),
        (0, &[i32::MAX, i32::MAX, i32::MAX], &[1, 1, 1], "has more than 2^64"),
        (-1, &[1], &[1], "a negative offset"),
        (0, &[-1], &[1], "no size"),
        (0, &[2, 2], &[1], "2 extents and 1 strides"),
        (0, &[2, 2], &[1, 1], "do not follow each other"),
        (0, &[2, 2], &[0, 0], "do not follow each other"),
    ] {
        let message = refused_bytes(&file_with(&tensor("ShortStorage", "0", offset, shape, stride), false));
        assert!(message.contains(wanted), "{offset} {shape:?} {stride:?}: {message}");
    }
    let message = refused_bytes(&file_with(&tensor("ShortStorage", "1", 0, &[1], &[1]), false));
    assert_eq!(message, ", tensor `w`: the archive has no entry `data/1`");
    let message = refused_bytes(&file_with(&tensor("QInt8Storage", "0", 0, &[1], &[1]), false));
    assert!(message.contains("asks for `torch.QInt8Storage`"), "{message}");
}

#[test]
fn a_pickle_that_no_program_writes_is_an_error_and_costs_nothing() {
    for (value, wanted) in [
        (&b"0"[..], "more values than the stack has"),
        (b"t", "more values than the stack has"),
        (b"(t\x87", "more values than the stack has"),
        (b"j\xff\xff\xff\xff", "never remembered"),
        (b"\xf0", "the opcode 0xf0"),
        (b"X\xff\xff\xff\xff", "more bytes than there are"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "more bytes than there are"),
        (b"cos\nsystem", "a name without an end"),
        (b"N)R", "a call of what is no known name"),
        (b"ccollections\nOrderedDict\n(K\x01tR", "arguments that it does not take"),
        (b"K\x01a", "items without a list"),
        (b"NQ", "a storage without a description"),
        (b"\x8a\x09\0\0\0\0\0\0\0\0\0", "more than 64 bits"),
    ] {
        let message = refused_bytes(&file_with(value, false));
        assert!(message.contains(wanted), "{value:?}: {message}");
    }
    let endless = tensor("ShortStorage", &"0".repeat(65), 0, &[1], &[1]);
    assert!(refused_bytes(&file_with(&endless, false)).contains("a storage whose name has more than 64 bytes"));
    let many = [
        b"(".to_vec(),
        tensor("ShortStorage", "0", 0, &[1], &[1]),
        b"q\x01".to_vec(),
        b"h\x01".repeat(70_000),
        b"t".to_vec(),
    ];
    assert!(refused_bytes(&file_with(&many.concat(), false)).contains("more than 65536 tensors"));
    assert!(refused_bytes(&file_with(&b"N0".repeat(1 << 20), false)).contains("more than 2097152 instructions"));
    // A name through the stack is held to the same list.
    let by_stack = [text("os"), text("system"), b"\x93".to_vec()].concat();
    assert!(refused_bytes(&file_with(&by_stack, false)).contains("asks for `os.system`"));
    // A list that holds itself, and one that stands in itself a million million times.
    assert!(refused_bytes(&file_with(b"]q\x01h\x01a", false)).contains("deep"));
    let refer = |times: usize| [b"(".to_vec(), b"h\x01".repeat(times), b"t".to_vec()].concat();
    let level = [b"q\x010".to_vec(), refer(2000)].concat();
    let wide = [b"(Nt".to_vec(), level.repeat(2)].concat();
    assert!(refused_bytes(&file_with(&wide, false)).contains("more than 1048576 values"));
}

#[test]
fn a_damaged_archive_is_an_error_wherever_it_was_damaged() {
    let good = file_with(&tensor("ShortStorage", "0", 0, &[4], &[1]), true);
    for cut in 0..good.len() {
        refused_bytes(&good[..cut]);
    }
    for at in 0..good.len() {
        let mut damaged = good.clone();
        damaged[at] ^= 0xff;
        let folder = folder(&[("m.pth", &damaged)]);
        // Some bytes do not matter; those that do must not let a tensor reach out of the file.
        if let Ok(checkpoint) = Checkpoint::open(&folder.path().join("m.pth")) {
            let _: u64 = checkpoint.tensors().iter().enumerate().map(|(id, _)| checkpoint.bytes(id).len() as u64).sum();
        }
    }
}

#[test]
fn files_of_ranks_make_one_catalogue_and_a_missing_rank_is_named() {
    let rank = file_with(&tensor("ShortStorage", "0", 0, &[4], &[1]), false);
    let folder_of = |names: &[&str]| folder(&names.iter().map(|name| (*name, rank.as_slice())).collect::<Vec<_>>());
    let both = folder_of(&["consolidated.00.pth", "consolidated.01.pth", "optimizer.pt"]);
    let names: Vec<String> =
        Checkpoint::open(both.path()).unwrap().tensors().iter().map(|tensor| tensor.name.clone()).collect();
    assert_eq!(names, ["consolidated.00.pth:w", "consolidated.01.pth:w"]);
    let single = folder_of(&["consolidated.pth"]);
    assert_eq!(Checkpoint::open(single.path()).unwrap().tensors()[0].name, "w");
    let gap = folder_of(&["consolidated.00.pth", "consolidated.02.pth"]);
    assert_eq!(refusal(gap.path(), gap.path()), "`DIR`: rank 1 of ranks 0 to 2 has no file here");
}
