//! Which weight is quantized in which way: from flags and recipes to one decision per weight, with warnings.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow, bail};
use regex::Regex;

use crate::checkpoint::shown;
use crate::error::hint;
use crate::llama4::{Llama4, ProblemKind, Role, Weight};
use crate::output::hash::sha256;
use crate::output::modules::Target;
use crate::quant::Method;
use crate::quant::recipe::{Action, Recipe, Rule};
use crate::quant::scheme::Scheme;

/// What the user asked for.
#[derive(Clone, Debug)]
pub enum Selection {
    /// One scheme for the default set, or for what `include` matches, less what `exclude` matches.
    Uniform {
        /// The scheme.
        scheme: Scheme,
        /// How scales are chosen.
        method: Method,
        /// If not empty, the weights to quantize instead of the feed-forward matrices.
        include: Vec<Regex>,
        /// Weights that stay as they are.
        exclude: Vec<Regex>,
    },
    /// A recipe's rules, with its text for the record.
    Recipe {
        /// The rules.
        recipe: Recipe,
        /// The recipe's SHA-256 in hex.
        sha256: String,
        /// Weights that stay as they are whatever the rules say.
        exclude: Vec<Regex>,
    },
}

/// The decision for every weight.
#[derive(Clone, Debug)]
pub struct Choice {
    /// For every weight of the model, how it is to be quantized; `None` if it stays as it is.
    pub targets: Vec<Option<Target>>,
    /// For every weight, the scheme that it has in the output.
    pub stored: Vec<Option<Scheme>>,
    /// What the engines cannot serve, or what a rule could not do, in sentences.
    pub warnings: Vec<String>,
    /// The request, in words that decide the output.
    pub settings: BTreeMap<String, String>,
}

/// Whether any engine serves this weight quantized. vLLM gives embeddings, head, router, vision and projector no
/// quantization (`models/llama4.py`, `models/mllama4.py` of vLLM 0.32).
fn can_be_quantized(role: Role) -> bool {
    role.is_feed_forward() || role.is_attention()
}

impl Choice {
    /// Decides for every weight of `model`.
    ///
    /// # Errors
    /// A regex that matches nothing, or only what cannot be quantized; nothing to quantize; a group size that does not
    /// divide a weight's inputs.
    pub fn make(model: &Llama4, selection: &Selection) -> Result<Self> {
        let recipe = rules(selection);
        let mut warnings = Vec::from_iter(left_out(model));
        for rule in &recipe.rules {
            check_matches(model, rule, &mut warnings)?;
        }
        let mut targets = Vec::with_capacity(model.weights.len());
        for weight in &model.weights {
            let action = if can_be_quantized(weight.role) { recipe.action(&weight.name) } else { None };
            targets.push(match action {
                Some(Action::Quantize { scheme, method }) => Some(target(weight, scheme, method)?),
                Some(Action::Keep) | None => None,
            });
        }
        if targets.iter().all(Option::is_none) {
            bail!(hint(
                "nothing is left to quantize",
                "the rules exclude every weight; `l4tool inspect --tensors` shows the names"
            ));
        }
        let stored: Vec<_> = model
            .weights
            .iter()
            .zip(&targets)
            .map(|(weight, target)| target.map(|target| target.scheme).or(weight.coding.scheme()))
            .collect();
        refuse_unserved(model, &stored)?;
        warnings.extend(engine_warnings(model, &stored));
        warnings.extend(super::factors::warning(model, &targets));
        let mut settings = settings(selection);
        settings.insert("weights".into(), digest(&targets));
        Ok(Self { targets, stored, warnings, settings })
    }

    /// One line per scheme: what is stored in it.
    pub fn summary(&self, model: &Llama4) -> Vec<String> {
        let mut matrices: BTreeMap<Scheme, BTreeMap<&str, usize>> = BTreeMap::new();
        for (weight, scheme) in model.weights.iter().zip(&self.stored) {
            if let Some(scheme) = scheme {
                *matrices.entry(*scheme).or_default().entry(weight.role.component()).or_default() += 1;
            }
        }
        matrices
            .into_iter()
            .map(|(scheme, components)| {
                let parts: Vec<String> =
                    components.iter().map(|(name, count)| format!("{count} of {}", name.replace('_', " "))).collect();
                format!("`{scheme}`: {} matrices ({})", components.values().sum::<usize>(), parts.join(", "))
            })
            .collect()
    }
}

/// A digest of what was decided for every weight, whatever rules and flags led to it.
fn digest(targets: &[Option<Target>]) -> String {
    let line = |target: &Option<Target>| {
        target.map_or_else(|| "-\n".into(), |target| format!("{} {}\n", target.scheme, target.method))
    };
    sha256(targets.iter().map(line).collect::<String>().as_bytes())
}

/// Refuses a source in which something is quantized that the output's config has to list as not quantized.
fn refuse_unserved(model: &Llama4, stored: &[Option<Scheme>]) -> Result<()> {
    let found =
        model.weights.iter().zip(stored).find(|(weight, scheme)| scheme.is_some() && !can_be_quantized(weight.role));
    match found {
        Some((weight, Some(scheme))) => {
            bail!("`{}` is stored as {scheme} in the source, which no engine serves for it", weight.name)
        }
        _ => Ok(()),
    }
}

/// Tensors that belong to no weight of the model do not come along.
fn left_out(model: &Llama4) -> Option<String> {
    let strangers: Vec<_> = model.problems.iter().filter(|problem| problem.kind == ProblemKind::Unexpected).collect();
    let first = strangers.first()?;
    let name = shown(&first.name);
    Some(format!("{} tensors are no part of this model and are left out, such as `{name}`", strangers.len()))
}

/// Everything as rules: the last that matches decides.
fn rules(selection: &Selection) -> Recipe {
    let (mut recipe, exclude) = match selection {
        Selection::Recipe { recipe, exclude, .. } => (recipe.clone(), exclude),
        Selection::Uniform { scheme, method, include, exclude } => {
            let action = Action::Quantize { scheme: *scheme, method: *method };
            let default = [Regex::new(r"^layers\.\d+\.feed_forward\..*_proj$").expect("a fixed regex")];
            let patterns = if include.is_empty() { &default[..] } else { include };
            let rules = patterns.iter().map(|pattern| Rule { pattern: pattern.clone(), action });
            (Recipe { rules: rules.collect() }, exclude)
        }
    };
    recipe.rules.extend(exclude.iter().map(|pattern| Rule { pattern: pattern.clone(), action: Action::Keep }));
    recipe
}

fn check_matches(model: &Llama4, rule: &Rule, warnings: &mut Vec<String>) -> Result<()> {
    let matched: Vec<&Weight> = model.weights.iter().filter(|weight| rule.pattern.is_match(&weight.name)).collect();
    let Some(first) = matched.first() else {
        return Err(hint(
            format!("`{}` matches no weight", rule.pattern),
            "weights have logical names such as `layers.7.feed_forward.experts.3.gate_proj`; `l4tool inspect --tensors` shows them",
        ));
    };
    if rule.action == Action::Keep {
        return Ok(());
    }
    let refused: Vec<_> = matched.iter().filter(|weight| !can_be_quantized(weight.role)).collect();
    if refused.len() == matched.len() {
        return Err(hint(
            format!("`{}` matches only what no engine serves quantized, such as `{}`", rule.pattern, first.name),
            "attention and feed-forward matrices of the decoder can be quantized",
        ));
    }
    if let Some(weight) = refused.first() {
        warnings.push(format!(
            "`{}` also matches {} weights that no engine serves quantized, such as `{}`; they stay as they are",
            rule.pattern,
            refused.len(),
            weight.name
        ));
    }
    Ok(())
}

fn target(weight: &Weight, scheme: Scheme, method: Method) -> Result<Target> {
    let (_, input) = weight.matrix();
    if let Scheme::W4A16 { group_size, .. } = scheme
        && !input.is_multiple_of(group_size)
    {
        return Err(hint(
            format!("a group size of {group_size} does not divide the {input} inputs of `{}`", weight.name),
            divisors(input),
        ));
    }
    Ok(Target { scheme, method })
}

/// Group sizes that would do.
fn divisors(input: usize) -> String {
    let fitting: Vec<String> =
        [128, 64, 32, 16].into_iter().filter(|size| input.is_multiple_of(*size)).map(|size| size.to_string()).collect();
    if fitting.is_empty() {
        format!("use a divisor of {input}, or keep this weight with `--exclude`")
    } else {
        format!("use `--group-size {}`", fitting.join("` or `"))
    }
}

/// What the engines cannot serve, by name. Sources: vLLM 0.32 `compressed_tensors_moe.py` and `models/llama4.py`; SGLang
/// `models/llama4.py`.
fn engine_warnings(model: &Llama4, stored: &[Option<Scheme>]) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut experts: BTreeMap<usize, BTreeSet<Option<Scheme>>> = BTreeMap::new();
    let mut fused: BTreeMap<(usize, &str), BTreeSet<Option<Scheme>>> = BTreeMap::new();
    for (weight, &scheme) in model.weights.iter().zip(stored) {
        let Some(layer) = weight.layer else { continue };
        if weight.role.is_expert() {
            experts.entry(layer).or_default().insert(scheme);
        }
        let together = match weight.role {
            Role::Query | Role::Key | Role::Value => "self_attn.{q,k,v}_proj",
            Role::SharedGate | Role::SharedUp => "feed_forward.shared_expert.{gate,up}_proj",
            Role::DenseGate | Role::DenseUp => "feed_forward.{gate,up}_proj",
            _ => continue,
        };
        fused.entry((layer, together)).or_default().insert(scheme);
    }
    let spell = |schemes: &BTreeSet<Option<Scheme>>| {
        let names: Vec<_> =
            schemes.iter().map(|s| s.map_or_else(|| "not quantized".into(), |s| s.to_string())).collect();
        names.join(" and ")
    };
    for (layer, schemes) in experts.iter().filter(|(_, schemes)| schemes.len() > 1) {
        warnings.push(format!(
            "layers.{layer}: its experts are {}; vLLM serves one scheme per layer of experts and takes expert 0's",
            spell(schemes)
        ));
    }
    for ((layer, modules), schemes) in fused.iter().filter(|(_, schemes)| schemes.len() > 1) {
        warnings
            .push(format!("layers.{layer}.{modules} are {}; vLLM fuses them and serves one scheme", spell(schemes)));
    }
    warnings.extend(attention_warning(model, stored));
    warnings.extend(block_warning(model, stored));
    let odd: BTreeSet<usize> = stored
        .iter()
        .filter_map(|scheme| match scheme {
            Some(Scheme::W4A16 { group_size, .. }) if ![32, 64, 128].contains(group_size) => Some(*group_size),
            _ => None,
        })
        .collect();
    warnings.extend(odd.iter().map(|size| format!("vLLM's INT4 kernels know groups of 32, 64 and 128, not of {size}")));
    warnings
}

/// With FP8 blocks activations are quantized in groups as wide as a block, which has to divide them: transformers 5.17 fails
/// in its first forward pass otherwise.
fn block_warning(model: &Llama4, stored: &[Option<Scheme>]) -> Option<String> {
    model.weights.iter().zip(stored).find_map(|(weight, scheme)| {
        let (_, input) = weight.matrix();
        match scheme {
            Some(Scheme::Fp8Block { cols, .. }) if !input.is_multiple_of(*cols) => Some(format!(
                "`{}` has {input} inputs, and engines quantize activations for FP8 blocks in groups of {cols}",
                weight.name
            )),
            _ => None,
        }
    })
}

/// vLLM and SGLang permute the rows of `q_proj` and `k_proj` while loading, but not everything that belongs to them.
fn attention_warning(model: &Llama4, stored: &[Option<Scheme>]) -> Option<String> {
    let (weight, scheme) = model.weights.iter().zip(stored).find_map(|(weight, scheme)| {
        let permuted = matches!(weight.role, Role::Query | Role::Key);
        scheme.filter(|_| permuted).map(|scheme| (weight, scheme))
    })?;
    let who = match scheme {
        Scheme::W4A16 { symmetric: true, .. } => "SGLang does not permute packed codes",
        Scheme::W4A16 { symmetric: false, .. } => "vLLM does not permute zero points, and SGLang no packed codes",
        Scheme::Fp8Block { .. } => "block scales cannot be permuted",
        Scheme::Fp8Dynamic | Scheme::Fp8Tensor { .. } | Scheme::Blocks(_) => return None,
    };
    Some(format!("`{}` is {scheme}, and engines permute its rows while loading: {who}", weight.name))
}

fn settings(selection: &Selection) -> BTreeMap<String, String> {
    let list = |patterns: &[Regex]| patterns.iter().map(Regex::as_str).collect::<Vec<_>>().join(" ");
    let mut settings = BTreeMap::new();
    match selection {
        Selection::Uniform { scheme, method, include, exclude } => {
            settings.insert("scheme".into(), scheme.to_string());
            settings.insert("method".into(), method.to_string());
            settings.insert("include".into(), list(include));
            settings.insert("exclude".into(), list(exclude));
        }
        Selection::Recipe { sha256, exclude, .. } => {
            settings.insert("recipe sha256".into(), sha256.clone());
            settings.insert("exclude".into(), list(exclude));
        }
    }
    settings
}

/// Reads the regexes of a flag.
///
/// # Errors
/// Shows the regex that is none.
pub fn patterns(flag: &str, texts: &[String]) -> Result<Vec<Regex>> {
    let compile = |text: &String| crate::quant::recipe::pattern(text).map_err(|error| anyhow!("{flag}: {error}"));
    texts.iter().map(compile).collect()
}
