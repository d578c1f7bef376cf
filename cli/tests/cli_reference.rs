//! `docs/cli.md` is what the program itself says about its commands.
//!
//! `L4TOOL_BLESS=1 cargo test -p l4tool --test cli_reference` writes it anew.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

const HEAD: &str = "# l4tool's command line

This file is `l4tool help` of every command, written by a test. After a change of the commands:

```sh
L4TOOL_BLESS=1 cargo test -p l4tool --test cli_reference
```
";

/// What the program prints, at a fixed width and without spaces at the ends of lines.
fn help(arguments: &[&str]) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_l4tool"));
    let output = program.args(arguments).env("COLUMNS", "100").env_remove("LINES").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The names under `Commands:`. Continued descriptions stand further to the right.
fn commands(help: &str) -> Vec<&str> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()));
    names.filter(|name| *name != "help").collect()
}

fn reference() -> String {
    let top = help(&["--help"]);
    let commands = commands(&top);
    assert!(commands.contains(&"quantize"), "{commands:?}");
    let mut text = format!("{HEAD}\n## l4tool\n\n```text\n{top}```\n");
    for name in commands {
        write!(text, "\n## l4tool {name}\n\n```text\n{}```\n", help(&["help", name])).unwrap();
    }
    text
}

#[test]
fn the_document_is_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let said = reference();
    if std::env::var_os("L4TOOL_BLESS").is_some() {
        std::fs::write(&path, &said).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let first = written.lines().zip(said.lines()).position(|(written, said)| written != said);
    assert!(
        written == said,
        "docs/cli.md is not what l4tool says, from line {}; L4TOOL_BLESS=1 writes it anew",
        first.unwrap_or_else(|| written.lines().count().min(said.lines().count())) + 1
    );
}
