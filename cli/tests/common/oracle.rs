//! Decodes what `quantize` wrote and holds it against the source, element by element, and against its config.
//!
//! It follows compressed-tensors' format by its own few lines, and must not use the library `l4`.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;

use super::{Tensor, read_json, read_model};

type Model = BTreeMap<String, Tensor>;

/// Numbers of a float tensor.
pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    let halves = || tensor.data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match tensor.dtype.as_str() {
        "F32" => tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        "BF16" => halves().map(|half| f32::from_bits(u32::from(half) << 16)).collect(),
        "F16" => halves().map(|half| minifloat(half.into(), 10, 5)).collect(),
        "F8_E4M3" => tensor.data.iter().map(|&byte| minifloat(byte.into(), 3, 4)).collect(),
        other => panic!("{}: {other}", tensor.name),
    }
}

/// A finite number with so many bits of mantissa and exponent.
fn minifloat(bits: u32, mantissa: i32, exponent: i32) -> f32 {
    let fraction = (bits & ((1 << mantissa) - 1)) as f32 / (1 << mantissa) as f32;
    let power = (bits >> mantissa & ((1 << exponent) - 1)) as i32;
    let bias = (1 << (exponent - 1)) - 1;
    let size = if power == 0 { fraction * 2_f32.powi(1 - bias) } else { (1.0 + fraction) * 2_f32.powi(power - bias) };
    if bits >> (mantissa + exponent) == 1 { -size } else { size }
}

fn nibble(tensor: &Tensor, word: usize, index: usize) -> i32 {
    let bytes = tensor.data[4 * word..][..4].try_into().unwrap();
    (u32::from_le_bytes(bytes) >> (4 * index) & 15) as i32 - 8
}

/// A matrix of the source, `[out, in]`, by its physical per-expert module name; taken out of a fused tensor if need be.
pub(crate) fn source_matrix(source: &Model, module: &str) -> Vec<f32> {
    if let Some(tensor) = source.get(&format!("{module}.weight")) {
        return floats(tensor);
    }
    let (layer, rest) = module.split_once(".experts.").unwrap();
    let (expert, name) = rest.split_once('.').unwrap();
    let expert: usize = expert.parse().unwrap();
    let (fused, half) = match name {
        "gate_proj" => ("gate_up_proj", Some(0)),
        "up_proj" => ("gate_up_proj", Some(1)),
        _ => ("down_proj", None),
    };
    let tensor = &source[&format!("{layer}.experts.{fused}")];
    let [_, inputs, columns] = tensor.shape[..] else { panic!("{:?}", tensor.shape) };
    let (first, outs) = half.map_or((0, columns), |half| (half * columns / 2, columns / 2));
    let values = floats(tensor);
    let at = |out: usize, input: usize| values[(expert * inputs + input) * columns + first + out];
    (0..outs).flat_map(|out| (0..inputs).map(move |input| (out, input))).map(|(out, input)| at(out, input)).collect()
}

/// The numbers of an INT4 matrix, before they are rounded to BF16.
pub(crate) fn int4_matrix(out: &Model, module: &str) -> Vec<f32> {
    let part = |name: &str| out.get(&format!("{module}.{name}"));
    let (packed, scale, zeros) =
        (part("weight_packed").unwrap(), part("weight_scale").unwrap(), part("weight_zero_point"));
    let (scales, rows, groups, words) = (floats(scale), scale.shape[0], scale.shape[1], packed.shape[1]);
    let size = words * 8 / groups;
    let value = |row: usize, column: usize| {
        let code = nibble(packed, row * words + column / 8, column % 8);
        let zero = zeros.map_or(0, |zeros| nibble(zeros, row / 8 * groups + column / size, row % 8));
        (code - zero) as f32 * scales[row * groups + column / size]
    };
    (0..rows).flat_map(|row| (0..words * 8).map(move |column| (row, column))).map(|(r, c)| value(r, c)).collect()
}

/// Compares a quantized matrix with the source, element by element: round-to-nearest errs by half a step at most.
pub(crate) fn check_matrix(out: &Model, source: &Model, module: &str) -> &'static str {
    let part = |name: &str| out.get(&format!("{module}.{name}"));
    let expected = source_matrix(source, module);
    let Some(packed) = part("weight_packed") else {
        let weight = part("weight").unwrap();
        if weight.dtype != "F8_E4M3" {
            assert_eq!(floats(weight), expected, "{module}");
            return "plain";
        }
        let scale = part("weight_scale").unwrap();
        let (rows, columns) = (weight.shape[0], weight.shape[1]);
        let block = if scale.shape == [rows, 1] { (1, columns) } else { (128, 128) };
        assert_eq!(scale.shape, [rows.div_ceil(block.0), columns.div_ceil(block.1)], "{module}");
        let scales = floats(scale);
        for (index, (code, wanted)) in floats(weight).iter().zip(&expected).enumerate() {
            let (row, column) = (index / columns, index % columns);
            let scale = scales[row / block.0 * scale.shape[1] + column / block.1];
            let step = (wanted.abs() / 16.0).max(scale / 1024.0);
            assert!(
                (code * scale - wanted).abs() <= 1.01 * step,
                "{module}[{row}, {column}]: {code} * {scale}, {wanted}"
            );
        }
        return if block == (128, 128) { "fp8-block" } else { "fp8-dynamic" };
    };
    let shape: Vec<usize> = part("weight_shape")
        .unwrap()
        .data
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize)
        .collect();
    let (rows, columns) = (shape[0], shape[1]);
    assert_eq!(rows * columns, expected.len(), "{module}");
    assert_eq!(packed.shape, [rows, columns.div_ceil(8)], "{module}");
    let scale = part("weight_scale").unwrap();
    let (scales, groups) = (floats(scale), scale.shape[1]);
    let zero_point = part("weight_zero_point");
    if let Some(zero_point) = zero_point {
        assert_eq!(zero_point.shape, [rows.div_ceil(8), groups], "{module}");
    }
    for (index, wanted) in expected.iter().enumerate() {
        let (row, column) = (index / columns, index % columns);
        let group = column / (columns / groups);
        let scale = scales[row * groups + group];
        let code = nibble(packed, row * packed.shape[1] + column / 8, column % 8);
        let zero = zero_point.map_or(0, |zeros| nibble(zeros, row / 8 * groups + group, row % 8));
        let value = (code - zero) as f32 * scale;
        // Half a step, and another one where the zero point was rounded; the scale itself is rounded by 2^-9.
        let steps = if zero_point.is_some() { 1.06 } else { 0.56 };
        assert!(
            (value - wanted).abs() <= steps * scale.abs(),
            "{module}[{row}, {column}]: {value}, {wanted}, step {scale}"
        );
    }
    if zero_point.is_some() { "w4a16-asym" } else { "w4a16" }
}

/// Logical modules of the decoder that are linear layers: per expert, with their physical prefix.
fn linear_modules(out: &Model) -> Vec<String> {
    let is_weight = |name: &str| name.ends_with(".weight") || name.ends_with(".weight_packed");
    let is_linear =
        |name: &str| (name.contains("_proj.") || name.contains(".router.")) && !name.contains("vision_model");
    let names = out.keys().filter(|name| is_weight(name) && is_linear(name));
    names.map(|name| name.rsplit_once('.').unwrap().0.to_owned()).collect()
}

/// Checks a whole output against its source; gives the number of matrices in each scheme.
pub(crate) fn check_output(folder: &Path, source: &Path) -> BTreeMap<&'static str, usize> {
    let (out, source) = (read_model(folder), read_model(source));
    let config = read_json(&folder.join("config.json"));
    let mut schemes = BTreeMap::new();
    for module in linear_modules(&out) {
        let scheme = check_matrix(&out, &source, &module);
        *schemes.entry(scheme).or_default() += 1;
        check_group(&config["quantization_config"], &module, scheme);
    }
    // Every other tensor is there, bit for bit, and nothing else.
    let fused = |name: &str| name.ends_with(".experts.gate_up_proj") || name.ends_with(".experts.down_proj");
    for (name, tensor) in source.iter().filter(|(name, _)| !fused(name)) {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let quantized =
            ["weight_packed", "weight_scale"].iter().any(|part| out.contains_key(&format!("{module}.{part}")));
        assert!(quantized || out[name] == *tensor, "{name}");
    }
    assert!(out.keys().all(|name| !fused(name)));
    schemes
}

/// What compressed-tensors makes of a module's name: `re:` is Python's `re.match`, `Linear` is any linear layer.
fn matches(list: &serde_json::Value, module: &str) -> bool {
    list.as_array().unwrap().iter().any(|target| match target.as_str().unwrap() {
        "Linear" => true,
        target => Regex::new(&format!("^(?:{})", target.strip_prefix("re:").unwrap())).unwrap().is_match(module),
    })
}

/// A quantized module must belong to the one group that describes it, and a plain one to none.
fn check_group(config: &serde_json::Value, module: &str, scheme: &str) {
    let groups = config["config_groups"].as_object().unwrap();
    let ignored = matches(&config["ignore"], module);
    let of: Vec<_> = groups.values().filter(|group| !ignored && matches(&group["targets"], module)).collect();
    if scheme == "plain" {
        assert!(of.is_empty(), "{module} is plain and in a group: {config}");
        return;
    }
    let [group] = of[..] else { panic!("{module} is in {} groups: {config}", of.len()) };
    let weights = &group["weights"];
    let expected = match scheme {
        "w4a16" => (4, "group", true),
        "w4a16-asym" => (4, "group", false),
        "fp8-block" => (8, "block", true),
        _ => (8, "channel", true),
    };
    let is =
        (weights["num_bits"].as_u64().unwrap(), weights["strategy"].as_str().unwrap(), weights["symmetric"] == true);
    assert_eq!(is, expected, "{module}");
}
