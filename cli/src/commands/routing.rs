//! `l4tool routing`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use l4::tasks::routing::{self, Options, Sort};

use super::calibrate::DataArguments;
use crate::context::Context;
use crate::exit::Outcome;
use crate::render::routing as render;

/// Show which tokens go to which experts: loads, dead and overloaded experts, gate scores, differences between texts
///
/// From a statistics file, or straight from a checkpoint and text. On a terminal: a table of layers and a heat map of layers by
/// experts; in a pipe, or when experts are selected: one line per expert.
#[derive(Debug, Args)]
#[command(
    after_help = "Columns in a pipe, separated by spaces, without a header: layer, expert, tokens, share of the layer's tokens, load over the
layer's mean, mean gate score, the score's 5 %, 50 % and 95 % percentiles, then the tokens under each label if there are several. What
does not exist is `-`. `--format tsv` and `csv` have a header and full precision.

Examples:
  l4tool routing scout.stats
  l4tool routing Llama-4-Scout-17B-16E-Instruct --data code=src.txt --data fr=livre.txt
  l4tool routing scout.stats | sort -k3 -n | head
  l4tool routing scout.stats --top 10 --sort score
  l4tool routing scout.stats --format svg > routing.svg
  l4tool routing scout.stats --json | jq '.layers[] | {layer, dead}'"
)]
pub(crate) struct Arguments {
    /// A statistics file that `calibrate` wrote, or a checkpoint
    source: PathBuf,
    #[command(flatten)]
    data: DataArguments,
    /// Show these layers only; may be repeated
    #[arg(long, value_name = "N", value_delimiter = ',')]
    layer: Vec<usize>,
    /// Show these experts only; may be repeated
    #[arg(long, value_name = "N", value_delimiter = ',')]
    expert: Vec<usize>,
    /// Show the first N experts of the sorted list [without --sort: those with most tokens]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Sort experts by
    #[arg(long, value_name = "KEY")]
    sort: Option<SortKey>,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Give all counts of transitions between the experts of neighbouring layers, in JSON
    #[arg(long)]
    transitions: bool,
}

/// What to sort by.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SortKey {
    /// Layer, then expert
    Layer,
    /// Expert, then layer
    Expert,
    /// Largest share of a layer's tokens first
    Share,
    /// Most tokens first
    Tokens,
    /// Highest mean gate score first
    Score,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables and a heat map on a terminal, one line per expert in a pipe
    Table,
    /// One line per expert, separated by commas, with a header
    Csv,
    /// The same, separated by tabs
    Tsv,
    /// The whole report, as with --json
    Json,
    /// A picture
    Svg,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<Outcome> {
    let selects = arguments.top.is_some() || arguments.sort.is_some() || !arguments.expert.is_empty();
    let sort = match (arguments.sort, arguments.top) {
        (None, None) | (Some(SortKey::Layer), _) => Sort::Layer,
        (None, Some(_)) | (Some(SortKey::Tokens), _) => Sort::Tokens,
        (Some(SortKey::Expert), _) => Sort::Expert,
        (Some(SortKey::Share), _) => Sort::Share,
        (Some(SortKey::Score), _) => Sort::Score,
    };
    let options = Options {
        source: arguments.source,
        data: arguments.data.is_given().then(|| arguments.data.options()),
        layers: arguments.layer,
        experts: arguments.expert,
        sort,
        top: arguments.top,
        transitions: arguments.transitions,
        temporary: std::env::temp_dir(),
    };
    let report = routing::run(&options, &context.control())?;
    for note in &report.notes {
        context.note(&format!("note: {}", crate::render::printable(note)));
    }
    match arguments.format {
        Format::Json => context.print_json(&report)?,
        Format::Csv => context.print(&report, |report| render::rows::separated(report, ","))?,
        Format::Tsv => context.print(&report, |report| render::rows::separated(report, "\t"))?,
        Format::Svg => context.print(&report, render::svg::picture)?,
        Format::Table if !context.terminal => context.print(&report, |report| render::rows::aligned(report, false))?,
        Format::Table if selects => context.print(&report, |report| render::rows::aligned(report, true))?,
        Format::Table => context.print(&report, |report| render::overview(report, context.color))?,
    }
    Ok(Outcome::Yes)
}
