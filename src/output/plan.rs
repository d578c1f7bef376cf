//! A plan: every output file with every tensor's name, dtype, shape and byte offset, and the tasks that fill them.
//!
//! It is made from headers alone, before one weight is read, and it is fixed by the inputs and the options: neither the
//! number of threads nor the memory bound changes it. That is what makes output reproducible and a journal of finished
//! tasks meaningful in the next process.

use std::collections::HashSet;

use anyhow::{Result, bail};

use super::header;
use super::work::Work;
use crate::dtype::Dtype;

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
    /// Length prefix and JSON header.
    pub header: Vec<u8>,
    /// Size of the whole file.
    pub bytes: u64,
    /// Its tensors, by ascending offset.
    pub tensors: Vec<OutTensorId>,
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
    tensors: Vec<OutTensor>,
    /// First tensor of each module. A module's tensors stay in one file.
    modules: Vec<usize>,
    tasks: Vec<Task>,
    notes: bool,
    /// First tensor, index and name of each weight that there is to be a note about.
    noted: Vec<(OutTensorId, usize, String)>,
}

/// Longest note about a weight, in bytes.
pub const NOTE_BYTES_MAX: usize = 32;

impl PlanBuilder {
    /// A plan whose files hold at most `shard_bytes_max` bytes of data each, unless one module alone is larger.
    pub fn new(shard_bytes_max: u64) -> Self {
        Self {
            shard_bytes_max,
            tensors: Vec::new(),
            modules: Vec::new(),
            tasks: Vec::new(),
            notes: false,
            noted: Vec::new(),
        }
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

    /// Lays everything out.
    ///
    /// # Errors
    /// Two tensors of one name, or a file size that does not fit 64 bits.
    pub fn finish(mut self) -> Result<Plan> {
        if let Some(name) = header::first_duplicate(self.tensors.iter().map(|tensor| tensor.name.as_str())) {
            bail!("two output tensors would be called `{name}`");
        }
        let shards = self.shards();
        let count = shards.len();
        let mut files = Vec::with_capacity(count);
        for (index, shard) in shards.into_iter().enumerate() {
            let name = if count == 1 {
                "model.safetensors".to_owned()
            } else {
                format!("model-{:05}-of-{count:05}.safetensors", index + 1)
            };
            files.push(self.lay_out(index, name, shard)?);
        }
        let Self { tensors, mut tasks, .. } = self;
        tasks.sort_by_key(|task| {
            task.writes.first().map(|region| {
                let tensor = &tensors[region.tensor];
                (tensor.file, tensor.offset + region.start)
            })
        });
        Ok(Plan { tensors, files, tasks })
    }

    /// Consecutive modules that fit one file together.
    fn shards(&self) -> Vec<Vec<OutTensorId>> {
        let mut shards: Vec<Vec<OutTensorId>> = Vec::new();
        let mut filled = 0_u64;
        let ends = self.modules.iter().skip(1).copied().chain([self.tensors.len()]);
        for (start, end) in self.modules.iter().copied().zip(ends) {
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
    fn lay_out(&mut self, file: usize, name: String, mut shard: Vec<OutTensorId>) -> Result<OutFile> {
        let data = shard.iter().try_fold(0_u64, |sum, &id| sum.checked_add(self.tensors[id].bytes));
        // The header's offsets and the bits of an offset must fit as well.
        if data.is_none_or(|data| data > u64::MAX / 16) {
            bail!("`{name}` would be larger than any file can be");
        }
        if !self.is_aligned(&shard) {
            // Readers view tensor data in place, so every tensor must begin at a multiple of its element size, and
            // the format allows no gaps. The largest elements first always gives that.
            shard.sort_by_key(|&id| std::cmp::Reverse(self.tensors[id].dtype.bits()));
        }
        let inside: HashSet<OutTensorId> =
            if self.noted.is_empty() { HashSet::new() } else { shard.iter().copied().collect() };
        let noted = self.noted.extract_if(.., |(tensor, ..)| inside.contains(tensor));
        let noted: Vec<(usize, String)> = noted.map(|(_, weight, name)| (weight, name)).collect();
        let room = noted.iter().map(|(_, name)| name.len() + NOTE_BYTES_MAX + 3).sum();
        let header = header::encode(shard.iter().map(|&id| &self.tensors[id]), room);
        let mut offset = header.len() as u64;
        for &id in &shard {
            self.tensors[id].file = file;
            self.tensors[id].offset = offset;
            offset += self.tensors[id].bytes;
        }
        Ok(OutFile { name, header, bytes: offset, tensors: shard, noted })
    }

    /// Whether every tensor begins at a multiple of its element size when they follow each other as they are.
    fn is_aligned(&self, shard: &[OutTensorId]) -> bool {
        let mut offset = 0_u64;
        shard.iter().all(|&id| {
            let tensor = &self.tensors[id];
            let aligned = (offset * 8).is_multiple_of(tensor.dtype.bits().max(8));
            offset += tensor.bytes;
            aligned
        })
    }
}
