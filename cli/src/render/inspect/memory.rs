//! What it takes to serve the model, as a table.

use l4::tasks::inspect::{Fit, Report, SchemeMemory};

use super::words::kv_cache;
use crate::render::table;
use crate::size::{decimal, grouped};

/// What it takes to serve the model in each scheme.
pub(crate) fn memory(report: &Report) -> String {
    let memory = &report.memory;
    let stored = &memory.stored;
    let mut rows = vec![memory_row(format!("{} (as stored)", stored.scheme), stored)];
    let others = memory.schemes.iter();
    let others = others.filter(|other| other.scheme != stored.scheme || other.weights_bytes != stored.weights_bytes);
    rows.extend(others.map(|other| memory_row(other.scheme.clone(), other)));
    let header = ["scheme", "weights", "1x H100", "8x H100: per GPU", "context", "context, FP8 cache"];
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
    let find = |gpus: u64, kv_dtype: &str| memory.fits.iter().find(|fit| fit.gpus == gpus && fit.kv_dtype == kv_dtype);
    let context = |fit: Option<&Fit>| match fit {
        Some(fit) if fit.fits => grouped(fit.context),
        _ => "no".into(),
    };
    let eight = find(8, "bf16").map_or_else(|| "-".into(), |fit| decimal(fit.weights_bytes_per_gpu));
    let weights = memory.weights_bytes.map_or_else(|| "-".into(), decimal);
    vec![name, weights, context(find(1, "bf16")), eight, context(find(8, "bf16")), context(find(8, "fp8"))]
}
