//! Which tokens a tokenizer puts around a text: its post-processor, as llama.cpp's converter reads it.
//!
//! `_try_load_from_tokenizer_json` in `gguf-py/gguf/vocab.py` of llama.cpp, commit 0c1e57098, for simple templates.

use serde_json::Value as Json;

use super::tokenizer::content;

/// The tokens that keys can tell of, by their names there.
const NAMES: [&str; 3] = ["bos", "eos", "sep"];

/// Whether the tokenizer adds each token, as far as it says, in the order in which the converter finds out.
pub(super) fn added(post_processor: Option<&Json>, config: &Json) -> Vec<(&'static str, bool)> {
    let mut added = Flags::default();
    let steps = post_processor.map(|processor| match processor.get("processors").and_then(Json::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![processor],
    });
    for step in steps.into_iter().flatten() {
        match step.get("type").and_then(Json::as_str) {
            Some("ByteLevel") => {
                added.set_new("bos", false);
                added.set_new("eos", false);
            }
            Some("TemplateProcessing") => template(step, config, &mut added),
            _ => {}
        }
    }
    for name in NAMES {
        if let Some(flag) = config.get(format!("add_{name}_token")).and_then(Json::as_bool) {
            added.set_new(name, flag);
        }
    }
    added.0
}

/// What is known so far, in order.
#[derive(Debug, Default)]
struct Flags(Vec<(&'static str, bool)>);

impl Flags {
    fn set(&mut self, name: &'static str, flag: bool) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = flag,
            None => self.0.push((name, flag)),
        }
    }

    fn set_new(&mut self, name: &'static str, flag: bool) {
        if self.0.iter().all(|(known, _)| *known != name) {
            self.0.push((name, flag));
        }
    }
}

fn template(step: &Json, config: &Json, added: &mut Flags) {
    let list = |name: &str| step.get(name).and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let special = |entry: Option<&Json>| entry?.pointer("/SpecialToken/id")?.as_str().map(str::to_owned);
    let sequence = |entry: Option<&Json>| entry?.pointer("/Sequence/id")?.as_str().map(str::to_owned);
    let named = |name: &str| content(config, name).map(str::to_owned);
    let (single, mut pair) = (list("single"), list("pair"));
    let (mut first, mut last) = (None, None);
    if single.len() > 1 {
        (first, last) = (special(single.first()), special(single.last()));
        if first.is_some() {
            // Without a name of its own the token in front is the one that begins a text.
            let begins = named("bos").is_none() || named("bos") == first || named("cls") == first;
            added.set("bos", begins);
        }
        if last.is_some() {
            added.set("eos", named("eos").is_none() || named("eos") == last);
        }
    }
    if first.is_some() && special(pair.first()) == first {
        pair = &pair[1..];
    }
    if last.is_some() && special(pair.last()) == last {
        pair = &pair[..pair.len() - 1];
    }
    if let [a, between @ .., b] = pair
        && !between.is_empty()
        && sequence(Some(a)).as_deref() == Some("A")
        && sequence(Some(b)).as_deref() == Some("B")
    {
        let separates = |entry: Option<&Json>| {
            let token = special(entry);
            token.is_some() && (token == named("sep") || token == named("eos"))
        };
        let one = separates(between.first()) && last.is_none();
        added.set("sep", one || (between.len() == 2 && separates(between.last())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn llama_4_s_processors_begin_texts_and_end_none() {
        let special = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let template = json!({"type": "TemplateProcessing", "single": [special, sequence("A")],
            "pair": [special, sequence("A"), special, sequence("B")]});
        let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>"});
        assert_eq!(added(Some(&template), &config), [("bos", true), ("sep", false)]);
        let both = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]});
        assert_eq!(added(Some(&both), &config), [("bos", true), ("eos", false), ("sep", false)]);
        assert_eq!(added(Some(&template), &json!({"bos_token": "<x>"})), [("bos", false), ("sep", false)]);
        assert_eq!(added(None, &json!({"add_bos_token": true})), [("bos", true)]);
    }
}
