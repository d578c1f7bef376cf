//! How long work tells its caller how far it is, and how the caller asks it to stop.

use std::sync::atomic::{AtomicBool, Ordering};

/// What a phase counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes read or written.
    Bytes,
    /// Tokens run through a model.
    Tokens,
    /// Tensors or matrices.
    Tensors,
    /// Layers of a model.
    Layers,
}

/// Receives progress from any thread. Calls must be cheap: workers make them between tasks.
pub trait Progress: Sync {
    /// A phase begins: `total` units of work lie ahead, `done` of them finished by an earlier run.
    fn start(&self, phase: &str, total: u64, done: u64, unit: Unit);
    /// `n` more units are finished.
    fn advance(&self, n: u64);
    /// The phase that began last is over.
    fn finish(&self);
    /// A part of the phase, such as one of several files, has come to `done` of `total` units; it is over when they are equal.
    fn item(&self, _name: &str, _done: u64, _total: u64) {}
    /// Something that the person who waits should know, and that is no error: one sentence, lower case, no full stop.
    fn note(&self, _text: &str) {}
}

/// Progress that nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _phase: &str, _total: u64, _done: u64, _unit: Unit) {}
    fn advance(&self, _n: u64) {}
    fn finish(&self) {}
}

/// What every long task is given besides its own options.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Where progress goes.
    pub progress: &'a dyn Progress,
    /// Set from a signal handler: stop at the next safe point.
    pub stop: &'a AtomicBool,
    /// Worker threads, at least 1.
    pub threads: usize,
    /// Bound on resident memory in bytes.
    pub memory: u64,
}

impl Control<'_> {
    /// Whether the caller has asked for a safe stop.
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
