//! Sizes as people type and read them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes: `512M`, `4G`, `2GiB`, `5GB`, `1048576`.
///
/// `K`, `M`, `G`, `T` and `KiB` ... are powers of 1024; `KB`, `MB`, `GB`, `TB` are powers of 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; write it like 512M, 4GiB or 5GB");
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let number: f64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit = text[digits..].trim().to_ascii_lowercase();
        let mut letters = unit.chars();
        let power = match letters.next() {
            None | Some('b') => 0,
            Some('k') => 1,
            Some('m') => 2,
            Some('g') => 3,
            Some('t') => 4,
            Some(_) => return Err(wrong()),
        };
        let base: f64 = match letters.as_str() {
            "" | "ib" => 1024.0,
            "b" if power > 0 => 1000.0,
            _ => return Err(wrong()),
        };
        let bytes = number * base.powi(power);
        if !(1.0..9e18).contains(&bytes) {
            return Err(wrong());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&binary(self.0))
    }
}

/// `60.4 GiB`.
pub(crate) fn binary(bytes: u64) -> String {
    scaled(bytes, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB"])
}

/// `64.9 GB`.
pub(crate) fn decimal(bytes: u64) -> String {
    scaled(bytes, 1000.0, ["B", "kB", "MB", "GB", "TB"])
}

/// `109 B`, `17.2 B`: numbers of parameters with the suffixes of the field (K, M, B, T).
pub(crate) fn count(number: u64) -> String {
    scaled(number, 1000.0, ["", "K", "M", "B", "T"]).trim_end().to_owned()
}

fn scaled(number: u64, base: f64, units: [&str; 5]) -> String {
    let mut value = number as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    if unit == 0 { format!("{number} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

/// `1,133`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("4G", 4 << 30),
            ("2GiB", 2 << 30),
            ("5GB", 5_000_000_000),
            ("1.5g", 3 << 29),
            ("1048576", 1 << 20),
            ("10 kb", 10_000),
            ("7b", 7),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "G", "4X", "-1G", "0", "1e3", "4GG", "99999999999T", "1.2.3M"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_printed_as_people_read_them() {
        assert_eq!(grouped(217_283_587_072), "217,283,587,072");
        assert_eq!(grouped(12), "12");
        assert_eq!(binary(217_283_587_072), "202.4 GiB");
        assert_eq!(decimal(217_283_587_072), "217.3 GB");
        assert_eq!(count(108_641_793_536), "108.6 B");
        assert_eq!(count(999), "999");
    }
}
