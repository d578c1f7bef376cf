//! The loop that fetches files: connections take ranges from the first file that has some to give, and files are published one by one as
//! their digests turn out right. It must not know what the files are.
//!
//! Memory: one block for each connection, and some for each file that grows, whatever the sizes.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Scope;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::client::{Answer, Client, Fault, header};
use super::denial::Denial;
use super::digest::Hashed;
use super::listing::{Digest, Listing, RemoteFile};
use super::pace::Pace;
use super::place::{Hold, Place};
use super::record::BLOCK;
use super::transfer::{Before, Transfer};
use super::url::shown;
use crate::error::{Interrupted, hint};
use crate::files::Aligned;
use crate::progress::{Control, Unit};

/// Bytes of a file that wait for a sync at most while others follow.
const SYNC_BYTES: u64 = 128 << 20;

/// How long to wait before looking for work again.
const LOOK: Duration = Duration::from_millis(50);

/// What became of the files.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// Those that are there now: path and SHA-256.
    pub files: Vec<(String, String)>,
    /// Those whose content was wrong twice.
    pub mismatches: Vec<Mismatch>,
    /// Bytes of content that came over the network.
    pub bytes_received: u64,
    /// Bytes that an earlier run had fetched.
    pub bytes_resumed: u64,
    /// Files that were begun anew, because they had changed on the hub or were wrong the first time.
    pub restarted: Vec<String>,
}

/// A file that is not what the hub promised.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// Its path.
    pub path: String,
    /// What it should hash to.
    pub expected: Digest,
    /// What it does hash to.
    pub found: Digest,
    /// Where it lies.
    pub aside: PathBuf,
}

/// What a fetch needs besides its files.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The hub.
    pub client: &'a Client,
    /// The repository.
    pub listing: &'a Listing,
    /// Where files go.
    pub place: &'a Place,
    /// Where progress goes.
    pub control: Control<'a>,
}

/// Fetches `files` and puts them in their place, which is held. `each` is told of every file as soon as it is there: path, SHA-256.
///
/// # Errors
/// The hub does not answer or refuses, the disk refuses; [`Interrupted`] after a stop. What has arrived stays, and the next call goes on
/// from there. Contents that are wrong are no errors but [`Fetched::mismatches`].
pub fn fetch(
    job: Job<'_>,
    _hold: &Hold,
    files: &[&RemoteFile],
    each: &(dyn Fn(&RemoteFile, &str) -> Result<()> + Sync),
) -> Result<Fetched> {
    let queue = Queue { waiting: files.iter().copied().collect(), open: Vec::new() };
    let run = Run {
        job,
        each,
        queue: Mutex::new(queue),
        changed: Condvar::new(),
        over: AtomicBool::new(false),
        received: AtomicU64::new(0),
        pace: Pace::default(),
        result: Mutex::new(Ok(Fetched::default())),
        total: files.iter().map(|file| file.bytes).sum(),
    };
    job.control.progress.start("downloading", run.total, 0, Unit::Bytes);
    job.client.interruptible(&job.control, || {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..job.client.settings().connections.max(1))
                .map(|_| scope.spawn(|| run.guarded(|| run.work(scope))))
                .collect();
            scope.spawn(|| run.sync());
            workers.into_iter().for_each(|worker| worker.join().expect("a worker does not panic"));
            run.over.store(true, Ordering::Relaxed);
        });
        Ok(())
    })?;
    let mut fetched = run.result.into_inner().expect("nothing panics while it holds the lock")?;
    job.control.progress.finish();
    fetched.bytes_received = run.received.into_inner();
    fetched.files.sort();
    fetched.mismatches.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(fetched)
}

struct Run<'a> {
    job: Job<'a>,
    each: &'a (dyn Fn(&RemoteFile, &str) -> Result<()> + Sync),
    queue: Mutex<Queue<'a>>,
    changed: Condvar,
    /// An error has happened, or everything is done.
    over: AtomicBool,
    received: AtomicU64,
    /// How long requests are.
    pace: Pace,
    result: Mutex<Result<Fetched>>,
    total: u64,
}

struct Queue<'a> {
    waiting: VecDeque<&'a RemoteFile>,
    open: Vec<Arc<Transfer<'a>>>,
}

impl<'a> Run<'a> {
    /// Runs what may fail; the first failure ends everything.
    fn guarded(&self, work: impl FnOnce() -> Result<()>) {
        if let Err(error) = work() {
            let mut result = self.result.lock().expect("nothing panics while it holds the lock");
            if result.is_ok() {
                *result = Err(error);
            }
            self.over.store(true, Ordering::Relaxed);
            self.changed.notify_all();
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.job.control.stop_requested()
    }

    fn tell(&self, tell: impl FnOnce(&mut Fetched)) {
        if let Ok(fetched) = &mut *self.result.lock().expect("nothing panics while it holds the lock") {
            tell(fetched);
        }
    }

    /// What one connection does: take a range, fetch it, until nothing is left.
    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Result<()> {
        let mut block = Aligned::new(BLOCK as usize);
        let mut failures = 0;
        while let Some((transfer, mut range)) = self.next(scope)? {
            let outcome = self.fetch_range(&transfer, &mut range, &mut block, &mut failures);
            transfer.give_back(range);
            self.changed.notify_all();
            if let Err(fault) = outcome {
                let listing = self.job.listing;
                let denied = |denial: &Denial| denial.error(&listing.address.repo, &listing.commit);
                if matches!(fault, Fault::Expired) {
                    *source(&transfer) = None;
                }
                self.job.client.bear(fault, &mut failures, &self.job.control, &denied)?;
            }
        }
        Ok(())
    }

    /// The next range to fetch; waits while all are on their way. `None` when everything is done or has failed.
    fn next<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<Option<(Arc<Transfer<'a>>, Range<usize>)>> {
        let connections = self.job.client.settings().connections.max(1);
        let mut queue = self.lock();
        loop {
            if self.job.control.stop_requested() {
                return Err(Interrupted.into());
            }
            if self.is_over() {
                return Ok(None);
            }
            // The last file is shared out more finely, so that no connection is left alone with the end of it.
            let share = if queue.waiting.is_empty() { 2 * connections } else { 1 };
            let claimed =
                queue.open.iter().find_map(|open| Some((Arc::clone(open), open.claim(self.pace.blocks(), share)?)));
            if claimed.is_some() {
                return Ok(claimed);
            }
            if queue.open.len() < connections.max(2)
                && let Some(file) = queue.waiting.pop_front()
            {
                let transfer = Arc::new(self.open(file)?);
                queue.open.push(Arc::clone(&transfer));
                scope.spawn(move || self.guarded(|| self.follow(&transfer)));
                continue;
            }
            if queue.open.is_empty() && queue.waiting.is_empty() {
                return Ok(None);
            }
            queue = self.changed.wait_timeout(queue, LOOK).expect("nothing panics while it holds the lock").0;
        }
    }

    fn open(&self, file: &'a RemoteFile) -> Result<Transfer<'a>> {
        let (transfer, before) = Transfer::open(file, self.job.place)?;
        let progress = self.job.control.progress;
        match before {
            Before::Bytes(bytes) => {
                progress.advance(bytes);
                self.tell(|fetched| fetched.bytes_resumed += bytes);
            }
            Before::Other => {
                progress.note(&format!("`{}` has changed on the hub since it was begun; it starts over", file.path));
                self.tell(|fetched| fetched.restarted.push(file.path.clone()));
            }
        }
        Ok(transfer)
    }

    /// Fetches a range of blocks; `range` is left with those that have not arrived.
    fn fetch_range(
        &self,
        transfer: &Transfer<'a>,
        range: &mut Range<usize>,
        block: &mut Aligned,
        failures: &mut u32,
    ) -> Result<(), Fault> {
        let Job { client, listing, control, .. } = &self.job;
        let bytes = transfer.bytes(range);
        let known = source(transfer).clone();
        let url = known.unwrap_or_else(|| listing.url(client, transfer.remote));
        let asked = Instant::now();
        let mut answer = client.get(&url, Some(&bytes))?;
        let answered = Instant::now();
        check_etag(&answer, transfer.remote)?;
        match answer.status {
            206 => check_range(&answer, &bytes, transfer.remote)?,
            _ => {
                check_whole(&answer, transfer.remote)?;
                transfer.only_whole();
                self.skip(&mut answer, bytes.start, block)?;
            }
        }
        *source(transfer) = Some(answer.url.clone());
        while range.start < range.end {
            let length = transfer.length(range.start);
            self.fill(&mut answer, &mut block[..length])?;
            transfer.put(range.start, block).map_err(Fault::Final)?;
            range.start += 1;
            *failures = 0;
            control.progress.advance(length as u64);
            control.progress.item(&transfer.remote.path, transfer.done(), transfer.remote.bytes);
        }
        self.pace.learn(answered - asked, answered.elapsed(), bytes.end - bytes.start);
        // Reading the end is what makes the connection free for the next range.
        let _ = answer.body.read(&mut block[..1]);
        Ok(())
    }

    /// Reads exactly as much as `content` holds.
    fn fill(&self, answer: &mut Answer, content: &mut [u8]) -> Result<(), Fault> {
        let mut filled = 0;
        while filled < content.len() {
            let broken =
                |what: &str| Fault::passing(format!("the answer of `{}` broke off ({what})", shown(&answer.url)));
            match answer.body.read(&mut content[filled..]) {
                Ok(0) => return Err(broken("it ended early")),
                Ok(length) => {
                    filled += length;
                    self.received.fetch_add(length as u64, Ordering::Relaxed);
                    self.job.client.throttle(length, &self.job.control).map_err(Fault::Final)?;
                }
                Err(error) => return Err(broken(&error.to_string())),
            }
        }
        Ok(())
    }

    /// Reads over what is here already, of a server that knows no ranges.
    fn skip(&self, answer: &mut Answer, mut bytes: u64, block: &mut [u8]) -> Result<(), Fault> {
        while bytes > 0 {
            let length = bytes.min(block.len() as u64);
            self.fill(answer, &mut block[..length as usize])?;
            bytes -= length;
        }
        Ok(())
    }

    /// What the thread behind a file does: hash it as it grows, and publish it.
    fn follow(&self, transfer: &Arc<Transfer<'a>>) -> Result<()> {
        let Job { place, control, .. } = &self.job;
        let remote = transfer.remote;
        let mut mismatches = 0;
        loop {
            let lost = |_| self.rewind();
            let moved = || self.changed.notify_all();
            let hashed = transfer.follow(|| self.is_over(), lost, moved)?;
            let Some(Hashed { sha256, found }) = hashed else { return Ok(()) };
            if found == remote.digest {
                transfer.publish(place)?;
                (self.each)(remote, &sha256)?;
                control.progress.item(&remote.path, remote.bytes, remote.bytes);
                self.tell(|fetched| fetched.files.push((remote.path.clone(), sha256)));
                break;
            }
            mismatches += 1;
            if mismatches == 2 {
                let (path, expected) = (remote.path.clone(), remote.digest.clone());
                let aside = transfer.set_aside(place)?;
                self.tell(|fetched| fetched.mismatches.push(Mismatch { path, expected, found, aside }));
                break;
            }
            control.progress.note(&format!(
                "`{}` has {found}, and the hub promised {}; it starts over",
                remote.path, remote.digest
            ));
            self.tell(|fetched| fetched.restarted.push(remote.path.clone()));
            transfer.start_over()?;
            self.rewind();
        }
        self.lock().open.retain(|open| !Arc::ptr_eq(open, transfer));
        self.changed.notify_all();
        Ok(())
    }

    /// Tells the progress anew, after something that counted as done turned out not to be.
    fn rewind(&self) {
        let done: u64 = {
            let queue = self.lock();
            let ahead: u64 = queue.waiting.iter().map(|file| file.bytes).sum();
            let missing: u64 = queue.open.iter().map(|open| open.remote.bytes - open.done()).sum();
            self.total.saturating_sub(ahead + missing)
        };
        self.job.control.progress.start("downloading", self.total, done, Unit::Bytes);
        self.changed.notify_all();
    }

    /// Keeps the disk busy while files grow, so that little is left to do when they are whole.
    fn sync(&self) {
        while !self.is_over() {
            let open = self.lock().open.clone();
            for transfer in open {
                self.guarded(|| Ok(transfer.sync_if(SYNC_BYTES)?));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<'a>> {
        self.queue.lock().expect("nothing panics while it holds the lock")
    }
}

/// Where the hub's redirects led the last request for a file.
fn source<'t>(transfer: &'t Transfer<'_>) -> MutexGuard<'t, Option<String>> {
    transfer.source.lock().expect("nothing panics while it holds the lock")
}

/// The hub's own tag of a file is its digest. Mirrors may have other tags, which say nothing.
fn check_etag(answer: &Answer, remote: &RemoteFile) -> Result<(), Fault> {
    let named = answer.etag.as_deref().and_then(Digest::of_hex);
    let comparable = named.filter(|named| named.hex().len() == remote.digest.hex().len());
    match comparable {
        Some(other) if other != remote.digest => Err(Fault::Final(hint(
            format!("`{}` is not what was listed: the hub has {other} now, and listed {}", remote.path, remote.digest),
            "run the same command again: it asks for the list anew, and starts this file over",
        ))),
        _ => Ok(()),
    }
}

/// The answer holds exactly the bytes that were asked for.
fn check_range(answer: &Answer, bytes: &Range<u64>, remote: &RemoteFile) -> Result<(), Fault> {
    let expected = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, remote.bytes);
    let range = header(&answer.headers, "content-range").unwrap_or_default();
    let length = header(&answer.headers, "content-length").and_then(|length| length.parse().ok());
    if range == expected && length.is_none_or(|length: u64| length == bytes.end - bytes.start) {
        return Ok(());
    }
    let length = length.map_or_else(String::new, |length| format!(", {length} bytes"));
    Err(Fault::passing(format!("`{}` answered `{range}`{length} to a request for `{expected}`", shown(&answer.url))))
}

/// The answer is the whole file, and not a page that says something else.
fn check_whole(answer: &Answer, remote: &RemoteFile) -> Result<(), Fault> {
    let length = header(&answer.headers, "content-length").and_then(|length| length.parse::<u64>().ok());
    match length {
        Some(length) if length != remote.bytes => Err(Fault::passing(format!(
            "`{}` answered {length} bytes in place of the {} of `{}`",
            shown(&answer.url),
            remote.bytes,
            remote.path
        ))),
        _ => Ok(()),
    }
}
