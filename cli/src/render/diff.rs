//! What `diff` tells, as text.

use l4::tasks::diff::{Report, Status, WeightDiff};

use super::{printable, table};
use crate::size::{binary, decimal, grouped};

/// Weights that are listed unless all are asked for; `--json` has them all.
const WEIGHTS_SHOWN: usize = 20;

/// The report; the verdict stands out if `color`. With `all`, every weight that differs is listed.
pub(crate) fn report(report: &Report, all: bool, color: bool) -> String {
    let paint = |code: &str, word: &str| if color { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
    let mut text = format!("A  {}\nB  {}\n", report.a.display(), report.b.display());
    for note in &report.notes {
        text += &format!("  note: {}\n", printable(note));
    }
    text.push('\n');
    let rows = report.components.iter().map(|(component, counts)| {
        let numbers = [counts.identical, counts.equal, counts.different, counts.missing];
        let cell = |count: u64| if count == 0 { "-".to_owned() } else { grouped(count) };
        [vec![(*component).to_owned()], numbers.map(cell).to_vec()].concat()
    });
    text += &table(&["weights", "identical", "equal", "different", "missing"], &[1, 2, 3, 4], rows);
    if !report.config.is_empty() {
        text.push('\n');
        let rows = report
            .config
            .iter()
            .map(|setting| vec![setting.field.clone(), printable(&setting.a), printable(&setting.b)]);
        text += &table(&["setting", "A", "B"], &[], rows);
    }
    text += &different(report, all);
    text += &missing(report, all);
    text += &format!("\ntime       {:.1} s, {} of A at {}/s", report.seconds, decimal(report.bytes), {
        decimal(report.bytes_per_second as u64)
    });
    text += &report.peak_memory_bytes.map_or_else(String::new, |peak| format!(", {} of memory at most", binary(peak)));
    text.push('\n');
    text += &if report.same { paint("1;32", "the same") } else { paint("1;31", "different") };
    text + "\n"
}

/// The weights whose numbers differ, the largest relative error first.
fn different(report: &Report, all: bool) -> String {
    let mut weights: Vec<_> =
        report.weights.iter().filter_map(|weight| Some((weight, weight.difference.as_ref()?))).collect();
    // What is not a number comes first.
    let key = |error: f64| if error.is_nan() { f64::INFINITY } else { error };
    weights.sort_by(|(_, a), (_, b)| key(b.rel_rms_error).total_cmp(&key(a.rel_rms_error)));
    if weights.is_empty() {
        return String::new();
    }
    let shown = if all { weights.len() } else { WEIGHTS_SHOWN };
    let rows = weights.iter().take(shown).map(|(weight, difference)| {
        let first = difference.first.as_ref();
        let label = |label: &Option<String>| label.clone().unwrap_or_default();
        vec![
            weight.name.clone(),
            format!("{}, {}", label(&weight.a), label(&weight.b)),
            format!("{:.3} %", 100.0 * difference.differing as f64 / difference.elements as f64),
            format!("{:.3e}", difference.max_abs_error),
            format!("{:.3e}", difference.max_rel_error),
            format!("{:.4} %", 100.0 * difference.rel_rms_error),
            format!("{:.6}", difference.cosine),
            first.map_or_else(String::new, |at| format!("{:?}: {}, {}", at.index, at.a, at.b)),
        ]
    });
    let header = ["weight", "stored as", "differ", "max abs", "max rel", "rms", "cosine", "first: A, B"];
    format!("\n{}{}", table(&header, &[2, 3, 4, 5, 6], rows), more(weights.len(), shown))
}

/// What is on one side only, or cannot be compared.
fn missing(report: &Report, all: bool) -> String {
    let says = |weight: &WeightDiff| match weight.status {
        Status::OnlyInA => Some("only in A".to_owned()),
        Status::OnlyInB => Some("only in B".to_owned()),
        Status::Shape | Status::Unreadable => weight.message.clone(),
        Status::Identical | Status::Equal | Status::Different => None,
    };
    let lines: Vec<String> = report
        .weights
        .iter()
        .filter_map(|weight| Some(format!("{}: {}\n", weight.name, printable(&says(weight)?))))
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    let shown = if all { lines.len() } else { WEIGHTS_SHOWN };
    let list: String = lines.iter().take(shown).map(String::as_str).collect();
    format!("\n{list}{}", more(lines.len(), shown))
}

fn more(count: usize, shown: usize) -> String {
    if count > shown { format!("... and {} more; `--all` lists them\n", count - shown) } else { String::new() }
}
