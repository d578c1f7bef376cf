//! Interrupted runs of `quantize`: kills, signals, other commands on the same partial work, two processes at once.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{
    Scratch, assert_nothing, assert_same, contents, copy_folder, edit_config, freeze, journal_lines, partial, quantize,
    run, signal, slow_source, start, tiny, wait_until,
};
use l4_testkit::{Rng, Spec};

/// One slow thread, so that there is time to do something in the middle; the result is the same with any (see
/// `quantize_output.rs`).
const SLOWLY: &str = "--int4 --threads 1 --kernels scalar";

/// A checkpoint, and the folder that an uninterrupted run makes of it.
struct Subject {
    scratch: Scratch,
    source: PathBuf,
    expected: PathBuf,
}

impl Subject {
    fn new() -> Self {
        Self::of(Scratch::new(), slow_source(), "--int4")
    }

    /// With a source that the test may change.
    fn with_own_source() -> Self {
        let scratch = Scratch::new();
        let source = scratch.path("source");
        copy_folder(&slow_source(), &source);
        Self::of(scratch, source, "--int4")
    }

    fn of(scratch: Scratch, source: PathBuf, flags: &str) -> Self {
        let expected = scratch.path("expected");
        run(&mut quantize(&source, &expected, flags)).ok();
        assert!(!partial(&expected).exists());
        Self { scratch, source, expected }
    }

    /// Kills a run as soon as its journal has so many lines.
    fn killed_after(&self, name: &str, flags: &str, lines: usize) -> PathBuf {
        let out = self.scratch.path(name);
        let mut child = start(&mut quantize(&self.source, &out, flags));
        assert!(wait_until(&mut child, || journal_lines(&out) >= lines), "the run is too short for this test");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!out.exists());
        out
    }

    /// Runs the command again after a kill: the result must be the uninterrupted run's.
    #[track_caller]
    fn finish(&self, out: &Path, flags: &str, what: &str) {
        let tasks_done = journal_lines(out).saturating_sub(1);
        let published = out.exists();
        let done = run(quantize(&self.source, out, flags).arg("--json"));
        if published && done.code == Some(2) {
            // It was over when the kill came.
            assert!(done.stderr.contains("exists"), "{what}: {}", done.stderr);
        } else {
            let done = done.ok();
            assert_eq!(done.json()["resumed"], tasks_done > 0, "{what}: {tasks_done} tasks were done");
        }
        assert_same(&self.expected, out, what);
        assert!(!partial(out).exists(), "{what}");
    }
}

#[test]
fn killed_at_twenty_random_moments_and_run_again_gives_the_same_bytes() {
    let flags = "--int4 --threads 2";
    let subject = Subject::new();
    let began = Instant::now();
    run(&mut quantize(&subject.source, &subject.scratch.path("timed"), flags)).ok();
    let length = began.elapsed();
    let mut rng = Rng::new(20, "kills");
    let mut in_the_middle = 0;
    for round in 0..20 {
        let out = subject.scratch.path(&format!("out{round}"));
        let mut child = start(&mut quantize(&subject.source, &out, flags));
        let moment = if round % 2 == 0 {
            // By progress, because a machine with other work gives no two runs the same time.
            let lines = 1 + rng.below(120);
            wait_until(&mut child, || journal_lines(&out) >= lines);
            std::thread::sleep(Duration::from_micros(rng.below(3000) as u64));
            format!("after {lines} lines")
        } else {
            // By time; half of these in the last moments, when files are synced, renamed and removed.
            let share = if round % 4 == 3 { 0.85 + 0.25 * rng.uniform() } else { rng.uniform() };
            std::thread::sleep(length.mul_f32(share));
            format!("at {share:.3} of {length:?}")
        };
        // It may have ended already.
        let _ = child.kill();
        child.wait().unwrap();
        in_the_middle += usize::from(journal_lines(&out) > 1);
        subject.finish(&out, flags, &format!("kill {round} {moment}"));
        fs::remove_dir_all(&out).unwrap();
    }
    assert!(in_the_middle >= 3, "only {in_the_middle} of 20 kills came in the middle of a run of {length:?}");
}

#[test]
fn killed_again_and_again_gives_the_same_bytes() {
    let subject = Subject::new();
    let out = subject.scratch.path("out");
    let mut kills = 0;
    for lines in (2..).step_by(9) {
        let mut child = start(&mut quantize(&subject.source, &out, SLOWLY));
        let running = wait_until(&mut child, || journal_lines(&out) >= lines);
        let _ = child.kill();
        child.wait().unwrap();
        if !running {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 10, "{kills}");
    assert_same(&subject.expected, &out, "a chain of kills");
}

#[test]
fn killed_at_the_steps_of_publication_gives_the_same_bytes() {
    let flags = "--int4 --group-size 32 --threads 2";
    let scratch = Scratch::new();
    let source = scratch.checkpoint("source", &Spec { experts: 32, ..tiny() });
    let subject = Subject::of(scratch, source, flags);
    for file in ["journal", "model", "model/model.safetensors", "model/README.md", "model/l4tool.manifest.json"] {
        for round in 0..3 {
            let out = subject.scratch.path(&format!("{}-{round}", file.replace('/', "-")));
            let mut child = start(&mut quantize(&subject.source, &out, flags));
            wait_until(&mut child, || partial(&out).join(file).exists());
            let _ = child.kill();
            child.wait().unwrap();
            subject.finish(&out, flags, &format!("killed when there was a {file}"));
        }
    }
    let out = subject.scratch.path("published");
    let mut child = start(&mut quantize(&subject.source, &out, flags));
    wait_until(&mut child, || out.exists());
    let _ = child.kill();
    child.wait().unwrap();
    assert_same(&subject.expected, &out, "published");
    // The same where an old output is exchanged for the new one.
    let forced = format!("{flags} --force");
    for round in 0..6 {
        let out = subject.scratch.path(&format!("forced{round}"));
        fs::create_dir(&out).unwrap();
        fs::write(out.join("config.json"), "{}").unwrap();
        (0..200).for_each(|file| fs::write(out.join(format!("old{file}")), "old").unwrap());
        let mut child = start(&mut quantize(&subject.source, &out, &forced));
        wait_until(&mut child, || out.join("l4tool.manifest.json").exists());
        let _ = child.kill();
        child.wait().unwrap();
        assert_same(&subject.expected, &out, "exchanged");
        run(&mut quantize(&subject.source, &out, &forced)).ok();
        assert_same(&subject.expected, &out, "exchanged, and run again");
        assert!(!partial(&out).exists(), "round {round}");
    }
}

/// The state between the rename and the end of the cleaning up, made by hand because it lasts for microseconds.
#[test]
fn a_run_that_was_killed_while_it_cleaned_up_is_finished() {
    let subject = Subject::new();
    let out = subject.scratch.path("out");
    // A complete journal: the manifest is written when all tasks are done.
    let complete = (0..20).find_map(|_| {
        let _ = fs::remove_dir_all(&out);
        let mut child = start(&mut quantize(&subject.source, &out, "--int4"));
        wait_until(&mut child, || partial(&out).join("model/l4tool.manifest.json").exists());
        let journal = fs::read(partial(&out).join("journal"));
        child.wait().unwrap();
        journal.ok()
    });
    let complete = complete.expect("one of twenty reads comes in time");
    fs::create_dir(partial(&out)).unwrap();
    fs::write(partial(&out).join("journal"), &complete).unwrap();
    let done = run(quantize(&subject.source, &out, SLOWLY).arg("--json"));
    assert!(!partial(&out).exists());
    assert_eq!(done.ok().json()["resumed"], true);
    assert_same(&subject.expected, &out, "cleaned up");
}

#[test]
fn an_interrupt_and_a_termination_are_obeyed_with_75() {
    let subject = Subject::new();
    for name in ["INT", "TERM"] {
        let out = subject.scratch.path(name);
        let mut command = quantize(&subject.source, &out, SLOWLY);
        let mut child =
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        assert!(wait_until(&mut child, || journal_lines(&out) >= 4));
        assert!(signal(&child, name));
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(75), "{name}: {stderr}");
        assert!(stderr.contains("interrupted") && stderr.contains("\nhint: run the same command again"), "{stderr}");
        assert!(output.stdout.is_empty() && !out.exists());
        subject.finish(&out, SLOWLY, name);
    }
}

#[test]
fn work_that_the_disk_lost_is_done_again() {
    let subject = Subject::new();
    let out = subject.killed_after("out", SLOWLY, 60);
    let file = partial(&out).join("model/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    // As a power cut leaves it: pages of zeros where the journal says that data were written.
    let length = bytes.len();
    for start in (length / 20..length / 3).step_by(200_000) {
        bytes[start..start + 4096].fill(0);
    }
    bytes[..64].fill(0);
    fs::write(&file, &bytes).unwrap();
    subject.finish(&out, SLOWLY, "lost pages");
    // A file that was cut off, a torn line, a line of nonsense, a journal that is empty.
    for case in ["cut", "torn", "nonsense", "empty"] {
        let out = subject.killed_after(case, SLOWLY, 20);
        let journal = partial(&out).join("journal");
        let text = fs::read(&journal).unwrap();
        match case {
            "cut" => fs::OpenOptions::new()
                .write(true)
                .open(partial(&out).join("model/model.safetensors"))
                .unwrap()
                .set_len(99)
                .unwrap(),
            "torn" => fs::write(&journal, &text[..text.len() - 7]).unwrap(),
            "nonsense" => {
                fs::write(&journal, [&text[..], b"{\"task\":99999999,\"digest\":\"0\",\"totals\":[]}\nxyz\n"].concat())
                    .unwrap()
            }
            _ => fs::write(&journal, "").unwrap(),
        }
        run(&mut quantize(&subject.source, &out, SLOWLY)).ok();
        assert_same(&subject.expected, &out, case);
    }
}

#[test]
fn another_command_does_not_go_on_with_the_work() {
    let subject = Subject::new();
    let out = subject.killed_after("out", SLOWLY, 5);
    let other = "--fp8 --threads 2";
    let before = contents(&partial(&out));
    let cases = [
        (other, "scheme: was w4a16, is fp8-dynamic"),
        ("--int4 --method rtn", "method: was search, is rtn"),
        ("--int4 --group-size 64", "is w4a16-g64"),
        ("--int4 --exclude layers.0", "exclude"),
        ("--int4 --shard-size 1M", "shard size: was 5000000000, is 1048576"),
    ];
    for (flags, difference) in cases {
        run(&mut quantize(&subject.source, &out, flags)).refused(&["out.partial", difference, "hint: `--restart`"]);
        assert!(before == contents(&partial(&out)), "{flags}: the partial work was touched");
    }
    run(&mut quantize(&subject.source, &out, &format!("{other} --restart"))).ok();
    let straight = subject.scratch.path("straight");
    let done = run(&mut quantize(&subject.source, &straight, &format!("{other} --restart --json"))).ok();
    assert_eq!(done.json()["resumed"], false);
    assert_same(&straight, &out, "--restart");
}

#[test]
fn a_source_that_changed_meanwhile_is_noticed() {
    let subject = Subject::with_own_source();
    let out = subject.killed_after("out", SLOWLY, 5);
    let weights = subject.source.join("model.safetensors");
    // The same bytes, written anew: nobody can tell without reading all of them.
    let time = fs::metadata(&weights).unwrap().modified().unwrap();
    let touch = |by: u64| {
        let file = fs::File::options().write(true).open(&weights).unwrap();
        file.set_modified(time + Duration::from_secs(by)).unwrap();
    };
    touch(5);
    run(&mut quantize(&subject.source, &out, SLOWLY)).refused(&[
        "source file model.safetensors",
        "modified",
        "--restart",
    ]);
    // Back as it was: the work is good again.
    touch(0);
    subject.finish(&out, SLOWLY, "the source was put back");
    let out = subject.killed_after("config", SLOWLY, 5);
    edit_config(&subject.source, |config| config["rope_theta"] = 10_000.0.into());
    run(&mut quantize(&subject.source, &out, SLOWLY)).refused(&["source file config.json", "--restart"]);
    run(&mut quantize(&subject.source, &out, &format!("{SLOWLY} --restart"))).ok();
}

#[test]
fn a_source_that_changes_during_the_run_is_noticed() {
    let scratch = Scratch::new();
    let (source, out) = (scratch.path("source"), scratch.path("out"));
    copy_folder(&slow_source(), &source);
    let mut command = quantize(&source, &out, SLOWLY);
    let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    assert!(wait_until(&mut child, || journal_lines(&out) >= 3));
    let weights = source.join("model.safetensors");
    let time = fs::metadata(&weights).unwrap().modified().unwrap();
    fs::File::options().write(true).open(&weights).unwrap().set_modified(time + Duration::from_secs(1)).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("model.safetensors") && stderr.contains("changed") && stderr.contains("hint:"), "{stderr}");
    assert_nothing(&out);
}

#[test]
fn the_second_of_two_processes_says_who_is_in_the_way() {
    let subject = Subject::new();
    let out = subject.scratch.path("out");
    let mut first = start(&mut quantize(&subject.source, &out, SLOWLY));
    assert!(wait_until(&mut first, || journal_lines(&out) >= 3));
    freeze(&mut first);
    let before = contents(&partial(&out));
    for flags in ["", "--restart", "--force"] {
        let done = run(&mut quantize(&subject.source, &out, &format!("{SLOWLY} {flags}")));
        done.refused(&["out.partial/journal", "in use by another l4tool", &format!("process {}", first.id()), "hint:"]);
    }
    assert!(before == contents(&partial(&out)), "the first one's work was touched");
    assert!(signal(&first, "CONT"));
    assert!(first.wait().unwrap().success());
    assert_same(&subject.expected, &out, "the first");
}

#[test]
fn force_replaces_an_output_in_one_step() {
    let subject = Subject::new();
    let out = subject.scratch.path("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("config.json"), "old").unwrap();
    fs::write(out.join("stranger"), "old").unwrap();
    let before = contents(&out);
    run(&mut quantize(&subject.source, &out, SLOWLY)).refused(&["out` exists", "hint: `--force`"]);
    assert_eq!(before, contents(&out));
    assert!(!partial(&out).exists());
    let mut child = start(&mut quantize(&subject.source, &out, &format!("{SLOWLY} --force")));
    while child.try_wait().unwrap().is_none() {
        let config = fs::read(out.join("config.json")).expect("the old or the new output is there at any time");
        assert!(config == b"old" || config.starts_with(b"{"));
    }
    assert!(child.wait().unwrap().success());
    assert_same(&subject.expected, &out, "--force");
    assert!(!partial(&out).exists());
    // A forced run that is killed leaves the old output, and goes on like any other.
    let mut child = start(&mut quantize(&subject.source, &out, &format!("{SLOWLY} --force --method rtn")));
    assert!(wait_until(&mut child, || journal_lines(&out) >= 3));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_same(&subject.expected, &out, "a killed --force");
    let done = run(&mut quantize(&subject.source, &out, &format!("{SLOWLY} --force --method rtn --json"))).ok();
    assert_eq!(done.json()["resumed"], true);
    assert!(!partial(&out).exists());
}

#[test]
fn a_folder_that_only_looks_like_partial_work_is_left_alone() {
    let scratch = Scratch::new();
    let (source, out) = (scratch.checkpoint("source", &tiny()), scratch.path("out"));
    let flags = "--int4 --group-size 32";
    for (file, content) in [("thesis.txt", "years of work"), ("journal", "dear diary"), ("model", "of a ship")] {
        fs::create_dir(partial(&out)).unwrap();
        fs::write(partial(&out).join(file), content).unwrap();
        for restart in ["", "--restart", "--restart --force"] {
            run(&mut quantize(&source, &out, &format!("{flags} {restart}"))).refused(&[
                "out.partial",
                "in the way",
                "hint:",
            ]);
            assert_eq!(contents(&partial(&out)).len(), 1);
            assert_eq!(fs::read_to_string(partial(&out).join(file)).unwrap(), content);
        }
        fs::create_dir(&out).unwrap();
        run(&mut quantize(&source, &out, flags)).refused(&["exists"]);
        assert_eq!(fs::read_to_string(partial(&out).join(file)).unwrap(), content);
        fs::remove_dir(&out).unwrap();
        fs::remove_dir_all(partial(&out)).unwrap();
    }
    // The source itself may be called so.
    let trap = scratch.checkpoint("trap.partial", &tiny());
    let before = contents(&trap);
    for restart in ["", "--restart", "--restart --force"] {
        run(&mut quantize(&trap, &scratch.path("trap"), &format!("{flags} {restart}"))).refused(&["trap.partial"]);
        assert_eq!(before, contents(&trap));
    }
}
