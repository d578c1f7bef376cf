//! The document for a checkpoint that was converted: another number format, no vision part, no quantization.

use serde_json::{Map, Value, json};

use super::{Config, Model};
use crate::dtype::Dtype;

/// What becomes of a model when it is converted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conversion {
    /// The text model alone, as `Llama4ForCausalLM`.
    pub text_only: bool,
    /// The format of all floats, if there is one.
    pub dtype: Option<Dtype>,
}

/// The two spellings of the field that names the number format: before and since transformers 5.
const DTYPE_FIELDS: [&str; 2] = ["torch_dtype", "dtype"];

impl Config {
    /// The document for a checkpoint that `conversion` makes of this one, in plain floats.
    pub fn converted_document(&self, conversion: Conversion) -> Value {
        let Value::Object(mut document) = self.output_document(None) else {
            unreachable!("a config is an object");
        };
        if conversion.text_only && self.model == Model::Multimodal {
            document = text_only(document, self.nested);
        }
        if let Some(name) = conversion.dtype.and_then(torch_name) {
            set_dtype(&mut document, name);
            for section in ["text_config", "vision_config"] {
                if let Some(section) = document.get_mut(section).and_then(Value::as_object_mut)
                    && DTYPE_FIELDS.iter().any(|field| section.contains_key(*field))
                {
                    set_dtype(section, name);
                }
            }
        }
        Value::Object(document)
    }
}

fn torch_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::BF16 => Some("bfloat16"),
        Dtype::F16 => Some("float16"),
        Dtype::F32 => Some("float32"),
        _ => None,
    }
}

/// In whichever spelling is there; in the older one, which every version reads, if there is none.
fn set_dtype(section: &mut Map<String, Value>, name: &str) {
    let present = DTYPE_FIELDS.iter().filter(|field| section.contains_key(**field)).copied().collect::<Vec<_>>();
    for field in if present.is_empty() { &DTYPE_FIELDS[..1] } else { &present[..] } {
        section.insert((*field).to_owned(), name.into());
    }
}

/// The text model's fields as a document of their own, with what only the whole document said.
fn text_only(document: Map<String, Value>, nested: bool) -> Map<String, Value> {
    let mut text = Map::new();
    text.insert("architectures".into(), json!([Model::TextOnly.architecture()]));
    text.insert("model_type".into(), "llama4_text".into());
    let of_images = ["vision_config", "boi_token_index", "eoi_token_index", "image_token_index"];
    let inner = if nested { document.get("text_config").and_then(Value::as_object) } else { None };
    for (field, value) in inner.into_iter().flatten() {
        if !text.contains_key(field) {
            text.insert(field.clone(), value.clone());
        }
    }
    for (field, value) in &document {
        let is_text = !of_images.contains(&field.as_str()) && field != "text_config";
        if is_text && !text.contains_key(field) && !(nested && DTYPE_FIELDS.contains(&field.as_str())) {
            text.insert(field.clone(), value.clone());
        }
    }
    for field in DTYPE_FIELDS {
        let has_one = DTYPE_FIELDS.iter().any(|field| text.contains_key(*field));
        if let (false, Some(value)) = (has_one, document.get(field)) {
            text.insert(field.into(), value.clone());
        }
    }
    text
}
