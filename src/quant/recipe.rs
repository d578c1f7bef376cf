//! Recipes: which weight is quantized in which way, by ordered rules on logical names.
//!
//! A recipe is TOML. The last rule that matches a name decides, as in a `.gitignore`; a weight that no rule matches stays
//! as it is.
//!
//! ```toml
//! [[rule]]
//! match = 'feed_forward\.'      # a regex, found anywhere in the name
//! scheme = "w4a16"
//! group_size = 64               # optional
//! method = "search"             # optional: rtn, search, gptq or awq
//!
//! [[rule]]
//! match = '^layers\.(0|47)\.'
//! keep = true
//! ```

use regex::Regex;
use serde::Deserialize;

use super::Method;
use super::scheme::{Knowledge, Scheme};

/// What happens to a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It stays as it is.
    Keep,
    /// It is quantized.
    Quantize {
        /// How it is stored.
        scheme: Scheme,
        /// How its scales are chosen.
        method: Method,
    },
}

/// One rule of a recipe.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Found anywhere in a logical name.
    pub pattern: Regex,
    /// What it decides.
    pub action: Action,
}

/// Ordered rules.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// The last that matches decides.
    pub rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default, rename = "rule")]
    rules: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    r#match: String,
    scheme: Option<String>,
    group_size: Option<usize>,
    method: Option<String>,
    #[serde(default)]
    keep: bool,
}

impl Recipe {
    /// Reads a recipe; `method` applies to rules that name none, `None` being the best for each scheme with what is known.
    ///
    /// # Errors
    /// A sentence that names the rule, by its number from 1, and the value that is wrong.
    pub fn parse(text: &str, method: Option<Method>, known: Knowledge) -> Result<Self, String> {
        let document: Document = toml::from_str(text).map_err(|error| error.to_string())?;
        if document.rules.is_empty() {
            return Err("it has no [[rule]]".into());
        }
        let rules =
            document.rules.into_iter().enumerate().map(|(index, entry)| {
                entry.rule(method, known).map_err(|error| format!("rule {}: {error}", index + 1))
            });
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// What the rules say about a name; `None` if none matches.
    pub fn action(&self, name: &str) -> Option<Action> {
        self.rules.iter().rev().find(|rule| rule.pattern.is_match(name)).map(|rule| rule.action)
    }
}

impl Entry {
    fn rule(self, method: Option<Method>, known: Knowledge) -> Result<Rule, String> {
        let action = match (self.keep, self.scheme) {
            (true, None) if self.group_size.is_none() && self.method.is_none() => Action::Keep,
            (true, _) => return Err("`keep = true` goes with no scheme, group size or method".into()),
            (false, None) => return Err("it says neither `scheme` nor `keep = true`".into()),
            (false, Some(name)) => {
                let scheme = Scheme::parse(&name, self.group_size)?;
                let method = match self.method {
                    Some(name) => scheme.method(Some(name.parse()?), known)?,
                    // What applies to all rules is for those that it can apply to.
                    None => scheme.method(method, known).or_else(|_| scheme.method(None, known))?,
                };
                Action::Quantize { scheme, method }
            }
        };
        Ok(Rule { pattern: pattern(&self.r#match)?, action })
    }
}

/// Compiles a regex on logical names.
///
/// # Errors
/// A sentence that shows the regex and where it is wrong.
pub fn pattern(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("`{text}` is not a regex: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_matching_rule_decides() {
        let recipe = Recipe::parse(
            r"
            [[rule]]
            match = 'feed_forward'
            scheme = 'w4a16'
            [[rule]]
            match = 'shared_expert'
            scheme = 'fp8-dynamic'
            method = 'rtn'
            [[rule]]
            match = '^layers\.0\.'
            keep = true
            ",
            None,
            Knowledge::Nothing,
        )
        .unwrap();
        let int4 = Scheme::W4A16 { group_size: 128, symmetric: true };
        assert_eq!(
            recipe.action("layers.1.feed_forward.experts.0.up_proj"),
            Some(Action::Quantize { scheme: int4, method: Method::Search })
        );
        assert_eq!(
            recipe.action("layers.1.feed_forward.shared_expert.up_proj"),
            Some(Action::Quantize { scheme: Scheme::Fp8Dynamic, method: Method::Rtn })
        );
        assert_eq!(recipe.action("layers.0.feed_forward.shared_expert.up_proj"), Some(Action::Keep));
        assert_eq!(recipe.action("layers.10.self_attn.q_proj"), None);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| Recipe::parse(text, Some(Method::Rtn), Knowledge::Nothing).unwrap_err();
        assert!(error("").contains("no [[rule]]"));
        assert!(error("[[rule]]\nmatch = '('\nkeep = true").contains("rule 1: `(` is not a regex"));
        assert!(error("[[rule]]\nmatch = 'a'\nscheme = 'int3'").contains("unknown scheme `int3`"));
        assert!(error("[[rule]]\nmatch = 'a'\nscheme = 'fp8-dynamic'\ngroup_size = 64").contains("group size of 64"));
        assert!(error("[[rule]]\nmatch = 'a'").contains("neither"));
        assert!(error("[[rule]]\nmatch = 'a'\nkeep = true\nmethod = 'rtn'").contains("keep"));
        assert!(error("[[rule]]\nmatch = 'a'\nkepe = true").contains("kepe"));
    }
}
