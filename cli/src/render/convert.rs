//! What `convert` tells, as text.

use l4::tasks::convert::{DryRun, Report};

use super::forecast::forecast;
use super::made::time_and_memory;
use super::table;
use crate::size::decimal;

/// What a run would do.
pub(crate) fn plan(plan: &DryRun) -> String {
    let mut text = format!("{} -> {}\n", plan.source.display(), plan.output.display());
    for line in &plan.changes {
        text += &format!("  {line}\n");
    }
    text += &forecast(&plan.forecast, "");
    for note in &plan.notes {
        text += &format!("note: {note}\n");
    }
    text
}

/// What a run did; `verbose` lists every weight whose values changed.
pub(crate) fn report(report: &Report, verbose: bool) -> String {
    let mut text = format!("{} -> {}\n", report.source.display(), report.output.display());
    for line in &report.changes {
        text += &format!("  {line}\n");
    }
    text.push('\n');
    let percent = |error: f64| format!("{:.4} %", 100.0 * error);
    let listed = report.rounded.iter().filter(|weight| verbose || weight.overflows > 0);
    let rows: Vec<Vec<String>> = listed
        .map(|weight| {
            let [error, overflows] = [percent(weight.rel_rms_error), weight.overflows.to_string()];
            vec![weight.name.clone(), weight.dtype.clone(), error, overflows]
        })
        .collect();
    if !rows.is_empty() {
        text += &table(&["weight", "format", "error", "too large"], &[2, 3], rows);
        text.push('\n');
    }
    text += &format!("weights  {}, a {} with {} experts\n", report.weights, report.architecture, report.experts);
    text += &match report.rounded.len() {
        0 => "values   every one as it was\n".to_owned(),
        count => {
            format!("values   {count} weights rounded: {}, relative, root mean square\n", percent(report.rel_rms_error))
        }
    };
    if report.overflows > 0 {
        text += &format!("clamped  {} values were too large for the format\n", report.overflows);
    }
    text += &format!("size     {} -> {}\n", decimal(report.made.bytes_in), decimal(report.made.bytes_out));
    text += &time_and_memory(&report.made);
    text += &format!("\nnext: l4tool verify {}\n", report.output.display());
    text
}
