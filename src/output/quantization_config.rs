//! The `quantization_config` of a checkpoint, as compressed-tensors 0.19 writes it and transformers, vLLM and SGLang read it.
//!
//! Frame and fields: `compressors/model_compressors/model_compressor.py` and `quantization/quant_scheme.py` of
//! compressed-tensors 0.19. Engines match modules against `ignore` and `targets` by exact name, by class, or by a Python
//! regex after `re:`; a list of 9,216 names would be matched against as many modules, so sets of modules are written as
//! few regexes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::llama4::Llama4;
use crate::llama4::names::{Prefixes, Role};
use crate::quant::scheme::Scheme;

/// What compressed-tensors calls the way a scheme is stored.
fn format(scheme: Scheme) -> &'static str {
    if scheme.is_fp8() { "float-quantized" } else { "pack-quantized" }
}

/// Builds the config for a model in which weight `i` is stored in `schemes[i]`; `None` is plain.
///
/// Only linear layers of the decoder may have a scheme.
pub fn quantization_config(model: &Llama4, schemes: &[Option<Scheme>]) -> Value {
    let prefixes = Prefixes::of(model.config.model);
    let mut groups: BTreeMap<Option<Scheme>, Selection> = BTreeMap::new();
    for (weight, &scheme) in model.weights.iter().zip(schemes) {
        groups.entry(scheme).or_default().add(weight.role, weight.layer, weight.expert);
    }
    let plain = groups.remove(&None).unwrap_or_default();
    let mut ignore: Vec<String> =
        ["re:.*lm_head", "re:.*router", "re:.*vision_model.*", "re:.*multi_modal_projector.*"].map(String::from).into();
    let attention = groups.values().any(|group| group.roles().any(Role::is_attention));
    if !attention {
        ignore.push("re:.*self_attn".into());
    }
    ignore.extend(plain.patterns(prefixes, |role| role.is_feed_forward() || (attention && role.is_attention())));
    let single = groups.len() == 1;
    let formats: BTreeSet<_> = groups.keys().flatten().map(|&scheme| format(scheme)).collect();
    let config_groups: serde_json::Map<String, Value> = groups
        .into_iter()
        .enumerate()
        .map(|(index, (scheme, modules))| {
            let scheme = scheme.expect("the plain weights were taken out");
            let targets = if single { vec!["Linear".to_owned()] } else { modules.patterns(prefixes, |_| true) };
            (format!("group_{index}"), group(scheme, targets))
        })
        .collect();
    let format = match formats.first() {
        Some(format) if formats.len() == 1 => format,
        _ => "mixed-precision",
    };
    json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "version": "0.19.0",
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
        "sparsity_config": {},
        "transform_config": {},
        "ignore": ignore,
        "config_groups": config_groups,
    })
}

fn group(scheme: Scheme, targets: Vec<String>) -> Value {
    let (weights, activations) = match scheme {
        Scheme::W4A16 { group_size, symmetric } => {
            let mut weights = arguments(4, "int", "group");
            weights["symmetric"] = symmetric.into();
            weights["group_size"] = group_size.into();
            if !symmetric {
                weights["zp_dtype"] = "torch.int8".into();
            }
            (weights, Value::Null)
        }
        Scheme::Fp8Dynamic => (arguments(8, "float", "channel"), dynamic(arguments(8, "float", "token"))),
        Scheme::Fp8Block { rows, cols } => {
            let mut weights = arguments(8, "float", "block");
            weights["block_structure"] = json!([rows, cols]);
            let mut activations = arguments(8, "float", "group");
            activations["group_size"] = cols.into();
            (weights, dynamic(activations))
        }
        Scheme::Fp8Tensor { static_input: true } => (arguments(8, "float", "tensor"), arguments(8, "float", "tensor")),
        Scheme::Fp8Tensor { static_input: false } => {
            (arguments(8, "float", "tensor"), dynamic(arguments(8, "float", "token")))
        }
        Scheme::Blocks(_) => unreachable!("blocks of ggml are written to GGUF files alone"),
    };
    json!({
        "targets": targets,
        "format": format(scheme),
        "weights": weights,
        "input_activations": activations,
        "output_activations": null,
    })
}

/// `QuantizationArgs` with every field it has: readers forbid unknown ones, and some want all known ones.
fn arguments(num_bits: u32, kind: &str, strategy: &str) -> Value {
    json!({
        "num_bits": num_bits,
        "type": kind,
        "symmetric": true,
        "group_size": null,
        "strategy": strategy,
        "block_structure": null,
        "dynamic": false,
        "actorder": null,
        "scale_dtype": null,
        "zp_dtype": null,
        "observer": null,
        "observer_kwargs": {},
    })
}

fn dynamic(mut arguments: Value) -> Value {
    arguments["dynamic"] = true.into();
    arguments
}

/// Numbers of experts; `None` for a module that is no expert's.
type Experts = BTreeSet<Option<usize>>;

/// A set of modules: for each role, which layers, and in these which experts.
#[derive(Default)]
struct Selection {
    modules: BTreeMap<Role, BTreeMap<usize, Experts>>,
}

impl Selection {
    fn add(&mut self, role: Role, layer: Option<usize>, expert: Option<usize>) {
        if let Some(layer) = layer {
            self.modules.entry(role).or_default().entry(layer).or_default().insert(expert);
        }
    }

    fn roles(&self) -> impl Iterator<Item = Role> {
        self.modules.keys().copied()
    }

    /// Regexes that match exactly the modules whose role is `wanted`.
    fn patterns(&self, prefixes: Prefixes, wanted: impl Fn(Role) -> bool) -> Vec<String> {
        // Modules that share their layers and experts share a regex.
        let mut by_experts: BTreeMap<(&Experts, Vec<&str>), BTreeSet<usize>> = BTreeMap::new();
        let mut by_layer: BTreeMap<(usize, &Experts), Vec<&str>> = BTreeMap::new();
        for (role, layers) in self.modules.iter().filter(|(role, _)| wanted(**role)) {
            let module = role.expert_module().or(role.layer_module()).expect("a linear layer of the decoder");
            for (&layer, experts) in layers {
                by_layer.entry((layer, experts)).or_default().push(module);
            }
        }
        for ((layer, experts), modules) in by_layer {
            by_experts.entry((experts, modules)).or_default().insert(layer);
        }
        let prefix = prefixes.text.replace('.', r"\.");
        by_experts
            .into_iter()
            .map(|((experts, modules), layers)| {
                let layers = alternatives(layers.iter());
                let modules = alternatives(modules.iter().map(|module| module.replace('.', r"\.")));
                let numbers: Vec<usize> = experts.iter().flatten().copied().collect();
                let experts = if numbers.is_empty() {
                    String::new()
                } else {
                    format!(r"feed_forward\.experts\.{}\.", alternatives(&numbers))
                };
                format!(r"re:{prefix}layers\.{layers}\.{experts}{modules}$")
            })
            .collect()
    }
}

fn alternatives<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    format!("({})", items.join("|"))
}
