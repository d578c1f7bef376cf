//! Folders: which files belong together, and that none of them lies elsewhere.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const A: &str = "model-00001-of-00002.safetensors";
const B: &str = "model-00002-of-00002.safetensors";

#[test]
fn opens_what_the_index_names() {
    let folder = folder(&[
        (A, &file_of(&[("z", 4), ("m", 2)])),
        (B, &file_of(&[("a", 3)])),
        (INDEX_NAME, &index_of(&[("m", A), ("a", B), ("z", A)])),
        ("consolidated.safetensors", b"something else"),
        ("._hidden.safetensors", b"what a Mac leaves behind"),
        ("config.json", br#"{"x": 1}"#),
    ]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let found: Vec<_> = checkpoint.tensors().iter().map(|t| (t.name.as_str(), t.file, t.bytes)).collect();
    assert_eq!(found, [("a", 1, 3), ("m", 0, 2), ("z", 0, 4)]);
    assert_eq!(checkpoint.bytes(1), [4, 5]);
    assert_eq!(checkpoint.files().iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), [A, B]);
    assert_eq!(checkpoint.unlisted(), ["consolidated.safetensors"]);
    assert_eq!(checkpoint.config(), Some(("config.json", &br#"{"x": 1}"#[..])));
    assert_eq!(checkpoint.folder(), folder.path());
}

#[test]
fn opens_the_one_file_of_a_folder() {
    let one = file_of(&[("a", 3)]);
    let only = folder(&[("anything.safetensors", &one), ("README.md", b"hello")]);
    assert_eq!(Checkpoint::open(only.path()).unwrap().files()[0].name, "anything.safetensors");

    let several = folder(&[("adapter.safetensors", b"x"), ("model.safetensors", &one), ("other.safetensors", b"y")]);
    let checkpoint = Checkpoint::open(several.path()).unwrap();
    assert_eq!(checkpoint.files()[0].name, "model.safetensors");
    assert_eq!(checkpoint.unlisted(), ["adapter.safetensors", "other.safetensors"]);
}

#[test]
fn folders_that_are_no_checkpoint() {
    let one = file_of(&[("a", 3)]);
    assert_eq!(refused_folder(&[("README.md", b"")]), "`DIR`: no `.safetensors` file in this folder");
    assert_eq!(
        refused_folder(&[("x.safetensors", &one), ("y.safetensors", &one)]),
        "`DIR`: 2 `.safetensors` files and no index that says which belong together"
    );
    let folder = folder(&[("pipe", b"")]);
    let missing = refusal(&folder.path().join("none"), folder.path());
    assert_eq!(missing, "`DIR/none`: cannot open: No such file or directory (os error 2)");
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert_eq!(refusal(folder.path(), folder.path()), "`DIR/model.safetensors`: not a regular file");
    // A device would otherwise be read without end.
    assert_eq!(refusal(Path::new("/dev/zero"), folder.path()), "`/dev/zero`: not a regular file");
}

/// What is wrong with an index: its text, and the message after its name.
#[test]
fn wrong_indexes_are_refused() {
    let cases: &[(&str, &str)] = &[
        ("", ": not the JSON that belongs here: EOF while parsing a value at line 1 column 0"),
        (
            "[]",
            ": not the JSON that belongs here: invalid length 0, expected an object with `weight_map` at line 1 column 2",
        ),
        ("{}", ": not the JSON that belongs here: missing field `weight_map` at line 1 column 2"),
        (r#"{"weight_map":{}}"#, ": the index names no tensor"),
        (
            r#"{"weight_map":{"a":5}}"#,
            ": not the JSON that belongs here: invalid type: integer `5`, expected a string at line 1 column 20",
        ),
        (r#"{"weight_map":{"a":"m.safetensors","a":"m.safetensors"}}"#, ": the key `a` is there twice"),
        (r#"{"weight_map":{"a":"m.safetensors","a":"n.safetensors"}}"#, ": the key `a` is there twice"),
        (
            r#"{"weight_map":{},"weight_map":{}}"#,
            ": not the JSON that belongs here: duplicate field `weight_map` at line 1 column 29",
        ),
    ];
    for (text, expected) in cases {
        let message = refused_folder(&[(INDEX_NAME, text.as_bytes()), ("m.safetensors", &file_of(&[("a", 3)]))]);
        assert_eq!(message, format!("`DIR/{INDEX_NAME}`{expected}"), "{text}");
    }
    let message = refused_folder(&[(INDEX_NAME, b"{\"weight_map\":{\"\xff\":\"\"}}")]);
    assert_eq!(message, format!("`DIR/{INDEX_NAME}`: not UTF-8 at byte 16 of the text"));
}

#[test]
fn index_and_files_agree_both_ways() {
    let (a, b) = (file_of(&[("x", 1), ("y", 1)]), file_of(&[("z", 1)]));
    let check = |index: &[(&str, &str)]| refused_folder(&[(A, &a), (B, &b), (INDEX_NAME, &index_of(index))]);

    let only_in_index = check(&[("x", A), ("y", A), ("yy", B), ("z", B)]);
    assert_eq!(
        only_in_index,
        format!("`DIR/{B}`, tensor `yy`: the index promises it here, and the file does not have it")
    );
    let only_in_index = check(&[("x", A), ("y", A), ("z", B), ("zz", A)]);
    assert_eq!(
        only_in_index,
        format!("`DIR/{A}`, tensor `zz`: the index promises it here, and the file does not have it")
    );
    let only_in_file = format!("`DIR/{A}`, tensor `y`: the file has it, and the index does not name it");
    assert_eq!(check(&[("x", A), ("z", B)]), only_in_file);
    let last = format!("`DIR/{B}`, tensor `z`: the file has it, and the index does not name it");
    assert_eq!(
        refused_folder(&[
            (A, &a),
            (B, &file_of(&[("v", 1), ("z", 1)])),
            (INDEX_NAME, &index_of(&[("v", B), ("x", A), ("y", A)]))
        ]),
        last
    );
    let elsewhere = check(&[("x", A), ("y", B), ("z", B)]);
    assert_eq!(elsewhere, format!("`DIR/{A}`, tensor `y`: the index expects it in `{B}`"));

    let twice = [(A, &file_of(&[("x", 1)])[..]), (B, &file_of(&[("x", 1), ("y", 1)]))];
    let message = refused_folder(&[twice[0], twice[1], (INDEX_NAME, &index_of(&[("x", A), ("y", B)]))]);
    assert_eq!(message, format!("`DIR/{B}`, tensor `x`: also in `{A}`"));
}

#[test]
fn missing_files_are_counted() {
    let index = index_of(&[("x", A), ("y", B), ("z", "c.safetensors")]);
    let message = refused_folder(&[(INDEX_NAME, &index), (A, &file_of(&[("x", 1)]))]);
    assert_eq!(message, "`DIR/c.safetensors`: named in the index, and missing (with 1 more)");
    let message = refused_folder(&[(INDEX_NAME, &index_of(&[("x", A)]))]);
    assert_eq!(message, format!("`DIR/{A}`: named in the index, and missing"));
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    let shards = [
        "../m.safetensors",
        "/m.safetensors",
        "a/m.safetensors",
        "a\\\\m.safetensors",
        "",
        ".",
        "..",
        "C:m",
        "./m",
        "m/",
        "m\\u0000",
    ];
    for shard in shards {
        let text = format!(r#"{{"weight_map":{{"x":"{shard}"}}}}"#);
        let message = refused_folder(&[(INDEX_NAME, text.as_bytes())]);
        assert!(message.starts_with(&format!("`DIR/{INDEX_NAME}`, tensor `x`: `")), "{shard}: {message}");
        assert!(message.ends_with("` is not a plain file name"), "{shard}: {message}");
    }
}

#[test]
fn links_out_of_the_folder_are_refused() {
    let outside = folder(&[(A, &file_of(&[("x", 1)])), ("config.json", b"{}")]);
    let inside = folder(&[(INDEX_NAME, &index_of(&[("x", A)]))]);
    symlink(outside.path().join(A), inside.path().join(A)).unwrap();
    let message = refusal(inside.path(), inside.path());
    let target = outside.path().canonicalize().unwrap().join(A);
    assert_eq!(message, format!("`DIR/{A}`: a symbolic link out of the folder, to `{}`", target.display()));

    // The same file under the name that the user gave is the user's choice.
    Checkpoint::open(&inside.path().join(A)).unwrap();

    // Links inside the folder are fine, also when the folder itself is reached by one.
    fs::remove_file(inside.path().join(A)).unwrap();
    fs::create_dir(inside.path().join("parts")).unwrap();
    fs::rename(outside.path().join(A), inside.path().join("parts/1")).unwrap();
    symlink("parts/1", inside.path().join(A)).unwrap();
    let link = outside.path().join("link");
    symlink(inside.path(), &link).unwrap();
    assert_eq!(Checkpoint::open(&link).unwrap().tensors().len(), 1);

    symlink(outside.path().join("config.json"), inside.path().join("config.json")).unwrap();
    assert!(refusal(inside.path(), inside.path()).starts_with("`DIR/config.json`: a symbolic link out of the folder"));
}

/// A cache of the Hugging Face Hub; returns it and its snapshot.
fn hub_cache(repository: &str) -> (TempDir, PathBuf) {
    let cache = folder(&[]);
    let repository = cache.path().join(repository);
    let snapshot = repository.join("snapshots/0123abcd");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(repository.join("blobs")).unwrap();
    let files =
        [(A, file_of(&[("x", 1)])), (INDEX_NAME, index_of(&[("x", A)])), ("config.json", br#"{"x":2}"#.to_vec())];
    for (number, (name, bytes)) in files.iter().enumerate() {
        fs::write(repository.join(format!("blobs/hash{number}")), bytes).unwrap();
        symlink(format!("../../blobs/hash{number}"), snapshot.join(name)).unwrap();
    }
    (cache, snapshot)
}

#[test]
fn the_cache_of_the_hub_opens() {
    let (_cache, snapshot) = hub_cache("models--meta-llama--Llama-4-Scout-17B-16E");
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(checkpoint.files()[0].name, A);
    assert_eq!(checkpoint.files()[0].path, snapshot.join(A));
    assert_eq!(checkpoint.config(), Some(("config.json", &br#"{"x":2}"#[..])));
    checkpoint.unchanged().unwrap();

    // A download that did not finish leaves a link without a blob.
    fs::remove_file(snapshot.join("../../blobs/hash0")).unwrap();
    assert_eq!(refusal(&snapshot, &snapshot), format!("`DIR/{A}`: named in the index, and missing"));
}

#[test]
fn links_out_of_the_cache_are_refused() {
    // Not the cache's own names.
    let (_cache, snapshot) = hub_cache("some-folder");
    assert!(refusal(&snapshot, &snapshot).contains("a symbolic link out of the folder"));

    // Another repository's blobs.
    let (cache, snapshot) = hub_cache("models--a--b");
    let other = cache.path().join("models--c--d/blobs");
    fs::create_dir_all(&other).unwrap();
    fs::rename(snapshot.join("../../blobs/hash0"), other.join("hash0")).unwrap();
    fs::remove_file(snapshot.join(A)).unwrap();
    symlink("../../../models--c--d/blobs/hash0", snapshot.join(A)).unwrap();
    assert!(refusal(&snapshot, &snapshot).contains("a symbolic link out of the folder"));

    // `blobs` as a link to elsewhere.
    let (cache, snapshot) = hub_cache("models--a--b");
    fs::rename(snapshot.join("../../blobs"), cache.path().join("elsewhere")).unwrap();
    symlink(cache.path().join("elsewhere"), snapshot.join("../../blobs")).unwrap();
    assert!(refusal(&snapshot, &snapshot).contains("a symbolic link out of the folder"));
}

#[test]
fn unreadable_files_are_named() {
    let denied = FormatError::io(Path::new("m.safetensors"), "open")(io::ErrorKind::PermissionDenied.into());
    assert_eq!(format!("{:#}", anyhow::anyhow!(denied)), "`m.safetensors`: cannot open: permission denied");
    let denied = FormatError::io(Path::new("m.safetensors"), "open")(io::ErrorKind::PermissionDenied.into());
    assert_eq!(denied.hint().unwrap(), "make the file readable for this user");

    let folder = folder(&[("m.safetensors", &file_of(&[("a", 1)]))]);
    let path = folder.path().join("m.safetensors");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser may read it all the same.
    if let Err(error) = Checkpoint::open(&path) {
        assert_eq!(error.hint(), denied.hint());
    }
    // A loop of links is refused for everybody.
    symlink("loop.safetensors", folder.path().join("loop.safetensors")).unwrap();
    let message = refusal(&folder.path().join("loop.safetensors"), folder.path());
    assert!(message.starts_with("`DIR/loop.safetensors`: cannot open: "), "{message}");
}

#[test]
fn a_bare_file_name_has_a_folder() {
    // Relative to the package, where tests run: no file of this name lies there.
    let error = Checkpoint::open(Path::new("no-such.safetensors")).unwrap_err();
    assert_eq!(error.to_string(), "`no-such.safetensors`: cannot open");
}
