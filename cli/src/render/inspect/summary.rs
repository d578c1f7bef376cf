//! Everything at a glance.

use l4::tasks::inspect::{GgufFacts, Report, Settings};

use super::problems;
use super::words::{BAD, GOOD, counted, kv_cache, painted, spaced};
use crate::render::table;
use crate::size::{binary, count, decimal, grouped};

/// Everything at a glance.
pub(crate) fn summary(report: &Report, color: bool, all_problems: bool) -> String {
    let settings = &report.config;
    let mut text = format!("{}\n", report.checkpoint.display());
    let mut line = |label: &str, value: String| text += &format!("{label:<14} {value}\n");
    line("architecture", format!("{}{}", report.architecture, modalities(settings)));
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
    line("tensors", format!("{} in {}", grouped(report.tensors.len() as u64), files(report)));
    if let Some(gguf) = &report.gguf {
        line("file type", file_type(gguf));
    }
    line("size", format!("{} bytes ({}, {})", grouped(report.bytes), decimal(report.bytes), binary(report.bytes)));
    line("dtypes", dtypes(report));
    for (index, scheme) in quantization(report).into_iter().enumerate() {
        line(if index == 0 { "quantization" } else { "" }, scheme);
    }
    line("context", format!("{} tokens", grouped(settings.max_position_embeddings)));
    line("KV cache", kv_cache(report));
    text += &fit(report, color);
    text.push('\n');
    text += &components(report);
    text.push('\n');
    text += &problems(report, color, all_problems);
    text
}

fn modalities(settings: &Settings) -> String {
    match &settings.vision {
        Some(vision) => {
            format!(", text and images ({0}x{0} pixels, {1} tokens each)", vision.image_size, vision.tokens_per_tile)
        }
        None => ", text only".into(),
    }
}

fn layers(settings: &Settings) -> String {
    let all = settings.num_hidden_layers;
    let chunked = match settings.attention_chunk_size {
        Some(chunk) => format!("{} with attention in chunks of {}", settings.chunked_layers.len(), grouped(chunk)),
        None => "none with attention in chunks".into(),
    };
    let no_rope = all - settings.rope_layers.len();
    format!("{all}: {} with experts, {chunked}, {no_rope} without RoPE", settings.moe_layers.len())
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

/// What llama.cpp calls the mix, and the version of the container.
fn file_type(gguf: &GgufFacts) -> String {
    let mut versions: Vec<u32> = gguf.files.iter().map(|file| file.version).collect();
    versions.sort_unstable();
    versions.dedup();
    let versions: Vec<String> = versions.iter().map(u32::to_string).collect();
    let kind = gguf.file_type.as_deref().unwrap_or("not said");
    let parts = gguf.files.iter().filter_map(|file| file.part).map(|(_, count)| count).max();
    let split = parts.map_or_else(String::new, |count| format!(", split into {count}"));
    format!("{kind}, GGUF version {}{split}", versions.join(" and "))
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
        let parts: Vec<String> =
            count.by_role.iter().map(|(role, number)| format!("{} of {}", grouped(*number), spaced(role))).collect();
        format!(
            "{scheme}: {} matrices ({}), {:.2} bits per weight",
            grouped(count.weights),
            parts.join(", "),
            count.bits_per_weight
        )
    });
    schemes.collect()
}

/// Whether the checkpoint fits one GPU as it is stored, and if not, what would.
fn fit(report: &Report, color: bool) -> String {
    let stored = &report.memory.stored;
    let find = |gpus: u64| stored.fits.iter().find(|fit| fit.gpus == gpus && fit.kv_dtype == "bf16" && fit.fits);
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
        let many = if would.gpus == 1 { "one".into() } else { would.gpus.to_string() };
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
    table(&["part", "weights", "parameters", "", "size", "stored as"], &[1, 2, 3, 4], rows)
}
