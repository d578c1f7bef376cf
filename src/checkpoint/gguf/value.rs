//! Values of keys, and the cursor that reads them from hostile bytes.

use super::super::error::Kind;

/// A key's value. Arrays are positions in the file.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Array(Array),
}

/// An array of a file: where its elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    /// Number of the elements' type, as in the file.
    pub kind: u32,
    /// Number of elements.
    pub count: u64,
    /// Position of the first one in the file.
    pub start: usize,
}

/// Number of the type of a string.
pub(super) const STRING: u32 = 8;
/// Number of the type of an array.
pub(super) const ARRAY: u32 = 9;

impl Value {
    /// A whole number, whatever its width, if it is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// A whole number, whatever its width and sign.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::I8(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::I64(value) => Some(value),
            _ => self.as_u64()?.try_into().ok(),
        }
    }

    /// A floating-point number, as the decimal number that it was most likely written from: `1e-5` for the float32 nearest to it.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => value.to_string().parse().ok(),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

/// Bytes, read from front to back: of a file, or of what is here of its beginning.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    /// Size of the whole file.
    file: u64,
    /// Where something ends that was asked for, is inside the file, and is not here.
    pub(super) wants: Option<u64>,
}

/// A fault of the file, in words.
pub(super) fn malformed(what: impl Into<String>) -> Kind {
    Kind::Malformed { what: what.into() }
}

impl<'a> Cursor<'a> {
    /// A cursor at the byte `at` of a whole file.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, file: bytes.len() as u64, wants: None }
    }

    /// A cursor at the beginning of a file of `file` bytes, of which the first ones are here.
    pub(super) fn at_beginning(bytes: &'a [u8], file: u64) -> Self {
        Self { bytes, at: 0, file, wants: None }
    }

    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8], Kind> {
        let left = self.file - self.at as u64;
        if count > left {
            return Err(malformed(format!("{count} bytes should follow byte {}, and {left} do", self.at)));
        }
        let end = self.at as u64 + count;
        if end > self.bytes.len() as u64 {
            self.wants = Some(end);
            return Err(malformed(format!("the file goes on behind its first {} bytes", self.bytes.len())));
        }
        let taken = &self.bytes[self.at..][..count as usize];
        self.at += count as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Kind> {
        Ok(self.take(N as u64)?.try_into().expect("that many bytes were taken"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Kind> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Kind> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn string(&mut self) -> Result<&'a str, Kind> {
        let at = self.at;
        let length = self.u64()?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| malformed(format!("the string at byte {at} is not UTF-8")))
    }

    pub(super) fn value(&mut self) -> Result<Value, Kind> {
        let kind = self.u32()?;
        self.value_of(kind)
    }

    pub(super) fn value_of(&mut self, kind: u32) -> Result<Value, Kind> {
        Ok(match kind {
            0 => Value::U8(self.array::<1>()?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            STRING => Value::String(self.string()?.to_owned()),
            ARRAY => Value::Array(self.elements()?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            _ => return Err(malformed(format!("a value of the unknown type {kind} before byte {}", self.at))),
        })
    }

    /// Goes past an array.
    fn elements(&mut self) -> Result<Array, Kind> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let start = self.at;
        let size: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            STRING => {
                // Each takes eight bytes at least, so the file's size bounds the loop.
                for _ in 0..count {
                    self.string()?;
                }
                return Ok(Array { kind, count, start });
            }
            // As in llama.cpp, whose reader knows no arrays of arrays.
            _ => return Err(malformed(format!("an array of type {kind} at byte {start}"))),
        };
        let bytes = count.checked_mul(size).ok_or_else(|| malformed(format!("an array of {count} elements")))?;
        self.take(bytes)?;
        Ok(Array { kind, count, start })
    }
}
