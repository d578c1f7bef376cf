//! Models from the Hugging Face Hub, or from what speaks like it: listed at one commit, fetched in ranges, hashed on the way, resumable across
//! processes.
//!
//! It must not know what is in a file, read the environment, or find out by itself where a cache lies: [`Settings`] and [`Place`] say so.
//!
//! ```text
//! Address -> Listing (commit, files, digests) -> Selection -> Place (what is there?) -> fetch -> the same files, verified
//! ```
//!
//! What the hub sends is not trusted: statuses, lengths and ranges of every answer are checked, names cannot lead out of the folder, and a
//! file appears under its name only when its content has the digest that the listing promised.

mod address;
mod client;
mod denial;
mod digest;
mod fetch;
mod headers;
mod listing;
mod pace;
mod place;
mod record;
mod retry;
mod select;
mod settings;
mod throttle;
mod transfer;
mod url;

pub use address::{Address, DEFAULT_REVISION, Location, SCHEME, is_commit, is_plain_path};
pub use client::Client;
pub use digest::{Hashed, hash_file};
pub use fetch::{Fetched, Job, Mismatch, fetch};
pub use headers::RemoteFolder;
pub use listing::{Digest, Listing, RemoteFile};
pub use place::{Hold, Place, cached_commit, cached_files};
pub use select::{Selection, pattern};
pub use settings::{DEFAULT_ENDPOINT, Proxies, Settings, Token};
