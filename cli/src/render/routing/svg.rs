//! The heat map as a picture: layers down, experts across, one map for all text and one for each label.

use std::fmt::Write as _;

use l4::tasks::routing::{LayerReport, Report};

/// Room for the numbers of layers, and for the bars to the right.
const LEFT: f64 = 64.0;
const BARS: f64 = 168.0;
const MARGIN: f64 = 24.0;

/// Colours of loads from an eighth of the mean to eight times it: blue, near white at the mean, red.
const SCALE: [[f64; 3]; 7] = [
    [5.0, 48.0, 97.0],
    [67.0, 147.0, 195.0],
    [175.0, 209.0, 230.0],
    [247.0, 247.0, 247.0],
    [250.0, 190.0, 160.0],
    [214.0, 96.0, 77.0],
    [103.0, 0.0, 31.0],
];

/// Doublings between the mean and either end of the scale.
const DOUBLINGS: f64 = 3.0;

struct Sizes {
    cell: f64,
    row: f64,
    map: f64,
    width: f64,
}

/// The picture.
pub(crate) fn picture(report: &Report) -> String {
    let experts = report.num_local_experts as f64;
    let cell = (1120.0 / experts).clamp(6.0, 44.0);
    let row = if cell >= 24.0 { 26.0 } else { 16.0 };
    let sizes =
        Sizes { cell, row, map: cell * experts, width: MARGIN + LEFT + (cell * experts).max(440.0) + BARS + MARGIN };
    let mut body = String::new();
    let mut y = MARGIN + 20.0;
    let title = format!("Routing of {} tokens", crate::size::grouped(report.tokens));
    let _ = write!(body, "<text class=\"title\" x=\"{MARGIN}\" y=\"{y}\">{title}</text>");
    y += 20.0;
    let about = format!(
        "{} &#183; {} experts in each layer, top-{} &#183; colour: tokens of an expert over the layer's mean",
        escaped(&report.source.display().to_string()),
        report.num_local_experts,
        report.num_experts_per_tok
    );
    let _ = write!(body, "<text class=\"note\" x=\"{MARGIN}\" y=\"{y}\">{about}</text>");
    y = legend(&mut body, y + 16.0);
    y = map(&mut body, y, &sizes, report, "all text", |layer| (&layer.loads, layer.entropy_bits));
    if report.labels.len() > 1 {
        for (index, label) in report.labels.iter().enumerate() {
            let name = format!("{}: {} tokens", escaped(&label.label), crate::size::grouped(label.tokens));
            y = map(&mut body, y, &sizes, report, &name, |layer| {
                (&layer.labels[index].loads, layer.labels[index].entropy_bits)
            });
        }
    }
    let (width, height) = (sizes.width, y + 4.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\
         <style>text{{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:11px;fill:#333}}\
         .title{{font-size:18px;font-weight:600;fill:#111}}.note{{font-size:12px;fill:#666}}\
         .head{{font-size:13px;font-weight:600;fill:#222}}.small{{font-size:9px;fill:#777}}</style>\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>{body}</svg>\n"
    )
}

/// What the colours mean; gives the position below.
fn legend(body: &mut String, y: f64) -> f64 {
    let (steps, width) = (48, 5.0);
    for step in 0..steps {
        let doublings = (f64::from(step) + 0.5) / f64::from(steps) * 2.0 * DOUBLINGS - DOUBLINGS;
        let x = MARGIN + LEFT + f64::from(step) * width;
        let _ = write!(
            body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"10\" fill=\"{}\"/>",
            width + 0.5,
            color(doublings.exp2())
        );
    }
    for (doublings, label) in
        [(-3.0, "1/8"), (-2.0, "1/4"), (-1.0, "1/2"), (0.0, "mean"), (1.0, "2x"), (2.0, "4x"), (3.0, "8x")]
    {
        let x = MARGIN + LEFT + (doublings + DOUBLINGS) / (2.0 * DOUBLINGS) * f64::from(steps) * width;
        let _ = write!(body, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", y + 24.0);
    }
    let x = MARGIN + LEFT + f64::from(steps) * width + 28.0;
    dead(body, x, y - 2.0, 14.0, 14.0);
    let _ = write!(body, "<text x=\"{}\" y=\"{}\">no token</text>", x + 20.0, y + 9.0);
    y + 40.0
}

/// One heat map with its bars of entropy; gives the position below.
fn map<'r>(
    body: &mut String,
    y: f64,
    sizes: &Sizes,
    report: &'r Report,
    name: &str,
    of: impl Fn(&'r LayerReport) -> (&'r Vec<u64>, f64),
) -> f64 {
    let left = MARGIN + LEFT;
    let bars = left + sizes.map.max(440.0) + 24.0;
    let _ = write!(body, "<text class=\"head\" x=\"{left}\" y=\"{}\">{name}</text>", y + 12.0);
    let _ = write!(body, "<text x=\"{bars}\" y=\"{}\">entropy, bits</text>", y + 12.0);
    let y = y + 30.0;
    let every = if sizes.cell >= 20.0 { 1 } else { 8 };
    for expert in (0..report.num_local_experts).step_by(every) {
        let x = left + (expert as f64 + 0.5) * sizes.cell;
        let _ =
            write!(body, "<text class=\"small\" x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{expert}</text>", y - 4.0);
    }
    let most = (report.num_local_experts as f64).log2().max(1e-9);
    for (line, layer) in report.layers.iter().enumerate() {
        let top = y + line as f64 * sizes.row;
        let middle = top + sizes.row / 2.0 + 4.0;
        let _ =
            write!(body, "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">layer {}</text>", left - 8.0, layer.layer);
        let (loads, entropy) = of(layer);
        cells(body, left, top, sizes, layer.layer, loads);
        let length = 100.0 * (entropy / most).clamp(0.0, 1.0);
        let (bar_top, bar_height) = (top + sizes.row * 0.2, sizes.row * 0.6);
        for (width, fill) in [(100.0, "#eee"), (length, "#7a8fa6")] {
            let _ = write!(
                body,
                "<rect x=\"{bars}\" y=\"{bar_top:.1}\" width=\"{width:.1}\" height=\"{bar_height:.1}\" rx=\"2\" fill=\"{fill}\"/>"
            );
        }
        let _ = write!(body, "<text x=\"{}\" y=\"{middle}\">{entropy:.2}</text>", bars + 106.0);
    }
    y + report.layers.len() as f64 * sizes.row + 28.0
}

fn cells(body: &mut String, left: f64, top: f64, sizes: &Sizes, layer: usize, loads: &[u64]) {
    let total: u64 = loads.iter().sum();
    let mean = total as f64 / loads.len() as f64;
    let gap = if sizes.cell >= 12.0 { 1.5 } else { 0.5 };
    for (expert, &load) in loads.iter().enumerate() {
        let x = left + expert as f64 * sizes.cell;
        let (width, height) = (sizes.cell - gap, sizes.row - gap);
        let share = load as f64 / total.max(1) as f64;
        let _ = write!(body, "<g><title>layer {layer}, expert {expert}: {load} tokens, {:.2} %</title>", 100.0 * share);
        if load == 0 {
            dead(body, x, top, width, height);
        } else {
            let ratio = load as f64 / mean;
            let fill = color(ratio);
            let _ = write!(
                body,
                "<rect x=\"{x:.2}\" y=\"{top:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" rx=\"2\" fill=\"{fill}\"/>"
            );
            if sizes.cell >= 30.0 {
                let ink = if ratio.log2().abs() > 1.6 { "#fff" } else { "#333" };
                let (x, y) = (x + width / 2.0, top + height / 2.0 + 3.5);
                let _ = write!(
                    body,
                    "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" style=\"font-size:10px;fill:{ink}\">{:.1}%</text>",
                    100.0 * share
                );
            }
        }
        *body += "</g>";
    }
}

/// A cell without tokens: empty, with a cross.
fn dead(body: &mut String, x: f64, y: f64, width: f64, height: f64) {
    let _ = write!(
        body,
        "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\" rx=\"2\" fill=\"#fff\" stroke=\"#333\"/>\
         <path d=\"M{:.2} {:.2}l6 6m0 -6l-6 6\" stroke=\"#c00\" stroke-width=\"1.5\"/>",
        x + 0.5,
        y + 0.5,
        width - 1.0,
        height - 1.0,
        x + width / 2.0 - 3.0,
        y + height / 2.0 - 3.0
    );
}

/// The colour of a load over the mean.
fn color(ratio: f64) -> String {
    let position =
        (ratio.log2().clamp(-DOUBLINGS, DOUBLINGS) + DOUBLINGS) / (2.0 * DOUBLINGS) * (SCALE.len() - 1) as f64;
    let index = (position.floor() as usize).min(SCALE.len() - 2);
    let part = position - index as f64;
    let mixed = [0, 1, 2].map(|channel| {
        let (a, b) = (SCALE[index][channel], SCALE[index + 1][channel]);
        (a + (b - a) * part).round() as u8
    });
    format!("#{:02x}{:02x}{:02x}", mixed[0], mixed[1], mixed[2])
}

fn escaped(text: &str) -> String {
    let plain = super::printable(text);
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
