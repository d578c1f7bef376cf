//! What `quantize` tells, as text.

use l4::tasks::quantize::{DryRun, Report};

use super::forecast::forecast;
use super::made::time_and_memory;
use super::table;
use crate::size::decimal;

/// What a run would do.
pub(crate) fn plan(plan: &DryRun) -> String {
    let mut text = format!("{} -> {}\n", plan.source.display(), plan.output.display());
    for line in &plan.schemes {
        text += &format!("  {line}\n");
    }
    let bits = format!("; {:.2} bits per quantized weight", plan.bits_per_weight);
    text += &forecast(&plan.forecast, &bits);
    for warning in &plan.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}

/// What a run did; `verbose` lists every weight.
pub(crate) fn report(report: &Report, verbose: bool) -> String {
    let mut text = format!("{} -> {}\n", report.source.display(), report.output.display());
    for line in &report.schemes {
        text += &format!("  {line}\n");
    }
    text.push('\n');
    let percent = |error: f64| format!("{:.3} %", 100.0 * error);
    if verbose {
        let rows = report.weights.iter().map(|weight| {
            let errors = [weight.rel_rms_error, weight.rel_rms_error_rtn].map(percent);
            [vec![weight.name.clone(), weight.scheme.clone(), weight.policy.clone()], errors.to_vec()].concat()
        });
        text += &table(&["weight", "scheme", "method", "error", "with rtn"], &[3, 4], rows);
    } else {
        let rows = report.layers.iter().map(|layer| {
            vec![
                layer.layer.to_string(),
                layer.weights.to_string(),
                percent(layer.rel_rms_error),
                percent(layer.rel_rms_error_rtn),
                layer.worst.clone(),
            ]
        });
        text += &table(&["layer", "weights", "error", "with rtn", "largest in"], &[0, 1, 2, 3], rows);
    }
    text += &format!(
        "\nerror    {} (round-to-nearest: {}), relative, root mean square\n",
        percent(report.rel_rms_error),
        percent(report.rel_rms_error_rtn)
    );
    text += &format!(
        "size     {} -> {}, {:.2} bits per quantized weight\n",
        decimal(report.made.bytes_in),
        decimal(report.made.bytes_out),
        report.bits_per_weight
    );
    text += &time_and_memory(&report.made);
    text += &format!("\nnext: l4tool verify {0} --against {1}\n", report.output.display(), report.source.display());
    text
}
