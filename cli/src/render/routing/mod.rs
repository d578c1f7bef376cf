//! What `routing` tells: an overview for a terminal, lines for pipes, a picture.

pub(crate) mod heat;
pub(crate) mod rows;
pub(crate) mod svg;

use l4::tasks::routing::{LayerReport, Report};

use super::{printable, table};
use crate::size::grouped;

/// Numbers of experts that are listed in a line; the rest are counted.
const LISTED: usize = 12;

/// Layers, heat map, what stands out.
pub(crate) fn overview(report: &Report, color: bool) -> String {
    let mut text = format!("{}\n", printable(&report.source.display().to_string()));
    let labels = report.labels.iter().map(|label| format!("{} {}", label.label, grouped(label.tokens)));
    let labels =
        if report.labels.len() > 1 { format!(" ({})", labels.collect::<Vec<_>>().join(", ")) } else { String::new() };
    text += &format!(
        "  {} tokens{labels}, {} experts in each layer, top-{}\n\n",
        grouped(report.tokens),
        report.num_local_experts,
        report.num_experts_per_tok
    );
    text += &layers(report);
    text += "\ntokens of each expert over the layer's mean\n";
    text += &heat::map(report, color);
    text += &standing_out(report);
    text += &labels_of(report);
    text += &transitions(report);
    text
}

fn layers(report: &Report) -> String {
    let header = ["layer", "tokens", "used", "dead", "over 2x", "entropy", "of most", "max/mean", "variation", "score"];
    let rows = report.layers.iter().map(|layer| {
        vec![
            layer.layer.to_string(),
            grouped(layer.tokens),
            layer.used.to_string(),
            layer.dead.len().to_string(),
            layer.overloaded.len().to_string(),
            format!("{:.3} bits", layer.entropy_bits),
            percent(layer.entropy_share),
            format!("{:.2}", layer.max_over_mean),
            format!("{:.2}", layer.variation),
            layer.score_mean.map_or_else(|| "-".into(), |score| format!("{score:.3}")),
        ]
    });
    table(&header, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], rows)
}

/// Dead and overloaded experts by number.
fn standing_out(report: &Report) -> String {
    let mut text = String::new();
    let mut add = |what: &str, of: &dyn Fn(&LayerReport) -> Vec<String>| {
        let layers = report.layers.iter().filter(|layer| !of(layer).is_empty());
        let lines: Vec<String> = layers
            .map(|layer| {
                let experts = of(layer);
                let more = experts.len().saturating_sub(LISTED);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("  layer {}: {}{more}\n", layer.layer, experts[..experts.len().min(LISTED)].join(", "))
            })
            .collect();
        if !lines.is_empty() {
            text += &format!("\n{what}\n{}", lines.concat());
        }
    };
    add("dead experts: no token", &|layer| layer.dead.iter().map(ToString::to_string).collect());
    add("overloaded experts: more than twice the mean", &|layer| {
        let mean = layer.tokens as f64 / layer.loads.len() as f64;
        layer.overloaded.iter().map(|&expert| format!("{expert} ({:.1}x)", layer.loads[expert] as f64 / mean)).collect()
    });
    text
}

/// Each label against the others, layer by layer.
fn labels_of(report: &Report) -> String {
    if report.labels.len() < 2 {
        return String::new();
    }
    let mut header = vec!["layer"];
    header.extend(report.labels.iter().map(|label| label.label.as_str()));
    let numbers: Vec<usize> = (0..header.len()).collect();
    let rows = report.layers.iter().map(|layer| {
        let cells = layer.labels.iter().map(|label| format!("{} #{}", percent(label.distance), label.busiest));
        std::iter::once(layer.layer.to_string()).chain(cells).collect()
    });
    let explained = "share of tokens that go elsewhere than those of the other texts, and the busiest expert";
    format!("\n{explained}\n{}", table(&header, &numbers, rows))
}

fn transitions(report: &Report) -> String {
    let rows: Vec<Vec<String>> = report
        .layers
        .iter()
        .filter_map(|layer| {
            let bits = layer.transition_bits?;
            let ways = layer.transitions.iter().take(3);
            let ways: Vec<String> = ways
                .map(|way| format!("{} to {} ({} of {}'s)", way.from, way.to, percent(way.share), way.from))
                .collect();
            Some(vec![layer.layer.to_string(), format!("{bits:.3}"), ways.join(", ")])
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let explained = "what the last layer's expert tells about this one's, and the most frequent ways";
    format!("\n{explained}\n{}", table(&["layer", "bits", "from expert to expert"], &[0, 1], rows))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
