//! Conversations as the model sees them: its own chat template, rendered as transformers does.
//!
//! The template is Jinja from `chat_template.jinja`, `tokenizer_config.json` or a GGUF file's keys. It comes from outside: it runs with a limit on
//! its steps and can reach nothing.

use anyhow::{Context, Result, anyhow};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value as Jinja, context};
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::error::hint;
use crate::llama4::gguf::tokenizer::Vocabulary;

/// The largest template or tokenizer config that is read.
const TEMPLATE_BYTES_MAX: u64 = 16 << 20;

/// Steps that a template may take for one conversation; a real one takes some hundred for each message.
const FUEL: u64 = 10_000_000;

/// Where transformers 5 keeps the template.
const TEMPLATE_NAME: &str = "chat_template.jinja";

/// Where it was kept before, and where the names of special tokens are.
const CONFIG_NAME: &str = "tokenizer_config.json";

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The template of a checkpoint.
    ///
    /// # Errors
    /// It has none, or one that cannot be read.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let folder = checkpoint.folder();
        if let Some(vocabulary) = Vocabulary::of(checkpoint)?
            && let Some(source) = vocabulary.chat_template()?
        {
            let text =
                |key: &str| Ok::<_, anyhow::Error>(vocabulary.special(key)?.map_or("", |(_, text)| text).to_owned());
            return Self::new(source.to_owned(), text("bos")?, text("eos")?)
                .with_context(|| format!("the chat template of `{}`", folder.display()));
        }
        let config = match checkpoint.side_file(CONFIG_NAME, TEMPLATE_BYTES_MAX)? {
            Some(content) => serde_json::from_slice(&content)
                .with_context(|| format!("`{}` is no JSON", folder.join(CONFIG_NAME).display()))?,
            None => Value::Null,
        };
        let own = checkpoint.side_file(TEMPLATE_NAME, TEMPLATE_BYTES_MAX)?;
        let own = own.map(String::from_utf8).transpose().with_context(|| format!("`{TEMPLATE_NAME}` is not UTF-8"))?;
        let Some(source) = own.or_else(|| template_in(&config)) else {
            return Err(hint(
                format!("`{}` has no chat template, so `messages` cannot be turned into text", folder.display()),
                "copy `chat_template.jinja` or `tokenizer_config.json` from the original repository, or use `text`",
            ));
        };
        Self::new(source, special(&config, "bos_token"), special(&config, "eos_token"))
            .with_context(|| format!("the chat template of `{}`", folder.display()))
    }

    fn new(source: String, bos: String, eos: String) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // As in `render_jinja_template` of transformers (`utils/chat_template_utils.py`).
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        // The date is an input like any other: the same data give the same tokens on every day.
        environment.add_function("strftime_now", |_format: String| "26 Jul 2024");
        environment.add_template_owned("chat", source)?;
        Ok(Self { environment, bos, eos })
    }

    /// The text of a conversation, special tokens spelled out.
    ///
    /// # Errors
    /// The template refuses the messages.
    pub fn render(&self, messages: &Value) -> Result<String> {
        let template = self.environment.get_template("chat").expect("it was added when this was made");
        let messages = Jinja::from(Serde(messages));
        let values =
            context! { messages, bos_token => &self.bos, eos_token => &self.eos, add_generation_prompt => false };
        template.render(values).map_err(|error| anyhow!("the chat template refuses a conversation: {error}"))
    }
}

/// The template in `tokenizer_config.json`: a string, or a list of named ones of which `default` is taken.
fn template_in(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))?;
            Some(default.get("template")?.as_str()?.to_owned())
        }
        _ => None,
    }
}

/// A special token: a string, or an object with its `content`.
fn special(config: &Value, key: &str) -> String {
    let token = config.get(key);
    let text = token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
    text.unwrap_or_default().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_template_of_llama_4s_kind_is_rendered() {
        let source = "{{- bos_token }}\n{%- for message in messages %}\n    {{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}\n    {%- if message['content'] is string %}\n        {{- message['content'].strip() }}\n    {%- else %}\n        {%- for content in message['content'] %}{{- content['text'] }}{%- endfor %}\n    {%- endif %}\n    {{- '<|eot|>' }}\n{%- endfor %}";
        let template = ChatTemplate::new(source.into(), "<s>".into(), "</s>".into()).unwrap();
        let messages = json!([
            {"role": "user", "content": " Hi "},
            {"role": "assistant", "content": [{"type": "text", "text": "Ho"}]},
        ]);
        assert_eq!(
            template.render(&messages).unwrap(),
            "<s><|header_start|>user<|header_end|>\n\nHi<|eot|><|header_start|>assistant<|header_end|>\n\nHo<|eot|>"
        );
    }

    #[test]
    fn a_template_may_refuse_and_cannot_run_for_ever() {
        let refuse =
            ChatTemplate::new("{{ raise_exception('roles must alternate') }}".into(), String::new(), String::new());
        let error = refuse.unwrap().render(&json!([])).unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        let endless = ChatTemplate::new(endless.into(), String::new(), String::new()).unwrap();
        assert!(endless.render(&json!([])).is_err());
    }
}
