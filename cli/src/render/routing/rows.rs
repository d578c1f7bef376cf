//! One line per expert, for people, for `sort` and `awk`, and for spreadsheets.

use l4::tasks::routing::{ExpertReport, Report};

use super::super::table;

/// Columns before those of labels.
const HEADER: [&str; 9] =
    ["layer", "expert", "tokens", "share", "load", "score_mean", "score_p5", "score_p50", "score_p95"];

/// Aligned columns, with or without a header.
pub(crate) fn aligned(report: &Report, header: bool) -> String {
    let names = names(report);
    let numbers: Vec<usize> = (0..names.len()).collect();
    let rows = report.experts.iter().map(|row| {
        let optional = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.4}"));
        let fixed = [row.layer.to_string(), row.expert.to_string(), row.tokens.to_string()];
        let shares = [format!("{:.6}", row.share), format!("{:.3}", row.load)];
        let scores = [row.score_mean, row.score_p5, row.score_p50, row.score_p95].map(optional);
        fixed.into_iter().chain(shares).chain(scores).chain(by_label(report, row)).collect()
    });
    let text = table(&names.iter().map(String::as_str).collect::<Vec<_>>(), &numbers, rows);
    match text.split_once('\n') {
        Some((_, rest)) if !header => rest.to_owned(),
        _ => text,
    }
}

/// Cells with a separator between, in full precision, with a header. No cell needs quotes.
pub(crate) fn separated(report: &Report, separator: &str) -> String {
    let mut text = names(report).join(separator) + "\n";
    for row in &report.experts {
        let optional = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        let fixed = [row.layer.to_string(), row.expert.to_string(), row.tokens.to_string()];
        let shares = [row.share.to_string(), row.load.to_string()];
        let scores = [row.score_mean, row.score_p5, row.score_p50, row.score_p95].map(optional);
        let cells = fixed.into_iter().chain(shares).chain(scores).chain(by_label(report, row));
        text += &cells.collect::<Vec<_>>().join(separator);
        text.push('\n');
    }
    text
}

/// Labels are letters, digits and `_-.` alone, so they can stand in a header of any format.
fn names(report: &Report) -> Vec<String> {
    let mut names: Vec<String> = HEADER.map(String::from).into();
    if report.labels.len() > 1 {
        names.extend(report.labels.iter().map(|label| format!("tokens_{}", label.label)));
    }
    names
}

fn by_label<'r>(report: &Report, row: &'r ExpertReport) -> impl Iterator<Item = String> + use<'r> {
    let shown = if report.labels.len() > 1 { row.by_label.len() } else { 0 };
    row.by_label[..shown].iter().map(ToString::to_string)
}
