//! Statistics from a file of either kind: l4tool's own, or llama.cpp's importance matrix.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};

use super::imatrix::Imatrix;
use super::statistics::Statistics;
use crate::checkpoint::gguf::MAGIC;
use crate::files;
use crate::llama4::{Llama4, Weight};

/// What is known of a model's inputs.
#[derive(Debug)]
pub enum Evidence {
    /// From `l4tool calibrate`.
    Statistics(Box<Statistics>),
    /// From `llama-imatrix`, or `l4tool calibrate --imatrix`. It does not say which model it is of.
    Imatrix(Imatrix),
}

impl Evidence {
    /// Opens a file; its first bytes tell its kind.
    ///
    /// # Errors
    /// It is none of both; names the file and what is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let mut magic = [0; MAGIC.len()];
        let context = || format!("opening the statistics `{}`", path.display());
        let (mut file, _) = files::open_regular(path).with_context(context)?;
        let begins = file.read(&mut magic).with_context(context)?;
        Ok(match magic == MAGIC && begins == MAGIC.len() {
            true => Self::Imatrix(Imatrix::open(path)?),
            false => Self::Statistics(Box::new(Statistics::open(path)?)),
        })
    }

    /// Refuses a model that the statistics are not of, as far as they say.
    ///
    /// # Errors
    /// Names what is different.
    pub fn check_model(&self, model: &Llama4) -> Result<()> {
        match self {
            Self::Statistics(statistics) => statistics.check_model(model),
            Self::Imatrix(_) => Ok(()),
        }
    }

    /// l4tool's own statistics, if it is these.
    pub fn statistics(&self) -> Option<&Statistics> {
        match self {
            Self::Statistics(statistics) => Some(statistics),
            Self::Imatrix(_) => None,
        }
    }

    /// Mean square of each input of a weight of the model; none for weights without statistics, and for experts that saw no token.
    ///
    /// # Errors
    /// The file holds another number of inputs, or values that squares cannot have.
    pub fn importance(&self, weight: &Weight) -> Result<Option<Vec<f32>>> {
        match self {
            Self::Statistics(statistics) => statistics.importance(&weight.name),
            Self::Imatrix(imatrix) => imatrix.importance(&weight.name, weight.matrix().1),
        }
    }

    /// The tokens that went to each expert of the model's layers that have some; a layer that the file does not tell of is left out.
    ///
    /// # Errors
    /// The file has another number of experts.
    pub fn loads(&self, model: &Llama4) -> Result<Vec<(usize, Vec<u64>)>> {
        let text = &model.config.text;
        match self {
            Self::Statistics(statistics) => Ok(statistics.loads()),
            Self::Imatrix(imatrix) => {
                let routed = (0..text.num_hidden_layers).filter(|&layer| text.moe_layers[layer]);
                let loads =
                    routed.map(|layer| Ok(imatrix.loads(layer, text.num_local_experts)?.map(|loads| (layer, loads))));
                loads.filter_map(Result::transpose).collect()
            }
        }
    }
}
