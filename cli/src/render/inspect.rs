//! What `inspect` tells, as text.

use std::collections::BTreeMap;
use std::fmt::Display;

use l4::checkpoint::shown;
use l4::llama4::{Problem, ProblemKind};
use l4::tasks::inspect::{Fit, Report, SchemeMemory, Settings};

use super::table;
use crate::size::{binary, count, decimal, grouped};

/// Problems that are shown of each kind, unless all are asked for.
const PROBLEMS_SHOWN: usize = 10;

/// Colours of the summary's verdicts (ANSI).
const GOOD: &str = "32";
const BAD: &str = "31";
const ODD: &str = "33";

/// Everything at a glance.
pub(crate) fn summary(report: &Report, color: bool, all_problems: bool) -> String {
    let settings = &report.config;
    let mut text = format!("{}\n", report.checkpoint.display());
    let mut line = |label: &str, value: String| text += &format!("{label:<14} {value}\n");
    line(
        "architecture",
        format!("{}{}", report.architecture, modalities(settings)),
    );
    line("layers", layers(settings));
    line("experts", experts_of(settings));
    line(
        "parameters",
        format!(
            "{} ({}), of which a token of text uses {} ({})",
            grouped(report.parameters.total),
            count(report.parameters.total),
            grouped(report.parameters.active),
            count(report.parameters.active)
        ),
    );
    line(
        "tensors",
        format!("{} in {}", grouped(report.tensors.len() as u64), files(report)),
    );
    line(
        "size",
        format!(
            "{} bytes ({}, {})",
            grouped(report.bytes),
            decimal(report.bytes),
            binary(report.bytes)
        ),
    );
    line("dtypes", dtypes(report));
    for (index, scheme) in quantization(report).into_iter().enumerate() {
        line(if index == 0 { "quantization" } else { "" }, scheme);
    }
    line(
        "context",
        format!("{} tokens", grouped(settings.max_position_embeddings)),
    );
    line("KV cache", kv_cache(report));
    text += &fit(report, color);
    text.push('\n');
    text += &components(report);
    text.push('\n');
    text += &problems(report, color, all_problems);
    text
}

/// One line per tensor, with tabs between its columns.
pub(crate) fn tensors(report: &Report) -> String {
    let mut text = String::new();
    for tensor in &report.tensors {
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let (name, file) = (shown(&tensor.name), shown(&tensor.file));
        let role = tensor.role.unwrap_or("-");
        text += &format!(
            "{name}\t{}\t[{}]\t{}\t{file}\t{}\t{role}\t{}\t{}\n",
            tensor.dtype,
            shape.join(","),
            tensor.bytes,
            tensor.offset,
            or_dash(tensor.layer),
            or_dash(tensor.expert),
        );
    }
    text
}

/// The routed experts of each layer.
pub(crate) fn experts(report: &Report) -> String {
    let rows = report.experts.iter().map(|layer| {
        let stored = counted(&layer.stored_as, layer.present);
        let stored = if layer.fused {
            format!("{stored} (fused)")
        } else {
            stored
        };
        let bytes = match (layer.bytes_per_expert_min, layer.bytes_per_expert) {
            (least, most) if least == most => grouped(most),
            (least, most) => format!("{}-{}", grouped(least), grouped(most)),
        };
        let missing = if layer.missing.is_empty() {
            "-".into()
        } else {
            ranges(&layer.missing)
        };
        let experts = format!("{}/{}", layer.present, layer.experts);
        vec![
            layer.layer.to_string(),
            experts,
            stored,
            bytes,
            decimal(layer.bytes),
            missing,
        ]
    });
    table(
        &[
            "layer",
            "experts",
            "stored as",
            "bytes per expert",
            "together",
            "missing",
        ],
        &[0, 1, 3, 4],
        rows,
    )
}

/// What it takes to serve the model in each scheme.
pub(crate) fn memory(report: &Report) -> String {
    let memory = &report.memory;
    let stored = &memory.stored;
    let mut rows = vec![memory_row(format!("{} (as stored)", stored.scheme), stored)];
    let others = memory.schemes.iter();
    let others = others.filter(|other| other.scheme != stored.scheme || other.weights_bytes != stored.weights_bytes);
    rows.extend(others.map(|other| memory_row(other.scheme.clone(), other)));
    let header = [
        "scheme",
        "weights",
        "1x H100",
        "8x H100: per GPU",
        "context",
        "context, FP8 cache",
    ];
    let mut text = table(&header, &[1, 2, 3, 4, 5], rows);
    for other in &memory.schemes {
        if let Some(reason) = &other.reason {
            text += &format!("{}: {reason}\n", other.scheme);
        }
    }
    if let Some(reason) = stored.fits.iter().find_map(|fit| fit.reason.as_ref()) {
        text += &format!("{reason}\n");
    }
    let device = &memory.device;
    text += &format!(
        "\nKV cache  {}\n\nContexts are tokens of one sequence, its cache in BF16 unless it says FP8, chunked layers holding one chunk;\n\
         each {} gives {} to weights and cache ({:.0} % of {}, less {} for activations and buffers).\n\
         Schemes are of the feed-forward matrices; everything else stays BF16.\n",
        kv_cache(report),
        device.name,
        decimal(device.usable_bytes),
        device.utilization * 100.0,
        decimal(device.memory_bytes),
        decimal(device.reserve_bytes),
    );
    text
}

fn memory_row(name: String, memory: &SchemeMemory) -> Vec<String> {
    let find = |gpus: u64, kv_dtype: &str| {
        memory
            .fits
            .iter()
            .find(|fit| fit.gpus == gpus && fit.kv_dtype == kv_dtype)
    };
    let context = |fit: Option<&Fit>| match fit {
        Some(fit) if fit.fits => grouped(fit.context),
        _ => "no".into(),
    };
    let eight = find(8, "bf16").map_or_else(|| "-".into(), |fit| decimal(fit.weights_bytes_per_gpu));
    let weights = memory.weights_bytes.map_or_else(|| "-".into(), decimal);
    vec![
        name,
        weights,
        context(find(1, "bf16")),
        eight,
        context(find(8, "bf16")),
        context(find(8, "fp8")),
    ]
}

/// What the config means.
pub(crate) fn config(report: &Report) -> String {
    let settings = &report.config;
    let mut text = String::new();
    let mut line = |label: &str, value: &dyn Display| text += &format!("{label:<24} {value}\n");
    line("architecture", &report.architecture);
    line(
        "dtype",
        &settings
            .dtype
            .map_or_else(|| "not given".into(), |dtype| dtype.to_string()),
    );
    line("vocab_size", &grouped(settings.vocab_size as u64));
    line("max_position_embeddings", &grouped(settings.max_position_embeddings));
    line("hidden_size", &settings.hidden_size);
    line("num_hidden_layers", &settings.num_hidden_layers);
    line("num_attention_heads", &settings.num_attention_heads);
    line("num_key_value_heads", &settings.num_key_value_heads);
    line("head_dim", &settings.head_dim);
    line(
        "intermediate_size",
        &format!("{} (routed and shared experts)", settings.intermediate_size),
    );
    line(
        "intermediate_size_mlp",
        &format!("{} (dense layers)", settings.intermediate_size_mlp),
    );
    line("num_local_experts", &settings.num_local_experts);
    line("num_experts_per_tok", &settings.num_experts_per_tok);
    let all = settings.num_hidden_layers;
    line("experts in layers", &numbers(&settings.moe_layers, all));
    line("RoPE in layers", &numbers(&settings.rope_layers, all));
    line("chunks in layers", &numbers(&settings.chunked_layers, all));
    line(
        "attention_chunk_size",
        &settings.attention_chunk_size.map_or_else(|| "none".into(), grouped),
    );
    line("rope_theta", &settings.rope.rope_theta);
    line("rope scaling", &rope_scaling(settings));
    line("use_qk_norm", &settings.use_qk_norm);
    line("attn_temperature_tuning", &settings.attn_temperature_tuning);
    line(
        "floor_scale, attn_scale",
        &format!("{}, {}", grouped(settings.floor_scale), settings.attn_scale),
    );
    line("rms_norm_eps", &settings.rms_norm_eps);
    line("hidden_act", &shown(&settings.hidden_act));
    line("attention_bias", &settings.attention_bias);
    line("tie_word_embeddings", &settings.tie_word_embeddings);
    let tokens: Vec<String> = settings.eos_token_id.iter().map(u32::to_string).collect();
    let tokens = [
        or_dash(settings.bos_token_id),
        tokens.join("/"),
        or_dash(settings.pad_token_id),
    ]
    .join(", ");
    line("bos, eos, pad token", &tokens);
    if let Some(vision) = &settings.vision {
        line("vision hidden_size", &vision.hidden_size);
        line(
            "vision layers, heads",
            &format!("{}, {}", vision.num_hidden_layers, vision.num_attention_heads),
        );
        line(
            "vision image, patch",
            &format!("{0}x{0}, {1}x{1} pixels", vision.image_size, vision.patch_size),
        );
        line("tokens per tile", &vision.tokens_per_tile);
    }
    text
}

fn rope_scaling(settings: &Settings) -> String {
    let rope = &settings.rope;
    match (
        rope.factor,
        rope.low_freq_factor,
        rope.high_freq_factor,
        rope.original_max_position_embeddings,
    ) {
        (Some(factor), Some(low), Some(high), Some(original)) => {
            format!(
                "llama3, factor {factor}, low {low}, high {high}, original context {}",
                grouped(original)
            )
        }
        _ => "none".into(),
    }
}

/// What is missing, does not fit or is not expected.
pub(crate) fn problems(report: &Report, color: bool, all: bool) -> String {
    let mut text = String::new();
    if report.problems.is_empty() {
        text += &painted(
            "complete: every weight that the config promises is there, and nothing else\n",
            GOOD,
            color,
        );
    } else if report.complete {
        text += &painted(
            "complete: every weight that the config promises is there\n",
            GOOD,
            color,
        );
    } else {
        let lost = report.parameters.promised.saturating_sub(report.parameters.total);
        let lost = if lost > 0 {
            format!(", {} parameters are not there", grouped(lost))
        } else {
            String::new()
        };
        text += &painted(&format!("not complete{lost}\n"), BAD, color);
    }
    for (kind, word, paint) in [
        (ProblemKind::Missing, "missing", BAD),
        (ProblemKind::Mismatch, "mismatch", BAD),
        (ProblemKind::Unexpected, "unexpected", ODD),
    ] {
        let found: Vec<&Problem> = report.problems.iter().filter(|problem| problem.kind == kind).collect();
        let shown_count = if all { found.len() } else { PROBLEMS_SHOWN };
        for problem in found.iter().take(shown_count) {
            let word = painted(&format!("{word}:"), paint, color);
            text += &format!("{word} `{}` {}\n", shown(&problem.name), problem.message);
        }
        if found.len() > shown_count {
            let word = painted(&format!("{word}:"), paint, color);
            text += &format!("{word} {} more (-v shows all)\n", found.len() - shown_count);
        }
    }
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    text
}

fn modalities(settings: &Settings) -> String {
    match &settings.vision {
        Some(vision) => {
            format!(
                ", text and images ({0}x{0} pixels, {1} tokens each)",
                vision.image_size, vision.tokens_per_tile
            )
        }
        None => ", text only".into(),
    }
}

fn layers(settings: &Settings) -> String {
    let all = settings.num_hidden_layers;
    let chunked = match settings.attention_chunk_size {
        Some(chunk) => format!(
            "{} with attention in chunks of {}",
            settings.chunked_layers.len(),
            grouped(chunk)
        ),
        None => "none with attention in chunks".into(),
    };
    let no_rope = all - settings.rope_layers.len();
    format!(
        "{all}: {} with experts, {chunked}, {no_rope} without RoPE",
        settings.moe_layers.len()
    )
}

fn experts_of(settings: &Settings) -> String {
    format!(
        "{} routed ({} per token) and 1 shared in each layer that has experts",
        settings.num_local_experts, settings.num_experts_per_tok
    )
}

fn files(report: &Report) -> String {
    match report.files.len() {
        1 => format!("one {} file", report.format),
        number => format!("{} {} files", grouped(number as u64), report.format),
    }
}

fn dtypes(report: &Report) -> String {
    let parts = report
        .dtypes
        .iter()
        .map(|(dtype, count)| format!("{dtype}: {} tensors, {}", grouped(count.tensors), decimal(count.bytes)));
    parts.collect::<Vec<_>>().join("; ")
}

fn quantization(report: &Report) -> Vec<String> {
    let quantization = &report.quantization;
    if quantization.schemes.is_empty() {
        return vec!["none".into()];
    }
    let schemes = quantization.schemes.iter().map(|(scheme, count)| {
        let parts: Vec<String> = count
            .by_role
            .iter()
            .map(|(role, number)| format!("{} of {}", grouped(*number), spaced(role)))
            .collect();
        format!(
            "{scheme}: {} matrices ({}), {:.2} bits per weight",
            grouped(count.weights),
            parts.join(", "),
            count.bits_per_weight
        )
    });
    schemes.collect()
}

fn kv_cache(report: &Report) -> String {
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

/// Whether the checkpoint fits one GPU as it is stored, and if not, what would.
fn fit(report: &Report, color: bool) -> String {
    let stored = &report.memory.stored;
    let find = |gpus: u64| {
        stored
            .fits
            .iter()
            .find(|fit| fit.gpus == gpus && fit.kv_dtype == "bf16" && fit.fits)
    };
    let question = "fits one H100 (80 GB):";
    if let Some(fit) = find(1) {
        return format!(
            "{question} {}, with {} tokens of context\n",
            painted("yes", GOOD, color),
            grouped(fit.context)
        );
    }
    let mut text = format!("{question} {}\n", painted("no", BAD, color));
    if let Some(fit) = find(8) {
        text += &format!("  eight hold it, with {} tokens of context\n", grouped(fit.context));
    }
    if let Some(would) = &report.memory.suggestion {
        let many = if would.gpus == 1 {
            "one".into()
        } else {
            would.gpus.to_string()
        };
        let (size, context) = (decimal(would.weights_bytes), grouped(would.context));
        text += &format!(
            "  as {} ({size}) it fits {many}, with {context} tokens of context{}\n",
            would.scheme,
            command(report, &would.scheme)
        );
    }
    text
}

/// How to get there, where one command does it.
fn command(report: &Report, scheme: &str) -> String {
    let flag = match scheme {
        "w4a16" => "--int4",
        "fp8-dynamic" => "--fp8",
        _ => return String::new(),
    };
    if !report.quantization.schemes.is_empty() || !report.complete {
        return String::new();
    }
    format!(": l4tool quantize {} -o OUT {flag}", report.checkpoint.display())
}

fn components(report: &Report) -> String {
    let all = report.parameters.total.max(1) as f64;
    let rows = report.components.iter().map(|component| {
        vec![
            spaced(component.role),
            grouped(component.weights),
            grouped(component.parameters),
            format!("{:.1} %", component.parameters as f64 / all * 100.0),
            decimal(component.bytes),
            counted(&component.stored_as, component.weights),
        ]
    });
    table(
        &["part", "weights", "parameters", "", "size", "stored as"],
        &[1, 2, 3, 4],
        rows,
    )
}

/// `w4a16`, or with numbers where there is more than one way: `bf16 (3), w4a16 (45)`.
fn counted<N: Display + PartialEq>(ways: &BTreeMap<String, N>, all: N) -> String {
    let one = |(way, number): (&String, &N)| {
        if *number == all {
            way.clone()
        } else {
            format!("{way} ({number})")
        }
    };
    if ways.is_empty() {
        "-".into()
    } else {
        ways.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

fn spaced(role: &str) -> String {
    role.replace('_', " ")
}

fn or_dash<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn numbers(layers: &[usize], all: usize) -> String {
    match layers.len() {
        0 => "none".into(),
        number if number == all => format!("all {all}"),
        number => format!("{number} of {all}: {}", ranges(layers)),
    }
}

/// Ascending numbers as `0-2,4,6-7`, and a longer row of equal steps as `1,3..47`.
fn ranges(numbers: &[usize]) -> String {
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

fn painted(text: &str, paint: &str, color: bool) -> String {
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
