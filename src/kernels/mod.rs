//! Hot loops, written once and compiled for several instruction sets; the right one is picked at run time.
//!
//! A kernel is a value that implements [`Kernel`]: its `run` is generic over [`Simd`], sixteen lanes of `f32` and `u32`.
//! [`dispatch`] compiles it once for each instruction set and calls the one in use. The operations of [`Simd`] are exact
//! (IEEE, no contraction, no approximation), so every instruction set gives the same bits.
//!
//! It must not know tensors, files, names or configurations. `unsafe` lives in the files named after an instruction set.

mod convert;
mod distance;
pub mod gemm;
mod portable;
pub mod rows;
mod simd;
mod transpose;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

pub use convert::{first_nonfinite, narrow, widen};
pub(crate) use convert::{load, load_part};
pub use distance::{Distance, Error, distance, error, same};
pub use simd::{Float, LANES, Lanes, Simd, Words};
pub use transpose::transpose;

use portable::Portable;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; what the compiler makes of it for the target's baseline.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Isa {
    /// Every instruction set that this program knows, slowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// The fastest one that this machine has.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Self::Scalar)
    }

    fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// The index in [`Isa::ALL`] of the instruction set in use; `u8::MAX` until the first use.
static SELECTED: AtomicU8 = AtomicU8::new(u8::MAX);

thread_local! {
    /// What [`pinned`] set for this thread.
    static PINNED: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// Chooses the instruction set for the whole process and returns it; `None` chooses the fastest.
///
/// # Errors
///
/// This machine does not have `isa`.
pub fn select(isa: Option<Isa>) -> anyhow::Result<Isa> {
    let isa = isa.unwrap_or_else(Isa::best);
    if !isa.is_available() {
        let best = Isa::best();
        return Err(crate::error::hint(
            format!("this machine does not have the instruction set `{isa}`"),
            format!("leave the choice to the program, or ask for `{best}`"),
        ));
    }
    SELECTED.store(isa as u8, Ordering::Relaxed);
    Ok(isa)
}

/// The instruction set that [`dispatch`] uses on this thread.
pub fn active() -> Isa {
    if let Some(isa) = PINNED.get() {
        return isa;
    }
    if let Some(isa) = Isa::from_index(SELECTED.load(Ordering::Relaxed)) {
        return isa;
    }
    let isa = Isa::best();
    SELECTED.store(isa as u8, Ordering::Relaxed);
    isa
}

/// Runs `f` with `isa` in use on this thread only, for tests and benchmarks that compare instruction sets.
///
/// # Panics
///
/// This machine does not have `isa`.
pub fn pinned<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    assert!(isa.is_available(), "this machine does not have {isa}");
    let before = PINNED.replace(Some(isa));
    let result = f();
    PINNED.set(before);
    result
}

/// A hot loop, generic over the instruction set.
///
/// Everything that `run` calls with an `S` must be `#[inline(always)]` and must not hide in a closure: code that is not
/// inlined into the function that [`dispatch`] compiles for an instruction set does not get to use that set.
pub trait Kernel {
    /// What the loop returns.
    type Out;

    /// The loop.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Runs `kernel` if the instruction set in use has vectors; otherwise there is no result. For kernels that have a plain form of
/// their own for [`Isa::Scalar`], and are too large to be compiled a third time.
pub fn dispatch_vector<K: Kernel>(kernel: K) -> Option<K::Out> {
    match active() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => Some(avx512::run(kernel)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Some(avx2::run(kernel)),
        _ => None,
    }
}

/// Runs `kernel`, compiled for the instruction set in use.
pub fn dispatch<K: Kernel>(kernel: K) -> K::Out {
    match active() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::run(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::run(kernel),
        _ => kernel.run(Portable),
    }
}
