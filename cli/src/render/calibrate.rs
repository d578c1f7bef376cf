//! What `calibrate` tells, as text.

use l4::tasks::calibrate::Report;

use super::{printable, table};
use crate::size::{binary, decimal, grouped};

/// The report.
pub(crate) fn report(report: &Report) -> String {
    let mut text = match &report.source {
        Some(source) => format!("{}\n", source.display()),
        None => format!("{} statistics merged\n", report.merged.len()),
    };
    let labels = report.labels.iter().map(|label| format!("{} {}", label.label, grouped(label.tokens)));
    let labels =
        if report.labels.len() > 1 { format!(" ({})", labels.collect::<Vec<_>>().join(", ")) } else { String::new() };
    let sequences: u64 = report.labels.iter().map(|label| label.sequences).sum();
    text += &format!("  {} tokens in {} sequences{labels}\n", grouped(report.tokens), grouped(sequences));
    if report.builtin {
        text += "  the text is the built-in set: text of your own kind is better (`--data`)\n";
    }
    for note in &report.notes {
        text += &format!("  note: {}\n", printable(note));
    }
    if !report.layers.is_empty() {
        text += "\ntokens of an expert\n";
        let rows = report.layers.iter().map(|layer| {
            let counts = [layer.least, layer.median, layer.most, layer.few as u64, layer.unseen as u64];
            let cells = counts.map(grouped);
            std::iter::once(layer.layer.to_string()).chain(cells).collect()
        });
        text += &table(&["layer", "least", "median", "most", "below 128", "none"], &[0, 1, 2, 3, 4, 5], rows);
    }
    text.push('\n');
    let verb = if report.dry_run { "would write" } else { "written" };
    if let Some(path) = &report.output {
        text += &format!("{verb}  {}, {}\n", path.display(), decimal(report.bytes));
    }
    if let Some(path) = &report.imatrix {
        text += &format!("{verb}  {}\n", path.display());
    }
    text += &format!("time     {:.1} s", report.seconds);
    text += &report.tokens_per_second.map_or_else(String::new, |rate| format!(", {rate:.0} tokens per second"));
    text += &report.peak_memory_bytes.map_or_else(String::new, |peak| format!(", {} of memory at most", binary(peak)));
    text.push('\n');
    if let Some(path) = report.output.as_ref().filter(|_| !report.dry_run) {
        text += &format!("\nnext: l4tool routing {}\n", path.display());
    }
    text
}
