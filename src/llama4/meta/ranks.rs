//! Whether files of ranks belong together: all of them are there, each of them once, and of one model.
//!
//! Names of files can be wrong, so what tensors say is compared: a few shapes when a checkpoint is opened, a few bytes of each
//! file before its weights are read.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Result, bail};
use xxhash_rust::xxh3::Xxh3;

use super::key_of;
use super::names::{Place, Split, Take, places};
use crate::checkpoint::{Checkpoint, Edges, rank_of, shown};
use crate::error::hint;
use crate::llama4::config::{Config, ConfigError};
use crate::llama4::{Expected, Llama4, Problem, ProblemKind, Role, TensorId, expected};

/// Largest tensor that is compared between ranks: norms and biases.
const COMPARED_BYTES_MAX: u64 = 64 << 10;

/// Most bytes of a tensor that are looked at to tell a rank from the others.
const SAMPLE_BYTES: u64 = 64 << 10;

/// Most ranks that shapes are believed about. Meta's models have 1 to 16.
const RANKS_MAX: u64 = 256;

/// A tensor that every rank has its own piece of, and whose whole size the config gives.
struct Probe {
    /// The shape of the whole.
    whole: Vec<usize>,
    place: Place,
    of_rank: BTreeMap<usize, TensorId>,
}

/// The probes of a checkpoint: embedding, head, and attention of the first layer. Not its keys and values, which ranks share when
/// there are more ranks than heads; not the feed-forwards, whose width is taken from the number of files.
fn probes(checkpoint: &Checkpoint, config: &Config) -> Vec<Probe> {
    let mut by_key: HashMap<&str, BTreeMap<usize, TensorId>> = HashMap::new();
    for (id, tensor) in checkpoint.tensors().iter().enumerate() {
        let (stem, rank) = rank_of(&checkpoint.files()[tensor.file].name).unwrap_or(("consolidated", 0));
        if stem == "consolidated" {
            by_key.entry(key_of(checkpoint, id)).or_default().insert(rank, id);
        }
    }
    let is_probe = |wanted: &Expected| {
        let roles = [Role::Embedding, Role::LmHead, Role::Query, Role::AttentionOutput];
        roles.contains(&wanted.role) && wanted.layer.unwrap_or(0) == 0
    };
    let find = |wanted: Expected| {
        let place = places(&wanted).into_iter().find(|place| by_key.contains_key(place.key.as_str()))?;
        let of_rank = by_key.get(place.key.as_str())?.clone();
        Some(Probe { whole: wanted.shape, place, of_rank })
    };
    expected(config).into_iter().filter(is_probe).filter_map(find).collect()
}

/// Ranks that have no file among those that were opened.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    /// Number of all ranks.
    of: usize,
    /// Those that are not there, ascending; at least one.
    ranks: Vec<usize>,
    /// What shows it, in words.
    sign: String,
}

impl Missing {
    /// Held against the shapes of the probes; `None` if all are there, or the shapes say something else.
    fn of(checkpoint: &Checkpoint, probes: &[Probe]) -> Option<Self> {
        let mut found: Option<(u64, String)> = None;
        for probe in probes.iter().filter(|probe| probe.place.take == Take::Whole) {
            let shapes = probe.of_rank.values().map(|&id| checkpoint.tensors()[id].shape.as_slice());
            let axis = usize::from(probe.place.split == Split::Ins);
            let (count, part) = pieces_of(&probe.whole, axis, shapes)?;
            match found {
                Some((first, _)) if first != count => return None,
                Some(_) => {}
                None => {
                    let (whole, what) = (probe.whole[axis], ["rows", "columns"][axis]);
                    found = Some((count, format!("`{}` has {part} of {whole} {what} in each", probe.place.key)));
                }
            }
        }
        let (of, sign) = found.filter(|(count, _)| *count <= RANKS_MAX)?;
        let of = of as usize;
        let here = &probes.first()?.of_rank;
        // A rank that there cannot be: the shapes are not of these files' ranks.
        if here.keys().any(|&rank| rank >= of) {
            return None;
        }
        let ranks: Vec<usize> = (0..of).filter(|rank| !here.contains_key(rank)).collect();
        (!ranks.is_empty()).then_some(Self { of, ranks, sign })
    }

    /// The name of a missing rank's file.
    fn file(rank: usize) -> String {
        format!("consolidated.{rank:02}.pth")
    }

    /// Whether one of them lies in the folder nevertheless: then the user named a file, and not the folder.
    fn lies_beside(&self, checkpoint: &Checkpoint) -> bool {
        let is_missing = |name: &String| {
            rank_of(name).is_some_and(|(stem, rank)| stem == "consolidated" && self.ranks.contains(&rank))
        };
        checkpoint.side_names().is_ok_and(|names| names.iter().any(is_missing))
    }

    /// The missing ranks as file names number them: `00 and 04 to 07`.
    fn numbers(&self) -> String {
        let runs = self.ranks.chunk_by(|a, b| a + 1 == *b).map(|run| match *run {
            [first, .., last] => format!("{first:02} to {last:02}"),
            _ => format!("{:02}", run[0]),
        });
        runs.collect::<Vec<_>>().join(" and ")
    }
}

/// How many pieces of these shapes make up a whole that is cut along `axis`, and the length of one; `None` unless they fit.
fn pieces_of<'a>(whole: &[usize], axis: usize, mut shapes: impl Iterator<Item = &'a [u64]>) -> Option<(u64, u64)> {
    let shape = shapes.next()?;
    if shapes.any(|other| other != shape) || shape.len() != 2 || whole.len() != 2 {
        return None;
    }
    let (part, length) = (shape[axis], whole[axis] as u64);
    let fits = shape[1 - axis] == whole[1 - axis] as u64 && part > 0 && length.is_multiple_of(part);
    fits.then(|| (length / part, part))
}

/// Refuses a folder without the files of some ranks. Where a rank is missing between others, the folder is not even opened; this
/// finds the last ones, by the shapes.
///
/// # Errors
/// Names the ranks that are missing, and what shows it.
pub(in crate::llama4) fn require_all_ranks(checkpoint: &Checkpoint, config: &Config) -> Result<(), ConfigError> {
    let missing = Missing::of(checkpoint, &probes(checkpoint, config));
    // A single file that the user named may be looked at; what it lacks is a problem then.
    let Some(missing) = missing.filter(|missing| !missing.lies_beside(checkpoint)) else { return Ok(()) };
    let Missing { of, ranks, sign } = &missing;
    let (are, file) = match *ranks.as_slice() {
        [rank] => ("is", format!("`{}`", Missing::file(rank))),
        _ => ("are", "the missing `consolidated.*.pth`".to_owned()),
    };
    let problem = format!("these are ranks of {of} ({sign}), and {} {are} missing", missing.numbers());
    let hint = Some(format!("fetch {file} from where the others came from"));
    Err(ConfigError { file: checkpoint.folder().to_path_buf(), field: None, problem, hint })
}

/// What is wrong with one rank's file that was named in place of the folder.
pub(super) fn one_of_several(checkpoint: &Checkpoint, config: &Config) -> Option<Problem> {
    let Missing { of, sign, .. } = Missing::of(checkpoint, &probes(checkpoint, config))?;
    let name = checkpoint.files().first()?.name.clone();
    let message = format!("is one rank of {of} ({sign}): name the folder, where the others lie");
    Some(Problem { kind: ProblemKind::Mismatch, name, message })
}

impl Llama4 {
    /// Refuses files of ranks that do not belong together, as far as a few bytes of each show it. Small tensors that every rank has
    /// whole are equal unless files of different models lie together; what every rank has its own piece of is the same in no two
    /// unless one file is a copy of the other.
    ///
    /// # Errors
    /// Names the first tensor that shows it, and the files.
    pub fn check_ranks(&self) -> Result<()> {
        self.compare_replicated()?;
        self.refuse_copies()
    }

    fn compare_replicated(&self) -> Result<()> {
        let checkpoint = &self.checkpoint;
        let mut by_key: HashMap<&str, TensorId> = HashMap::new();
        let mut ids: Vec<TensorId> = (0..checkpoint.tensors().len()).collect();
        ids.sort_by_key(|&id| (checkpoint.tensors()[id].file, id));
        let replicated: HashSet<String> = expected(&self.config)
            .iter()
            .flat_map(places)
            .filter(|place| place.split == Split::Replicated)
            .map(|place| place.key)
            .collect();
        for id in ids {
            let (key, tensor) = (key_of(checkpoint, id), &checkpoint.tensors()[id]);
            if tensor.bytes > COMPARED_BYTES_MAX || !replicated.contains(key) {
                continue;
            }
            let first = *by_key.entry(key).or_insert(id);
            let same = first == id || checkpoint.bytes(first) == checkpoint.bytes(id);
            checkpoint.release(id, 0..tensor.bytes, Edges::Drop);
            if !same {
                let [a, b] = [first, id].map(|id| self.file_of(id));
                bail!(hint(
                    format!("`{}` differs between `{a}` and `{b}`, and every rank should have the same", shown(key)),
                    "the files are not from the same model; fetch all of them from the same revision",
                ));
            }
        }
        Ok(())
    }

    fn refuse_copies(&self) -> Result<()> {
        let probes = probes(&self.checkpoint, &self.config);
        let Some(first) = probes.first() else { return Ok(()) };
        let mut seen: HashMap<u128, TensorId> = HashMap::new();
        for (rank, &id) in &first.of_rank {
            let Some(digest) = self.sampled(&probes, *rank) else { continue };
            if let Some(&other) = seen.get(&digest) {
                let [a, b] = [other, id].map(|id| self.file_of(id));
                let (key, more) = (shown(&first.place.key), probes.len() - 1);
                bail!(hint(
                    format!(
                        "`{a}` and `{b}` begin with the same numbers in `{key}` and {more} more tensors, of which every \
                         rank should have its own piece"
                    ),
                    "one of the two is a copy of the other; fetch both again from where the others came from",
                ));
            }
            seen.insert(digest, id);
        }
        Ok(())
    }

    /// A digest of how the probes of a rank begin; `None` if it cannot tell ranks apart, as one number over and over cannot.
    fn sampled(&self, probes: &[Probe], rank: usize) -> Option<u128> {
        let mut hasher = Xxh3::new();
        for probe in probes {
            let id = *probe.of_rank.get(&rank)?;
            let range = 0..self.checkpoint.tensors()[id].bytes.min(SAMPLE_BYTES);
            let sample = self.checkpoint.range(id, range.clone());
            let telling = !is_constant(sample);
            hasher.update(sample);
            self.checkpoint.release(id, range, Edges::Drop);
            if !telling {
                return None;
            }
        }
        Some(hasher.digest128())
    }

    /// The name of a tensor's file.
    fn file_of(&self, id: TensorId) -> &str {
        &self.checkpoint.files()[self.checkpoint.tensors()[id].file].name
    }
}

/// Whether the bytes are one element over and over, of whatever width up to 8 bytes.
fn is_constant(bytes: &[u8]) -> bool {
    bytes.len() <= 8 || bytes[8..] == bytes[..bytes.len() - 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(whole: [usize; 2], axis: usize, shapes: &[[u64; 2]]) -> Option<(u64, u64)> {
        pieces_of(&whole, axis, shapes.iter().map(<[u64; 2]>::as_slice))
    }

    #[test]
    fn shapes_tell_the_number_of_ranks() {
        assert_eq!(pieces([2560, 64], 0, &[[320, 64]; 3]), Some((8, 320)));
        assert_eq!(pieces([64, 48], 1, &[[64, 12]]), Some((4, 12)));
        // A model in a single file.
        assert_eq!(pieces([2560, 64], 0, &[[2560, 64]]), Some((1, 2560)));
        // Another model's config, files of different numbers of ranks, no rows at all.
        assert_eq!(pieces([2560, 64], 0, &[[320, 32]]), None);
        assert_eq!(pieces([2560, 64], 0, &[[321, 64]]), None);
        assert_eq!(pieces([2560, 64], 0, &[[320, 64], [640, 64]]), None);
        assert_eq!(pieces([2560, 64], 0, &[[0, 64]]), None);
        assert_eq!(pieces([2560, 64], 0, &[]), None);
    }

    #[test]
    fn missing_ranks_are_numbered_as_their_files_are() {
        let numbers = |ranks: &[usize]| Missing { of: 8, ranks: ranks.to_vec(), sign: String::new() }.numbers();
        assert_eq!(numbers(&[7]), "07");
        assert_eq!(numbers(&[4, 5, 6, 7]), "04 to 07");
        assert_eq!(numbers(&[0, 1, 4, 6, 7]), "00 to 01 and 04 and 06 to 07");
    }

    #[test]
    fn one_number_over_and_over_tells_nothing() {
        assert!(is_constant(&[0; 64]) && is_constant(&[0x80, 0x3f].repeat(20)) && is_constant(&[1, 2]));
        assert!(!is_constant(&[[0; 60], [1; 60]].concat()) && !is_constant(&[1, 2, 3].repeat(7)));
    }
}
