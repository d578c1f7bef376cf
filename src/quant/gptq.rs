//! GPTQ: weights are rounded one input after another, and what each rounding costs is made up for by the inputs that follow
//! (Frantar et al., "GPTQ", 2022), given second moments of the inputs.
//!
//! [`Factor`] is made once from a [`Hessian`](super::Hessian) and serves every matrix with the same inputs;
//! [`quantize_int4`] quantizes rows of one. Rows (outputs) do not influence one another, and all arithmetic has a fixed
//! order, so that neither the cut into tasks nor threads nor instruction sets show in the result.

mod cholesky;
mod factor;
mod solve;

pub use factor::{Factor, FactorError};
pub use solve::{PIECE, Params, quantize_int4, working_bytes};
