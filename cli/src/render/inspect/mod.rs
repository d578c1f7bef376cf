//! What `inspect` tells, as text: a summary, and views that go into more detail.

mod config;
mod memory;
mod summary;
mod words;

use std::collections::BTreeMap;

use l4::checkpoint::shown;
use l4::llama4::{Problem, ProblemKind};
use l4::tasks::inspect::Report;

pub(crate) use config::config;
pub(crate) use memory::memory;
pub(crate) use summary::summary;

use super::table;
use crate::size::{decimal, grouped};
use words::{BAD, GOOD, ODD, counted, or_dash, painted, ranges};

/// Lines of problems of each kind, unless all are asked for.
const PROBLEMS_SHOWN: usize = 10;

/// One line per tensor, with tabs between its columns.
pub(crate) fn tensors(report: &Report) -> String {
    let mut text = String::new();
    for tensor in &report.tensors {
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let (name, file) = (shown(&tensor.name), shown(&tensor.file));
        let role = tensor.role.unwrap_or("-");
        text += &format!(
            "{name}\t{}\t[{}]\t{}\t{file}\t{}\t{role}\t{}\t{}\n",
            tensor.dtype,
            shape.join(","),
            tensor.bytes,
            tensor.offset,
            or_dash(tensor.layer),
            or_dash(tensor.expert),
        );
    }
    text
}

/// The routed experts of each layer.
pub(crate) fn experts(report: &Report) -> String {
    let rows = report.experts.iter().map(|layer| {
        let stored = counted(&layer.stored_as, layer.present);
        let stored = if layer.fused { format!("{stored} (fused)") } else { stored };
        let bytes = match (layer.bytes_per_expert_min, layer.bytes_per_expert) {
            (least, most) if least == most => grouped(most),
            (least, most) => format!("{}-{}", grouped(least), grouped(most)),
        };
        let missing = if layer.missing.is_empty() { "-".into() } else { ranges(&layer.missing) };
        let experts = format!("{}/{}", layer.present, layer.experts);
        vec![layer.layer.to_string(), experts, stored, bytes, decimal(layer.bytes), missing]
    });
    table(&["layer", "experts", "stored as", "bytes per expert", "together", "missing"], &[0, 1, 3, 4], rows)
}

/// What is missing, does not fit or is not expected.
pub(crate) fn problems(report: &Report, color: bool, all: bool) -> String {
    let mut text = String::new();
    if report.problems.is_empty() {
        text += &painted("complete: every weight that the config promises is there, and nothing else\n", GOOD, color);
    } else if report.complete {
        text += &painted("complete: every weight that the config promises is there\n", GOOD, color);
    } else {
        let lost = report.parameters.promised.saturating_sub(report.parameters.total);
        let lost = if lost > 0 { format!(", {} parameters are not there", grouped(lost)) } else { String::new() };
        text += &painted(&format!("not complete{lost}\n"), BAD, color);
    }
    for (kind, word, paint) in [
        (ProblemKind::Missing, "missing", BAD),
        (ProblemKind::Mismatch, "mismatch", BAD),
        (ProblemKind::Misnamed, "misnamed", BAD),
        (ProblemKind::Unexpected, "unexpected", ODD),
    ] {
        let word = painted(&format!("{word}:"), paint, color);
        let lines = gathered(report.problems.iter().filter(|problem| problem.kind == kind));
        let count = if all { lines.len() } else { lines.len().min(PROBLEMS_SHOWN) };
        for (name, message) in &lines[..count] {
            text += &format!("{word} `{}` {message}\n", shown(name));
        }
        if lines.len() > count {
            text += &format!("{word} {} more (-v shows all)\n", lines.len() - count);
        }
    }
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    text
}

/// Names and messages; what is wrong with many experts of a layer alike is one line,
/// `layers.7.feed_forward.experts.{0-15}.up_proj`.
fn gathered<'a>(problems: impl Iterator<Item = &'a Problem>) -> Vec<(String, &'a str)> {
    let mut lines: Vec<(String, &str)> = Vec::new();
    let mut experts: BTreeMap<(&str, &str, &str), (usize, Vec<usize>)> = BTreeMap::new();
    for problem in problems {
        let Some((layer, expert, module)) = expert_of(&problem.name) else {
            lines.push((problem.name.clone(), &problem.message));
            continue;
        };
        let group = experts.entry((layer, module, &problem.message)).or_insert_with(|| {
            // The first of a group keeps its place.
            lines.push((problem.name.clone(), &problem.message));
            (lines.len() - 1, Vec::new())
        });
        group.1.push(expert);
    }
    for ((layer, module, _), (line, mut numbers)) in experts {
        if numbers.len() > 1 {
            numbers.sort_unstable();
            lines[line].0 = format!("{layer}.experts.{{{}}}.{module}", ranges(&numbers));
        }
    }
    lines
}

/// Layer, expert and module of an expert's logical name.
fn expert_of(name: &str) -> Option<(&str, usize, &str)> {
    let (layer, rest) = name.split_once(".experts.")?;
    let (expert, module) = rest.split_once('.')?;
    Some((layer, expert.parse().ok()?, module))
}
