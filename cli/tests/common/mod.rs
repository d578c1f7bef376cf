//! What the tests of the command line share: running the binary, making checkpoints, looking into safetensors.
//!
//! It must not use the library `l4`: what it reads and writes is a second opinion.

// Every test file uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod gguf_file;
pub(crate) mod hub;
pub(crate) mod oracle;
pub(crate) mod sparse;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use l4_testkit::{Dtype, Spec, TensorDef, write_safetensors};
use serde_json::Value;
use tempfile::TempDir;

/// A folder that goes away with the test.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A checkpoint in the folder `name`.
    pub(crate) fn checkpoint(&self, name: &str, spec: &Spec) -> PathBuf {
        let path = self.path(name);
        spec.write(&path).unwrap();
        path
    }

    /// A copy of a folder of `testdata/`.
    pub(crate) fn testdata(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        copy_folder(&testdata(name), &path);
        path
    }
}

pub(crate) fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name)
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The smallest checkpoint that has everything: two layers, four experts.
pub(crate) fn tiny() -> Spec {
    Spec { layers: 2, ..Spec::default() }
}

/// A checkpoint that a single scalar thread works on for about a second, in more than a hundred tasks.
pub(crate) fn slow() -> Spec {
    Spec {
        hidden_size: 256,
        intermediate_size: 256,
        intermediate_size_mlp: 256,
        experts: 16,
        layers: 4,
        text_only: true,
        ..Spec::default()
    }
}

/// The checkpoint [`slow`], to be read only. Random numbers take longer to make than the tests take to run, so it is
/// kept from one run of the tests to the next.
pub(crate) fn slow_source() -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let digest =
        format!("{:?}", slow()).bytes().fold(0_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let kept = root.join(format!("slow-{digest:016x}"));
    if !kept.exists() {
        let made = tempfile::tempdir_in(root).unwrap();
        slow().write(&made.path().join("source")).unwrap();
        // Another test may have been faster; then its folder is as good.
        let _ = fs::rename(made.path().join("source"), &kept);
    }
    kept
}

/// What a finished process left.
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// Asserts success.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }

    /// Asserts exit code 2 and an error that holds all of `words`.
    #[track_caller]
    pub(crate) fn refused(self, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(2), "{}{}", self.stdout, self.stderr);
        assert!(format!("\n{}", self.stderr).contains("\nerror: "), "{}", self.stderr);
        assert!(self.stdout.is_empty(), "{}", self.stdout);
        for word in words {
            assert!(self.stderr.contains(word), "no `{word}` in: {}", self.stderr);
        }
        self
    }

    /// The report.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }
}

/// The binary with arguments that are separated by spaces.
pub(crate) fn l4tool(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_l4tool"));
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    command
}

/// `l4tool quantize SOURCE -o OUT FLAGS`; `flags` are separated by spaces.
pub(crate) fn quantize(source: &Path, out: &Path, flags: &str) -> Command {
    let mut command = l4tool("quantize");
    command.arg(source).arg("-o").arg(out).args(flags.split_whitespace());
    command
}

/// `l4tool repack SOURCE -o OUT FLAGS`; `flags` are separated by spaces.
pub(crate) fn repack(source: &Path, out: &Path, flags: &str) -> Command {
    let mut command = l4tool("repack");
    command.arg(source).arg("-o").arg(out).args(flags.split_whitespace());
    command
}

pub(crate) fn run(command: &mut Command) -> Done {
    let output = command.output().unwrap();
    Done {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Starts a command with its output thrown away.
pub(crate) fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Sends a signal by its name, such as `INT`. Says whether the process was there to get it.
pub(crate) fn signal(child: &Child, name: &str) -> bool {
    let kill = format!("kill -{name} {}", child.id());
    Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status().unwrap().success()
}

/// Stops a process where it is, until it gets `CONT`.
#[track_caller]
pub(crate) fn freeze(child: &mut Child) {
    assert!(signal(child, "STOP"));
    // `proc_pid_stat(5)`: the state stands behind the name in parentheses; every thread has to come to a stop.
    let tasks = PathBuf::from(format!("/proc/{}/task", child.id()));
    let is_stopped = |task: &Path| {
        let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with('T'))
    };
    let stopped = || fs::read_dir(&tasks).is_ok_and(|mut tasks| tasks.all(|task| is_stopped(&task.unwrap().path())));
    assert!(wait_until(child, stopped), "it ended before it could be stopped");
}

/// Waits until `condition` holds or `child` has ended; says whether it still ran.
#[track_caller]
pub(crate) fn wait_until(child: &mut Child, condition: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !condition() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "waited for a minute");
        std::thread::sleep(Duration::from_micros(200));
    }
    child.try_wait().unwrap().is_none()
}

/// `OUT.partial`.
pub(crate) fn partial(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap().to_owned();
    name.push(".partial");
    out.with_file_name(name)
}

/// Whole lines in the journal of `out`: one for the run, then one for every finished task.
pub(crate) fn journal_lines(out: &Path) -> usize {
    let text = fs::read(partial(out).join("journal")).unwrap_or_default();
    text.iter().filter(|&&byte| byte == b'\n').count()
}

/// Every file of a folder, and of the folders in it.
pub(crate) fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            files.extend(contents(&path).into_iter().map(|(inner, bytes)| (name.join(inner), bytes)));
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

/// Asserts that two folders hold the same files, byte for byte.
#[track_caller]
pub(crate) fn assert_same(expected: &Path, actual: &Path, what: &str) {
    let (expected, actual) = (contents(expected), contents(actual));
    assert!(!expected.is_empty());
    assert!(expected.keys().eq(actual.keys()), "{what}: {:?} and {:?}", expected.keys(), actual.keys());
    for (name, bytes) in &expected {
        let other = &actual[name];
        let at = bytes.iter().zip(other).position(|(a, b)| a != b);
        assert!(bytes == other, "{what}: `{}` differs at {at:?} ({}, {})", name.display(), bytes.len(), other.len());
    }
}

/// Asserts that a failed run left neither an output nor partial work.
#[track_caller]
pub(crate) fn assert_nothing(out: &Path) {
    assert!(out.symlink_metadata().is_err(), "`{}` is there", out.display());
    assert!(partial(out).symlink_metadata().is_err(), "`{}` is there", partial(out).display());
}

/// A tensor as a file has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl Tensor {
    /// Bytes of one element.
    pub(crate) fn width(&self) -> usize {
        self.data.len() / self.shape.iter().product::<usize>()
    }

    /// Replaces an element.
    pub(crate) fn set(&mut self, element: usize, bytes: &[u8]) {
        assert_eq!(self.width(), bytes.len());
        self.data[element * bytes.len()..][..bytes.len()].copy_from_slice(bytes);
    }
}

/// Tensors of one file, in their order.
pub(crate) fn read_file(path: &Path) -> Vec<Tensor> {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = (&bytes[8..8 + length], &bytes[8 + length..]);
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
    let mut tensors = Vec::new();
    let mut spans = Vec::new();
    for (name, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let span = number(&entry["data_offsets"][0])..number(&entry["data_offsets"][1]);
        tensors.push(Tensor {
            name: name.clone(),
            dtype: entry["dtype"].as_str().unwrap().into(),
            shape: entry["shape"].as_array().unwrap().iter().map(number).collect(),
            data: data[span.clone()].into(),
        });
        spans.push(span);
    }
    spans.sort_by_key(|span| span.start);
    let ends = spans.iter().fold(0, |end, span| {
        assert_eq!(span.start, end, "{}: a gap or an overlap", path.display());
        span.end
    });
    assert_eq!(ends, data.len(), "{}", path.display());
    tensors
}

/// Name, first byte in the file, and size of every tensor, by position.
pub(crate) fn positions(path: &Path) -> Vec<(String, u64, u64)> {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let header: Value = serde_json::from_slice(&bytes[8..8 + length as usize]).unwrap();
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    let mut positions: Vec<_> = tensors
        .map(|(name, entry)| {
            let at = |index: usize| entry["data_offsets"][index].as_u64().unwrap();
            (name.clone(), 8 + length + at(0), at(1) - at(0))
        })
        .collect();
    positions.sort_by_key(|(_, start, _)| *start);
    positions
}

/// Every tensor of a folder by name; asserts that none is there twice.
pub(crate) fn read_model(folder: &Path) -> BTreeMap<String, Tensor> {
    let mut model = BTreeMap::new();
    for (name, _) in
        contents(folder).into_iter().filter(|(name, _)| name.extension().is_some_and(|e| e == "safetensors"))
    {
        for tensor in read_file(&folder.join(name)) {
            assert!(model.insert(tensor.name.clone(), tensor).is_none());
        }
    }
    model
}

/// Writes tensors as a file.
pub(crate) fn write_file(path: &Path, tensors: &[Tensor]) {
    let defs: Vec<TensorDef> = tensors
        .iter()
        .map(|tensor| TensorDef { name: tensor.name.clone(), dtype: dtype(&tensor.dtype), shape: tensor.shape.clone() })
        .collect();
    write_safetensors(path, &defs, &[("format", "pt")], |index, out| out.write_all(&tensors[index].data)).unwrap();
}

fn dtype(name: &str) -> Dtype {
    match name {
        "I64" => Dtype::I64,
        "I32" => Dtype::I32,
        "I8" => Dtype::I8,
        "U8" => Dtype::U8,
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::BF16,
        "F8_E4M3" => Dtype::F8_E4M3,
        other => panic!("{other}"),
    }
}

/// Changes the tensors of a checkpoint with a single file.
pub(crate) fn edit(folder: &Path, change: impl FnOnce(&mut Vec<Tensor>)) {
    let path = folder.join("model.safetensors");
    let mut tensors = read_file(&path);
    change(&mut tensors);
    write_file(&path, &tensors);
}

/// The tensor whose name ends so.
pub(crate) fn tensor<'a>(tensors: &'a mut [Tensor], end: &str) -> &'a mut Tensor {
    tensors.iter_mut().find(|tensor| tensor.name.ends_with(end)).unwrap_or_else(|| panic!("no `{end}`"))
}

/// Changes `config.json`.
pub(crate) fn edit_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
