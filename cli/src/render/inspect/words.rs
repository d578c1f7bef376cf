//! Words and numbers that the views share.

use std::collections::BTreeMap;
use std::fmt::Display;

use l4::tasks::inspect::Report;

use crate::size::grouped;

/// Colours of verdicts (ANSI).
pub(super) const GOOD: &str = "32";
pub(super) const BAD: &str = "31";
pub(super) const ODD: &str = "33";

pub(super) fn kv_cache(report: &Report) -> String {
    let cache = &report.memory.kv_cache;
    let all = format!("{} bytes per token in BF16", grouped(cache.bf16.per_token));
    match cache.chunk_tokens {
        Some(chunk) => format!(
            "{all}: {} ({} of {} layers) grow with the context, {} ({}) stop at {} tokens",
            grouped(cache.bf16.growing_per_token),
            cache.growing_layers,
            cache.growing_layers + cache.chunked_layers,
            grouped(cache.bf16.capped_per_token),
            cache.chunked_layers,
            grouped(chunk)
        ),
        None => all,
    }
}

/// `w4a16`, or with numbers where there is more than one way: `bf16 (3), w4a16 (45)`.
pub(super) fn counted<N: Display + PartialEq>(ways: &BTreeMap<String, N>, all: N) -> String {
    let one = |(way, number): (&String, &N)| {
        if *number == all { way.clone() } else { format!("{way} ({number})") }
    };
    if ways.is_empty() { "-".into() } else { ways.iter().map(one).collect::<Vec<_>>().join(", ") }
}

pub(super) fn spaced(role: &str) -> String {
    role.replace('_', " ")
}

pub(super) fn or_dash<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

pub(super) fn numbers(layers: &[usize], all: usize) -> String {
    match layers.len() {
        0 => "none".into(),
        number if number == all => format!("all {all}"),
        number => format!("{number} of {all}: {}", ranges(layers)),
    }
}

/// Ascending numbers as `0-2,4,6-7`, and a longer row of equal steps as `1,3..47`.
pub(super) fn ranges(numbers: &[usize]) -> String {
    let mut parts = Vec::new();
    let mut rest = numbers;
    while let [first, tail @ ..] = rest {
        let step = tail.first().map_or(1, |second| second - first);
        let run = rest.windows(2).take_while(|pair| pair[1] - pair[0] == step).count() + 1;
        let last = rest[run - 1];
        let (part, taken) = match (step, run) {
            (1, 2..) => (format!("{first}-{last}"), run),
            (_, 4..) => (format!("{first},{}..{last}", first + step), run),
            _ => (first.to_string(), 1),
        };
        parts.push(part);
        rest = &rest[taken..];
    }
    parts.join(",")
}

pub(super) fn painted(text: &str, paint: &str, color: bool) -> String {
    match (color, text.strip_suffix('\n')) {
        (false, _) => text.to_owned(),
        (true, Some(line)) => format!("\x1b[{paint}m{line}\x1b[0m\n"),
        (true, None) => format!("\x1b[{paint}m{text}\x1b[0m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_written_compactly() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[0, 1, 2, 4, 5, 6, 8]), "0-2,4-6,8");
        assert_eq!(ranges(&[1, 3, 5, 7]), "1,3..7");
        assert_eq!(ranges(&[1, 3, 5]), "1,3,5");
        assert_eq!(ranges(&[0, 2, 3]), "0,2-3");
        assert_eq!(numbers(&[0, 1], 2), "all 2");
    }
}
