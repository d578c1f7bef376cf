//! `testkit`: writes random, sparse and real-size checkpoints from the command line, and serves them as a hub, for benchmarks and scripts.
//! It must not know more than the library offers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use l4_testkit::{Dtype, Hub, HubOptions, Kind, Shards, Spec, Style, Vision};

const USAGE: &str = "\
usage: testkit random [OPTIONS] DIR            a small random checkpoint
       testkit sparse scout|maverick DIR       the whole model, holes for weights
       testkit real-layers scout|maverick [--layers N] [--experts N] [--sparse] DIR
       testkit hub [OPTIONS] DIR               serve DIR/OWNER/NAME as a hub until killed; says the endpoint

options of hub:
  --port N --cdn-port N --token TOKEN --gated --page N
  --fake-digests BYTES         larger files get a digest that is not theirs (sparse models)
  --send-buffer BYTES          of each connection, so that what is counted as served was received
  GET /_stats                  tells the bytes of files that were served

options of random:
  --like tiny|scout|maverick   start from this shape (first option, if any)
  --hidden N --layers N --heads N --kv-heads N --head-dim N --intermediate N --intermediate-mlp N
  --experts N --interleave N --vocab N --chunk N --floor-scale N --max-positions N --seed N
  --vision-layers N --vision-heads N --vision-hidden N   (feed-forwards are four times as wide)
  --qk-norm true|false  --no-rope-scaling  --no-vision  --text-only  --outliers  --tokenizer
  --style published|transformers4|transformers5  --dtype bf16|f16|f32
  --shards N | --shard-bytes N | --single
";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(args: Vec<String>) -> Result<()> {
    let mut args = args.into_iter();
    match args.next().as_deref() {
        Some("random") => random(args),
        Some("sparse") => {
            let (kind, dir) = (kind(args.next())?, args.next().context("DIR is missing")?);
            match kind {
                Kind::Scout => l4_testkit::write_sparse_scout(dir.as_ref()),
                Kind::Maverick => l4_testkit::write_sparse_maverick(dir.as_ref()),
            }
        }
        Some("real-layers") => real_layers(args),
        Some("hub") => hub(args),
        Some(other) => bail!("there is no command `{other}`"),
        None => bail!("a command is missing"),
    }
}

fn kind(arg: Option<String>) -> Result<Kind> {
    match arg.as_deref() {
        Some("scout") => Ok(Kind::Scout),
        Some("maverick") => Ok(Kind::Maverick),
        other => bail!("scout or maverick is expected, not {other:?}"),
    }
}

fn real_layers(mut args: impl Iterator<Item = String>) -> Result<()> {
    let kind = kind(args.next())?;
    let (mut layers, mut experts, mut sparse, mut dir) = (1, None, false, None);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--layers" => layers = value(&arg, &mut args)?,
            "--experts" => experts = Some(value(&arg, &mut args)?),
            "--sparse" => sparse = true,
            _ => dir = Some(folder(arg, dir)?),
        }
    }
    l4_testkit::write_real_layers(&dir.context("DIR is missing")?, kind, layers, experts, sparse)
}

fn hub(mut args: impl Iterator<Item = String>) -> Result<()> {
    let (mut options, mut dir) = (HubOptions::default(), None);
    while let Some(arg) = args.next() {
        let args = &mut args;
        match arg.as_str() {
            "--port" => options.port = value(&arg, args)?,
            "--cdn-port" => options.cdn_port = value(&arg, args)?,
            "--token" => options.token = Some(value(&arg, args)?),
            "--gated" => options.gated = true,
            "--page" => options.page = value(&arg, args)?,
            "--fake-digests" => options.fake_digests_above = value(&arg, args)?,
            "--send-buffer" => options.send_buffer = Some(value(&arg, args)?),
            _ => dir = Some(folder(arg, dir)?),
        }
    }
    let hub = Hub::start(dir.context("DIR is missing")?, options)?;
    println!("{}", hub.endpoint());
    loop {
        std::thread::park();
    }
}

fn random(mut args: impl Iterator<Item = String>) -> Result<()> {
    let (mut spec, mut dir) = (Spec::default(), None);
    while let Some(arg) = args.next() {
        let args = &mut args;
        match arg.as_str() {
            "--like" => spec = like(&value::<String>(&arg, args)?)?,
            "--hidden" => spec.hidden_size = value(&arg, args)?,
            "--layers" => spec.layers = value(&arg, args)?,
            "--heads" => spec.heads = value(&arg, args)?,
            "--kv-heads" => spec.kv_heads = value(&arg, args)?,
            "--head-dim" => spec.head_dim = value(&arg, args)?,
            "--intermediate" => spec.intermediate_size = value(&arg, args)?,
            "--intermediate-mlp" => spec.intermediate_size_mlp = value(&arg, args)?,
            "--experts" => spec.experts = value(&arg, args)?,
            "--interleave" => spec.interleave_moe_layer_step = value(&arg, args)?,
            "--vocab" => spec.vocab_size = value(&arg, args)?,
            "--chunk" => spec.attention_chunk_size = value(&arg, args)?,
            "--floor-scale" => spec.floor_scale = value(&arg, args)?,
            "--max-positions" => spec.max_position_embeddings = value(&arg, args)?,
            "--seed" => spec.seed = value(&arg, args)?,
            "--qk-norm" => spec.use_qk_norm = value(&arg, args)?,
            "--vision-layers" => vision(&arg, &mut spec)?.layers = value(&arg, args)?,
            "--vision-heads" => vision(&arg, &mut spec)?.heads = value(&arg, args)?,
            "--vision-hidden" => {
                let vision = vision(&arg, &mut spec)?;
                vision.hidden_size = value(&arg, args)?;
                vision.intermediate_size = 4 * vision.hidden_size;
            }
            "--no-rope-scaling" => spec.rope_scaling = None,
            "--no-vision" => spec.vision = None,
            "--text-only" => spec.text_only = true,
            "--outliers" => spec.outliers = true,
            "--tokenizer" => spec.tokenizer = true,
            "--style" => spec.style = style(&value::<String>(&arg, args)?)?,
            "--dtype" => spec.dtype = dtype(&value::<String>(&arg, args)?)?,
            "--shards" => spec.shards = Shards::Split(value(&arg, args)?),
            "--shard-bytes" => spec.shards = Shards::ByBytes(value(&arg, args)?),
            "--single" => spec.shards = Shards::Single,
            _ => dir = Some(folder(arg, dir)?),
        }
    }
    spec.write(&dir.context("DIR is missing")?)
}

fn vision<'a>(option: &str, spec: &'a mut Spec) -> Result<&'a mut Vision> {
    spec.vision.as_mut().with_context(|| format!("{option} goes before --no-vision"))
}

fn value<T: FromStr>(option: &str, args: &mut impl Iterator<Item = String>) -> Result<T> {
    let text = args.next().with_context(|| format!("{option} needs a value"))?;
    text.parse().ok().with_context(|| format!("{option} can't be `{text}`"))
}

fn folder(arg: String, before: Option<PathBuf>) -> Result<PathBuf> {
    if arg.starts_with('-') {
        bail!("there is no option `{arg}`");
    }
    if let Some(before) = before {
        bail!("one DIR is expected, not both `{}` and `{arg}`", before.display());
    }
    Ok(arg.into())
}

fn like(name: &str) -> Result<Spec> {
    match name {
        "tiny" => Ok(Spec::default()),
        "scout" => Ok(Spec::scout_like()),
        "maverick" => Ok(Spec::maverick_like()),
        other => bail!("there is no shape `{other}`"),
    }
}

fn style(name: &str) -> Result<Style> {
    match name {
        "published" => Ok(Style::Published),
        "transformers4" => Ok(Style::Transformers4),
        "transformers5" => Ok(Style::Transformers5),
        other => bail!("there is no style `{other}`"),
    }
}

fn dtype(name: &str) -> Result<Dtype> {
    match name {
        "bf16" => Ok(Dtype::BF16),
        "f16" => Ok(Dtype::F16),
        "f32" => Ok(Dtype::F32),
        other => bail!("weights can't be `{other}`"),
    }
}
