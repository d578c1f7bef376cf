//! Calibration: text runs through a model layer by layer, and whoever wants to sees what each weight sees.
//!
//! [`pass::Pass`] drives; an [`observer::Observer`] counts, sums or solves. Activations that do not fit the memory bound lie in
//! a file without a name. This layer writes no checkpoint and knows no `output`.

pub mod data;
pub mod evidence;
pub mod imatrix;
pub mod look;
pub mod observer;
pub mod pass;
pub mod sequences;
pub mod statistics;
pub mod store;

pub use observer::{Observer, Place, Site};
pub use pass::Pass;
pub use sequences::Sequences;
