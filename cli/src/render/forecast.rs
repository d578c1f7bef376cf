//! What a run would read, write and need, as text: the same for every command that writes a checkpoint.

use std::time::Duration;

use indicatif::HumanDuration;
use l4::output::preflight::Forecast;

use super::table;
use crate::size::{binary, decimal};

/// Bytes, memory, disk and files; `about` goes behind the number of tensors.
pub(crate) fn forecast(forecast: &Forecast, about: &str) -> String {
    let mut text = format!(
        "\nreads    {} of weights\nwrites   {} in {} files, {} tensors{about}\n",
        decimal(forecast.bytes_in),
        decimal(forecast.bytes_out),
        forecast.files.len(),
        forecast.tensors,
    );
    text += &format!("memory   {} at most, {} tasks\n", binary(forecast.memory_bytes), forecast.tasks);
    let verdict = if forecast.disk_fits { "it fits" } else { "it does not fit" };
    text += &format!("disk     {} free: {verdict}\n\n", decimal(forecast.disk_free_bytes));
    let rows = forecast.files.iter().map(|file| vec![file.name.clone(), file.tensors.to_string(), decimal(file.bytes)]);
    text + &table(&["file", "tensors", "size"], &[1, 2], rows)
}

/// `0.6 s`, `42 s` or `3 minutes`.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else {
        HumanDuration(Duration::from_secs_f64(seconds)).to_string()
    }
}
