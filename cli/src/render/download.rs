//! What `download` tells, as text.

use l4::tasks::download::{DryRun, Report};

use super::table;
use crate::size::decimal;

/// What a run would fetch.
pub(crate) fn plan(plan: &DryRun) -> String {
    let mut text = format!("{} at {} -> {}\n", plan.repo, plan.commit, plan.folder.display());
    text += &format!("\nfetches  {} of {}\n", decimal(plan.bytes_missing), decimal(plan.bytes));
    if plan.left_out > 0 {
        text += &format!("without  {} other files of the repository (`--include '*'` fetches all)\n", plan.left_out);
    }
    let verdict = if plan.disk_fits { "it fits" } else { "it does not fit" };
    text += &format!("disk     {} free: {verdict}\n\n", decimal(plan.disk_free_bytes));
    let rows =
        plan.files.iter().map(|file| vec![super::printable(&file.name), decimal(file.bytes), file.state.to_owned()]);
    text + &table(&["file", "size", "here"], &[1], rows)
}

/// What a run did; `verbose` lists every file.
pub(crate) fn report(report: &Report, verbose: bool) -> String {
    let mut text = format!("{} at {} -> {}\n", report.repo, report.commit, report.folder.display());
    if verbose {
        let rows = report.files.iter().map(|file| {
            let sha256 = file.sha256.clone().unwrap_or_default();
            vec![super::printable(&file.name), decimal(file.bytes), file.state.to_owned(), sha256]
        });
        text += &format!("\n{}", table(&["file", "size", "state", "sha256"], &[1], rows));
    }
    let count = |state: &str| report.files.iter().filter(|file| file.state == state).count();
    text += &format!("\nfiles    {} of {}", report.files.len() - report.problems.len(), decimal(report.bytes));
    text += &match (count("fetched"), count("present")) {
        (0, _) => ": all were there\n".to_owned(),
        (fetched, 0) => format!(": {fetched} fetched\n"),
        (fetched, present) => format!(": {fetched} fetched, {present} were there\n"),
    };
    if report.bytes_received > 0 {
        let rate = decimal(report.bytes_per_second as u64);
        text += &format!("fetched  {} in {:.1} s, {rate}/s", decimal(report.bytes_received), report.seconds);
        text += &match report.bytes_resumed {
            0 => "\n".to_owned(),
            bytes => format!("; {} were there from an interrupted run\n", decimal(bytes)),
        };
    }
    if report.retries > 0 {
        text += &format!("retries  {}\n", report.retries);
    }
    for problem in &report.problems {
        text += &format!(
            "wrong    `{}` has {}, the hub promised {}; it lies in `{}`\n",
            super::printable(&problem.file),
            problem.found,
            problem.expected,
            problem.aside.display()
        );
    }
    if report.ok {
        text += "ok: every digest is the one that the hub promised\n";
    }
    text
}
