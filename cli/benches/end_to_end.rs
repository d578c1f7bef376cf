//! The whole program on real sizes, against `cp` of the same bytes in the same minutes: time, speed, peak memory.
//!
//! `cargo bench --workspace --bench end_to_end`; `docs/performance.md` says how it measures. It makes its input itself and
//! removes it afterwards. It knows the program from outside only. Smaller, for a quick look:
//!
//! | variable | default | what |
//! | --- | --- | --- |
//! | `L4TOOL_BENCH_EXPERTS` | 16 | experts of the layer of Scout (16 are 4.4 GB; needs twice that on the disk) |
//! | `L4TOOL_BENCH_ROUNDS` | 3 | runs of each line |
//! | `L4TOOL_BENCH_MAVERICK` | 128 | experts of the sparse layer of Maverick (128 write 9 GB); 0 leaves this part out |

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use l4_testkit::{Kind, write_real_layers, write_sparse_maverick};
use rustix::fs::{Advice, fadvise};
use serde_json::Value;

/// What every line but `cp` runs with.
const LIMITS: [&str; 4] = ["--threads", "2", "--memory", "1G"];

/// Lines of the table: a name and, except for `cp`, the flags of `quantize`.
const LINES: [(&str, &[&str]); 10] = [
    ("cp", &[]),
    ("cp, synced", &[]),
    ("--int4 --method rtn", &["--int4", "--method", "rtn"]),
    ("--int4", &["--int4"]),
    ("--scheme w4a16-asym", &["--scheme", "w4a16-asym"]),
    ("--fp8", &["--fp8"]),
    ("--scheme fp8-block", &["--scheme", "fp8-block"]),
    ("--scheme q8_0", &["--scheme", "q8_0"]),
    ("--scheme q4_0", &["--scheme", "q4_0"]),
    ("--scheme q4_k_m", &["--scheme", "q4_k_m"]),
];

/// Where the input is when a run begins.
#[derive(Clone, Copy)]
enum Input {
    /// In the page cache, as a small model would be after a look at it.
    Cached,
    /// On the disk alone, as one is that memory cannot hold.
    OnDisk,
}

/// One run.
struct Run {
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

fn main() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("end-to-end-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    scout(folder.path(), number("L4TOOL_BENCH_EXPERTS", 16)?, number("L4TOOL_BENCH_ROUNDS", 3)?)?;
    repack(folder.path(), number("L4TOOL_BENCH_EXPERTS", 16)?, number("L4TOOL_BENCH_ROUNDS", 3)?)?;
    maverick(folder.path(), number("L4TOOL_BENCH_MAVERICK", 128)?)?;
    inspect(folder.path())
}

fn number(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable} is a number, not `{text}`")),
        Err(_) => Ok(default),
    }
}

/// A layer of Scout, dense and random, in every scheme.
fn scout(folder: &Path, experts: usize, rounds: usize) -> Result<()> {
    ensure!(experts > 0 && rounds > 0, "no experts or no rounds: nothing to measure");
    let (source, out) = (folder.join("scout"), folder.join("scout-out"));
    write_real_layers(&source, Kind::Scout, 1, Some(experts), false)?;
    let bytes = folder_bytes(&source)?;
    println!("One layer of Scout, {experts} experts, {:.2} GB, {}, {rounds} rounds", giga(bytes), LIMITS.join(" "));
    let names = LINES.map(|(name, _)| name);
    compare((&source, Input::Cached), &out, &names, rounds, |line| quantize(&source, &out, LINES[line].1))?;
    Ok(fs::remove_dir_all(&source)?)
}

/// Runs every line `rounds` times in turn and prints the table; lines called `cp` copy, the others are for `run`.
fn compare(
    (source, input): (&Path, Input),
    out: &Path,
    names: &[&str],
    rounds: usize,
    run: impl Fn(usize) -> Result<Run>,
) -> Result<()> {
    let bytes = folder_bytes(source)?;
    let mut runs: Vec<Vec<Run>> = names.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (line, (name, runs)) in names.iter().zip(&mut runs).enumerate() {
            match input {
                Input::Cached => read_all(source)?,
                Input::OnDisk => evict(source)?,
            }
            runs.push(if name.starts_with("cp") { copy(source, out, *name != "cp")? } else { run(line)? });
            fs::remove_dir_all(out)?;
        }
    }
    let medians: Vec<f64> = runs.iter().map(|runs| median(runs.iter().map(|run| run.seconds).collect())).collect();
    println!("{:<22}{:>9}{:>9}{:>9}{:>12}{:>12}", "", "seconds", "GB/s", "to cp", "to synced", "peak MiB");
    for ((name, runs), seconds) in names.iter().zip(&runs).zip(&medians) {
        let peak = runs.iter().filter_map(|run| run.peak_memory_bytes).max().map_or_else(|| "-".to_owned(), mebi);
        let (speed, to_copy, to_synced) = (giga(bytes) / seconds, seconds / medians[0], seconds / medians[1]);
        println!("{name:<22}{seconds:>9.2}{speed:>9.2}{to_copy:>9.2}{to_synced:>12.2}{peak:>12}");
    }
    Ok(())
}

/// The same layer in FP8, repacked: nothing but copies, so `cp` of the same bytes is what it is held against. The output is cut into
/// four files, as many as the whole of Scout has in INT4 by default: each is hashed by one thread at a time.
fn repack(folder: &Path, experts: usize, rounds: usize) -> Result<()> {
    const FILES: u64 = 4;
    let (plain, source, out) = (folder.join("scout"), folder.join("scout-fp8"), folder.join("scout-out"));
    write_real_layers(&plain, Kind::Scout, 1, Some(experts), false)?;
    quantize(&plain, &source, &["--fp8"])?;
    fs::remove_dir_all(&plain)?;
    let bytes = folder_bytes(&source)?;
    let (shard, ranks) = ((bytes / FILES).to_string(), experts.min(8).to_string());
    let names = ["cp", "cp, synced", "scout-1xh100", "hf", "maverick-8xh100"];
    for (input, place) in [(Input::Cached, "in the page cache"), (Input::OnDisk, "on the disk")] {
        println!("\nRepacking {:.2} GB of FP8 {place}, {}, {rounds} rounds", giga(bytes), LIMITS.join(" "));
        compare((&source, input), &out, &names, rounds, |line| {
            let files: [&str; 2] = if line < 4 { ["--shard-size", &shard] } else { ["--ranks", &ranks] };
            write("repack", &source, &out, &[&["--layout", names[line], "--ignore-fit"], &files[..]].concat())
        })?;
    }
    Ok(fs::remove_dir_all(&source)?)
}

/// A layer with experts of Maverick: its fused tensors take no disk, but are as large as real ones.
fn maverick(folder: &Path, experts: usize) -> Result<()> {
    if experts == 0 {
        return Ok(());
    }
    let (source, out) = (folder.join("maverick"), folder.join("maverick-out"));
    write_real_layers(&source, Kind::Maverick, 2, Some(experts), true)?;
    let bytes = folder_bytes(&source)?;
    println!("\nTwo layers of Maverick, {experts} experts, {:.2} GB of zeros, {}", giga(bytes), LIMITS.join(" "));
    for (name, flags) in [("--int4", ["--int4"]), ("--fp8", ["--fp8"])] {
        match quantize(&source, &out, &flags) {
            Ok(Run { seconds, peak_memory_bytes }) => {
                let peak = peak_memory_bytes.map_or_else(|| "-".to_owned(), mebi);
                println!("{name:<22}{seconds:>9.2} s, {peak} MiB at most");
            }
            // A disk without room for the output, most of all.
            Err(error) => println!("{name:<22}{error:#}"),
        }
        let _ = fs::remove_dir_all(&out);
    }
    Ok(fs::remove_dir_all(&source)?)
}

/// All of Maverick over files without weights: what `inspect` takes for headers alone.
fn inspect(folder: &Path) -> Result<()> {
    const RUNS: usize = 9;
    let source = folder.join("maverick-whole");
    write_sparse_maverick(&source)?;
    let mut milliseconds = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let began = Instant::now();
        let report = l4tool(&["inspect", "--json", text(&source)?])?;
        milliseconds.push(1e3 * began.elapsed().as_secs_f64());
        ensure!(report.is_object(), "inspect gave no report");
    }
    println!("\ninspect of Maverick   {:.0} ms (median of {RUNS})", median(milliseconds));
    Ok(())
}

/// `cp -r`, without tricks of the file system; `synced` waits until the copy is on the disk.
fn copy(source: &Path, out: &Path, synced: bool) -> Result<Run> {
    let began = Instant::now();
    let status = Command::new("cp").args(["-r", "--reflink=never"]).args([source, out]).status()?;
    ensure!(status.success(), "cp failed: {status}");
    if synced {
        for path in files(out)? {
            File::open(path)?.sync_all()?;
        }
    }
    Ok(Run { seconds: began.elapsed().as_secs_f64(), peak_memory_bytes: None })
}

fn quantize(source: &Path, out: &Path, flags: &[&str]) -> Result<Run> {
    write("quantize", source, out, flags)
}

/// Runs a command that writes a checkpoint.
fn write(command: &str, source: &Path, out: &Path, flags: &[&str]) -> Result<Run> {
    let arguments = [&[command, "--json", "-o", text(out)?, text(source)?], flags, &LIMITS].concat();
    let began = Instant::now();
    let report = l4tool(&arguments)?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Run { seconds, peak_memory_bytes: report["peak_memory_bytes"].as_u64() })
}

/// Runs the program and reads its report.
fn l4tool(arguments: &[&str]) -> Result<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_l4tool")).args(["--progress", "none"]).args(arguments).output()?;
    if !output.status.success() {
        bail!("l4tool {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr).trim_end());
    }
    serde_json::from_slice(&output.stdout).context("the report is no JSON")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("`{}` is not UTF-8", path.display()))
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn folder_bytes(folder: &Path) -> io::Result<u64> {
    files(folder)?.iter().map(|path| Ok(fs::metadata(path)?.len())).sum()
}

/// Brings a folder into the page cache.
fn read_all(folder: &Path) -> io::Result<()> {
    let mut chunk = vec![0; 1 << 20];
    for path in files(folder)? {
        let mut file = File::open(path)?;
        while file.read(&mut chunk)? > 0 {}
    }
    Ok(())
}

/// Takes a folder out of the page cache, which lets go of what is on the disk only.
fn evict(folder: &Path) -> Result<()> {
    for path in files(folder)? {
        let file = File::open(path)?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// The middle of an odd number of values; of an even number the upper one of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn giga(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn mebi(bytes: u64) -> String {
    format!("{}", bytes >> 20)
}
