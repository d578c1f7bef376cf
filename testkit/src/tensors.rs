//! Names and shapes of all tensors of a checkpoint, in the order of transformers' module tree.
//! It must not know values or files. Source: transformers 5.17, `models/llama4/modeling_llama4.py`, by instantiation.

use crate::{Dtype, Spec, TensorDef, Vision};

/// All tensors of a checkpoint, in the order in which they are written.
///
/// Linear weights are `[out, in]`; the routed experts are fused, `[expert, in, out]`, with `gate` in the first half of
/// the columns of `gate_up_proj` and `up` in the second, and have no `.weight` suffix.
pub fn tensors(spec: &Spec) -> Vec<TensorDef> {
    let mut list = List { defs: Vec::new(), dtype: spec.dtype };
    let root = if spec.text_only { "" } else { "language_model." };
    if let (Some(vision), false) = (&spec.vision, spec.text_only) {
        list.vision(vision);
        list.add("multi_modal_projector.linear_1.weight", &[spec.hidden_size, vision.output_dim]);
    }
    list.add(&format!("{root}model.embed_tokens.weight"), &[spec.vocab_size, spec.hidden_size]);
    for layer in 0..spec.layers {
        list.decoder_layer(spec, &format!("{root}model.layers.{layer}"), spec.is_moe(layer));
    }
    list.add(&format!("{root}model.norm.weight"), &[spec.hidden_size]);
    list.add(&format!("{root}lm_head.weight"), &[spec.vocab_size, spec.hidden_size]);
    list.defs
}

struct List {
    defs: Vec<TensorDef>,
    dtype: Dtype,
}

impl List {
    fn add(&mut self, name: &str, shape: &[usize]) {
        self.defs.push(TensorDef { name: name.to_owned(), dtype: self.dtype, shape: shape.to_vec() });
    }

    fn decoder_layer(&mut self, spec: &Spec, prefix: &str, moe: bool) {
        let hidden = spec.hidden_size;
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        self.add(&format!("{prefix}.self_attn.q_proj.weight"), &[queries, hidden]);
        self.add(&format!("{prefix}.self_attn.k_proj.weight"), &[keys, hidden]);
        self.add(&format!("{prefix}.self_attn.v_proj.weight"), &[keys, hidden]);
        self.add(&format!("{prefix}.self_attn.o_proj.weight"), &[hidden, queries]);
        let ffn = format!("{prefix}.feed_forward");
        if moe {
            let inner = spec.intermediate_size;
            self.add(&format!("{ffn}.experts.gate_up_proj"), &[spec.experts, hidden, 2 * inner]);
            self.add(&format!("{ffn}.experts.down_proj"), &[spec.experts, inner, hidden]);
            self.add(&format!("{ffn}.router.weight"), &[spec.experts, hidden]);
            self.mlp(&format!("{ffn}.shared_expert"), hidden, inner);
        } else {
            self.mlp(&ffn, hidden, spec.intermediate_size_mlp);
        }
        self.add(&format!("{prefix}.input_layernorm.weight"), &[hidden]);
        self.add(&format!("{prefix}.post_attention_layernorm.weight"), &[hidden]);
    }

    fn mlp(&mut self, prefix: &str, hidden: usize, inner: usize) {
        self.add(&format!("{prefix}.gate_proj.weight"), &[inner, hidden]);
        self.add(&format!("{prefix}.up_proj.weight"), &[inner, hidden]);
        self.add(&format!("{prefix}.down_proj.weight"), &[hidden, inner]);
    }

    fn vision(&mut self, v: &Vision) {
        let (width, inner) = (v.hidden_size, v.intermediate_size);
        let patches = (v.image_size / v.patch_size).pow(2);
        self.add("vision_model.class_embedding", &[width]);
        self.add("vision_model.positional_embedding_vlm", &[patches + 1, width]);
        self.add("vision_model.patch_embedding.linear.weight", &[width, 3 * v.patch_size * v.patch_size]);
        self.affine("vision_model.layernorm_pre", &[width]);
        self.affine("vision_model.layernorm_post", &[width]);
        for layer in 0..v.layers {
            let prefix = format!("vision_model.model.layers.{layer}");
            for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                self.affine(&format!("{prefix}.self_attn.{projection}"), &[width, width]);
            }
            self.affine(&format!("{prefix}.mlp.fc1"), &[inner, width]);
            self.affine(&format!("{prefix}.mlp.fc2"), &[width, inner]);
            self.affine(&format!("{prefix}.input_layernorm"), &[width]);
            self.affine(&format!("{prefix}.post_attention_layernorm"), &[width]);
        }
        self.add("vision_model.vision_adapter.mlp.fc1.weight", &[v.output_dim, inner]);
        self.add("vision_model.vision_adapter.mlp.fc2.weight", &[v.output_dim, v.output_dim]);
    }

    /// A weight and the bias along its first axis.
    fn affine(&mut self, prefix: &str, shape: &[usize]) {
        self.add(&format!("{prefix}.weight"), shape);
        self.add(&format!("{prefix}.bias"), &shape[..1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lists were made by transformers itself, on the meta device.
    fn assert_equals_tsv(spec: &Spec, tsv: &str) {
        let expected: Vec<&str> = tsv.lines().skip(1).collect();
        let actual: Vec<String> = tensors(spec)
            .iter()
            .map(|t| format!("{}\t{:?}\t{:?}\t{}", t.name, t.dtype, t.shape, t.shape.iter().product::<usize>()))
            .collect();
        assert_eq!(actual, expected);
    }

    #[test]
    fn scout_is_what_transformers_makes() {
        assert_equals_tsv(&Spec::scout_full(), include_str!("../../testdata/full-size/tensors-scout.tsv"));
    }

    #[test]
    fn maverick_is_what_transformers_makes() {
        assert_equals_tsv(&Spec::maverick_full(), include_str!("../../testdata/full-size/tensors-maverick.tsv"));
    }

    #[test]
    fn text_only_names_have_no_outer_prefix() {
        let names: Vec<String> =
            tensors(&Spec { text_only: true, ..Spec::default() }).into_iter().map(|t| t.name).collect();
        assert_eq!(names[0], "model.embed_tokens.weight");
        assert_eq!(names.last().map(String::as_str), Some("lm_head.weight"));
        assert!(!names.iter().any(|n| n.contains("vision")));
    }
}
