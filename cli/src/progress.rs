//! Progress on standard error: bars for people, lines for logs, JSON events for machines.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use l4::progress::{Progress, Unit};
use serde_json::json;

use crate::render::printable;
use crate::size;

/// Bars on a terminal: one for the phase, and one for each of its items that is under way.
#[derive(Default)]
pub(crate) struct Bars {
    all: MultiProgress,
    bar: Mutex<Option<ProgressBar>>,
    items: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Progress for Bars {
    fn start(&self, phase: &str, total: u64, done: u64, unit: Unit) {
        let counts = match unit {
            Unit::Bytes => "{binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}",
            Unit::Tokens => "{human_pos} of {human_len} tokens  {per_sec}",
            Unit::Layers => "layer {human_pos} of {human_len}",
            Unit::Tensors => "{human_pos} of {human_len} tensors",
        };
        let template = format!("{{prefix:>22}} [{{bar:30}}] {{percent:>3}}%  {counts}  {{eta}} left");
        let style = ProgressStyle::with_template(&template).expect("a fixed template").progress_chars("=> ");
        let bar = ProgressBar::new(total).with_style(style).with_prefix(phase.to_owned()).with_position(done);
        bar.reset_eta();
        let mut shown = self.bar.lock().expect("no progress call panics");
        if let Some(before) = shown.take() {
            before.finish_and_clear();
        }
        let bar = self.all.insert(0, bar);
        bar.enable_steady_tick(Duration::from_millis(200));
        *shown = Some(bar);
    }

    fn advance(&self, n: u64) {
        if let Some(bar) = &*self.bar.lock().expect("no progress call panics") {
            bar.inc(n);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.bar.lock().expect("no progress call panics").take() {
            bar.finish_and_clear();
        }
        let items = std::mem::take(&mut *self.items.lock().expect("no progress call panics"));
        items.values().for_each(ProgressBar::finish_and_clear);
    }

    fn item(&self, name: &str, done: u64, total: u64) {
        let mut items = self.items.lock().expect("no progress call panics");
        if done < total {
            let bar = items.entry(name.to_owned()).or_insert_with(|| {
                let template = "{msg:>22!} [{bar:30}] {percent:>3}%  {binary_bytes} of {binary_total_bytes}";
                let style = ProgressStyle::with_template(template).expect("a fixed template").progress_chars("=> ");
                // The end of a name tells shards apart.
                let end = name.chars().rev().take(22).collect::<Vec<_>>().into_iter().rev().collect::<String>();
                self.all.add(ProgressBar::new(total).with_style(style).with_message(printable(&end)))
            });
            bar.set_position(done);
        } else if let Some(bar) = items.remove(name) {
            bar.finish_and_clear();
        }
    }

    fn note(&self, text: &str) {
        // Above the bars; where they are not drawn, nobody would see it.
        if self.all.is_hidden() { tell(&printable(text)) } else { drop(self.all.println(printable(text))) }
    }
}

/// A phase that is written to a log.
struct Phase {
    name: String,
    total: u64,
    before: u64,
    done: u64,
    unit: Unit,
    began: Instant,
    told: Instant,
}

impl Phase {
    fn new(name: &str, total: u64, done: u64, unit: Unit) -> Self {
        let now = Instant::now();
        Self { name: name.into(), total, before: done, done, unit, began: now, told: now }
    }

    /// Units per second in this process, and seconds left at that rate.
    fn rate(&self) -> (f64, Option<f64>) {
        let rate = (self.done - self.before) as f64 / self.began.elapsed().as_secs_f64().max(1e-3);
        (rate, (rate > 0.0).then(|| (self.total.saturating_sub(self.done)) as f64 / rate))
    }
}

/// One plain line every few seconds, for logs.
#[derive(Default)]
pub(crate) struct Lines {
    phase: Mutex<Option<Phase>>,
}

/// Time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Time between two JSON events.
const EVENT_EVERY: Duration = Duration::from_millis(500);

impl Lines {
    fn line(phase: &Phase) -> String {
        let (rate, left) = phase.rate();
        let percent = (phase.done * 100).checked_div(phase.total).unwrap_or(100);
        let counts = match phase.unit {
            Unit::Bytes => {
                format!(
                    "{} of {}, {}/s",
                    size::binary(phase.done),
                    size::binary(phase.total),
                    size::binary(rate as u64)
                )
            }
            Unit::Tokens => format!("{} of {} tokens, {rate:.0}/s", phase.done, phase.total),
            Unit::Layers => format!("{} of {} layers", phase.done, phase.total),
            Unit::Tensors => format!("{} of {} tensors", phase.done, phase.total),
        };
        let left = left.map_or_else(String::new, |seconds| {
            format!(", {} left", HumanDuration(Duration::from_secs_f64(seconds.min(1e9))))
        });
        format!("{}: {percent}% ({counts}{left})", phase.name)
    }
}

impl Progress for Lines {
    fn start(&self, phase: &str, total: u64, done: u64, unit: Unit) {
        *self.phase.lock().expect("no progress call panics") = Some(Phase::new(phase, total, done, unit));
    }

    fn advance(&self, n: u64) {
        if let Some(phase) = &mut *self.phase.lock().expect("no progress call panics") {
            phase.done += n;
            if phase.told.elapsed() >= LINE_EVERY {
                phase.told = Instant::now();
                tell(&Self::line(phase));
            }
        }
    }

    fn finish(&self) {
        if let Some(phase) = self.phase.lock().expect("no progress call panics").take()
            && phase.began.elapsed() >= LINE_EVERY
        {
            tell(&Self::line(&phase));
        }
    }

    fn note(&self, text: &str) {
        tell(&printable(text));
    }
}

/// One JSON event per line.
#[derive(Default)]
pub(crate) struct Events {
    phase: Mutex<Option<Phase>>,
}

impl Events {
    fn event(kind: &str, phase: &Phase) -> String {
        let (rate, left) = phase.rate();
        let unit = match phase.unit {
            Unit::Bytes => "bytes",
            Unit::Tokens => "tokens",
            Unit::Layers => "layers",
            Unit::Tensors => "tensors",
        };
        json!({"event": kind, "phase": phase.name, "unit": unit, "done": phase.done, "total": phase.total,
               "per_second": rate, "seconds_left": left})
        .to_string()
    }
}

impl Progress for Events {
    fn start(&self, phase: &str, total: u64, done: u64, unit: Unit) {
        let phase = Phase::new(phase, total, done, unit);
        tell(&Self::event("start", &phase));
        *self.phase.lock().expect("no progress call panics") = Some(phase);
    }

    fn advance(&self, n: u64) {
        if let Some(phase) = &mut *self.phase.lock().expect("no progress call panics") {
            phase.done += n;
            if phase.told.elapsed() >= EVENT_EVERY {
                phase.told = Instant::now();
                tell(&Self::event("progress", phase));
            }
        }
    }

    fn finish(&self) {
        if let Some(phase) = self.phase.lock().expect("no progress call panics").take() {
            tell(&Self::event("finish", &phase));
        }
    }

    fn item(&self, name: &str, done: u64, total: u64) {
        if done == total {
            tell(&json!({"event": "item", "name": name, "done": done, "total": total}).to_string());
        }
    }

    fn note(&self, text: &str) {
        tell(&json!({"event": "note", "text": text}).to_string());
    }
}

/// Standard error that is gone must not end the work.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
