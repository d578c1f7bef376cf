//! Work that is shared out among threads, item by item, until it is done, fails, or is asked to stop.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use anyhow::Result;

use crate::error::Interrupted;
use crate::progress::Control;

/// Runs `step` on every index below `count`, started in order, on `workers` threads. `state` makes what each thread keeps
/// from item to item. A stop is obeyed between items.
///
/// # Errors
/// The first error that a step gave; [`Interrupted`] if the caller asked to stop before every item was begun.
pub fn for_each<S>(
    count: usize,
    workers: usize,
    control: &Control<'_>,
    state: impl Fn() -> S + Sync,
    step: impl Fn(&mut S, usize) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let first_error = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(count) {
            scope.spawn(|| {
                let mut state = state();
                while !failed.load(Ordering::Relaxed) && !control.stop_requested() {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    match step(&mut state, index) {
                        Ok(()) => {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            failed.store(true, Ordering::Relaxed);
                            first_error.lock().expect("no thread panics holding it").get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = first_error.into_inner().expect("no thread panics holding it") {
        return Err(error);
    }
    if done.into_inner() < count { Err(Interrupted.into()) } else { Ok(()) }
}

/// Limits how many threads compute at once, where there are more of them because some wait for a disk.
#[derive(Debug)]
pub struct Permits {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Permits {
    /// Lets `count` threads compute at once; at least one.
    pub fn new(count: usize) -> Self {
        Self { free: Mutex::new(count.max(1)), freed: Condvar::new() }
    }

    /// Runs `compute` as soon as a permit is free.
    pub fn with<T>(&self, compute: impl FnOnce() -> T) -> T {
        let held = "no thread panics while it holds the lock";
        let mut free = self.freed.wait_while(self.free.lock().expect(held), |free| *free == 0).expect(held);
        *free -= 1;
        drop(free);
        /// Gives the permit back, also when `compute` panics.
        struct Held<'a>(&'a Permits);
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                if let Ok(mut free) = self.0.free.lock() {
                    *free += 1;
                }
                self.0.freed.notify_one();
            }
        }
        let _held = Held(self);
        compute()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn control(stop: &AtomicBool) -> Control<'_> {
        Control { progress: &Silent, stop, threads: 3, memory: 0 }
    }

    #[test]
    fn every_item_runs_once() {
        let stop = AtomicBool::new(false);
        let runs: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        let step = |_: &mut (), index: usize| {
            runs[index].fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        for_each(100, 3, &control(&stop), || (), step).unwrap();
        assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn permits_bound_how_many_compute() {
        let (permits, busy) = (Permits::new(2), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        permits.with(|| {
                            assert!(busy.fetch_add(1, Ordering::SeqCst) < 2, "three compute at once");
                            std::thread::yield_now();
                            busy.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn an_error_ends_it_and_a_stop_interrupts_it() {
        let stop = AtomicBool::new(false);
        let fail = |_: &mut (), index: usize| if index == 5 { anyhow::bail!("five") } else { Ok(()) };
        assert_eq!(for_each(100, 2, &control(&stop), || (), fail).unwrap_err().to_string(), "five");
        let stopping = |_: &mut (), index: usize| {
            stop.store(index == 7, Ordering::Relaxed);
            Ok(())
        };
        assert!(for_each(100, 1, &control(&stop), || (), stopping).unwrap_err().is::<Interrupted>());
    }
}
