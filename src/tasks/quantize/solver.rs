//! The observer that quantizes: sums what each weight sees, solves when all of it has passed, and lets the pass go on with
//! what was written.
//!
//! It joins the calibration pass with an executor's run; it computes no statistics and no codes itself.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use half::bf16;

use super::calibrate::Judging;
use super::factors;
use super::moments::{Moments, Needs};
use super::policy::{Basis, Policy, Seen};
use super::state;
use crate::calibration::statistics::Statistics;
use crate::calibration::store::Rows;
use crate::calibration::{Observer, Place, Site};
use crate::kernels::gemm::{Layout, Threads, View, ViewMut, matmul};
use crate::llama4::{Llama4, Role, Weight};
use crate::model::weights;
use crate::output::evidence::{Evidence, Inputs, Rescale};
use crate::output::executor::Run;
use crate::output::modules::Target;
use crate::output::written::Written;
use crate::quant::gptq::Factor;

/// Outputs that are read back at a time.
const BLOCK_OUTS: usize = 1024;

/// Dequantized matrices that are held: gate, up and down of one network.
pub(super) const MATRICES_KEPT: usize = 3;

/// Sums, solves and writes while a model runs.
pub(super) struct Solver<'r, 'a> {
    run: &'r Run<'a>,
    written: Written<'r, 'a>,
    model: &'a Llama4,
    targets: &'r [Option<Target>],
    judging: Judging,
    /// Tasks that may run at the same time.
    at_once: usize,
    /// Where a layer's end is kept for a process that goes on.
    folder: PathBuf,
    indices: HashMap<(Role, Option<usize>, Option<usize>), usize>,
    /// What became known of each weight so far.
    pub(super) seen: Vec<Option<Seen>>,
    /// Sums of the site whose rows are coming.
    current: Option<Moments>,
    layer: LayerState,
    /// The matrices that were used last, dequantized: they are used for chunk after chunk.
    kept: Mutex<VecDeque<(usize, Arc<Vec<bf16>>)>>,
}

/// What is kept from one of a layer's experts to another.
#[derive(Default)]
struct LayerState {
    /// For each expert, whether it has too few tokens to stand alone.
    few: Vec<bool>,
    /// Tokens that went to experts.
    routed: usize,
    /// Whether rows are pooled: into gate and up; into down.
    pooling: [bool; 2],
    pooled: [Option<Moments>; 2],
    /// By expert, or for the one network that is none: AWQ's factors, from when `up` is written until `down` is.
    factors: HashMap<Option<usize>, Vec<f32>>,
}

/// A network between whose `up` and `down` there are factors, by the indices of its weights.
#[derive(Clone, Copy)]
struct Folded {
    gate: usize,
    up: usize,
    down: usize,
}

/// Which of the two pools a place of an expert belongs to.
fn pool_index(place: Place) -> usize {
    usize::from(matches!(place, Place::ExpertDown(_)))
}

impl<'r, 'a> Solver<'r, 'a> {
    pub(super) fn new(
        run: &'r Run<'a>,
        targets: &'r [Option<Target>],
        judging: Judging,
        at_once: usize,
        folder: PathBuf,
    ) -> Self {
        let model = run.model();
        let key = |(index, weight): (usize, &Weight)| ((weight.role, weight.layer, weight.expert), index);
        Self {
            run,
            written: Written::new(run),
            model,
            targets,
            judging,
            at_once,
            folder,
            indices: model.weights.iter().enumerate().map(key).collect(),
            seen: vec![None; model.weights.len()],
            current: None,
            layer: LayerState::default(),
            kept: Mutex::default(),
        }
    }

    /// Quantizes the weights of a layer by what was written down of their inputs; `counts` are the tokens that went to each expert.
    pub(super) fn solve_stored(&mut self, statistics: &Statistics, layer: usize, counts: &[u64]) -> Result<()> {
        let single = [
            Place::AttentionInput,
            Place::AttentionOutput,
            Place::DenseGateUp,
            Place::DenseDown,
            Place::SharedGateUp,
            Place::SharedDown,
        ];
        for place in single {
            self.solve_stored_site(statistics, Site { layer, place })?;
        }
        let counts: Vec<usize> = counts.iter().map(|&count| count as usize).collect();
        self.rounds(layer, &counts);
        // What is pooled is known before any expert, and nothing is to be added.
        let pooling = std::mem::take(&mut self.layer.pooling);
        let places: [fn(usize) -> Place; 2] = [Place::ExpertGateUp, Place::ExpertDown];
        for (pool, place) in places.into_iter().enumerate() {
            let sites = || (0..counts.len()).map(|expert| Site { layer, place: place(expert) });
            if pooling[pool] {
                for site in sites().filter(|&site| statistics.rows(site) > 0) {
                    if self.needs(site).is_nothing() {
                        continue;
                    }
                    let own = self.stored(statistics, site)?;
                    self.pool_of(site).merge(&own);
                }
            }
            for site in sites() {
                self.solve_stored_site(statistics, site)?;
            }
            self.layer.pooled[pool] = None;
        }
        Ok(())
    }

    fn solve_stored_site(&mut self, statistics: &Statistics, site: Site) -> Result<()> {
        if self.targets(site).is_empty() {
            return Ok(());
        }
        let rows = statistics.rows(site);
        if rows > 0 && !self.needs(site).is_nothing() && !self.is_finished(site) {
            self.current = Some(self.stored(statistics, site)?);
        }
        self.seen(site, rows as usize)
    }

    fn stored(&self, statistics: &Statistics, site: Site) -> Result<Moments> {
        Moments::stored(statistics, site, site.width(&self.model.config.text), self.needs(site))
    }

    /// A finished weight's numbers, `[out, in]`.
    fn numbers(&self, index: usize) -> Result<Arc<Vec<bf16>>> {
        let mut kept = self.kept.lock().expect("no thread panics while it holds the lock");
        if let Some((_, numbers)) = kept.iter().find(|(weight, _)| *weight == index) {
            return Ok(Arc::clone(numbers));
        }
        kept.truncate(MATRICES_KEPT - 1);
        let (out, input) = self.model.weights[index].matrix();
        let mut numbers = vec![bf16::ZERO; out * input];
        for outs in self.written.blocks(index, BLOCK_OUTS) {
            self.written.dequantize(index, &outs, &mut numbers[outs.start * input..outs.end * input])?;
        }
        let numbers = Arc::new(numbers);
        kept.push_front((index, Arc::clone(&numbers)));
        Ok(numbers)
    }

    /// The weights of a site that are to be quantized.
    fn targets(&self, site: Site) -> Vec<(usize, Target)> {
        let index = |&role: &Role| self.indices.get(&(role, Some(site.layer), site.expert())).copied();
        let target = |index: usize| Some((index, self.targets[index]?));
        site.roles().iter().filter_map(index).filter_map(target).collect()
    }

    fn needs(&self, site: Site) -> Needs {
        let needs =
            self.targets(site).into_iter().map(|(_, target)| Needs::of(target)).fold(Needs::NOTHING, Needs::and);
        match self.folded(site).filter(|_| site.is_gate_up()) {
            Some(network) => needs.with_inner(self.model.weights[network.down].matrix().1),
            None => needs,
        }
    }

    /// The network of a site, if there are factors in it.
    fn folded(&self, site: Site) -> Option<Folded> {
        let index = |role: Role| self.indices.get(&(role, Some(site.layer), site.expert())).copied();
        let [gate, up, down] = factors::roles(site)?.map(index);
        let network = Folded { gate: gate?, up: up?, down: down? };
        factors::apply(self.targets[network.up], self.targets[network.down]).then_some(network)
    }

    /// Whether nothing is left to do with what a site sees. Factors take part in `down` too.
    fn is_finished(&self, site: Site) -> bool {
        let done = |index: usize| self.written.tasks(index).all(|task| self.run.is_finished(task));
        self.targets(site).into_iter().all(|(index, _)| done(index))
            && self.folded(site).is_none_or(|network| done(network.down))
    }

    /// Inner activations that rows lead to, where factors are to be chosen by them.
    fn inner(&self, site: Site, rows: &[f32]) -> Option<Vec<f32>> {
        let network = self.folded(site).filter(|_| site.is_gate_up())?;
        let weight = |index: usize| &self.model.weights[index];
        Some(factors::inner(self.model, weight(network.gate), weight(network.up), rows))
    }

    /// Chooses the factors of a network, before its `up` is written.
    fn choose_factors(&mut self, site: Site, moments: Option<&Moments>) -> Result<()> {
        let Some(network) = self.folded(site).filter(|_| site.is_gate_up() && !self.is_finished(site)) else {
            return Ok(());
        };
        let Some(inner) = moments.and_then(Moments::inner) else { return Ok(()) };
        let scheme = self.targets[network.down].expect("factors are between targets").scheme;
        let found = factors::choose(self.model, &self.model.weights[network.down], scheme, &inner)?;
        self.layer.factors.extend(found.map(|factors| (site.expert(), factors)));
        Ok(())
    }

    fn moments(&self, site: Site) -> Moments {
        Moments::new(site.width(&self.model.config.text), self.needs(site))
    }

    /// The pool of a site's place in its layer; an empty one at first.
    fn pool_of(&mut self, site: Site) -> &mut Moments {
        let pool = pool_index(site.place);
        let pooled = self.layer.pooled[pool].take().unwrap_or_else(|| self.empty_pool(site));
        self.layer.pooled[pool].insert(pooled)
    }

    /// A pool that can take up the sums of every expert at a site's place, whatever each of them needs.
    fn empty_pool(&self, site: Site) -> Moments {
        let experts = 0..self.model.config.text.num_local_experts;
        let place = |expert| match site.place {
            Place::ExpertDown(_) => Place::ExpertDown(expert),
            _ => Place::ExpertGateUp(expert),
        };
        let needs = experts.map(|expert| self.needs(Site { layer: site.layer, place: place(expert) }));
        Moments::new(site.width(&self.model.config.text), needs.fold(Needs::NOTHING, Needs::and))
    }

    fn is_few(&self, expert: usize) -> bool {
        self.layer.few.get(expert).copied().unwrap_or(false)
    }

    /// What a site is judged by. It follows from counts alone, so that a process that goes on says the same as the one before.
    fn basis(&self, site: Site, rows: usize) -> Basis {
        match site.expert() {
            Some(expert) if self.is_few(expert) => match rows {
                0 if self.layer.routed == 0 => Basis::Nothing,
                0 => Basis::Pooled,
                _ if self.judging.shrink > 0.0 => Basis::Blended,
                _ => Basis::Own,
            },
            _ => Basis::Own,
        }
    }

    /// The sums over a site's rows, with those of its layer as far as `basis` says so.
    fn sums(&mut self, site: Site, basis: Basis) -> Option<Moments> {
        let own = self.current.take();
        let pool = pool_index(site.place);
        match (basis, &self.layer.pooled[pool]) {
            (Basis::Pooled | Basis::Blended, Some(pooled)) => {
                let mut own = own.unwrap_or_else(|| self.moments(site));
                // Without a token of its own any weight of the others' is all there is.
                let tau = if basis == Basis::Pooled { 1.0 } else { self.judging.shrink };
                own.blend(pooled, tau);
                Some(own)
            }
            _ => {
                let alone = site.expert().is_some_and(|expert| !self.is_few(expert));
                if let (true, true, Some(own)) = (alone, self.layer.pooling[pool], &own) {
                    self.pool_of(site).merge(own);
                }
                own
            }
        }
    }

    /// Quantizes the weights of a site.
    fn solve(&mut self, site: Site, rows: usize, moments: Option<Moments>, basis: Basis) -> Result<()> {
        let targets = self.targets(site);
        let index = targets[0].0;
        let (mut known, basis) = if !self.is_finished(site) {
            Known::of(moments, basis, self.judging.damping)
        } else if state::is_unusable(&self.folder, index) {
            (Known::default(), Basis::Unusable)
        } else {
            (Known::default(), basis)
        };
        if basis == Basis::Unusable {
            state::mark_unusable(&self.folder, index)?;
        }
        for (index, target) in &targets {
            self.seen[*index] = Some(Seen { tokens: rows as u64, policy: Policy { method: target.method, basis } });
        }
        let network = self.folded(site);
        known.factors = network.and_then(|network| {
            let (weight, factors) = if site.is_gate_up() {
                (network.up, self.layer.factors.get(&site.expert())?.clone())
            } else {
                (network.down, self.layer.factors.remove(&site.expert())?)
            };
            Some((weight, factors, site.is_gate_up()))
        });
        // One task may write two of them.
        let tasks: BTreeSet<usize> = targets.iter().flat_map(|(index, _)| self.written.tasks(*index)).collect();
        let tasks = Vec::from_iter(tasks);
        self.run.perform_in_pool(&tasks, self.at_once, &known)
    }
}

/// What is known about the inputs of one site.
#[derive(Default)]
struct Known {
    factor: Option<Factor>,
    importance: Option<Vec<f32>>,
    amax: Option<f32>,
    /// Factors of one of the weights: its outputs are divided by them, or else its inputs multiplied.
    factors: Option<(usize, Vec<f32>, bool)>,
}

impl Known {
    /// From a site's sums; they may turn out to be of no use.
    fn of(moments: Option<Moments>, basis: Basis, damping: f64) -> (Self, Basis) {
        let Some(moments) = moments else { return (Self::default(), basis) };
        let mut known = Self { importance: moments.importance(), amax: moments.amax(), ..Self::default() };
        if moments.is_unusable() {
            return (Self { importance: None, ..known }, Basis::Unusable);
        }
        if let Some(hessian) = moments.into_hessian() {
            match Factor::new(Threads::Pool, hessian, damping) {
                Ok(factor) => known.factor = Some(factor),
                // A layer whose activations overflow is still quantized, by its weights alone.
                Err(_) => return (Self { importance: None, ..known }, Basis::Unusable),
            }
        }
        (known, basis)
    }
}

impl Evidence for Known {
    fn of(&self, weight: usize) -> Result<Inputs<'_>> {
        let importance = self.importance.as_deref().map(Cow::Borrowed);
        let rescale = match &self.factors {
            Some((whose, factors, true)) if *whose == weight => Some(Rescale::Outputs(factors)),
            Some((whose, factors, false)) if *whose == weight => Some(Rescale::Inputs(factors)),
            _ => None,
        };
        Ok(Inputs { factor: self.factor.as_ref(), importance, amax: self.amax, rescale })
    }
}

impl Observer for Solver<'_, '_> {
    fn wants(&self, site: Site) -> bool {
        let pooled = site.expert().is_some() && self.layer.pooling[pool_index(site.place)];
        !self.needs(site).is_nothing() && (pooled || !self.is_finished(site))
    }

    /// Experts with enough tokens one by one; those with few together at the end, when all of the layer is known.
    fn rounds(&mut self, layer: usize, counts: &[usize]) -> Option<Vec<Vec<usize>>> {
        let few: Vec<bool> = counts.iter().map(|&count| count < self.judging.enough).collect();
        let last: Vec<usize> = (0..counts.len()).filter(|&expert| few[expert]).collect();
        let place: [fn(usize) -> Place; 2] = [Place::ExpertGateUp, Place::ExpertDown];
        let open = |place: fn(usize) -> Place| {
            last.iter().any(|&expert| !self.is_finished(Site { layer, place: place(expert) }))
        };
        let routed = counts.iter().sum();
        self.layer = LayerState { pooling: place.map(open), few, routed, ..LayerState::default() };
        let alone = (0..counts.len()).filter(|&expert| !self.layer.few[expert]).map(|expert| vec![expert]);
        let mut rounds: Vec<Vec<usize>> = alone.collect();
        if !last.is_empty() {
            rounds.push(last);
        }
        Some(rounds)
    }

    fn pools(&self, site: Site) -> bool {
        site.expert().is_some_and(|expert| self.is_few(expert))
            && self.layer.pooling[pool_index(site.place)]
            && !self.needs(site).is_nothing()
    }

    fn pool(&mut self, site: Site, rows: &[f32]) -> Result<()> {
        let inner = self.inner(site, rows);
        self.pool_of(site).add(rows, inner.as_deref());
        Ok(())
    }

    fn inputs(&mut self, site: Site, rows: &[f32]) -> Result<()> {
        let moments = self.current.take();
        let mut moments = moments.unwrap_or_else(|| self.moments(site));
        moments.add(rows, self.inner(site, rows).as_deref());
        self.current = Some(moments);
        Ok(())
    }

    fn seen(&mut self, site: Site, rows: usize) -> Result<()> {
        if self.needs(site).is_nothing() {
            for (index, target) in self.targets(site) {
                let policy = Policy { method: target.method, basis: Basis::Unneeded };
                self.seen[index] = Some(Seen { tokens: rows as u64, policy });
            }
            return Ok(());
        }
        let basis = self.basis(site, rows);
        let moments = self.sums(site, basis);
        self.choose_factors(site, moments.as_ref())?;
        self.solve(site, rows, moments, basis)
    }

    fn linear(&self, model: &Llama4, weight: &Weight, x: &[f32]) -> Result<Vec<f32>> {
        let index = self.indices[&(weight.role, weight.layer, weight.expert)];
        if self.targets[index].is_none() {
            return Ok(weights::apply(model, weight, x));
        }
        let (out, input) = weight.matrix();
        let (rows, numbers) = (x.len() / input, self.numbers(index)?);
        let mut y = vec![0.0; rows * out];
        let (x, numbers) = (View::dense(x, rows, input), View::dense(&numbers, out, input));
        matmul(x, numbers, Layout::OutIn, ViewMut::dense(&mut y, rows, out));
        Ok(y)
    }

    fn layer_done(&mut self, layer: usize, hidden: &Rows) -> Result<()> {
        self.layer = LayerState::default();
        state::keep(&self.folder, layer + 1, hidden, &self.seen)
    }
}
