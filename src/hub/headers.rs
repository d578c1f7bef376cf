//! A repository as a folder that is read in ranges, for whoever needs only headers. It must not know what a header is.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use super::client::{Client, Fault, header, read_to_end};
use super::denial::Denial;
use super::listing::{Listing, RemoteFile};
use crate::checkpoint::Remote;
use crate::parallel;
use crate::progress::{Control, Unit};

/// Bytes of one request: longer ranges are fetched by several connections.
const PIECE: u64 = 4 << 20;

/// A repository at a commit, read over the network.
pub struct RemoteFolder<'a> {
    client: &'a Client,
    listing: &'a Listing,
    control: Control<'a>,
    /// What the names of the folder's files begin with in the repository.
    prefix: String,
    fetched: AtomicU64,
}

impl<'a> RemoteFolder<'a> {
    /// The files of `listing` in `folder`, which is empty for those in no folder; fetches nothing yet.
    pub fn new(client: &'a Client, listing: &'a Listing, folder: &str, control: Control<'a>) -> Self {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        Self { client, listing, control, prefix, fetched: AtomicU64::new(0) }
    }

    /// Bytes of content that were fetched so far.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    fn file(&self, name: &str) -> Result<&RemoteFile> {
        let found = self.listing.files.iter().find(|file| file.path.strip_prefix(&self.prefix) == Some(name));
        found.ok_or_else(|| anyhow::anyhow!("`{}` has no file `{name}`", self.listing.address.repo))
    }

    /// One range, in one request.
    fn piece(&self, file: &RemoteFile, range: &Range<u64>) -> Result<Vec<u8>> {
        let url = self.listing.url(self.client, file);
        let denied = |denial: &Denial| denial.error(&self.listing.address.repo, &self.listing.commit);
        let wanted = range.end - range.start;
        self.client.persist(&self.control, &denied, || {
            let answer = self.client.get(&url, Some(range))?;
            let place = format!("bytes {}-{}/{}", range.start, range.end - 1, file.bytes);
            let named = header(&answer.headers, "content-range");
            let (skip, most) = match answer.status {
                206 if named.as_ref() == Some(&place) => (0, wanted),
                // Without ranges the front of the file will do, if it is all that is wanted or not much more.
                200 if range.end <= PIECE || file.bytes <= PIECE => (range.start, file.bytes),
                status => {
                    let named = named.unwrap_or_default();
                    return Err(Fault::passing(format!(
                        "`{}`: {status} `{named}` to a request for `{place}`",
                        file.path
                    )));
                }
            };
            let limit = skip + wanted;
            let content = read_to_end(std::io::Read::take(answer.body, limit), most.max(limit), &answer.url)?;
            self.fetched.fetch_add(content.len() as u64, Ordering::Relaxed);
            match content.get(usize::try_from(skip).unwrap_or(usize::MAX)..) {
                Some(content) if content.len() as u64 == wanted => Ok(content.to_vec()),
                _ => Err(Fault::passing(format!("the answer for `{}` broke off", file.path))),
            }
        })
    }
}

impl Remote for RemoteFolder<'_> {
    fn files(&self) -> Vec<(String, u64)> {
        let files =
            self.listing.files.iter().filter_map(|file| Some((file.path.strip_prefix(&self.prefix)?, file.bytes)));
        files.filter(|(name, _)| !name.contains('/')).map(|(name, bytes)| (name.to_owned(), bytes)).collect()
    }

    fn read(&self, wanted: &[(String, Range<u64>)]) -> Result<Vec<Vec<u8>>> {
        let mut pieces = Vec::new();
        for (index, (name, range)) in wanted.iter().enumerate() {
            let file = self.file(name)?;
            let starts = (range.start..range.end).step_by(PIECE as usize);
            pieces.extend(starts.map(|start| (index, file, start..(start + PIECE).min(range.end))));
        }
        let progress = self.control.progress;
        progress.start(
            "reading headers",
            pieces.iter().map(|(.., range)| range.end - range.start).sum(),
            0,
            Unit::Bytes,
        );
        let contents: Vec<OnceLock<Vec<u8>>> = pieces.iter().map(|_| OnceLock::new()).collect();
        let connections = self.client.settings().connections.max(1);
        let fetching = || {
            let step = |(): &mut (), index: usize| {
                let (_, file, range) = &pieces[index];
                contents[index].set(self.piece(file, range)?).expect("every piece is fetched once");
                progress.advance(range.end - range.start);
                Ok(())
            };
            parallel::for_each(pieces.len(), connections, &self.control, || (), step)
        };
        self.client.interruptible(&self.control, fetching)?;
        progress.finish();
        let mut whole = vec![Vec::new(); wanted.len()];
        for ((index, ..), content) in pieces.iter().zip(contents) {
            whole[*index].extend_from_slice(&content.into_inner().expect("every piece was fetched"));
        }
        Ok(whole)
    }
}
