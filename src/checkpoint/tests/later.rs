//! What happens after opening: changes of the source, and its identity for a later run.

use std::time::{Duration, SystemTime};

use super::*;

fn touch(path: &Path, later: u64) {
    let time = SystemTime::now() + Duration::from_secs(later);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_changed_source_is_noticed() {
    let folder = folder(&[("m.safetensors", &file_of(&[("a", 5)])), ("config.json", b"{}")]);
    let path = folder.path().join("m.safetensors");
    let changed = |checkpoint: &Checkpoint| {
        let message = checkpoint.unchanged().unwrap_err().to_string();
        message.replace(&*folder.path().to_string_lossy(), "DIR")
    };

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    checkpoint.unchanged().unwrap();
    touch(&path, 100);
    assert_eq!(
        changed(&checkpoint),
        "`DIR/m.safetensors`: changed since it was opened: its modification time is another"
    );

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let bytes = checkpoint.files()[0].bytes;
    fs::File::options().write(true).open(&path).unwrap().set_len(bytes - 1).unwrap();
    let expected = format!("changed since it was opened: {bytes} bytes then, {} now", bytes - 1);
    assert_eq!(changed(&checkpoint), format!("`DIR/m.safetensors`: {expected}"));
    fs::remove_file(&path).unwrap();
    assert_eq!(changed(&checkpoint), "`DIR/m.safetensors`: cannot look at");

    fs::write(&path, file_of(&[("a", 5)])).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    fs::write(folder.path().join("config.json"), b"{ }").unwrap();
    assert_eq!(changed(&checkpoint), "`DIR/config.json`: changed since it was opened: 2 bytes then, 3 now");
}

#[test]
fn a_fingerprint_tells_what_differs() {
    let folder = folder(&[("m.safetensors", &file_of(&[("a", 5)])), ("config.json", b"{}")]);
    let path = folder.path().join("m.safetensors");
    let fingerprint = || Checkpoint::open(folder.path()).unwrap().fingerprint();
    let was = fingerprint();
    assert_eq!(was.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["config.json", "m.safetensors"]);
    assert_eq!(was.difference(&fingerprint()), None);

    let written = serde_json::to_string(&was).unwrap();
    assert_eq!(serde_json::from_str::<Fingerprint>(&written).unwrap(), was);

    let same_time = |text: &[u8]| {
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, text).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    };
    same_time(&file_of(&[("b", 5)]));
    assert_eq!(was.difference(&fingerprint()).as_deref(), Some("`m.safetensors` has another header or content"));
    same_time(&file_of(&[("a", 6)]));
    let sizes = was.difference(&fingerprint()).unwrap();
    assert!(sizes.starts_with("`m.safetensors` had ") && sizes.contains(" bytes and has "), "{sizes}");
    same_time(&file_of(&[("a", 5)]));
    assert_eq!(was.difference(&fingerprint()), None);
    touch(&path, 100);
    assert_eq!(was.difference(&fingerprint()).as_deref(), Some("`m.safetensors` was modified"));
    let now = fingerprint();
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_eq!(now.difference(&fingerprint()).as_deref(), Some("`config.json` is gone"));
    assert_eq!(fingerprint().difference(&now).as_deref(), Some("`config.json` is new"));
}
