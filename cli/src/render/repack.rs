//! What `repack` tells, as text.

use l4::tasks::repack::{DryRun, Fit, Placement, Report};

use super::forecast::forecast;
use super::made::time_and_memory;
use super::{printable, table};
use crate::size::{binary, decimal, grouped};

/// What a run would do.
pub(crate) fn plan(report: &DryRun) -> String {
    let mut text = format!(
        "{} -> {}: `{}`{}\n",
        report.source.display(),
        report.output.display(),
        report.layout,
        ranks(report.ranks)
    );
    for warning in &report.warnings {
        text += &format!("  warning: {}\n", printable(warning));
    }
    text += &report.fit.as_ref().map_or_else(String::new, fit);
    text += &report.placement.as_ref().map_or_else(String::new, placement);
    text + &forecast(&report.forecast, "")
}

/// What a run did.
pub(crate) fn report(report: &Report) -> String {
    let mut text = format!(
        "{} -> {}: `{}`{}\n",
        report.source.display(),
        report.output.display(),
        report.layout,
        ranks(report.ranks)
    );
    text += &report.fit.as_ref().map_or_else(String::new, fit);
    text += &report.placement.as_ref().map_or_else(String::new, placement);
    text += &format!("\nsize     {} in {} files\n", decimal(report.made.bytes_out), report.files);
    text += &time_and_memory(&report.made);
    let (source, output) = (report.source.display(), report.output.display());
    // Experts that have other numbers are other weights to `diff`.
    text + &match &report.placement {
        Some(_) => format!("\nnext: l4tool verify {output} --against {source}\n"),
        None => format!("\nnext: l4tool diff {source} {output}\n"),
    }
}

fn ranks(ranks: usize) -> String {
    if ranks == 1 { String::new() } else { format!(" for {ranks} ranks") }
}

/// Weights, cache and verdict.
fn fit(fit: &Fit) -> String {
    let each = if fit.gpus == 1 { "GPU" } else { "each GPU" };
    let mut text = format!(
        "\nweights  {} on {each} ({} with {}, {} usable)\n",
        gibi(fit.weights_bytes_per_gpu),
        fit.device.name,
        binary(fit.device.memory_bytes),
        binary(fit.device.usable_bytes)
    );
    text += &format!(
        "cache    {} on {each} for {} of {} tokens, {}; one sequence takes {} in all\n",
        gibi(fit.kv_bytes_per_gpu),
        if fit.sequences == 1 { "1 sequence".to_owned() } else { format!("{} sequences", grouped(fit.sequences)) },
        grouped(fit.context),
        fit.kv_dtype,
        gibi(fit.kv_bytes_per_sequence)
    );
    for note in &fit.notes {
        text += &format!("note     {}\n", printable(note));
    }
    let verdict = if fit.fits { "it fits" } else { "it does not fit" };
    let most = match fit.context_max {
        0 if fit.weights_bytes_per_gpu > fit.device.usable_bytes => "not even the weights do".to_owned(),
        0 => "no context does with so many sequences".to_owned(),
        most => format!("the longest context that does is {}", grouped(most)),
    };
    text + &format!("fit      {verdict}; {most}\n")
}

/// The load of ranks before and after, layer by layer.
fn placement(placement: &Placement) -> String {
    let redundant = placement.redundant_experts > 0;
    let rows = placement.layers.iter().map(|layer| {
        let copies = layer.redundant.as_ref().map(|redundant| format!("{:.3}", redundant.imbalance));
        [
            vec![layer.layer.to_string(), format!("{:.3}", layer.imbalance_before)],
            vec![format!("{:.3}", layer.imbalance_after)],
            Vec::from_iter(copies),
        ]
        .concat()
    });
    let mut header = vec!["layer", "largest/mean load", "balanced"];
    if redundant {
        header.push("with copies");
    }
    let text = format!("\n{}", table(&header, &[0, 1, 2, 3], rows));
    if !redundant {
        return text;
    }
    text + "copies of experts are in expert_placement.json only: a checkpoint holds each expert once, and the engine makes copies\n"
}

/// `25.17 GiB`.
fn gibi(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}
