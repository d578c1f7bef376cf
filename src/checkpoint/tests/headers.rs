//! One file: what is read from a good one, and the word for every way in which one can be wrong.

use super::*;

#[test]
fn reads_a_file_and_its_bytes() {
    let header = concat!(
        r#"{"__metadata__":{"format":"pt","é":"\n"},"#,
        r#""b":{"dtype":"F32","shape":[2],"data_offsets":[6,14]},"#,
        r#""empty":{"dtype":"I64","shape":[3,0],"data_offsets":[6,6]},"#,
        r#""a":{"dtype":"BF16","shape":[3,1],"data_offsets":[0,6],"extra":[{"x":null}]},"#,
        r#""scalar":{"dtype":"BOOL","shape":[],"data_offsets":[14,15]}}     "#
    );
    let bytes = file(header, 15);
    let folder = folder(&[("m.safetensors", &bytes), ("config.json", b"{}")]);
    let checkpoint = Checkpoint::open(&folder.path().join("m.safetensors")).unwrap();

    // The oracle is the `safetensors` crate.
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let names: Vec<&str> = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "empty", "scalar"]);
    for (id, tensor) in checkpoint.tensors().iter().enumerate() {
        let view = theirs.tensor(&tensor.name).unwrap();
        assert_eq!(checkpoint.find(&tensor.name), Some(id));
        assert_eq!(checkpoint.bytes(id), view.data(), "{}", tensor.name);
        assert_eq!(tensor.shape, view.shape().iter().map(|n| *n as u64).collect::<Vec<_>>());
        assert_eq!(tensor.dtype.name(), view.dtype().to_string());
        assert_eq!(bytes[tensor.offset as usize..][..tensor.bytes as usize], *view.data());
    }
    assert_eq!(checkpoint.find("c"), None);
    assert_eq!(checkpoint.range(1, 2..4), [8, 9]);
    assert_eq!(checkpoint.tensor_bytes(), 15);
    let source = &checkpoint.files()[0];
    assert_eq!((source.name.as_str(), source.bytes), ("m.safetensors", bytes.len() as u64));
    assert_eq!(source.header_bytes, 8 + header.len() as u64);
    assert_eq!(source.metadata.get("format").map(String::as_str), Some("pt"));
    assert_eq!(checkpoint.config(), Some(("config.json", &b"{}"[..])));
    checkpoint.unchanged().unwrap();
}

#[test]
fn reads_every_dtype() {
    let (mut begin, mut entries) = (0, Vec::new());
    for dtype in Dtype::of_safetensors() {
        let end = begin + dtype.block_bits();
        entries.push(format!(r#""{dtype}":{{"dtype":"{dtype}","shape":[2,4],"data_offsets":[{begin},{end}]}}"#));
        begin = end;
    }
    let bytes = file(&format!("{{{}}}", entries.join(",")), begin as usize);
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let folder = folder(&[("m.safetensors", &bytes)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().len(), theirs.len());
    for (id, tensor) in checkpoint.tensors().iter().enumerate() {
        assert_eq!(tensor.dtype.name(), tensor.name);
        assert_eq!(checkpoint.bytes(id), theirs.tensor(&tensor.name).unwrap().data());
    }
}

#[test]
fn a_file_without_tensors_opens() {
    let folder = folder(&[("m.safetensors", &file("{}", 0))]);
    assert_eq!(Checkpoint::open(folder.path()).unwrap().tensors().len(), 0);
}

#[test]
#[should_panic(expected = "range 0..5 of tensor `a`, which has 4 bytes")]
fn a_range_outside_the_tensor_is_a_fault_of_the_caller() {
    let folder = folder(&[("m.safetensors", &file_of(&[("a", 4), ("b", 4)]))]);
    Checkpoint::open(folder.path()).unwrap().range(0, 0..5);
}

/// Header, bytes of data, and the message after the file's name.
const REFUSED: &[(&str, usize, &str)] = &[
    // Not what a header is.
    ("", 0, ": the header does not begin with `{`"),
    ("[]", 0, ": the header does not begin with `{`"),
    (" {}", 0, ": the header does not begin with `{`"),
    ("{", 0, ": not the JSON that belongs here: EOF while parsing an object at line 1 column 1"),
    ("{}{}", 0, ": not the JSON that belongs here: trailing characters at line 1 column 3"),
    (
        r#"{"a":5}"#,
        0,
        ", tensor `a`: not the JSON that belongs here: invalid type: integer `5`, expected an object with `dtype`, `shape` and `data_offsets` at line 1 column 6",
    ),
    (r#"{"a":{}}"#, 0, ", tensor `a`: not the JSON that belongs here: missing field `dtype` at line 1 column 7"),
    (
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#,
        1,
        ", tensor `a`: not the JSON that belongs here: invalid length 1, expected an array of length 2 at line 1 column 49",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#,
        1,
        ", tensor `a`: not the JSON that belongs here: trailing characters at line 1 column 52",
    ),
    (
        r#"{"__metadata__":{"a":1}}"#,
        0,
        ": not the JSON that belongs here: invalid type: integer `1`, expected a string at line 1 column 22",
    ),
    (
        r#"{"__metadata__":{},"__metadata__":{}}"#,
        0,
        ": not the JSON that belongs here: the key `__metadata__` is there twice at line 1 column 33",
    ),
    (r#"{"__metadata__":{"x":"1","x":"1"}}"#, 0, ": the key `x` is there twice"),
    // Numbers.
    (
        r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#,
        1,
        ", tensor `a`: not the JSON that belongs here: invalid value: integer `-1`, expected u64 at line 1 column 30",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,-1]}}"#,
        1,
        ", tensor `a`: not the JSON that belongs here: invalid value: integer `-1`, expected u64 at line 1 column 51",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#,
        1,
        ", tensor `a`: not the JSON that belongs here: invalid type: floating point `1.5`, expected u64 at line 1 column 31",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,1]}}"#,
        1,
        ", tensor `a`: not the JSON that belongs here: invalid type: floating point `1e+20`, expected u64 at line 1 column 48",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[18446744073709551615,2],"data_offsets":[0,1]}}"#,
        1,
        ", tensor `a`: U8 [18446744073709551615, 2] has more than 2^64 elements or bits",
    ),
    (
        r#"{"a":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]}}"#,
        0,
        ", tensor `a`: F64 [4611686018427387904] has more than 2^64 elements or bits",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}"#,
        0,
        ", tensor `a`: U8 [4294967296, 4294967296, 0] has more than 2^64 elements or bits",
    ),
    // Dtypes.
    (r#"{"a":{"dtype":"Q4_K","shape":[1],"data_offsets":[0,1]}}"#, 1, ", tensor `a`: unknown dtype `Q4_K`"),
    (
        r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#,
        2,
        ", tensor `a`: F4 [3] does not fill a whole number of bytes",
    ),
    (
        r#"{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,5]}}"#,
        5,
        ", tensor `a`: BF16 [3] takes 6 bytes, the data offsets give it 5",
    ),
    // Offsets.
    (r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[2,1]}}"#, 2, ", tensor `a`: data offsets [2, 1] run backwards"),
    (
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
        2,
        ", tensor `a`: begins at data offset 1, the tensor before it ends at 0",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
        3,
        ", tensor `b`: begins at data offset 2, the tensor before it ends at 1",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
        3,
        ", tensor `b`: begins at data offset 1, inside `a` which ends at 2",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#,
        2,
        ", tensor `b`: begins at data offset 0, inside `a` which ends at 2",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[18446744073709551608],"data_offsets":[0,18446744073709551608]}}"#,
        2,
        ", tensor `a`: U8 [18446744073709551608] has more than 2^64 elements or bits",
    ),
    // Names.
    (
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
        2,
        ", tensor `a`: the name is there twice in the header",
    ),
    (
        "{\"\\u001b[2J\\n\\u202e\":5}",
        0,
        ", tensor `\\u{1b}[2J\\n\\u{202e}`: not the JSON that belongs here: invalid type: integer `5`, expected an object with `dtype`, `shape` and `data_offsets` at line 1 column 22",
    ),
];

#[test]
fn every_wrong_header_is_refused_by_name() {
    for (header, data, expected) in REFUSED {
        assert_eq!(refused_file(&file(header, *data)), *expected, "{header}");
    }
}

#[test]
fn the_file_must_have_exactly_the_promised_size() {
    let good = file_of(&[("a", 10), ("b", 100)]);
    let size = good.len();
    for cut in [1, 50, 100] {
        let promise = format!("truncated: the header promises {size} bytes, the file has {}", size - cut);
        assert_eq!(refused_file(&good[..size - cut]), format!(", tensor `b`: {promise}"));
    }
    assert!(refused_file(&good[..size - 101]).starts_with(", tensor `a`: truncated"));
    let header = size - 110 - 8;
    for kept in [8, 9, 8 + header - 1] {
        let expected = format!(": the header should be {header} bytes long and the whole file has {kept}");
        assert_eq!(refused_file(&good[..kept]), expected);
    }
    assert_eq!(refused_file(&good[..7]), ": the file has 7 bytes, a safetensors file has 8 or more");
    assert_eq!(refused_file(&[]), ": the file is empty");

    let longer = [&good[..], b"xyz"].concat();
    let expected = format!(": 3 trailing bytes: the header promises {size} bytes, the file has {}", size + 3);
    assert_eq!(refused_file(&longer), expected);
}

#[test]
fn header_lengths_beyond_the_cap_are_refused_unread() {
    let folder = folder(&[]);
    let path = folder.path().join("m.safetensors");
    for header in [HEADER_BYTES_MAX + 1, 1 << 40] {
        fs::write(&path, header.to_le_bytes()).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(8 + header).unwrap();
        let expected = format!("`DIR/m.safetensors`: header or JSON of {header} bytes, the limit is 100000000");
        assert_eq!(refusal(&path, folder.path()), expected);
    }
    // A length that would overflow when 8 is added.
    assert_eq!(
        refused_file(&u64::MAX.to_le_bytes()),
        format!(": the header should be {} bytes long and the whole file has 8", u64::MAX)
    );
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let mut bytes = file(r#"{"name":0}"#, 0);
    bytes[10] = 0xff;
    assert_eq!(refused_file(&bytes), ": not UTF-8 at byte 2 of the text");
}

#[test]
fn deep_and_wide_json_does_no_harm() {
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
    assert!(refused_file(&file(&deep, 0)).contains("invalid type: sequence"));
    // Where an unknown field may hold anything, depth costs nothing.
    let ignored = format!(
        r#"{{"a":{{"x":{}{},"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#,
        "[".repeat(200_000),
        "]".repeat(200_000)
    );
    let folder = folder(&[("m.safetensors", &file(&ignored, 1))]);
    let opened = Checkpoint::open(folder.path());
    assert!(opened.is_ok() || opened.unwrap_err().to_string().contains("recursion limit"));

    let shape =
        |n: usize| format!(r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#, "1,".repeat(n - 1));
    assert!(refused_file(&file(&shape(65), 1)).contains("tensor `a`: not the JSON that belongs here: more than 64"));
    let folder = super::folder(&[("m.safetensors", &file(&shape(64), 1))]);
    assert_eq!(Checkpoint::open(folder.path()).unwrap().tensors()[0].shape.len(), 64);
}

#[test]
fn every_damage_has_a_way_out() {
    let good = file_of(&[("a", 10)]);
    let hint = |bytes: &[u8]| {
        let folder = folder(&[("m.safetensors", bytes)]);
        Checkpoint::open(folder.path()).unwrap_err().hint().unwrap()
    };
    assert!(hint(&good[..good.len() - 1]).contains("did not finish"));
    assert!(hint(&good[..4]).contains("did not finish"));
    assert!(hint(b"").contains("did not finish"));
    assert!(hint(&[&good[..], b"x"].concat()).contains("damaged"));
    assert!(hint(&file("[]", 0)).contains("LFS"));
}
