//! Who looks on while a model runs: told the routing and the inputs of every linear layer, asked for what weights give.
//!
//! It knows roles and rows; not what is done with them.

use std::ops::Range;

use anyhow::Result;

use super::store::Rows;
use crate::llama4::config::TextConfig;
use crate::llama4::{Llama4, Role, Weight};
use crate::model::moe::Routing;
use crate::model::weights;

/// A place where one activation goes into one or more weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Into `q_proj`, `k_proj` and `v_proj`: the normed residual stream, `hidden` wide.
    AttentionInput,
    /// Into `o_proj`: what the heads gave, `heads * head_dim` wide.
    AttentionOutput,
    /// Into `gate_proj` and `up_proj` of a dense feed-forward: the normed residual stream.
    DenseGateUp,
    /// Into its `down_proj`: `silu(gate) * up`, `intermediate_mlp` wide.
    DenseDown,
    /// Into the router and into `gate_proj` and `up_proj` of the shared expert: the normed residual stream.
    SharedGateUp,
    /// Into the shared expert's `down_proj`, `intermediate` wide.
    SharedDown,
    /// Into `gate_proj` and `up_proj` of one routed expert: the rows that were sent to it, each times its score.
    ExpertGateUp(usize),
    /// Into that expert's `down_proj`.
    ExpertDown(usize),
}

/// A place in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Number of the layer.
    pub layer: usize,
    /// The place.
    pub place: Place,
}

impl Site {
    /// The weights that see this input.
    pub fn roles(self) -> &'static [Role] {
        match self.place {
            Place::AttentionInput => &[Role::Query, Role::Key, Role::Value],
            Place::AttentionOutput => &[Role::AttentionOutput],
            Place::DenseGateUp => &[Role::DenseGate, Role::DenseUp],
            Place::DenseDown => &[Role::DenseDown],
            Place::SharedGateUp => &[Role::Router, Role::SharedGate, Role::SharedUp],
            Place::SharedDown => &[Role::SharedDown],
            Place::ExpertGateUp(_) => &[Role::ExpertGate, Role::ExpertUp],
            Place::ExpertDown(_) => &[Role::ExpertDown],
        }
    }

    /// The expert, for a place of a routed one.
    pub fn expert(self) -> Option<usize> {
        match self.place {
            Place::ExpertGateUp(expert) | Place::ExpertDown(expert) => Some(expert),
            _ => None,
        }
    }

    /// Whether its rows go into the first two matrices of a feed-forward network.
    pub fn is_gate_up(self) -> bool {
        matches!(self.place, Place::DenseGateUp | Place::SharedGateUp | Place::ExpertGateUp(_))
    }

    /// Width of a row.
    pub fn width(self, text: &TextConfig) -> usize {
        match self.place {
            Place::AttentionOutput => text.num_attention_heads * text.head_dim,
            Place::DenseDown => text.intermediate_size_mlp,
            Place::SharedDown | Place::ExpertDown(_) => text.intermediate_size,
            _ => text.hidden_size,
        }
    }
}

/// Looks on. Every call comes from the thread that runs the pass, inside its thread pool, in an order that sequences and model
/// alone decide; so do the chunks in which rows come.
pub trait Observer {
    /// Whether [`Observer::inputs`] of a site is wanted: what nobody wants is not gathered.
    fn wants(&self, _site: Site) -> bool {
        true
    }

    /// Tokens `rows` of a layer were routed: `routing` counts its tokens from `rows.start`; `logits` is `[rows, experts]`.
    /// Comes chunk by chunk, before any expert of the layer.
    ///
    /// # Errors
    /// Ends the pass.
    fn routing(&mut self, _layer: usize, _rows: Range<usize>, _routing: &Routing, _logits: &[f32]) -> Result<()> {
        Ok(())
    }

    /// In which order the experts of a layer are worked through, given how many tokens each has: those of one inner list go
    /// through every step together. Each expert must come once. `None`: one by one.
    fn rounds(&mut self, _layer: usize, _counts: &[usize]) -> Option<Vec<Vec<usize>>> {
        None
    }

    /// Whether the rows of an expert's site go through [`Observer::pool`] first, before those of any expert of its round come
    /// to [`Observer::inputs`].
    fn pools(&self, _site: Site) -> bool {
        false
    }

    /// Rows of a site whose round pools.
    ///
    /// # Errors
    /// Ends the pass.
    fn pool(&mut self, _site: Site, _rows: &[f32]) -> Result<()> {
        Ok(())
    }

    /// The next rows that go into a site's weights, `[any number, width]`.
    ///
    /// # Errors
    /// Ends the pass.
    fn inputs(&mut self, _site: Site, _rows: &[f32]) -> Result<()> {
        Ok(())
    }

    /// All `rows` rows of a site have come (there may be none); its weights are used from now on.
    ///
    /// # Errors
    /// Ends the pass.
    fn seen(&mut self, _site: Site, _rows: usize) -> Result<()> {
        Ok(())
    }

    /// `x * W^T` with the weight as it is to be from here on: the checkpoint's own, unless the observer knows better.
    ///
    /// # Errors
    /// Ends the pass.
    fn linear(&self, model: &Llama4, weight: &Weight, x: &[f32]) -> Result<Vec<f32>> {
        Ok(weights::apply(model, weight, x))
    }

    /// A layer is finished; `hidden` is the residual stream after it.
    ///
    /// # Errors
    /// Ends the pass.
    fn layer_done(&mut self, _layer: usize, _hidden: &Rows) -> Result<()> {
        Ok(())
    }
}
