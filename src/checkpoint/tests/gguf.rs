//! GGUF files as checkpoints: parts of a split one, folders of several, and hostile heads.

use super::*;

/// A value of a key.
enum Key<'a> {
    Text(&'a str),
    U16(u16),
    I32(i32),
    /// A type and bytes of any kind.
    Raw(u32, &'a [u8]),
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A tensor as the table of a file has it: name, extents, type, offset.
type Entry<'a> = (&'a str, &'a [u64], u32, u64);

/// A file with these keys and tensors, and so many bytes of data.
fn gguf(keys: &[(&str, Key<'_>)], tensors: &[Entry<'_>], data: usize) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        bytes.extend(string(key));
        let (kind, value) = match value {
            Key::Text(text) => (8, string(text)),
            Key::U16(number) => (2, number.to_le_bytes().to_vec()),
            Key::I32(number) => (5, number.to_le_bytes().to_vec()),
            Key::Raw(kind, raw) => (*kind, raw.to_vec()),
        };
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
    }
    for (name, extents, kind, offset) in tensors {
        bytes.extend(string(name));
        bytes.extend((extents.len() as u32).to_le_bytes());
        extents.iter().for_each(|extent| bytes.extend(extent.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

/// A part of a split model, with one tensor of the given name.
fn part(number: u16, count: u16, tensors: i32, name: &str) -> Vec<u8> {
    let keys =
        [("split.no", Key::U16(number)), ("split.count", Key::U16(count)), ("split.tensors.count", Key::I32(tensors))];
    gguf(&keys, &[(name, &[3, 2], 0, 0)], 32)
}

const NAMES: [&str; 3] = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];

fn three() -> [Vec<u8>; 3] {
    [part(0, 3, 3, "a"), part(1, 3, 3, "b"), part(2, 3, 3, "c")]
}

#[test]
fn a_file_is_a_catalogue() {
    let tensors: [Entry<'_>; 3] = [("w", &[64, 3, 2], 2, 0), ("norm", &[5], 0, 224), ("f", &[1, 1], 30, 256)];
    let bytes = gguf(&[("general.architecture", Key::Text("llama4"))], &tensors, 288);
    let folder = folder(&[("m.gguf", &bytes)]);
    for path in [folder.path().to_owned(), folder.path().join("m.gguf")] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let found: Vec<_> =
            checkpoint.tensors().iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice())).collect();
        let shapes: [(&str, Dtype, &[u64]); 3] =
            [("f", Dtype::BF16, &[1, 1]), ("norm", Dtype::F32, &[5]), ("w", Dtype::Q4_0, &[2, 3, 64])];
        assert_eq!(found, shapes);
        assert_eq!(checkpoint.bytes(2).len(), 2 * 3 * 2 * 18);
        assert_eq!(checkpoint.bytes(1)[..2], [224, 225]);
        assert_eq!(checkpoint.keys(0).unwrap().text("general.architecture"), Some("llama4"));
        assert_eq!(checkpoint.keys(0).unwrap().version(), 3);
        checkpoint.unchanged().unwrap();
    }
}

#[test]
fn any_part_opens_all() {
    let parts = three();
    let files: Vec<(&str, &[u8])> = NAMES.into_iter().zip(parts.iter().map(Vec::as_slice)).collect();
    let folder = folder(&files);
    for path in [folder.path().to_owned(), folder.path().join(NAMES[0]), folder.path().join(NAMES[2])] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.files().iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), NAMES);
        assert_eq!(checkpoint.tensors().len(), 3);
        assert_eq!(checkpoint.tensors()[2].file, 2);
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused_by_name() {
    let [one, two, three] = three();
    let refused = |files: [(&str, &[u8]); 3]| refused_folder(&files);
    assert_eq!(
        refused_folder(&[(NAMES[0], &one), (NAMES[2], &three)]),
        "`DIR/m-00002-of-00003.gguf`: one of 3 parts, and missing"
    );
    assert_eq!(
        refused_folder(&[(NAMES[1], &two)]),
        "`DIR/m-00001-of-00003.gguf`: one of 3 parts, and missing (with 1 more)"
    );
    for (other, what) in [
        (part(2, 3, 3, "b"), "its keys do not say that it is part 2 of the 3"),
        (part(1, 4, 3, "b"), "its keys do not say that it is part 2 of the 3"),
        (part(1, 3, 9, "b"), "its keys do not say that it is part 2 of the 3"),
        (gguf(&[], &[("b", &[1], 0, 0)], 4), "its keys do not say that it is part 2 of the 3"),
        (part(1, 3, 3, "a"), "tensor `a`: also in `m-00001-of-00003.gguf`"),
        (part(7, 3, 3, "b"), "`split.no` is 7, and `split.count` 3: parts are counted from 0"),
    ] {
        let error = refused([(NAMES[0], &one), (NAMES[1], &other), (NAMES[2], &three)]);
        assert!(error.starts_with("`DIR/m-00002-of-00003.gguf`") && error.contains(what), "{error}");
    }
    let [one, two, three] = [part(0, 3, 5, "a"), part(1, 3, 5, "b"), part(2, 3, 5, "c")];
    let error = refused([(NAMES[0], &one), (NAMES[1], &two), (NAMES[2], &three)]);
    assert!(error.contains("`split.tensors.count` is 5, and the parts have 3 tensors together"), "{error}");
    let error = refused_folder(&[("other.gguf", &one)]);
    assert!(error.contains("it is part 1 of 3, and its name does not end in `-00001-of-00003.gguf`"), "{error}");
    let many = gguf(&[("split.count", Key::Raw(10, &[0xff; 8]))], &[], 0);
    let error = refused_folder(&[("m-00001-of-99999.gguf", &many)]);
    assert!(error.contains("`split.count` is 18446744073709551615, and 65535 are allowed"), "{error}");
    let odd = gguf(&[("split.count", Key::Text("three"))], &[], 0);
    assert!(refused_folder(&[("m.gguf", &odd)]).contains("`split.count` is String(\"three\"), no number of parts"));
}

#[test]
fn a_folder_is_one_text_model_and_its_vision_part() {
    let of = |architecture: &str, kind: &str, tensor: &str| {
        let keys = [("general.architecture", Key::Text(architecture)), ("general.type", Key::Text(kind))];
        gguf(&keys, &[(tensor, &[1], 0, 0)], 4)
    };
    let (text, vision) = (of("llama4", "model", "t"), of("clip", "mmproj", "v"));
    let imatrix = gguf(&[("general.type", Key::Text("imatrix"))], &[("i", &[1], 0, 0)], 4);
    let both = folder(&[("b.gguf", &text), ("a.gguf", &vision), ("i.gguf", &imatrix), (".x.gguf", b"?")]);
    let checkpoint = Checkpoint::open(both.path()).unwrap();
    assert_eq!(checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["t", "v"]);
    assert_eq!(checkpoint.unlisted(), ["i.gguf"]);
    assert_eq!(Checkpoint::open(&both.path().join("b.gguf")).unwrap().tensors().len(), 1);

    let two = refused_folder(&[("b.gguf", &text), ("c.gguf", &text)]);
    assert_eq!(two, "`DIR`: 2 text models in GGUF in this folder, such as `b.gguf` and `c.gguf`");
    let two = refused_folder(&[("b.gguf", &vision), ("c.gguf", &vision), ("t.gguf", &text)]);
    assert_eq!(two, "`DIR`: 2 vision parts in GGUF in this folder, such as `b.gguf` and `c.gguf`");
    let alone = refused_folder(&[("b.gguf", &vision)]);
    assert_eq!(alone, "`DIR`: no text model among the GGUF files of this folder");
}

#[test]
fn hostile_heads_are_refused_with_what_is_wrong() {
    let refused = |bytes: &[u8]| {
        let message = refused_folder(&[("m.gguf", bytes)]);
        message.strip_prefix("`DIR/m.gguf`").unwrap().to_owned()
    };
    let tensors = |entries: &[Entry<'_>], data: usize| refused(&gguf(&[], entries, data));
    assert_eq!(tensors(&[("x", &[32], 4, 0)], 64), ", tensor `x`: unknown ggml type 4");
    assert_eq!(tensors(&[("x", &[32], u32::MAX, 0)], 64), ", tensor `x`: unknown ggml type 4294967295");
    let error = tensors(&[("x", &[8], 0, 0), ("y", &[8], 0, 16)], 96);
    assert_eq!(error, ", tensor `y`: begins at data offset 16, the one before it ends at 32");
    let error = tensors(&[("x", &[8], 0, 0), ("y", &[8], 0, 64)], 96);
    assert_eq!(error, ", tensor `y`: begins at data offset 64, the one before it ends at 32");
    assert_eq!(tensors(&[("x", &[8], 0, 0), ("x", &[8], 0, 32)], 64), ", tensor `x`: the name is there twice");
    let error = tensors(&[("x", &[100], 12, 0)], 144);
    assert_eq!(error, ", tensor `x`: extents [100] of Q4_K are no whole blocks, or too many");
    let error = tensors(&[("x", &[1 << 33, 1 << 33], 0, 0)], 144);
    assert_eq!(error, ", tensor `x`: extents [8589934592, 8589934592] of F32 are no whole blocks, or too many");
    assert!(tensors(&[("x", &[1, 1, 1, 1, 1], 0, 0)], 4).ends_with("5 dimensions; 4 are allowed"));
    assert!(tensors(&[(&"n".repeat(64), &[1], 0, 0)], 4).ends_with("a name of 64 bytes; 63 are allowed"));
    assert!(tensors(&[("x", &[1 << 40], 0, 0)], 64).contains("truncated"));

    let keys = |keys: &[(&str, Key<'_>)]| refused(&gguf(keys, &[], 0));
    let number = |n: u64| n.to_le_bytes();
    assert_eq!(keys(&[("k", Key::U16(1)), ("k", Key::U16(1))]), ": the key `k` is empty or there twice");
    assert_eq!(keys(&[("", Key::U16(1))]), ": the key `` is empty or there twice");
    assert!(keys(&[("k", Key::Raw(8, &number(u64::MAX)))]).contains("18446744073709551615 bytes should follow"));
    assert!(keys(&[("k", Key::Raw(13, &[0; 8]))]).contains("a value of the unknown type 13"));
    let array = |kind: u32, count: u64| [kind.to_le_bytes().as_slice(), &number(count), &[0; 16]].concat();
    assert!(keys(&[("k", Key::Raw(9, &array(6, u64::MAX)))]).contains("an array of 18446744073709551615 elements"));
    assert!(keys(&[("k", Key::Raw(9, &array(6, 1 << 40)))]).contains("4398046511104 bytes should follow"));
    assert!(keys(&[("k", Key::Raw(9, &array(8, u64::MAX)))]).contains("should follow"));
    // Arrays of arrays, a thousand deep.
    let deep = array(9, 1).repeat(1000);
    assert!(keys(&[("k", Key::Raw(9, &deep))]).contains("an array of type 9"));
    let alignment = |value: &[u8]| keys(&[("general.alignment", Key::Raw(4, value))]);
    assert_eq!(alignment(&[3, 0, 0, 0]), ": `general.alignment` is U32(3), no power of two");
    assert_eq!(alignment(&[0; 4]), ": `general.alignment` is U32(0), no power of two");
    assert!(keys(&[("general.alignment", Key::Text("\x1b[31m"))]).contains("\\u{1b}"));
    assert!(keys(&[("k", Key::Raw(8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe]))]).contains("is not UTF-8"));

    let mut counts = gguf(&[], &[], 0);
    counts[8..16].copy_from_slice(&[0xff; 8]);
    assert!(refused(&counts).contains("should follow"), "{}", refused(&counts));
    counts[8..16].copy_from_slice(&[0; 8]);
    counts[16..24].copy_from_slice(&[0xff; 8]);
    assert!(
        refused(&counts).contains("should follow") || refused(&counts).contains("is empty"),
        "{}",
        refused(&counts)
    );
}

/// A link out of the folder is refused for GGUF files too, and a file of another kind under the name is none.
#[test]
fn names_decide_nothing() {
    let folder = folder(&[("m.gguf", b"PK\x03\x04")]);
    assert_eq!(refusal(folder.path(), folder.path()), "`DIR/m.gguf`: the file does not begin with `GGUF`");
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("secret"), gguf(&[], &[], 0)).unwrap();
    fs::remove_file(folder.path().join("m.gguf")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("secret"), folder.path().join("m.gguf")).unwrap();
    assert!(refusal(folder.path(), folder.path()).contains("a symbolic link out of the folder"));
}
