//! A plan: every output file with every tensor's name, dtype, shape and byte offset, and the tasks that fill them.
//!
//! It is made from headers alone, before one weight is read, and it is fixed by the inputs and the options: neither the
//! number of threads nor the memory bound changes it. That is what makes output reproducible and a journal of finished
//! tasks meaningful in the next process.

use std::collections::HashSet;
use std::ops::Range;

use anyhow::{Result, bail};

use super::header;
use super::work::Work;
use crate::dtype::Dtype;

/// Files that grow side by side. A file is hashed by one thread at a time, at about the speed of one disk, so work that is
/// little more than copying needs several of them in the making.
const FILES_AT_ONCE: usize = 4;

/// Bytes of a file that are written before it is the next one's turn.
const INTERLEAVE_BYTES: u64 = 16 << 20;

/// Index into [`Plan::tensors`].
pub type OutTensorId = usize;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutTensor {
    /// Physical name.
    pub name: String,
    /// Number format.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<u64>,
    /// Size of the data.
    pub bytes: u64,
    /// Index into [`Plan::files`].
    pub file: usize,
    /// Where the data begin in the file.
    pub offset: u64,
    /// Contents that are known already, for small tensors that no weight is read for.
    pub literal: Option<Vec<u8>>,
}

/// A weight file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutFile {
    /// File name.
    pub name: String,
    /// Everything before the data.
    pub header: Vec<u8>,
    /// Size of the whole file.
    pub bytes: u64,
    /// Its tensors, by ascending offset.
    pub tensors: Vec<OutTensorId>,
    /// Bytes between tensors and behind the last, which are zero.
    pub gaps: Vec<Range<u64>>,
    /// Weights that the header has room for a note about, by their index in the model and their names.
    pub noted: Vec<(usize, String)>,
}

/// Part of a tensor that one task writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// The tensor.
    pub tensor: OutTensorId,
    /// Bytes from the tensor's start.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A piece of work that shares nothing with any other: it reads weights and fills its own regions.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What is computed.
    pub work: Work,
    /// What is written, in the order in which `work` gives its buffers.
    pub writes: Vec<Region>,
    /// Bytes of input that it accounts for; all tasks together account for every byte once.
    pub source_bytes: u64,
    /// Most resident memory that it needs, in bytes.
    pub memory: u64,
}

/// Everything that an executor needs to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Output tensors, in the order of the files.
    pub tensors: Vec<OutTensor>,
    /// Output files.
    pub files: Vec<OutFile>,
    /// Tasks, in the order of what they write.
    pub tasks: Vec<Task>,
    /// Memory that making the plan has taken, beyond what every plan takes.
    pub planning_bytes: u64,
}

impl Plan {
    /// Bytes of all weight files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes of all tensors' data: the `total_size` of an index.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Bytes of input that all tasks read.
    pub fn source_bytes(&self) -> u64 {
        self.tasks.iter().map(|task| task.source_bytes).sum()
    }

    /// Memory that the most demanding task needs.
    pub fn memory_min(&self) -> u64 {
        self.tasks.iter().map(|task| task.memory).max().unwrap_or(0)
    }

    /// Whether bytes only move, and nothing is computed.
    pub fn only_copies(&self) -> bool {
        self.tasks.iter().all(|task| matches!(task.work, Work::Copy { .. } | Work::Gather { .. }))
    }

    /// File and absolute byte offset of a region.
    pub fn place(&self, region: &Region) -> (usize, u64) {
        let tensor = &self.tensors[region.tensor];
        (tensor.file, tensor.offset + region.start)
    }
}

/// Collects tensors and tasks, then lays the tensors out in files.
#[derive(Debug)]
pub struct PlanBuilder {
    shard_bytes_max: u64,
    /// Where data begin in a file: at a multiple of this.
    alignment: u64,
    tensors: Vec<OutTensor>,
    /// First tensor of each module. A module's tensors stay in one file.
    modules: Vec<usize>,
    /// First tensor of each group of files.
    groups: Vec<(usize, FileGroup)>,
    tasks: Vec<Task>,
    notes: bool,
    /// First tensor, index and name of each weight that there is to be a note about.
    noted: Vec<(OutTensorId, usize, String)>,
}

/// Files that belong together: a file holds tensors of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileGroup {
    /// What the files' names begin with, such as `model-ep3`.
    pub stem: String,
    /// What the files' headers say of themselves, besides `format`.
    pub metadata: Vec<(String, String)>,
    /// Whether other groups hold tensors of the same names: parts of them.
    pub is_rank: bool,
}

/// Longest note about a weight, in bytes.
pub const NOTE_BYTES_MAX: usize = 32;

impl PlanBuilder {
    /// A plan whose files hold at most `shard_bytes_max` bytes of data each, unless one module alone is larger.
    pub fn new(shard_bytes_max: u64) -> Self {
        let (tensors, modules, groups, tasks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (notes, noted) = (false, Vec::new());
        Self { shard_bytes_max, alignment: 8, tensors, modules, groups, tasks, notes, noted }
    }

    /// Lets data begin at multiples of `bytes`, as far as the format allows it: it knows no gaps. Tensors of such sizes come
    /// first in each file, so that every one of them begins at such a multiple; then the rest, in the same order.
    pub fn align(&mut self, bytes: u64) {
        self.alignment = bytes;
    }

    /// Begins a group of files; without one all files are called `model`.
    pub fn begin_group(&mut self, group: FileGroup) {
        self.begin_module();
        self.groups.push((self.tensors.len(), group));
    }

    /// Leaves room in headers for notes about quantized weights, of [`NOTE_BYTES_MAX`] bytes each, that are known only when
    /// everything is written.
    pub fn leave_room_for_notes(&mut self) {
        self.notes = true;
    }

    /// There may be a note about the weight with this index in the model, whose first tensor is `tensor`.
    pub(super) fn noted(&mut self, tensor: OutTensorId, weight: usize, name: &str) {
        if self.notes {
            self.noted.push((tensor, weight, name.into()));
        }
    }

    /// Begins a module: the tensors added from here to the next call lie in one file.
    pub fn begin_module(&mut self) {
        if self.modules.last() != Some(&self.tensors.len()) {
            self.modules.push(self.tensors.len());
        }
    }

    /// Adds a tensor to the current module.
    ///
    /// # Errors
    /// Its size does not fit 64 bits, or is not a whole number of bytes.
    pub fn tensor(&mut self, name: String, dtype: Dtype, shape: Vec<u64>) -> Result<OutTensorId> {
        let Some(bytes) = dtype.bytes_of(&shape) else {
            bail!("`{name}`: {dtype} {shape:?} has no size in whole bytes");
        };
        self.tensors.push(OutTensor { name, dtype, shape, bytes, file: 0, offset: 0, literal: None });
        Ok(self.tensors.len() - 1)
    }

    /// Gives a tensor its contents at once; no task writes it.
    pub fn literal(&mut self, tensor: OutTensorId, contents: Vec<u8>) {
        assert_eq!(contents.len() as u64, self.tensors[tensor].bytes, "`{}`", self.tensors[tensor].name);
        self.tensors[tensor].literal = Some(contents);
    }

    /// Size of a tensor that was added.
    pub fn bytes_of(&self, tensor: OutTensorId) -> u64 {
        self.tensors[tensor].bytes
    }

    /// Adds a task.
    pub fn task(&mut self, task: Task) {
        self.tasks.push(task);
    }

    /// The tasks alone, as they were added, for files that are laid out elsewhere.
    pub(super) fn into_tasks(self) -> Vec<Task> {
        self.tasks
    }

    /// Lays everything out.
    ///
    /// # Errors
    /// Two tensors of one name, or a file size that does not fit 64 bits.
    pub fn finish(mut self) -> Result<Plan> {
        if self.groups.first().is_none_or(|(first, _)| *first > 0) {
            let group = FileGroup { stem: "model".into(), metadata: Vec::new(), is_rank: false };
            self.groups.insert(0, (0, group));
        }
        let groups = std::mem::take(&mut self.groups);
        let ends: Vec<usize> = groups.iter().skip(1).map(|(first, _)| *first).chain([self.tensors.len()]).collect();
        let mut files = Vec::new();
        let whole = groups.iter().zip(&ends).filter(|((_, group), _)| !group.is_rank);
        refuse_twice(whole.flat_map(|((first, _), &end)| &self.tensors[*first..end]))?;
        for ((first, group), end) in groups.into_iter().zip(ends) {
            if group.is_rank {
                refuse_twice(&self.tensors[first..end])?;
            }
            let shards = self.shards(first..end);
            let count = shards.len();
            for (index, shard) in shards.into_iter().enumerate() {
                let name = if count == 1 {
                    format!("{}.safetensors", group.stem)
                } else {
                    format!("{}-{:05}-of-{count:05}.safetensors", group.stem, index + 1)
                };
                files.push(self.lay_out(files.len(), name, &group.metadata, shard)?);
            }
        }
        let Self { tensors, mut tasks, .. } = self;
        tasks.sort_by_key(|task| {
            task.writes.first().map(|region| {
                let tensor = &tensors[region.tensor];
                let offset = tensor.offset + region.start;
                (tensor.file / FILES_AT_ONCE, offset / INTERLEAVE_BYTES, tensor.file, offset)
            })
        });
        Ok(Plan { tensors, files, tasks, planning_bytes: 0 })
    }

    /// Consecutive modules that fit one file together.
    fn shards(&self, group: Range<usize>) -> Vec<Vec<OutTensorId>> {
        let mut shards: Vec<Vec<OutTensorId>> = Vec::new();
        let mut filled = 0_u64;
        let first = self.modules.partition_point(|&start| start < group.start);
        let starts = self.modules[first..].iter().copied().take_while(|&start| start < group.end);
        let ends = self.modules[first..].iter().skip(1).copied().map(|end| end.min(group.end)).chain([group.end]);
        for (start, end) in starts.zip(ends) {
            let bytes = self.tensors[start..end].iter().fold(0_u64, |sum, tensor| sum.saturating_add(tensor.bytes));
            match shards.last_mut() {
                Some(shard) if filled.saturating_add(bytes) <= self.shard_bytes_max => shard.extend(start..end),
                _ => {
                    shards.push((start..end).collect());
                    filled = 0;
                }
            }
            filled = filled.saturating_add(bytes);
        }
        shards
    }

    /// Gives the tensors of one file their offsets.
    fn lay_out(
        &mut self,
        file: usize,
        name: String,
        metadata: &[(String, String)],
        shard: Vec<OutTensorId>,
    ) -> Result<OutFile> {
        let data = shard.iter().try_fold(0_u64, |sum, &id| sum.checked_add(self.tensors[id].bytes));
        // The header's offsets and the bits of an offset must fit as well.
        if data.is_none_or(|data| data > u64::MAX / 16) {
            bail!("`{name}` would be larger than any file can be");
        }
        let whole = |id: &OutTensorId| self.alignment > 8 && self.tensors[*id].bytes.is_multiple_of(self.alignment);
        let (mut shard, mut rest): (Vec<_>, Vec<_>) = shard.into_iter().partition(whole);
        if !self.is_aligned(&rest) {
            // Readers view tensor data in place, so every tensor must begin at a multiple of its element size, and
            // the format allows no gaps. The largest elements first always gives that.
            rest.sort_by_key(|&id| std::cmp::Reverse(self.tensors[id].dtype.block_bits()));
        }
        shard.extend(rest);
        let inside: HashSet<OutTensorId> =
            if self.noted.is_empty() { HashSet::new() } else { shard.iter().copied().collect() };
        let noted = self.noted.extract_if(.., |(tensor, ..)| inside.contains(tensor));
        let noted: Vec<(usize, String)> = noted.map(|(_, weight, name)| (weight, name)).collect();
        let room = noted.iter().map(|(_, name)| name.len() + NOTE_BYTES_MAX + 3).sum();
        let header = header::encode(metadata, self.alignment, shard.iter().map(|&id| &self.tensors[id]));
        let header = header::with_room(header, room, self.alignment);
        let mut offset = header.len() as u64;
        for &id in &shard {
            self.tensors[id].file = file;
            self.tensors[id].offset = offset;
            offset += self.tensors[id].bytes;
        }
        Ok(OutFile { name, header, bytes: offset, tensors: shard, gaps: Vec::new(), noted })
    }

    /// Whether every tensor begins at a multiple of its element size when they follow each other as they are.
    fn is_aligned(&self, shard: &[OutTensorId]) -> bool {
        let mut offset = 0_u64;
        shard.iter().all(|&id| {
            let tensor = &self.tensors[id];
            let aligned = (offset * 8).is_multiple_of(tensor.dtype.block_bits().max(8));
            offset += tensor.bytes;
            aligned
        })
    }
}

/// Refuses two tensors of one name.
pub(super) fn refuse_twice<'a>(tensors: impl IntoIterator<Item = &'a OutTensor>) -> Result<()> {
    match header::first_duplicate(tensors.into_iter().map(|tensor| tensor.name.as_str())) {
        Some(name) => bail!("two output tensors would be called `{name}`"),
        None => Ok(()),
    }
}
