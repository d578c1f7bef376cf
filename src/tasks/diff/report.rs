//! What `diff` tells: every weight, every setting that changes the computation, and the verdict.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::llama4::{Role, Weight};
use crate::tasks::peak_memory_bytes;

/// How two versions of one weight compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The same bits, up to the way in which a matrix lies.
    Identical,
    /// Other bits that stand for the same numbers.
    Equal,
    /// Other numbers.
    Different,
    /// Other shapes.
    Shape,
    /// There in A alone.
    OnlyInA,
    /// There in B alone.
    OnlyInB,
    /// Stored on one side in a way that cannot be read; `message` says why.
    Unreadable,
}

impl Status {
    /// Whether both sides compute the same with it.
    pub fn is_same(self) -> bool {
        matches!(self, Self::Identical | Self::Equal)
    }
}

/// How far two versions of a weight are apart. Numbers that a NaN or an infinity makes meaningless are null in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Elements of the weight.
    pub elements: u64,
    /// Elements that differ.
    pub differing: u64,
    /// Those of them in which a side is NaN or infinite; the numbers below leave them out.
    pub nonfinite: u64,
    /// The largest `|a - b|`.
    pub max_abs_error: f32,
    /// The largest `|a - b| / max(|a|, |b|)`.
    pub max_rel_error: f32,
    /// Root of the sum of `(a - b)^2` over the sum of `a^2`.
    pub rel_rms_error: f64,
    /// Cosine of the angle between the two.
    pub cosine: f64,
    /// The first element that differs, row by row.
    pub first: Option<Element>,
}

/// One element of a weight on both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Element {
    /// Output and input, or the position in a vector.
    pub index: Vec<usize>,
    /// Its value in A.
    pub a: f32,
    /// Its value in B.
    pub b: f32,
}

/// One logical weight.
#[derive(Clone, Debug, Serialize)]
pub struct WeightDiff {
    /// Logical name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Layer.
    pub layer: Option<usize>,
    /// Expert.
    pub expert: Option<usize>,
    /// The verdict.
    pub status: Status,
    /// How A stores it: a scheme, or a float format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<String>,
    /// How B stores it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<String>,
    /// How far apart they are, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// More about it, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl WeightDiff {
    pub(super) fn new(weight: &Weight, status: Status) -> Self {
        let Weight { name, role, layer, expert, .. } = weight.clone();
        Self { name, role, layer, expert, status, a: None, b: None, difference: None, message: None }
    }
}

/// A setting of the two configs that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The field with its section, `text_config.rope_theta`.
    pub field: String,
    /// Its value in A.
    pub a: String,
    /// Its value in B.
    pub b: String,
}

/// Weights of one part of the model, by verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// The same bits.
    pub identical: u64,
    /// The same numbers.
    pub equal: u64,
    /// Other numbers or shapes, or not readable.
    pub different: u64,
    /// There on one side alone.
    pub missing: u64,
}

/// The whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `l4tool.diff/1`.
    pub schema: &'static str,
    /// The first checkpoint.
    pub a: PathBuf,
    /// The second checkpoint.
    pub b: PathBuf,
    /// Whether both compute the same: every weight has the same numbers, and no setting differs.
    pub same: bool,
    /// Weights by part of the model.
    pub components: BTreeMap<&'static str, Counts>,
    /// Settings that change the computation.
    pub config: Vec<Setting>,
    /// What is worth knowing and is no difference of the model.
    pub notes: Vec<String>,
    /// Every weight, in the order of a forward pass.
    pub weights: Vec<WeightDiff>,
    /// Bytes of weights in A.
    pub bytes: u64,
    /// Wall time.
    pub seconds: f64,
    /// Bytes of A per second.
    pub bytes_per_second: f64,
    /// Most resident memory, where the system tells.
    pub peak_memory_bytes: Option<u64>,
}

impl Report {
    pub(super) fn new(
        (a, b): (PathBuf, PathBuf),
        weights: Vec<WeightDiff>,
        config: Vec<Setting>,
        notes: Vec<String>,
        bytes: u64,
        elapsed: Duration,
    ) -> Self {
        let mut components: BTreeMap<&'static str, Counts> = BTreeMap::new();
        for weight in &weights {
            let counts = components.entry(weight.role.component()).or_default();
            *match weight.status {
                Status::Identical => &mut counts.identical,
                Status::Equal => &mut counts.equal,
                Status::Different | Status::Shape | Status::Unreadable => &mut counts.different,
                Status::OnlyInA | Status::OnlyInB => &mut counts.missing,
            } += 1;
        }
        let seconds = elapsed.as_secs_f64();
        Self {
            schema: "l4tool.diff/1",
            a,
            b,
            same: config.is_empty() && weights.iter().all(|weight| weight.status.is_same()),
            components,
            config,
            notes,
            weights,
            bytes,
            seconds,
            bytes_per_second: bytes as f64 / seconds.max(1e-9),
            peak_memory_bytes: peak_memory_bytes(),
        }
    }
}
