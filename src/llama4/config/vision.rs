//! The vision part of a Llama 4 config: `vision_config` and the tokens that stand for images.
//!
//! Names, meanings and defaults are those of transformers 5.17, `configuration_llama4.py`, `Llama4VisionConfig`.

use serde_json::Value;

use super::fields::{ConfigError, Fields, whole};
use super::text::DIMENSION_MAX;

/// The vision model's dimensions and switches.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Inner width of a layer's feed-forward.
    pub intermediate_size: usize,
    /// Colours of a pixel.
    pub num_channels: usize,
    /// Side of a tile in pixels; a multiple of `patch_size`.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Added to the variance in every layer norm.
    pub norm_eps: f64,
    /// Base of the wavelengths of the two-dimensional RoPE.
    pub rope_theta: f64,
    /// Side of the patch grid after the pixel shuffle, as a share of the side before it; at most 1.
    pub pixel_shuffle_ratio: f64,
    /// Inner width of the adapter behind the pixel shuffle.
    pub projector_input_dim: usize,
    /// Outer width of that adapter.
    pub projector_output_dim: usize,
    /// Width of what the vision model gives to the projector.
    pub vision_output_dim: usize,
    /// Whether the projector has a bias.
    pub multi_modal_projector_bias: bool,
    /// What becomes of the class token; `default` in every published model.
    pub vision_feature_select_strategy: String,
    /// Activation of the feed-forwards.
    pub hidden_act: String,
}

impl VisionConfig {
    /// Reads and checks the vision model's fields.
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let hidden_size = fields.count("hidden_size", 768, DIMENSION_MAX)?;
        let num_attention_heads = fields.count("num_attention_heads", 16, DIMENSION_MAX)?;
        if !hidden_size.is_multiple_of(num_attention_heads) {
            let problem = format!("`{num_attention_heads}` does not divide `hidden_size`, {hidden_size}");
            return Err(fields.error("num_attention_heads", problem));
        }
        let image_size = read_side(fields, "image_size", 448)?;
        let patch_size = read_side(fields, "patch_size", 14)?;
        if !image_size.is_multiple_of(patch_size) {
            let problem = format!("`{image_size}` is not a multiple of `patch_size`, {patch_size}");
            return Err(fields.error("image_size", problem));
        }
        let pixel_shuffle_ratio = fields.positive("pixel_shuffle_ratio", Some(0.5))?;
        if pixel_shuffle_ratio > 1.0 {
            return Err(fields.error("pixel_shuffle_ratio", format!("`{pixel_shuffle_ratio}` is more than 1")));
        }
        // The old place, then transformers 5's; the default is that of `PreTrainedConfig`.
        let outer = fields.positive("rope_theta", Some(10_000.0))?;
        let rope = fields.object("rope_parameters", "vision_config.rope_parameters.")?;
        Ok(Self {
            hidden_size,
            num_hidden_layers: fields.count("num_hidden_layers", 34, 4096)?,
            num_attention_heads,
            intermediate_size: fields.count("intermediate_size", 5632, DIMENSION_MAX)?,
            num_channels: fields.count("num_channels", 3, 1024)?,
            image_size,
            patch_size,
            norm_eps: fields.positive("norm_eps", Some(1e-5))?,
            rope_theta: rope.map_or(Ok(outer), |rope| rope.positive("rope_theta", Some(outer)))?,
            pixel_shuffle_ratio,
            projector_input_dim: fields.count("projector_input_dim", 4096, DIMENSION_MAX)?,
            projector_output_dim: fields.count("projector_output_dim", 4096, DIMENSION_MAX)?,
            vision_output_dim: fields.count("vision_output_dim", 7680, DIMENSION_MAX)?,
            multi_modal_projector_bias: fields.flag("multi_modal_projector_bias", false)?,
            vision_feature_select_strategy: fields
                .text("vision_feature_select_strategy")?
                .unwrap_or("default")
                .to_string(),
            hidden_act: fields.text("hidden_act")?.unwrap_or("gelu").to_string(),
        })
    }
}

/// The side of a square, given as one number or as two equal ones.
fn read_side(fields: &Fields<'_>, key: &str, default: usize) -> Result<usize, ConfigError> {
    const SIDE_MAX: usize = 1 << 16;
    match fields.get(key) {
        Some(Value::Array(_)) => {
            let sides = fields.list(key, "a whole number", whole)?.unwrap_or_default();
            match sides[..] {
                [height, width] if height == width && (1..=SIDE_MAX as u64).contains(&height) => Ok(height as usize),
                _ => Err(fields.error(key, format!("`{sides:?}` is not a square"))),
            }
        }
        _ => fields.count(key, default, SIDE_MAX),
    }
}
