//! What the global flags mean on this machine: threads, memory, kernels, progress, and the signals that ask for a stop.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, anyhow};
use l4::kernels::gemm::{self, GemmPath};
use l4::kernels::{self, Isa};
use l4::progress::{Control, Progress};
use serde::Serialize;

use crate::args::{ColorMode, Global, Kernels, ProgressMode};
use crate::progress::{Bars, Events, Lines};

/// Everything that commands share.
pub(crate) struct Context {
    /// Print JSON instead of text.
    pub(crate) json: bool,
    /// Colours on standard output.
    pub(crate) color: bool,
    /// Whether a person looks at standard output: it is a terminal, or colours are wanted in any case.
    pub(crate) terminal: bool,
    /// Say less.
    pub(crate) quiet: bool,
    /// Say more.
    pub(crate) verbose: bool,
    threads: usize,
    memory: u64,
    progress: Box<dyn Progress>,
    stop: Arc<AtomicBool>,
}

impl Context {
    /// Resolves the flags and installs the signal handlers.
    pub(crate) fn new(global: &Global) -> Result<Self> {
        select_kernels(global.kernels)?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The second signal of a kind ends the process at once, for work that does not come to a safe point.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
                .context("installing the signal handlers")?;
        }
        let threads = match global.threads {
            Some(threads) => threads.into(),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let color = match global.color {
            ColorMode::Always => true,
            ColorMode::Never => false,
            ColorMode::Auto => io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        };
        Ok(Self {
            json: global.json,
            color,
            terminal: io::stdout().is_terminal() || global.color == ColorMode::Always,
            quiet: global.quiet,
            verbose: global.verbose,
            threads,
            memory: global.memory.map_or_else(default_memory, |size| size.0),
            progress: progress(global),
            stop,
        })
    }

    /// What a long task is given.
    pub(crate) fn control(&self) -> Control<'_> {
        Control { progress: &*self.progress, stop: &self.stop, threads: self.threads, memory: self.memory }
    }

    /// Prints a report: as JSON with `--json`, otherwise as the text that `render` makes of it.
    pub(crate) fn print<R: Serialize>(&self, report: &R, render: impl FnOnce(&R) -> String) -> Result<()> {
        if self.json {
            return self.print_json(report);
        }
        self.print_text(&render(report))
    }

    /// Prints a report as JSON.
    pub(crate) fn print_json<R: Serialize>(&self, report: &R) -> Result<()> {
        self.print_text(&(serde_json::to_string_pretty(report)? + "\n"))
    }

    fn print_text(&self, text: &str) -> Result<()> {
        match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
            // A reader that has seen enough does not change the answer.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// Tells the person at the terminal something that is no result.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            // Standard error that is gone must not end the work.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }
}

fn progress(global: &Global) -> Box<dyn Progress> {
    let terminal = io::stderr().is_terminal();
    match global.progress {
        _ if global.quiet => Box::new(l4::progress::Silent),
        ProgressMode::None => Box::new(l4::progress::Silent),
        ProgressMode::Json => Box::new(Events::default()),
        ProgressMode::Bar => Box::new(Bars::default()),
        ProgressMode::Auto if terminal => Box::new(Bars::default()),
        ProgressMode::Plain | ProgressMode::Auto => Box::new(Lines::default()),
    }
}

/// The smaller of 4 GiB and half of the machine's memory.
fn default_memory() -> u64 {
    const MOST: u64 = 4 << 30;
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    });
    // A container may be allowed less than the machine has.
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(u64::MAX);
    machine.map_or(MOST, |kibibytes| MOST.min((kibibytes * 1024).min(container) / 2))
}

/// Forces an instruction set on all kernels, or leaves each at the best that the machine has.
fn select_kernels(kernels: Kernels) -> Result<()> {
    let (isa, path) = match kernels {
        Kernels::Auto => return Ok(()),
        Kernels::Scalar => (Isa::Scalar, GemmPath::Scalar),
        Kernels::Avx2 => (Isa::Avx2, GemmPath::Avx2),
        Kernels::Avx512 => (Isa::Avx512, GemmPath::Avx512),
        Kernels::Amx => (Isa::Avx512, GemmPath::Amx),
    };
    kernels::select(Some(isa)).context("--kernels")?;
    gemm::select(path).map_err(|error| anyhow!("{error}")).context("--kernels")
}
