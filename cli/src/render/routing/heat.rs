//! A heat map in letters: a row for each layer, a column for each expert.

use l4::tasks::routing::Report;

/// Experts in a line; more go to the next.
const COLUMNS: usize = 64;

/// Steps of the load over the mean: the upper end, how it looks without colour, and its colour among the terminal's 256.
const STEPS: [(f64, char, u8); 8] = [
    (0.125, '·', 18),
    (0.25, '·', 25),
    (0.5, '░', 67),
    (1.0, '▒', 110),
    (1.5, '▓', 252),
    (2.0, '▓', 216),
    (4.0, '█', 203),
    (f64::INFINITY, '█', 160),
];

/// The map and its legend.
pub(crate) fn map(report: &Report, color: bool) -> String {
    let experts = report.num_local_experts;
    // Wide cells where there is room for them.
    let width = if experts <= 16 {
        4
    } else if experts <= 32 {
        2
    } else {
        1
    };
    let mut text = ruler(experts.min(COLUMNS), width);
    for layer in &report.layers {
        let mean = layer.tokens as f64 / experts as f64;
        for (line, loads) in layer.loads.chunks(COLUMNS).enumerate() {
            text += &if line == 0 { format!("{:>5}  ", layer.layer) } else { " ".repeat(7) };
            let cells: String = loads.iter().map(|&load| cell(load, mean, width, color)).collect();
            text += cells.trim_end_matches(' ');
            text.push('\n');
        }
    }
    text + &legend(color)
}

/// Numbers of experts above the columns, every eighth.
fn ruler(columns: usize, width: usize) -> String {
    let every = if width >= 4 { 1 } else { 8 };
    let mut line = " ".repeat(7);
    for expert in (0..columns).step_by(every) {
        line += &format!("{expert:<0$}", every * width);
    }
    line.trim_end().to_owned() + "\n"
}

fn cell(load: u64, mean: f64, width: usize, color: bool) -> String {
    if load == 0 {
        let cross = format!("{:<width$}", "×");
        return if color { format!("\x1b[38;5;196;48;5;16m{cross}\x1b[0m") } else { cross };
    }
    let ratio = load as f64 / mean;
    let (_, shade, code) = STEPS.iter().find(|(end, ..)| ratio < *end).copied().unwrap_or(STEPS[STEPS.len() - 1]);
    match color {
        true => format!("\x1b[48;5;{code}m{}\x1b[0m", " ".repeat(width)),
        // A gap keeps wide cells apart where colour does not.
        false if width > 1 => format!("{} ", shade.to_string().repeat(width - 1)),
        false => shade.to_string(),
    }
}

fn legend(color: bool) -> String {
    let mut text = format!("       {} none", cell(0, 1.0, 1, color));
    for (index, &(end, shade, code)) in STEPS.iter().enumerate() {
        // Without colour, neighbouring steps may look the same: the last of them says where they end.
        let next = STEPS.get(index + 1);
        if !color && next.is_some_and(|next| next.1 == shade) {
            continue;
        }
        let sample = if color { format!("\x1b[48;5;{code}m  \x1b[0m") } else { shade.to_string() };
        let range = if end.is_finite() { format!("<{end}") } else { "more".to_owned() };
        text += &format!("  {sample} {range}");
    }
    text + "\n"
}
