//! Every operation of every instruction set against the portable one; casts and searches against the plain definition.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

/// Applies every operation to the same values.
struct Everything<'a> {
    a: &'a [u32; LANES],
    b: &'a [u32; LANES],
    shift: u32,
}

impl Kernel for Everything<'_> {
    type Out = Vec<[u32; LANES]>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Out {
        let (i, j) = (s.iload(self.a), s.iload(self.b));
        let (x, y) = (s.floats(i), s.floats(j));
        let mut bytes = [0; 4 * LANES];
        for (to, word) in bytes.chunks_exact_mut(4).zip(self.a) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let (halves, quarters) = (bytes.first_chunk().expect("32 of 64"), bytes.first_chunk().expect("16 of 64"));
        let (mut u8s, mut u16s) = ([0; LANES], [0; LANES]);
        s.store_u8(i, &mut u8s);
        s.store_u16(i, &mut u16s);
        let mut f16s = [0; 2 * LANES];
        s.store_f16(x, &mut f16s);
        let floats = [
            s.add(x, y),
            s.sub(x, y),
            s.mul(x, y),
            s.div(x, y),
            s.fma(x, y, x),
            s.fnma(x, y, x),
            s.min(x, y),
            s.max(x, y),
            s.select_lt(x, y, y, x),
            s.sqrt(x),
            s.lookup(&self.b.map(f32::from_bits), i),
            s.load_f16(&f16s),
            s.abs(x),
            s.round_bf16(x),
            s.splat(1.5),
            s.load_bf16(halves),
            s.load_f16(halves),
            s.load_f32(&bytes),
        ];
        let words = [
            s.iadd(i, j),
            s.isub(i, j),
            s.iand(i, j),
            s.ior(i, j),
            s.imin(i, j),
            s.imax(i, j),
            s.truncate(x),
            s.isplat(u32::from(s.any_lt(x, y))),
            s.shl(i, self.shift),
            s.shr(i, self.shift),
            s.nibbles(self.a[0], self.b[0]),
            s.load_u8(quarters),
            s.isplat(self.a[1]),
            s.iload(&u8s.map(u32::from)),
            s.iload(&u16s.map(u32::from)),
        ];
        let mut square = [i; LANES];
        for (vector, &word) in square.iter_mut().zip(self.b) {
            *vector = s.iadd(i, s.isplat(word));
        }
        let square = s.transpose(square);
        let mut all = Vec::new();
        for x in floats {
            let mut lanes = [0.0; LANES];
            s.store(x, &mut lanes);
            // NaN payloads are the machine's own business.
            all.push(lanes.map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }));
        }
        for k in 0..words.len() + LANES {
            let mut lanes = [0; LANES];
            s.istore(if k < LANES { square[k] } else { words[k - LANES] }, &mut lanes);
            all.push(lanes);
        }
        all
    }
}

fn lanes() -> impl Strategy<Value = [u32; LANES]> {
    let special = prop_oneof![
        Just(0),
        Just(0x8000_0000),
        Just(0x7f80_0000),
        Just(0xff80_0000),
        Just(0x7fc0_0000),
        Just(1),
        Just(0x807f_ffff),
        Just(0x3f80_0000),
        Just(0x7f7f_ffff),
        Just(0x0080_0000)
    ];
    prop::array::uniform16(prop_oneof![3 => any::<u32>(), 2 => 0x3e00_0000..0x4200_0000_u32, 1 => special])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn operations_agree(a in lanes(), b in lanes(), shift in 0..32_u32) {
        let expected = Everything { a: &a, b: &b, shift }.run(portable::Portable);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let got = pinned(isa, || dispatch(Everything { a: &a, b: &b, shift }));
            for k in 0..expected.len() {
                prop_assert_eq!(got[k], expected[k], "{} operation {}", isa, k);
            }
        }
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found(
        len in 1..40_000_usize, bad in prop::collection::vec(0..40_000_usize, 0..3), at in 0..4_usize, kind in 0..3_usize,
    ) {
        let float = [Float::BF16, Float::F16, Float::F32][kind];
        let mut bytes = vec![0xff; at];
        for i in 0..len {
            let x = if bad.contains(&i) { [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3] } else { i as f32 - 9000.0 };
            match float {
                Float::BF16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
                Float::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
                Float::F32 => bytes.extend(x.to_le_bytes()),
            }
        }
        let expected = bad.iter().copied().filter(|&i| i < len).min();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            prop_assert_eq!(pinned(isa, || first_nonfinite(&bytes[at..], float)), expected);
        }
    }
}

#[test]
fn casts_are_exact_for_every_half_and_between_them() {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    // Every BF16 value that is a number, and beside each the values around the middle to its neighbour. One more than sixteens.
    let wide: Vec<f32> = (0..=u16::MAX)
        .flat_map(|b| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(u32::from(b) << 16 | low)))
        .chain([65_519.996, 65_520.0, -2.980_232_2e-8, 1.0, 1.0])
        .filter(|x| !x.is_nan())
        .collect();
    assert_ne!(wide.len() % LANES, 0, "a part of a vector");
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for float in [Float::BF16, Float::F16, Float::F32] {
            let mut widened = vec![0.0; halves.len() / float.bytes()];
            pinned(isa, || widen(&halves, float, &mut widened));
            for (stored, w) in halves.chunks_exact(float.bytes()).zip(widened) {
                let expected = float.read(stored);
                assert!(
                    expected.to_bits() == w.to_bits() || expected.is_nan() && w.is_nan(),
                    "{isa} {float:?} {stored:?} {w}"
                );
            }
            let mut rounded = vec![0; wide.len() * float.bytes()];
            pinned(isa, || narrow(&wide, float, &mut rounded));
            for (w, r) in wide.iter().zip(rounded.chunks_exact(float.bytes())) {
                assert_eq!(float.read(r).to_bits(), float.round(*w).to_bits(), "{isa} {float:?} {w:e}");
            }
        }
    }
}

#[test]
fn an_instruction_set_that_is_not_there_is_refused() {
    for isa in Isa::ALL {
        assert_eq!(pinned(Isa::Scalar, active), Isa::Scalar);
        if !isa.is_available() {
            let error = select(Some(isa)).unwrap_err().to_string();
            assert!(error.contains(&isa.to_string()), "{error}");
        }
    }
    assert!(Isa::best().is_available());
}
