//! Which tensors get another type than the preset's: rules on logical names, from flags or a recipe.

use anyhow::{Result, bail};
use regex::Regex;
use serde::Deserialize;

use crate::dtype::Dtype;
use crate::error::hint;
use crate::llama4::Llama4;
use crate::output::gguf::mix::{FileType, can_be_quantized, parse_dtype};
use crate::output::gguf::tensors::GgufTensor;
use crate::quant::recipe::pattern;

/// What happens to the weights that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They stay floats.
    Keep,
    /// They get what the preset gives them.
    Preset,
    /// They get this type.
    Type(Dtype),
}

/// A rule; the last that matches a name decides.
#[derive(Clone, Debug)]
pub struct TypeRule {
    /// Found anywhere in a logical name.
    pub pattern: Regex,
    /// What it decides.
    pub action: Action,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    preset: String,
    #[serde(default, rename = "rule")]
    rules: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    r#match: String,
    scheme: Option<String>,
    #[serde(default)]
    keep: bool,
}

/// Whether the text of a recipe is one for GGUF: it names the preset that holds where no rule matches.
pub fn is_recipe(text: &str) -> bool {
    text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("preset"))
}

/// Reads a recipe for GGUF.
///
/// # Errors
/// A sentence that names the rule, by its number from 1, and the value that is wrong.
pub fn parse_recipe(text: &str) -> Result<(FileType, Vec<TypeRule>), String> {
    let document: Document = toml::from_str(text).map_err(|error| error.to_string())?;
    let preset = FileType::parse(&document.preset).ok_or_else(|| unknown(&document.preset))?;
    let rule = |entry: &Entry| {
        let action = match (entry.keep, &entry.scheme) {
            (true, None) => Action::Keep,
            (false, Some(name)) => Action::Type(parse_dtype(name).ok_or_else(|| unknown(name))?),
            _ => return Err("it says neither `scheme` nor `keep = true`, or both".to_owned()),
        };
        Ok(TypeRule { pattern: pattern(&entry.r#match)?, action })
    };
    let rules = document.rules.iter().enumerate();
    let rules = rules.map(|(index, entry)| rule(entry).map_err(|error| format!("rule {}: {error}", index + 1)));
    Ok((preset, rules.collect::<Result<_, _>>()?))
}

fn unknown(name: &str) -> String {
    let names: Vec<&str> = FileType::all().map(FileType::name).collect();
    format!("`{name}` is no type of GGUF files that is written; there are {}", names.join(", "))
}

/// The type that the rules give each tensor; `None` where the preset decides.
///
/// # Errors
/// A rule that matches nothing, or that would give experts of one tensor different types.
pub(super) fn chosen(model: &Llama4, tensors: &[GgufTensor], rules: &[TypeRule]) -> Result<Vec<Option<Dtype>>> {
    for rule in rules {
        if !model.weights.iter().any(|weight| rule.pattern.is_match(&weight.name)) {
            bail!(hint(
                format!("`{}` matches no weight", rule.pattern),
                "weights have logical names such as `layers.7.feed_forward.experts.3.gate_proj`; `l4tool inspect --tensors` shows them",
            ));
        }
    }
    tensors.iter().map(|tensor| chosen_for(model, tensor, rules)).collect()
}

fn chosen_for(model: &Llama4, tensor: &GgufTensor, rules: &[TypeRule]) -> Result<Option<Dtype>> {
    if !can_be_quantized(&tensor.name, &tensor.extents) {
        return Ok(None);
    }
    let decide = |&index: &usize| {
        let weight = &model.weights[index];
        let rule = rules.iter().rev().find(|rule| rule.pattern.is_match(&weight.name))?;
        match rule.action {
            Action::Keep => Some(model.stored_float(weight).map_or(Dtype::BF16, |float| float.dtype())),
            Action::Type(dtype) => Some(dtype),
            Action::Preset => None,
        }
    };
    let mut decisions = tensor.weights().iter().map(decide);
    let Some(first) = decisions.next() else { return Ok(None) };
    match decisions.position(|other| other != first) {
        None => Ok(first),
        Some(position) => {
            let [one, other] = [0, position + 1].map(|at| &model.weights[tensor.weights()[at]].name);
            Err(hint(
                format!("`{one}` and `{other}` get different types, and lie in one tensor of GGUF, `{}`", tensor.name),
                "match all experts of a layer, or none: `\\.experts\\.\\d+\\.`",
            ))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_for_gguf_names_a_preset() {
        let text = "preset = 'q4_k_m'\n[[rule]]\nmatch = 'self_attn'\nscheme = 'Q8_0'\n[[rule]]\nmatch = 'lm_head'\nkeep = true";
        assert!(is_recipe(text) && !is_recipe("[[rule]]\nmatch = 'a'\nkeep = true"));
        let (preset, rules) = parse_recipe(text).unwrap();
        assert_eq!(preset, FileType::Q4_K_M);
        assert_eq!(rules.iter().map(|rule| rule.action).collect::<Vec<_>>(), [Action::Type(Dtype::Q8_0), Action::Keep]);
        let error = |text: &str| parse_recipe(text).unwrap_err();
        assert!(error("preset = 'q9'").contains("`q9` is no type"));
        assert!(error("preset = 'q8_0'\n[[rule]]\nmatch = 'a'").contains("rule 1: it says neither"));
    }
}
