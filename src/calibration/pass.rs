//! A model's layers one after the other, over more tokens than fit memory.
//!
//! The steps are those of [`Forward::layer`], cut so that every weight's inputs have all passed before the weight is used: the
//! observer may put another weight in its place. Rows come in chunks of a fixed size, whatever memory or threads, so that
//! sums over them are the same to the last bit. A layer's weights are read from the disk once.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};

use super::observer::{Observer, Place, Site};
use super::sequences::Sequences;
use super::store::{Rows, Storage};
use crate::error::{Interrupted, hint};
use crate::llama4::{Llama4, Role, Weight};
use crate::model::forward::{DENSE, EXPERT, Forward, SHARED};
use crate::model::moe::Routing;
use crate::model::ops::{add, silu_mul};
use crate::progress::{Control, Unit};

/// Rows of a chunk: what the matrix product packs its activations for at once.
pub const CHUNK_ROWS: usize = 1020;

/// A model and the tokens that run through it.
pub struct Pass<'a> {
    forward: Forward<'a>,
    model: &'a Llama4,
    sequences: &'a Sequences,
    storage: Storage,
    control: Control<'a>,
}

/// The tokens of one layer's experts.
struct Routed {
    /// For every expert its tokens, ascending.
    tokens: Vec<Vec<u32>>,
    /// And their scores.
    scores: Vec<Vec<f32>>,
}

/// One feed-forward network and the tokens that go through it.
struct Network<'r> {
    layer: usize,
    /// Gate, up, down.
    roles: [Role; 3],
    expert: Option<usize>,
    /// Into gate and up; into down.
    places: [Place; 2],
    /// Its tokens and their scores; `None` for all tokens as they are.
    share: Option<(&'r [u32], &'r [f32])>,
}

impl Network<'_> {
    fn rows(&self, attended: &Rows) -> usize {
        self.share.map_or(attended.len(), |(tokens, _)| tokens.len())
    }
}

impl Routed {
    fn share(&self, layer: usize, expert: usize) -> Network<'_> {
        Network {
            layer,
            roles: EXPERT,
            expert: Some(expert),
            places: [Place::ExpertGateUp(expert), Place::ExpertDown(expert)],
            share: Some((&self.tokens[expert], &self.scores[expert])),
        }
    }
}

/// Cuts `rows` rows into chunks.
fn chunks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(CHUNK_ROWS).map(move |first| first..(first + CHUNK_ROWS).min(rows))
}

impl<'a> Pass<'a> {
    /// Prepares to run `sequences`. Activations of all tokens take up to `memory` bytes, and files in `folder` if they are more.
    ///
    /// # Errors
    /// Weights are missing, the config asks for something that the forward pass does not do, or a token is not in the vocabulary.
    pub fn new(
        model: &'a Llama4,
        sequences: &'a Sequences,
        folder: &Path,
        memory: u64,
        control: Control<'a>,
    ) -> Result<Self> {
        let forward = Forward::new(model, &[sequences.longest()])?;
        let vocabulary = model.config.text.vocab_size;
        if let Some(token) = sequences.ids.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(hint(
                format!("token {token} is outside the model's vocabulary of {vocabulary}"),
                "the text was tokenized for another model",
            ));
        }
        Ok(Self { forward, model, sequences, storage: Storage::new(folder, memory), control })
    }

    /// Memory that a pass needs besides stored activations and what its observer holds: the largest step of a layer, and the
    /// tables of positions.
    pub fn working_bytes(model: &Llama4, sequences: &Sequences) -> u64 {
        let text = &model.config.text;
        let heads = text.num_attention_heads * text.head_dim;
        let keys = text.num_key_value_heads * text.head_dim;
        let longest = sequences.longest();
        let attention_rows = (CHUNK_ROWS + longest) as u64;
        let attention = attention_rows * (3 * text.hidden_size + 3 * heads + 3 * keys) as u64;
        let inner = text.intermediate_size.max(text.intermediate_size_mlp);
        let feed_forward = CHUNK_ROWS as u64 * (3 * text.hidden_size + 4 * inner) as u64;
        let tables = longest as u64 * text.head_dim as u64;
        let routing = sequences.tokens() as u64 * (4 * text.num_experts_per_tok) as u64;
        size_of::<f32>() as u64 * (attention.max(feed_forward) + tables + routing)
    }

    /// Runs all layers.
    ///
    /// # Errors
    /// [`Interrupted`] after a safe stop; what the observer, the disk or the source refused.
    pub fn run(&self, observer: &mut (dyn Observer + Send)) -> Result<()> {
        self.run_from(0, None, observer)
    }

    /// Runs the layers from `first` on, over the residual stream before it (the embeddings, if `None`).
    ///
    /// # Errors
    /// As [`Pass::run`].
    pub fn run_from(&self, first: usize, hidden: Option<Rows>, observer: &mut (dyn Observer + Send)) -> Result<()> {
        let threads = self.control.threads;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("starting threads")?;
        let layers = self.forward.layers() as u64;
        let tokens = self.sequences.tokens() as u64;
        self.control.progress.start("calibrating", layers * tokens, first as u64 * tokens, Unit::Tokens);
        pool.install(|| -> Result<()> {
            let mut hidden = hidden.map_or_else(|| self.embed(), Ok)?;
            for layer in first..self.forward.layers() {
                let after = self.layer(layer, &hidden, observer)?;
                observer.layer_done(layer, &after)?;
                self.storage.recycle(std::mem::replace(&mut hidden, after));
            }
            Ok(())
        })?;
        self.control.progress.finish();
        Ok(())
    }

    /// Where activations are kept.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    fn embed(&self) -> Result<Rows> {
        let mut hidden = self.storage.rows(self.sequences.tokens(), self.model.config.text.hidden_size)?;
        for tokens in chunks(self.sequences.tokens()) {
            hidden.write(tokens.start, &self.forward.embed(&self.sequences.ids[tokens])?)?;
        }
        Ok(hidden)
    }

    /// The residual stream after a layer.
    fn layer(&self, layer: usize, hidden: &Rows, observer: &mut dyn Observer) -> Result<Rows> {
        let attended = self.attention(layer, hidden, observer)?;
        let tokens = self.sequences.tokens();
        let mut out = self.storage.rows(tokens, hidden.width())?;
        let whole = |roles, places| Network { layer, roles, expert: None, places, share: None };
        if self.model.config.text.moe_layers[layer] {
            let routed = self.route(layer, &attended, observer)?;
            let shared = whole(SHARED, [Place::SharedGateUp, Place::SharedDown]);
            self.gate_up(&shared, &attended, observer)?;
            self.down(&shared, &attended, &mut out, observer)?;
            self.experts(layer, &routed, &attended, &mut out, observer)?;
        } else {
            let dense = whole(DENSE, [Place::DenseGateUp, Place::DenseDown]);
            self.gate_up(&dense, &attended, observer)?;
            self.down(&dense, &attended, &mut out, observer)?;
            self.control.progress.advance(tokens as u64);
        }
        for tokens in chunks(tokens) {
            let mut sum = attended.read(tokens.clone())?;
            add(&mut sum, &out.read(tokens.clone())?);
            out.write(tokens.start, &sum)?;
        }
        self.storage.recycle(attended);
        Ok(out)
    }

    fn check_stop(&self) -> Result<()> {
        if self.control.stop_requested() { Err(Interrupted.into()) } else { Ok(()) }
    }

    /// The residual stream after a layer's attention.
    fn attention(&self, layer: usize, hidden: &Rows, observer: &mut dyn Observer) -> Result<Rows> {
        let chunks = self.sequences.chunks(CHUNK_ROWS);
        let normed = |tokens: &Range<usize>| -> Result<Vec<f32>> {
            self.check_stop()?;
            Ok(self.forward.normed(Role::InputNorm, layer, &hidden.read(tokens.clone())?))
        };
        let site = Site { layer, place: Place::AttentionInput };
        if observer.wants(site) {
            for (tokens, _) in &chunks {
                observer.inputs(site, &normed(tokens)?)?;
            }
        }
        observer.seen(site, hidden.len())?;
        let site = Site { layer, place: Place::AttentionOutput };
        let mut heads = self.storage.rows(hidden.len(), site.width(&self.model.config.text))?;
        for (tokens, sequences) in &chunks {
            let x = normed(tokens)?;
            let linear = |role| self.linear(role, layer, &x, observer);
            let (query, key, value) = (linear(Role::Query)?, linear(Role::Key)?, linear(Role::Value)?);
            let out = self.forward.attend(layer, sequences, query, key, &value);
            if observer.wants(site) {
                observer.inputs(site, &out)?;
            }
            heads.write(tokens.start, &out)?;
        }
        observer.seen(site, hidden.len())?;
        let mut attended = self.storage.rows(hidden.len(), hidden.width())?;
        for (tokens, _) in &chunks {
            self.check_stop()?;
            let mut sum = hidden.read(tokens.clone())?;
            add(&mut sum, &self.linear(Role::AttentionOutput, layer, &heads.read(tokens.clone())?, observer)?);
            attended.write(tokens.start, &sum)?;
        }
        self.storage.recycle(heads);
        Ok(attended)
    }

    /// A linear map of the attention, with its bias.
    fn linear(&self, role: Role, layer: usize, x: &[f32], observer: &dyn Observer) -> Result<Vec<f32>> {
        let mut y = observer.linear(self.model, self.forward.weight(role, Some(layer), None), x)?;
        self.forward.add_bias(role, layer, &mut y);
        Ok(y)
    }

    /// Sends the tokens of a layer to their experts.
    fn route(&self, layer: usize, attended: &Rows, observer: &mut dyn Observer) -> Result<Routed> {
        let text = &self.model.config.text;
        let experts = text.num_local_experts;
        let router = self.forward.weight(Role::Router, Some(layer), None);
        let mut routed = Routed { tokens: vec![Vec::new(); experts], scores: vec![Vec::new(); experts] };
        for tokens in chunks(attended.len()) {
            let x = self.forward.normed(Role::PostAttentionNorm, layer, &attended.read(tokens.clone())?);
            let logits = observer.linear(self.model, router, &x)?;
            let routing = Routing::new(&logits, experts, text.num_experts_per_tok);
            for expert in 0..experts {
                let share = routing.share(expert);
                routed.tokens[expert].extend(share.tokens.iter().map(|&token| tokens.start as u32 + token));
                routed.scores[expert].extend(share.scores);
            }
            observer.routing(layer, tokens, &routing, &logits)?;
        }
        Ok(routed)
    }

    /// The routed experts of a layer, round by round; their results are added to `out`.
    fn experts(
        &self,
        layer: usize,
        routed: &Routed,
        attended: &Rows,
        out: &mut Rows,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let counts: Vec<usize> = routed.tokens.iter().map(Vec::len).collect();
        let experts = counts.len();
        let rounds = observer.rounds(layer, &counts);
        let rounds = rounds.unwrap_or_else(|| (0..experts).map(|expert| vec![expert]).collect());
        assert_eq!(rounds.iter().map(Vec::len).sum::<usize>(), experts, "every expert comes once");
        let tokens = self.sequences.tokens() as u64;
        let mut finished = 0;
        for round in rounds {
            let shares = || round.iter().map(|&expert| (expert, routed.share(layer, expert)));
            for (expert, network) in shares() {
                let site = Site { layer, place: Place::ExpertGateUp(expert) };
                if observer.pools(site) {
                    self.show(&network, attended, |x| observer.pool(site, &x))?;
                }
            }
            for (_, network) in shares() {
                self.gate_up(&network, attended, observer)?;
            }
            for (expert, network) in shares() {
                let site = Site { layer, place: Place::ExpertDown(expert) };
                if observer.pools(site) {
                    self.show(&network, attended, |x| {
                        let inner = self.inner(&network, &x, observer)?;
                        observer.pool(site, &inner)
                    })?;
                }
            }
            for (_, network) in shares() {
                self.down(&network, attended, out, observer)?;
                let before = tokens * finished / experts as u64;
                finished += 1;
                self.control.progress.advance(tokens * finished / experts as u64 - before);
            }
        }
        Ok(())
    }

    /// Shows a network its input, chunk by chunk.
    fn show(&self, network: &Network<'_>, attended: &Rows, mut each: impl FnMut(Vec<f32>) -> Result<()>) -> Result<()> {
        for rows in chunks(network.rows(attended)) {
            self.check_stop()?;
            each(self.input(network, rows, attended)?)?;
        }
        Ok(())
    }

    /// Rows of what goes into a network.
    fn input(&self, network: &Network<'_>, rows: Range<usize>, attended: &Rows) -> Result<Vec<f32>> {
        let normed = |hidden: &[f32]| self.forward.normed(Role::PostAttentionNorm, network.layer, hidden);
        let Some((tokens, scores)) = network.share else { return Ok(normed(&attended.read(rows)?)) };
        let mut x = normed(&attended.gather(&tokens[rows.clone()])?);
        for (row, score) in x.chunks_exact_mut(attended.width()).zip(&scores[rows]) {
            row.iter_mut().for_each(|value| *value *= score);
        }
        Ok(x)
    }

    /// `silu(gate(x)) * up(x)`.
    fn inner(&self, network: &Network<'_>, x: &[f32], observer: &dyn Observer) -> Result<Vec<f32>> {
        let [gate, up, _] = network.roles;
        let mut inner = observer.linear(self.model, self.weight(network, gate), x)?;
        silu_mul(&mut inner, &observer.linear(self.model, self.weight(network, up), x)?);
        Ok(inner)
    }

    fn weight(&self, network: &Network<'_>, role: Role) -> &'a Weight {
        self.forward.weight(role, Some(network.layer), network.expert)
    }

    /// Shows the first two matrices of a network their inputs.
    fn gate_up(&self, network: &Network<'_>, attended: &Rows, observer: &mut dyn Observer) -> Result<()> {
        let site = Site { layer: network.layer, place: network.places[0] };
        if observer.wants(site) {
            self.show(network, attended, |x| observer.inputs(site, &x))?;
        }
        observer.seen(site, network.rows(attended))
    }

    /// Shows the third matrix its inputs, and adds the network's results to `out`.
    fn down(&self, network: &Network<'_>, attended: &Rows, out: &mut Rows, observer: &mut dyn Observer) -> Result<()> {
        let site = Site { layer: network.layer, place: network.places[1] };
        let rows = network.rows(attended);
        let down = self.weight(network, network.roles[2]);
        let mut add = |rows: Range<usize>, result: &[f32]| match network.share {
            Some((tokens, _)) => out.add_at(&tokens[rows], result),
            None => out.write(rows.start, result),
        };
        if !observer.wants(site) {
            observer.seen(site, rows)?;
            for rows in chunks(rows) {
                self.check_stop()?;
                let inner = self.inner(network, &self.input(network, rows.clone(), attended)?, observer)?;
                add(rows, &observer.linear(self.model, down, &inner)?)?;
            }
            return Ok(());
        }
        // What comes out of the first two matrices is needed again when the third is solved.
        let mut kept = self.storage.rows(rows, site.width(&self.model.config.text))?;
        for rows in chunks(rows) {
            self.check_stop()?;
            let inner = self.inner(network, &self.input(network, rows.clone(), attended)?, observer)?;
            observer.inputs(site, &inner)?;
            kept.write(rows.start, &inner)?;
        }
        observer.seen(site, rows)?;
        for rows in chunks(rows) {
            self.check_stop()?;
            add(rows.clone(), &observer.linear(self.model, down, &kept.read(rows)?)?)?;
        }
        self.storage.recycle(kept);
        Ok(())
    }
}
