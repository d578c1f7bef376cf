//! The rules of the house as a test: what `docs/architecture.md` says is read from there and held against the tree.
//!
//! Every failure names the file and the rule. It knows text only; what compiles is the compiler's business.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Where source and documents lie. Nothing else is looked at, so outputs and environments may lie beside them.
const FOLDERS: [&str; 10] =
    [".ci", "benches", "cli", "docs", "examples", "interop", "src", "testdata", "testkit", "tests"];

/// Most lines of a source file.
const LINES_MAX: usize = 500;

/// Source files that may be longer, each with its reason.
const LONG_FILES: [(&str, &str); 0] = [];

struct File {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether it holds nothing but tests or what tests need.
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.split('/').any(|part| part == "tests" || part == "testkit")
    }

    /// The module of the library that it is: `src/quant/int4/group.rs` has `["quant", "int4", "group"]`.
    fn module(&self) -> Option<Vec<&str>> {
        let path = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        let path = path.strip_suffix("/mod").unwrap_or(path);
        (path != "lib").then(|| path.split('/').collect())
    }

    /// Lines of code with their numbers from 1: no comments, no test module at the end.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let lines = self.text[..end].lines().enumerate();
        lines.map(|(index, line)| (index + 1, line.split("//").next().unwrap_or("")))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository").to_owned()
}

/// Every text file of the repository that people write.
fn files() -> Vec<File> {
    let root = root();
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut paths: Vec<PathBuf> = entries(&root).into_iter().filter(|path| path.is_file()).collect();
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|name| root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
            if !path.is_dir() {
                paths.push(path);
            } else if !hidden {
                folders.push(path);
            }
        }
    }
    paths.sort();
    let is_written = |path: &PathBuf| {
        let ending = path.extension().map(|ending| ending.to_string_lossy().into_owned());
        matches!(ending.as_deref(), Some("rs" | "md" | "toml" | "py" | "sh")) || path.ends_with(".ci/run")
    };
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        File { path: name, text: fs::read_to_string(path).unwrap() }
    };
    paths.into_iter().filter(is_written).map(read).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The lines of `docs/architecture.md` under a heading of the second level.
fn section(heading: &str) -> Vec<String> {
    let text = read("docs/architecture.md");
    let from_heading = text.lines().skip_while(|line| *line != format!("## {heading}")).skip(1);
    let lines: Vec<String> = from_heading.take_while(|line| !line.starts_with("## ")).map(str::to_owned).collect();
    assert!(!lines.is_empty(), "docs/architecture.md: there is no section `{heading}`");
    lines
}

/// What stands in backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of a section's tables: for each, what its cells quote. Rows that quote nothing first are headings.
fn rows(heading: &str) -> Vec<Vec<Vec<String>>> {
    let lines = section(heading);
    let tables = lines.iter().filter(|line| line.starts_with('|'));
    let rows = tables.map(|line| line.trim_matches('|').split(" | ").map(quoted).collect::<Vec<_>>());
    rows.filter(|cells| !cells[0].is_empty()).collect()
}

/// Layers in order, each with what it may import.
fn layers() -> Vec<(String, BTreeSet<String>)> {
    rows("Layers").into_iter().map(|cells| (cells[0][0].clone(), cells[1].iter().cloned().collect())).collect()
}

fn check(rule: &str, violations: impl IntoIterator<Item = String>) {
    let violations: Vec<String> = violations.into_iter().collect();
    assert!(violations.is_empty(), "\nRule: {rule}\n  {}\n", violations.join("\n  "));
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether `word` stands in `text` and is not part of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let bytes = text.as_bytes();
    text.match_indices(word).any(|(at, _)| {
        let begins = at == 0 || !is_word(bytes[at - 1]);
        begins && (word.ends_with('!') || bytes.get(at + word.len()).is_none_or(|&after| !is_word(after)))
    })
}

/// The names that follow `path` in a line: one, or those of a `{...}` list. What is no name is empty.
fn names_after<'a>(line: &'a str, path: &str) -> Vec<&'a str> {
    let bytes = line.as_bytes();
    let mut names = Vec::new();
    for (at, _) in line.match_indices(path) {
        if at > 0 && (is_word(bytes[at - 1]) || bytes[at - 1] == b':') {
            continue;
        }
        let rest = &line[at + path.len()..];
        let several = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or(list).split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        names.extend(several.into_iter().map(|name| {
            let end = name.bytes().position(|byte| !is_word(byte)).unwrap_or(name.len());
            &name[..end]
        }));
    }
    names
}

#[test]
fn imports_are_read_right() {
    assert_eq!(names_after("use crate::quant::{Block, Errors};", "crate::"), ["quant"]);
    assert_eq!(names_after("use crate::{dtype::Dtype, quant};", "crate::"), ["dtype", "quant"]);
    assert_eq!(names_after("fn f(x: &crate::quant::Block) -> crate::dtype::Dtype {", "crate::"), ["quant", "dtype"]);
    assert_eq!(names_after("use super::super::kernels;", "super::super::"), ["kernels"]);
    assert_eq!(names_after("use super::super::kernels;", "super::"), ["super"]);
    assert_eq!(names_after("use crate::{", "crate::"), [""]);
    assert!(has_word("    unsafe { f() }", "unsafe") && !has_word("unsafe_op_in_unsafe_fn", "unsafe"));
}

#[test]
fn every_source_file_begins_with_what_it_is() {
    let headless = files().into_iter().filter(|file| file.is_rust() && !file.text.starts_with("//! "));
    check("a source file begins with `//!`: what it is, what it must not know", headless.map(|file| file.path));
}

#[test]
fn imports_point_down() {
    let layers: BTreeMap<String, BTreeSet<String>> = layers().into_iter().collect();
    let mut violations = Vec::new();
    for file in files() {
        let Some(module) = file.module() else { continue };
        let own = module[0];
        let Some(allowed) = layers.get(own) else {
            violations.push(format!("{}: `{own}` is no layer of docs/architecture.md", file.path));
            continue;
        };
        for (number, line) in file.code() {
            let absolute = names_after(line, "crate::");
            let relative = names_after(line, &"super::".repeat(module.len()));
            for name in absolute.iter().chain(relative.iter().filter(|name| layers.contains_key(**name))) {
                if *name != own && !allowed.contains(*name) {
                    violations.push(format!("{}:{number}: `{own}` imports `{name}`", file.path));
                }
            }
        }
    }
    check("a layer imports only what the table under `Layers` in docs/architecture.md allows", violations);
}

#[test]
fn allowed_imports_point_down_themselves() {
    let mut below = BTreeSet::new();
    let mut violations = Vec::new();
    for (layer, allowed) in layers() {
        let wrong = allowed.difference(&below);
        violations.extend(wrong.map(|name| format!("docs/architecture.md: `{layer}` may not import `{name}`")));
        below.insert(layer);
    }
    check("a layer stands below everything that imports it", violations);
}

#[test]
fn tasks_do_not_know_each_other() {
    let files = files();
    let task_of = |file: &File| file.module().filter(|module| module[0] == "tasks")?.get(1).map(ToString::to_string);
    let tasks: BTreeSet<String> = files.iter().filter_map(task_of).collect();
    assert!(tasks.contains("quantize"), "{tasks:?}");
    let mut violations = Vec::new();
    for file in &files {
        let (Some(own), Some(module)) = (task_of(file), file.module()) else { continue };
        for (number, line) in file.code() {
            let absolute = names_after(line, "crate::tasks::");
            let relative = names_after(line, &"super::".repeat(module.len() - 1));
            let others = absolute.into_iter().chain(relative).filter(|name| tasks.contains(*name) && *name != own);
            violations.extend(others.map(|name| format!("{}:{number}: imports the task `{name}`", file.path)));
        }
    }
    check("a task imports no other task", violations);
}

#[test]
fn the_library_lists_its_layers_in_order() {
    let listed: Vec<String> = layers().into_iter().map(|(layer, _)| layer).collect();
    let text = read("src/lib.rs");
    let modules: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(modules, listed, "Rule: src/lib.rs lists the layers of docs/architecture.md, in the same order");
}

#[test]
fn the_code_map_is_complete_and_names_what_exists() {
    let map = quoted(&section("Code map").join("\n"));
    let missing = layers().into_iter().map(|(layer, _)| layer);
    let missing = missing.filter(|layer| ["/", ".rs"].iter().all(|end| !map.contains(&format!("src/{layer}{end}"))));
    check("every module of src/lib.rs is in the code map of docs/architecture.md", missing);
    let paths = map.iter().filter(|path| path.contains('/') && !path.contains([' ', '*', '{']));
    let stale = paths.filter(|path| !root().join(path).exists()).cloned();
    check("every path in the code map of docs/architecture.md exists", stale);
}

#[test]
fn unsafe_code_is_where_the_document_says() {
    let allowed: BTreeSet<String> = rows("Unsafe code").into_iter().map(|cells| cells[0][0].clone()).collect();
    let source = files().into_iter().filter(|file| file.is_rust() && !file.path.ends_with("tidy.rs"));
    let found: BTreeSet<String> =
        source.filter(|file| file.code().any(|(_, line)| has_word(line, "unsafe"))).map(|file| file.path).collect();
    check("`unsafe` is only in files that docs/architecture.md lists", found.difference(&allowed).cloned());
    check("docs/architecture.md lists no file without `unsafe`", allowed.difference(&found).cloned());
}

#[test]
fn the_library_neither_prints_nor_exits_nor_reads_the_environment() {
    let forbidden =
        ["todo!", "unimplemented!", "dbg!", "print!", "println!", "eprint!", "eprintln!", "process::exit", "std::env"];
    let mut violations = Vec::new();
    for file in files().iter().filter(|file| file.path.starts_with("src/") && file.is_rust() && !file.is_test()) {
        for (number, line) in file.code() {
            let found = forbidden.iter().filter(|word| has_word(line, word));
            violations.extend(found.map(|word| format!("{}:{number}: `{word}`", file.path)));
        }
    }
    check("the library returns data and does nothing else", violations);
}

#[test]
fn files_are_short() {
    let exceptions = LONG_FILES.map(|(path, _)| path);
    let long = files().into_iter().filter(File::is_rust).filter_map(|file| {
        let lines = file.text.lines().count();
        (lines > LINES_MAX && !exceptions.contains(&&*file.path)).then(|| format!("{}: {lines} lines", file.path))
    });
    check("a source file has at most 500 lines", long);
}

/// Names under `[dependencies]`, `[dev-dependencies]` and the like of every member.
fn dependencies() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for manifest in ["Cargo.toml", "cli/Cargo.toml", "testkit/Cargo.toml"] {
        let mut listing = false;
        for line in read(manifest).lines() {
            if line.starts_with('[') {
                let table = line.trim_matches(['[', ']']);
                listing = table.ends_with("dependencies") && !table.starts_with("workspace");
            } else if let Some((name, _)) = line.split_once('=').filter(|_| listing && !line.starts_with([' ', '#'])) {
                names.insert(name.trim().trim_end_matches(".workspace").to_owned());
            }
        }
    }
    names
}

#[test]
fn every_dependency_has_its_line() {
    let told: BTreeSet<String> = rows("Dependencies").into_iter().map(|cells| cells[0][0].clone()).collect();
    let used = dependencies();
    assert!(used.contains("clap") && used.contains("half"), "{used:?}");
    check("a direct dependency has its line in docs/architecture.md", used.difference(&told).cloned());
    check("docs/architecture.md tells of no dependency that is gone", told.difference(&used).cloned());
}

#[test]
fn nothing_is_left_for_later() {
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["X", "XX"].concat()];
    let mut violations = Vec::new();
    for file in files() {
        for (index, line) in file.text.lines().enumerate() {
            let found = words.iter().filter(|word| has_word(line, word));
            violations.extend(found.map(|word| format!("{}:{}: `{word}`", file.path, index + 1)));
        }
    }
    check("no notes for later", violations);
}

#[test]
fn lines_end_without_spaces() {
    let mut violations = Vec::new();
    for file in files() {
        let spaced = file.text.lines().enumerate().filter(|(_, line)| line.ends_with([' ', '\t', '\r']));
        violations.extend(spaced.map(|(index, _)| format!("{}:{}", file.path, index + 1)));
    }
    check("no space at the end of a line", violations);
}

#[test]
fn no_path_of_one_machine() {
    let places = ["home", "root", "tmp", "work"].map(|folder| format!("/{folder}/"));
    let is_absolute = |line: &str, place: &str| {
        let before = |at: usize| at.checked_sub(1).map(|before| line.as_bytes()[before]);
        line.match_indices(place).any(|(at, _)| before(at).is_none_or(|byte| !is_word(byte) && byte != b'.'))
    };
    let mut violations = Vec::new();
    for file in files().iter().filter(|file| !file.is_test()) {
        for (index, line) in file.text.lines().enumerate() {
            let found = places.iter().filter(|place| is_absolute(line, place));
            violations.extend(found.map(|place| format!("{}:{}: `{place}`", file.path, index + 1)));
        }
    }
    check("no absolute path of one machine outside of tests", violations);
}

#[test]
fn the_readme_and_the_checks_run_the_same_tests() {
    let script = read(".ci/run");
    let command = script.lines().find_map(|line| line.strip_prefix("run ")).expect("a line `run COMMAND`");
    assert!(command.starts_with("cargo test"), "Rule: .ci/run begins with the tests, not with `{command}`");
    let readme = read("README.md");
    assert!(readme.lines().any(|line| line == command), "Rule: README.md has the line `{command}` of .ci/run");
}
