//! Activations of all tokens, in memory while there is room, otherwise in a file that has no name and goes with the process.
//!
//! Rows of float32, read and written by position. Where they lie shows in no number.

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context, Result};

/// Where activations go.
#[derive(Debug)]
pub struct Storage {
    folder: PathBuf,
    /// Bytes of memory that are still free for activations.
    room: AtomicU64,
    /// Files made so far, for their names.
    files: AtomicU64,
}

/// Rows of one width.
#[derive(Debug)]
pub struct Rows {
    width: usize,
    rows: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<f32>),
    File(File, PathBuf),
}

impl Storage {
    /// Activations take up to `memory` bytes; what is more lies in files in `folder`.
    pub fn new(folder: &Path, memory: u64) -> Self {
        Self { folder: folder.into(), room: AtomicU64::new(memory), files: AtomicU64::new(0) }
    }

    /// Room for `rows` rows of `width` values, all zero.
    ///
    /// # Errors
    /// The file cannot be made, or the disk has no room for it.
    pub fn rows(&self, rows: usize, width: usize) -> Result<Rows> {
        let bytes = rows as u64 * width as u64 * size_of::<f32>() as u64;
        if self.room.fetch_update(Relaxed, Relaxed, |room| room.checked_sub(bytes)).is_ok() {
            return Ok(Rows { width, rows, place: Place::Memory(vec![0.0; rows * width]) });
        }
        let number = self.files.fetch_add(1, Relaxed);
        let path = self.folder.join(format!("l4tool-{}-{number}.activations", std::process::id()));
        let context = || format!("making `{}` of {bytes} bytes for activations", path.display());
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).with_context(context)?;
        fs::remove_file(&path).with_context(context)?;
        file.set_len(bytes).with_context(context)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            // As for output files: what cannot be reserved shows when it is written.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).with_context(context),
        }
        Ok(Rows { width, rows, place: Place::File(file, path) })
    }

    /// Takes rows back that are done with.
    pub fn recycle(&self, rows: Rows) {
        if let Place::Memory(values) = &rows.place {
            self.room.fetch_add((values.len() * size_of::<f32>()) as u64, Relaxed);
        }
    }
}

impl Rows {
    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The rows of a range.
    ///
    /// # Errors
    /// The file cannot be read.
    ///
    /// # Panics
    /// There are fewer rows.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<f32>> {
        let mut values = vec![0.0; range.len() * self.width];
        self.read_into(range, &mut values)?;
        Ok(values)
    }

    /// The rows at these indices, one after the other.
    ///
    /// # Errors
    /// The file cannot be read.
    ///
    /// # Panics
    /// There is no such row.
    pub fn gather(&self, indices: &[u32]) -> Result<Vec<f32>> {
        let mut values = vec![0.0; indices.len() * self.width];
        for (&index, row) in indices.iter().zip(values.chunks_exact_mut(self.width)) {
            self.read_into(index as usize..index as usize + 1, row)?;
        }
        Ok(values)
    }

    fn read_into(&self, range: Range<usize>, values: &mut [f32]) -> Result<()> {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        match &self.place {
            Place::Memory(all) => values.copy_from_slice(&all[range.start * self.width..range.end * self.width]),
            Place::File(file, path) => {
                file.read_exact_at(bytemuck::cast_slice_mut(values), self.offset(range.start))
                    .with_context(|| format!("reading activations back from `{}`", path.display()))?
            }
        }
        Ok(())
    }

    /// Writes whole rows from row `first` on.
    ///
    /// # Errors
    /// The file cannot be written.
    ///
    /// # Panics
    /// There are fewer rows.
    pub fn write(&mut self, first: usize, values: &[f32]) -> Result<()> {
        assert!(
            values.len().is_multiple_of(self.width) && first + values.len() / self.width <= self.rows,
            "whole rows"
        );
        match &mut self.place {
            Place::Memory(all) => all[first * self.width..][..values.len()].copy_from_slice(values),
            Place::File(file, path) => file
                .write_all_at(bytemuck::cast_slice(values), (first * self.width * size_of::<f32>()) as u64)
                .with_context(|| format!("writing activations to `{}`", path.display()))?,
        }
        Ok(())
    }

    /// Adds a row of `values` to each of these rows.
    ///
    /// # Errors
    /// The file cannot be read or written.
    ///
    /// # Panics
    /// There is no such row.
    pub fn add_at(&mut self, indices: &[u32], values: &[f32]) -> Result<()> {
        let mut sum = vec![0.0; self.width];
        for (&index, values) in indices.iter().zip(values.chunks_exact(self.width)) {
            let index = index as usize;
            self.read_into(index..index + 1, &mut sum)?;
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            self.write(index, &sum)?;
        }
        Ok(())
    }

    fn offset(&self, row: usize) -> u64 {
        (row * self.width * size_of::<f32>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_same_in_memory_and_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for memory in [0, 1 << 20] {
            let storage = Storage::new(folder.path(), memory);
            let mut rows = storage.rows(5, 3).unwrap();
            assert_eq!(rows.read(1..2).unwrap(), [0.0; 3]);
            rows.write(1, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
            assert_eq!(rows.gather(&[2, 0, 1]).unwrap(), [4.0, 5.0, 6.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0]);
            rows.add_at(&[4, 1], &[0.5, 0.5, 0.5, 1.0, 1.0, 1.0]).unwrap();
            assert_eq!(rows.read(1..2).unwrap(), [2.0, 3.0, 4.0]);
            assert_eq!(rows.read(4..5).unwrap(), [0.5; 3]);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
            storage.recycle(rows);
            assert_eq!(storage.room.load(Relaxed), memory);
        }
    }
}
