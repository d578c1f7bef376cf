//! Random and sparse Llama 4 checkpoints for tests and benchmarks, and a hub on localhost to download them from.
//!
//! It must not know the library `l4`: what it writes is an independent opinion on names, shapes, layouts, configs and on
//! the container itself, and therefore a check on `l4`'s own. The names and shapes follow transformers 5.17; a test holds
//! them to the lists in `testdata/full-size/`.
//!
//! ```no_run
//! use l4_testkit::{Shards, Spec};
//! let spec = Spec { experts: 8, shards: Shards::Split(3), ..Spec::default() };
//! spec.write("/tmp/checkpoint".as_ref())?;
//! # Ok::<(), anyhow::Error>(())
//! ```

mod config;
mod full_size;
mod hub;
mod random;
mod safetensors;
mod spec;
mod tensors;
mod write;

pub use config::{config_json, generation_config_json};
pub use full_size::{Kind, real_layers, write_real_layers, write_sparse_maverick, write_sparse_scout};
pub use hub::{Fault, FaultKind, Hub, HubOptions, Request};
pub use random::{Rng, fill_normal};
pub use safetensors::{Dtype, TensorDef, write_safetensors, write_sparse_safetensors};
pub use spec::{RopeScaling, Shards, Spec, Style, Vision};
pub use tensors::tensors;
