//! What `verify` tells, as text.

use l4::tasks::verify::Report;

use super::{printable, table};
use crate::size::{binary, decimal, grouped};

/// Problems that are listed; the rest are counted. `--json` has them all.
const PROBLEMS_SHOWN: usize = 20;

/// The report; verdict and problems stand out if `color`.
pub(crate) fn report(report: &Report, color: bool) -> String {
    let paint = |code: &str, word: &str| if color { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
    let mut text = format!("{}\n", report.checkpoint.display());
    text += &format!(
        "  {} tensors, {} read{}\n",
        grouped(report.tensors as u64),
        decimal(report.bytes),
        report.checksums.map_or_else(String::new, |count| format!(", {count} checksums as in the manifest"))
    );
    for note in &report.notes {
        text += &format!("  note: {}\n", printable(note));
    }
    if !report.layers.is_empty() {
        text.push('\n');
        let rows = report.layers.iter().map(|layer| {
            let agreement = layer.router_agreement.map_or_else(|| "-".into(), |share| percent(share, 2));
            vec![layer.layer.to_string(), percent(layer.rel_rms_error, 3), format!("{:.6}", layer.cosine), agreement]
        });
        text += &table(&["layer", "error", "cosine", "same experts"], &[0, 1, 2, 3], rows);
    }
    text += &summary(report);
    for problem in report.problems.iter().take(PROBLEMS_SHOWN) {
        let label = paint("1;31", "problem");
        text += &format!("{label}: {}: `{}` {}\n", problem.kind, printable(&problem.name), printable(&problem.message));
    }
    if let Some(more) = report.problems.len().checked_sub(PROBLEMS_SHOWN + 1) {
        text += &format!("... and {} more problems\n", more + 1);
    }
    text += &if report.ok { paint("1;32", "ok") } else { paint("1;31", "not ok") };
    text + "\n"
}

fn summary(report: &Report) -> String {
    let mut text = String::from("\n");
    if let Some(logits) = &report.logits {
        text += &format!(
            "KL divergence  mean {:.5}, 99 % of tokens below {:.5}, largest {:.5} nats\n",
            logits.kl_mean, logits.kl_p99, logits.kl_max
        );
        text += &format!(
            "next token     the same on {} of tokens; logits differ by at most {:.4}\n",
            percent(logits.top1_agreement, 2),
            logits.max_abs_diff
        );
    }
    if let Some(perplexity) = report.perplexity {
        text += &match perplexity.reference {
            Some(reference) => format!(
                "perplexity     {:.4}, the reference {reference:.4} ({:+.3} %)\n",
                perplexity.candidate,
                100.0 * (perplexity.candidate / reference - 1.0)
            ),
            None => format!("perplexity     {:.4}\n", perplexity.candidate),
        };
        text += &format!("tokens         {}", report.tokens);
        text += &report.tokens_per_second.map_or_else(String::new, |rate| format!(", {rate:.0} per second"));
        text.push('\n');
    }
    text += &format!("time           {:.1} s", report.seconds);
    if let Some(peak) = report.peak_memory_bytes {
        text += &format!(", {} of memory at most", binary(peak));
    }
    text.push('\n');
    text
}

fn percent(share: f64, digits: usize) -> String {
    format!("{:.digits$} %", 100.0 * share)
}
