//! FP8 E4M3FN, one value at a time: sign, four exponent bits (bias 7), three mantissa bits.
//!
//! The format (OCP 8-bit floating point, "OFP8" E4M3): no infinity, NaN is `S.1111.111` (0x7f and 0xff), the largest
//! value is 448, the smallest subnormal 2^-9. It must not know scales or tensors.

/// The largest finite value.
pub const MAX: f32 = 448.0;

/// The encoding of `x`, rounded to nearest, ties to even; what is beyond ±448 becomes ±448, NaN stays NaN.
///
/// ```
/// use l4::dtype::fp8;
/// assert_eq!([fp8::encode(1.0), fp8::encode(-448.0), fp8::encode(1e9), fp8::encode(0.0009765625)], [0x38, 0xfe, 0x7e, 0]);
/// ```
pub fn encode(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    if x.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = x.abs().min(MAX);
    if magnitude < 0.015625 {
        // Below 2^-6 the step is constant, 2^-9, and the encoding is the number of steps (eight of them is 2^-6 itself).
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    // Keep three of 23 mantissa bits; a carry out of the mantissa rightly raises the exponent. Then change the bias.
    let bits = magnitude.to_bits();
    let rounded = (bits + 0x7_ffff + ((bits >> 20) & 1)) >> 20;
    sign | (rounded - ((127 - 7) << 3)) as u8
}

/// The value of an encoding; exact.
pub fn decode(code: u8) -> f32 {
    DECODE[usize::from(code)]
}

/// The value of every encoding.
pub const DECODE: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = value(code as u32);
        code += 1;
    }
    table
};

const fn value(code: u32) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7, (code >> 3) & 15, code & 7);
    let magnitude = if exponent == 15 && mantissa == 7 {
        f32::NAN
    } else if exponent == 0 {
        mantissa as f32 / 512.0
    } else {
        f32::from_bits(((exponent + 127 - 7) << 23) | (mantissa << 20))
    };
    if sign == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The encoding of a value by search: the nearest of all finite values, the one with an even encoding where two are.
    fn nearest(x: f32) -> u8 {
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let distance = |code: u8| (f64::from(decode(code)) - f64::from(x.abs().min(MAX))).abs();
        let best = (0..0x7f_u8).map(distance).fold(f64::INFINITY, f64::min);
        let candidates: Vec<u8> = (0..0x7f).filter(|&code| distance(code) == best).collect();
        sign | *candidates.iter().find(|&&code| candidates.len() == 1 || code % 2 == 0).unwrap()
    }

    #[test]
    fn decode_follows_the_format() {
        for code in 0..=255_u8 {
            let (exponent, mantissa) = (i32::from((code >> 3) & 15), f64::from(code & 7));
            let magnitude = match (exponent, mantissa) {
                (15, 7.0) => f64::NAN,
                (0, m) => m * 2_f64.powi(-9),
                (e, m) => (1.0 + m / 8.0) * 2_f64.powi(e - 7),
            };
            let value = f64::from(decode(code));
            assert!(value.abs() == magnitude || value.is_nan() && magnitude.is_nan(), "{code:#x}: {value}");
            assert_eq!(value.is_sign_negative(), code >= 0x80, "{code:#x}");
        }
    }

    #[test]
    fn encode_finds_the_nearest_of_every_bfloat16() {
        for bits in 0..=u16::MAX {
            let x = f32::from_bits(u32::from(bits) << 16);
            if x.is_nan() {
                assert_eq!(encode(x) & 0x7f, 0x7f);
            } else {
                assert_eq!(encode(x), nearest(x), "{x:e}");
            }
        }
    }

    #[test]
    fn encode_breaks_ties_to_even_and_rounds_beside_them() {
        for code in 0..0x7e_u8 {
            let middle = (decode(code) + decode(code + 1)) / 2.0;
            for x in [middle, middle.next_up(), middle.next_down(), -middle, (-middle).next_up(), (-middle).next_down()]
            {
                assert_eq!(encode(x), nearest(x), "{x:e}");
            }
        }
    }
}
