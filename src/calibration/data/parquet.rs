//! The column `text` of a Parquet file, a slice of rows at a time.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::lines::Document;
use crate::checkpoint::shown;
use crate::error::hint;

/// The name of the column.
const COLUMN: &str = "text";

/// Most slices of a row group: each one is reached from the beginning of its group.
const SLICES_MAX: i64 = 64;

/// Rows of a slice at least.
const ROWS_MIN: i64 = 16;

/// Rows that are decoded at a time.
const BATCH: usize = 64;

/// An open file.
pub(super) struct Table {
    name: String,
    reader: SerializedFileReader<File>,
    column: usize,
    /// Row group, first row in it, number of rows.
    slices: Vec<(usize, i64, i64)>,
}

impl Table {
    /// # Errors
    /// It is no Parquet file, or has no text column of that name.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let context = || format!("reading `{}`", path.display());
        let file = File::open(path).with_context(context)?;
        let reader = SerializedFileReader::new(file).with_context(context)?;
        let columns = reader.metadata().file_metadata().schema_descr().columns();
        let Some(column) = columns.iter().position(|column| column.path().string() == COLUMN) else {
            let names: Vec<String> =
                columns.iter().map(|column| format!("`{}`", shown(&column.path().string()))).collect();
            return Err(hint(
                format!("`{}` has no column `{COLUMN}`; its columns are {}", path.display(), names.join(", ")),
                "write the text into a column of that name, or into JSON Lines",
            ));
        };
        let found = &columns[column];
        let is_text = matches!(found.logical_type_ref(), Some(LogicalType::String))
            || found.converted_type() == ConvertedType::UTF8;
        if found.physical_type() != Type::BYTE_ARRAY || !is_text || found.max_rep_level() > 0 {
            bail!("`{}`: the column `{COLUMN}` holds no strings", path.display());
        }
        let mut slices = Vec::new();
        for (group, rows) in reader.metadata().row_groups().iter().map(|group| group.num_rows()).enumerate() {
            let step = (rows.max(0) as u64).div_ceil(SLICES_MAX as u64).max(ROWS_MIN as u64) as i64;
            let mut first = 0;
            while first < rows {
                slices.push((group, first, step.min(rows - first)));
                first += step;
            }
        }
        Ok(Self { name: path.display().to_string(), reader, column, slices })
    }

    pub(super) fn slices(&self) -> u64 {
        self.slices.len() as u64
    }

    /// The texts of a slice, until they have `bytes_max` bytes.
    ///
    /// # Errors
    /// The file is damaged, or packed in a way that is not supported.
    pub(super) fn read(&self, slice: u64, bytes_max: u64) -> Result<Vec<Document>> {
        let (group, first, rows) = self.slices[slice as usize];
        self.read_rows(group, first as usize, rows as usize, bytes_max)
            .with_context(|| format!("`{}`, row group {group}, from row {first}", self.name))
    }

    fn read_rows(&self, group: usize, first: usize, rows: usize, bytes_max: u64) -> Result<Vec<Document>> {
        let group = self.reader.get_row_group(group)?;
        let ColumnReader::ByteArrayColumnReader(mut column) = group.get_column_reader(self.column)? else {
            bail!("the column `{COLUMN}` holds no strings");
        };
        if column.skip_records(first)? < first {
            bail!("it has fewer rows than it promises");
        }
        let (mut documents, mut bytes, mut left) = (Vec::new(), 0, rows);
        while left > 0 && bytes < bytes_max {
            let mut values: Vec<ByteArray> = Vec::new();
            let mut levels = Vec::new();
            let (records, ..) = column.read_records(left.min(BATCH), Some(&mut levels), None, &mut values)?;
            if records == 0 {
                bail!("it has fewer rows than it promises");
            }
            left -= records;
            for value in values {
                let text = std::str::from_utf8(value.data()).map_err(|_| anyhow!("a text that is not UTF-8"))?;
                bytes += text.len() as u64;
                documents.push(Document::Text(text.to_owned()));
            }
        }
        Ok(documents)
    }
}
