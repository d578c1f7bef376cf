//! A disk that is full before, or gets full during a run of `quantize`.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{
    Done, Scratch, assert_nothing, assert_same, freeze, journal_lines, partial, quantize, run, signal, slow_source,
    tiny, wait_until,
};

const SLOWLY: &str = "--int4 --threads 1 --kernels scalar";

/// A file system of its own that holds `megabytes`, for the life of the value; `None` where this user may not mount one.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf, megabytes: usize) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let size = format!("size={megabytes}M");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).stderr(Stdio::null()).status();
        if status.is_ok_and(|status| status.success()) {
            Some(Self(at))
        } else {
            eprintln!("SKIPPED: this user may not mount a small tmpfs to fill");
            None
        }
    }

    /// Fills the disk up to the last block but `left` bytes.
    fn fill(&self, left: u64) {
        use std::io::Write;
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        let block = [1; 4096];
        while file.write_all(&block).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length - left).unwrap();
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_too_small_is_refused_before_any_work() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    let Some(disk) = Disk::mount(scratch.path("disk"), 16) else {
        return;
    };
    let out = disk.0.join("out");
    run(&mut quantize(&source, &out, "--fp8")).refused(&["disk/out", "bytes free", "needs", "hint:"]);
    assert_nothing(&out);
    let plan = run(&mut quantize(&source, &out, "--fp8 --dry-run --json"));
    assert_eq!(plan.code, Some(1), "{}", plan.stderr);
    assert_eq!(plan.json()["disk_fits"], false);
}

#[test]
fn a_mount_point_is_not_replaced() {
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &tiny());
    let Some(disk) = Disk::mount(scratch.path("disk"), 128) else {
        return;
    };
    run(&mut quantize(&source, &disk.0, "--fp8")).refused(&["disk` exists", "hint:"]);
    run(&mut quantize(&source, &disk.0, "--fp8 --force")).refused(&["disk` is where another disk is mounted", "hint:"]);
    assert!(!partial(&disk.0).exists());
    run(&mut quantize(&source, &disk.0.join("out"), "--fp8 --force")).ok();
}

#[test]
fn a_disk_that_fills_up_stops_the_run_and_room_lets_it_go_on() {
    let scratch = Scratch::new();
    let source = slow_source();
    let expected = scratch.path("expected");
    run(&mut quantize(&source, &expected, SLOWLY)).ok();
    let Some(disk) = Disk::mount(scratch.path("disk"), 128) else {
        return;
    };
    let out = disk.0.join("out");
    // The weights' room is reserved at once; what grows is the journal, and what comes at the end are the side files.
    let mut command = quantize(&source, &out, SLOWLY);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(wait_until(&mut child, || journal_lines(&out) >= 3));
    freeze(&mut child);
    disk.fill(0);
    assert!(signal(&child, "CONT"));
    let output = child.wait_with_output().unwrap();
    let done = Done {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    done.refused(&["out.partial/", "No space left", "hint: make room"]);
    assert!(!out.exists() && partial(&out).exists());
    disk.empty();
    assert_eq!(run(quantize(&source, &out, SLOWLY).arg("--json")).ok().json()["resumed"], true);
    assert_same(&expected, &out, "after the disk was full");
}

/// Runs under a limit on the size of a file, in blocks of 512 bytes: writing fails as on a full disk, for any user.
fn limited(source: &Path, out: &Path, blocks: usize) -> Command {
    let mut command = Command::new("sh");
    // An ignored signal stays ignored in the program that is executed.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" quantize \"$1\" -o \"$2\" {SLOWLY}");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_l4tool")]).args([source, out]);
    command
}

#[test]
fn a_limit_on_file_sizes_stops_the_run_and_the_rest_is_done_without() {
    let scratch = Scratch::new();
    let source = slow_source();
    let (expected, out) = (scratch.path("expected"), scratch.path("out"));
    run(&mut quantize(&source, &expected, SLOWLY)).ok();
    let size = fs::metadata(expected.join("model.safetensors")).unwrap().len() as usize;
    // Too small for the weights: they cannot be reserved.
    run(&mut limited(&source, &out, size / 2 / 512)).refused(&["model.safetensors", "too large", "hint: make room"]);
    assert!(!out.exists());
    assert_eq!(run(quantize(&source, &out, SLOWLY).arg("--json")).ok().json()["resumed"], false);
    assert_same(&expected, &out, "after a limit");
}
