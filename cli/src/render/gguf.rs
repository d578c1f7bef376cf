//! What is told about GGUF output, as text.

use l4::tasks::gguf::{DryRun, Report, TypeReport};

use super::forecast::forecast;
use super::made::time_and_memory;
use super::table;
use crate::size::decimal;

/// What a run would do; `verbose` lists every tensor.
pub(crate) fn plan(plan: &DryRun, verbose: bool) -> String {
    let mut text = format!("{} -> {}, GGUF {}\n", plan.source.display(), plan.output.display(), plan.scheme);
    text += &types(&plan.types);
    if verbose {
        let extents = |extents: &[u64]| extents.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let rows = plan.tensor_list.iter().map(|tensor| {
            vec![tensor.name.clone(), tensor.dtype.to_string(), extents(&tensor.extents), decimal(tensor.bytes)]
        });
        text += "\n";
        text += &table(&["tensor", "type", "extents", "size"], &[3], rows);
    }
    text += &forecast(&plan.forecast, &format!("; {:.2} bits per weight", plan.bits_per_weight));
    for warning in &plan.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}

/// What a run did; `verbose` lists every weight.
pub(crate) fn report(report: &Report, verbose: bool) -> String {
    let mut text = format!("{} -> {}, GGUF {}\n", report.source.display(), report.output.display(), report.scheme);
    text += &types(&report.types);
    let percent = |error: f64| format!("{:.3} %", 100.0 * error);
    if verbose {
        let rows = report.weights.iter().map(|weight| {
            vec![weight.name.clone(), weight.scheme.clone(), weight.policy.clone(), percent(weight.rel_rms_error)]
        });
        text += "\n";
        text += &table(&["weight", "type", "weighed by", "error"], &[3], rows);
    } else if !report.layers.is_empty() {
        let rows = report.layers.iter().map(|layer| {
            let number = layer.layer.map_or("-".to_owned(), |layer| layer.to_string());
            vec![number, layer.weights.to_string(), percent(layer.rel_rms_error), layer.worst.clone()]
        });
        text += "\n";
        text += &table(&["layer", "weights", "error", "largest in"], &[0, 1, 2], rows);
    }
    text += "\n";
    if report.experts_without_data > 0 {
        let verb = if report.experts_without_data == 1 { "expert has" } else { "experts have" };
        text += &format!("data     {} {verb} none; `-v` lists what was taken instead\n", report.experts_without_data);
    }
    text += &match report.weights.len() {
        0 => "values   every one as it was\n".to_owned(),
        _ => format!("error    {}, relative, root mean square\n", percent(report.rel_rms_error)),
    };
    let (bytes_in, bytes_out) = (decimal(report.made.bytes_in), decimal(report.made.bytes_out));
    text += &format!("size     {bytes_in} -> {bytes_out}, {:.2} bits per weight\n", report.bits_per_weight);
    text += &time_and_memory(&report.made);
    text
}

fn types(types: &[TypeReport]) -> String {
    let line =
        |entry: &TypeReport| format!("  {} tensors in {}, {}\n", entry.tensors, entry.dtype, decimal(entry.bytes));
    types.iter().map(line).collect()
}
