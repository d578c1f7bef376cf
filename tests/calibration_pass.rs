//! The calibration pass: the residual stream and the routing are those that transformers computes.

#![allow(clippy::unwrap_used)]

mod common;

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use common::{Golden, testdata};
use l4::calibration::store::Rows;
use l4::calibration::{Observer, Pass, Place, Sequences, Site};
use l4::llama4::Llama4;
use l4::model::moe::Routing;
use l4::progress::{Control, Silent};

#[derive(Default)]
struct Seen {
    hidden: Vec<Vec<f32>>,
    logits: Vec<Vec<f32>>,
    /// Rows of each site, and those that `seen` was told of.
    rows: std::collections::BTreeMap<Site, (usize, Option<usize>)>,
    widths: Vec<(Site, usize)>,
    deaf: bool,
}

impl Observer for Seen {
    fn wants(&self, _site: Site) -> bool {
        !self.deaf
    }

    fn routing(&mut self, layer: usize, _rows: Range<usize>, routing: &Routing, logits: &[f32]) -> Result<()> {
        assert_eq!(logits.len() % routing.experts(), 0, "layer {layer}");
        self.logits.last_mut().unwrap().extend(logits);
        Ok(())
    }

    fn inputs(&mut self, site: Site, rows: &[f32]) -> Result<()> {
        self.widths.push((site, rows.len()));
        self.rows.entry(site).or_default().0 += rows.len();
        Ok(())
    }

    fn seen(&mut self, site: Site, rows: usize) -> Result<()> {
        self.rows.entry(site).or_default().1 = Some(rows);
        Ok(())
    }

    fn layer_done(&mut self, _layer: usize, hidden: &Rows) -> Result<()> {
        self.hidden.push(hidden.read(0..hidden.len())?);
        self.logits.push(Vec::new());
        Ok(())
    }
}

fn run(model: &Llama4, sequences: &Sequences, memory: u64, threads: usize, deaf: bool) -> Seen {
    let stop = AtomicBool::new(false);
    let control = Control { progress: &Silent, stop: &stop, threads, memory };
    let folder = tempfile::tempdir().unwrap();
    let pass = Pass::new(model, sequences, folder.path(), memory, control).unwrap();
    let mut seen = Seen { logits: vec![Vec::new()], deaf, ..Seen::default() };
    pass.run(&mut seen).unwrap();
    seen
}

fn close(what: &str, is: &[f32], golden: &[f32]) {
    assert_eq!(is.len(), golden.len(), "{what}");
    let largest = golden.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    for (is, golden) in is.iter().zip(golden) {
        assert!((is - golden).abs() <= 1e-5 * largest, "{what}: {is}, not {golden}");
    }
}

#[test]
fn layers_and_routers_match_transformers() {
    for name in ["tiny-scout", "tiny-maverick"] {
        let model = Llama4::open(&testdata(name)).unwrap();
        let golden = Golden::open(name);
        let tokens = golden.tokens();
        let sequences = Sequences::new(tokens.clone(), vec![tokens.len()]).unwrap();
        let seen = run(&model, &sequences, 0, 2, false);
        let text = &model.config.text;
        for layer in 0..text.num_hidden_layers {
            close(name, &seen.hidden[layer], &golden.floats(&format!("text.hidden.{layer}")).unwrap());
            let logits = golden.floats(&format!("text.router_logits.{layer}"));
            assert_eq!(logits.is_some(), text.moe_layers[layer]);
            if let Some(logits) = logits {
                close(name, &seen.logits[layer], &logits);
            }
        }
        for (site, (values, rows)) in &seen.rows {
            assert_eq!(*values, rows.unwrap() * site.width(text), "{site:?}");
        }
        let routed: usize = seen
            .rows
            .iter()
            .filter(|(site, _)| matches!(site.place, Place::ExpertDown(_)))
            .map(|(_, (_, rows))| rows.unwrap())
            .sum();
        let layers = text.moe_layers.iter().filter(|&&moe| moe).count();
        assert_eq!(routed, layers * tokens.len() * text.num_experts_per_tok);
    }
}

/// Several sequences in one run give what each of them gives alone; where activations lie and who computes does not matter.
#[test]
fn memory_threads_and_neighbours_do_not_show() {
    let model = Llama4::open(&testdata("tiny-scout")).unwrap();
    let tokens = Golden::open("tiny-scout").tokens();
    let lengths = vec![70, 30, tokens.len() - 100];
    let all = Sequences::new(tokens.clone(), lengths.clone()).unwrap();
    let reference = run(&model, &all, 0, 1, false);
    for (memory, threads, deaf) in [(1 << 30, 3, false), (0, 7, true), (100_000, 2, false)] {
        let other = run(&model, &all, memory, threads, deaf);
        let bits = |seen: &Seen| seen.hidden.iter().flatten().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(bits(&reference) == bits(&other), "{memory} bytes, {threads} threads");
        assert!(deaf || other.widths == reference.widths);
    }
    let width = model.config.text.hidden_size;
    let mut first = 0;
    for length in lengths {
        let alone = Sequences::new(tokens[first..first + length].to_vec(), vec![length]).unwrap();
        let alone = run(&model, &alone, 0, 2, true);
        for (alone, all) in alone.hidden.iter().zip(&reference.hidden) {
            close("alone", alone, &all[first * width..(first + length) * width]);
        }
        first += length;
    }
}
