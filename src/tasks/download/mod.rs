//! `download`: a checkpoint from the hub, verified, resumable, into the shared cache or a folder.
//!
//! What is there already is believed only if it was verified and not touched since; otherwise it is hashed. Memory: see
//! [`crate::hub::fetch()`].

mod manifest;
mod offline;
mod report;
mod state;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::error::hint;
use crate::hub::{self, Address, Client, Fetched, Hold, Listing, Place, RemoteFile, Selection, Settings};
use crate::output::preflight;
use crate::progress::Control;
use manifest::Ledger;
use state::State;

pub use report::{DryRun, FileLine, PlannedFile, Problem, Report};

/// Room to leave on the disk besides the files.
const DISK_MARGIN_BYTES: u64 = 64 << 20;

/// Files up to this size come first.
const SMALL_BYTES: u64 = 16 << 20;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to fetch.
    pub address: Address,
    /// How to reach the hub.
    pub settings: Settings,
    /// Where to.
    pub destination: Destination,
    /// Which files.
    pub selection: Selection,
    /// Open no connection: say what is there, and check it.
    pub offline: bool,
    /// Replace files that are there and are not the repository's.
    pub force: bool,
}

/// Where files go.
#[derive(Clone, Debug)]
pub enum Destination {
    /// The cache of the hub's tools, at this folder.
    Cache(PathBuf),
    /// A folder of their own.
    Folder(PathBuf),
}

/// A download that is ready to begin: the commit and the files are known.
#[derive(Debug)]
pub struct Job<'a> {
    options: &'a Options,
    client: Option<Client>,
    listing: Listing,
    place: Place,
}

impl<'a> Job<'a> {
    /// Lists the repository, over the network or, offline, from what is there.
    ///
    /// # Errors
    /// The hub does not answer or refuses; offline, nothing is known of the revision.
    pub fn new(options: &'a Options, control: &Control<'_>) -> Result<Self> {
        if let Destination::Folder(folder) | Destination::Cache(folder) = &options.destination
            && fs::metadata(folder).is_ok_and(|found| !found.is_dir())
        {
            return Err(hint(format!("`{}` is no folder", folder.display()), "name a folder with `-o`"));
        }
        if options.offline {
            let (listing, place) = offline::listing(options)?;
            return Ok(Self { options, client: None, listing, place });
        }
        let client = Client::new(options.settings.clone())?;
        let listing = client.interruptible(control, || Listing::fetch(&client, &options.address, control))?;
        let place = options.place(&listing.commit);
        Ok(Self { options, client: Some(client), listing, place })
    }

    /// Says what [`Job::run`] would do. Nothing is hashed: what is not known to be verified counts as there.
    ///
    /// # Errors
    /// Nothing matches; the disk does not answer.
    pub fn dry_run(&self) -> Result<DryRun> {
        let files = self.options.selection.choose(&self.listing)?;
        let ledger = Ledger::read(&self.place, &self.listing);
        let states: Vec<State> = files.iter().map(|file| State::of(file, &self.place, &ledger)).collect();
        DryRun::new(self, &files, &states)
    }

    /// Fetches what is missing, and leaves a manifest.
    ///
    /// # Errors
    /// The hub does not answer or refuses; the disk is full or refuses; a file is in the way;
    /// [`crate::error::Interrupted`] after a safe stop. What has arrived is kept, and the same call goes on. Contents
    /// that are wrong are no errors but [`Report::problems`].
    pub fn run(&self, control: &Control<'_>) -> Result<Report> {
        let began = Instant::now();
        let files = self.options.selection.choose(&self.listing)?;
        if self.client.is_none() {
            let problems = offline::check(&self.listing, &self.place, &files, control)?;
            return Ok(Report::offline(self, &files, problems, began.elapsed()));
        }
        let hold = self.place.hold(control)?;
        let mut ledger = Ledger::read(&self.place, &self.listing);
        let states: Vec<State> = files.iter().map(|file| State::of(file, &self.place, &ledger)).collect();
        let checked = state::check(&files, &states, &self.place, &ledger, self.options.force, control)?;
        let (mut present, mut missing) = (Vec::new(), Vec::new());
        for (file, sha256) in files.iter().copied().zip(checked) {
            match sha256 {
                Some(sha256) => present.push((file, sha256)),
                None => missing.push(file),
            }
        }
        self.check_disk(&missing)?;
        for (file, sha256) in &present {
            self.place.link(file).with_context(|| format!("linking `{}`", file.path))?;
            ledger.enter(file, sha256);
        }
        let fetched = self.fetch(&hold, &missing, ledger, control)?;
        if fetched.mismatches.is_empty() {
            let revision = &self.listing.address.revision;
            self.place.remember(revision).with_context(|| format!("noting the commit of `{revision}`"))?;
        }
        self.place.clean(&hold);
        let retries = self.client.as_ref().map_or(0, Client::retried);
        Ok(Report::new(self, &files, &present, fetched, retries, began.elapsed()))
    }

    /// Fetches files and keeps the manifest up to date, so that a later run knows what was verified.
    fn fetch(&self, hold: &Hold, missing: &[&RemoteFile], ledger: Ledger, control: &Control<'_>) -> Result<Fetched> {
        let client = self.client.as_ref().expect("without a client the run is offline");
        ledger.write()?;
        // In a cache, files of the same content are one.
        let mut alike: BTreeMap<PathBuf, Vec<&RemoteFile>> = BTreeMap::new();
        for file in missing {
            alike.entry(self.place.content(file)).or_default().push(file);
        }
        let mut distinct: Vec<&RemoteFile> = alike.values().map(|files| files[0]).collect();
        // Configs first: they are small, and people look at them while the rest arrives.
        distinct.sort_by_key(|file| (file.bytes > SMALL_BYTES, file.path.clone()));
        let ledger = std::sync::Mutex::new(ledger);
        let job = hub::Job { client, listing: &self.listing, place: &self.place, control: *control };
        let each = |file: &RemoteFile, sha256: &str| {
            let mut ledger = ledger.lock().expect("nothing panics while it holds the lock");
            for file in &alike[&self.place.content(file)] {
                self.place.link(file).with_context(|| format!("linking `{}`", file.path))?;
                ledger.enter(file, sha256);
            }
            ledger.write()
        };
        let mut fetched = hub::fetch(job, hold, &distinct, &each)?;
        let twins = fetched.files.iter().flat_map(|(path, sha256)| {
            let of_path = alike.values().find(|files| files[0].path == *path);
            of_path.into_iter().flat_map(|files| &files[1..]).map(|file| (file.path.clone(), sha256.clone()))
        });
        let twins: Vec<_> = twins.collect();
        fetched.files.extend(twins);
        Ok(fetched)
    }

    fn check_disk(&self, missing: &[&RemoteFile]) -> Result<()> {
        let (free, needed) = (preflight::disk_free(&self.place.folder())?, self.disk_needed(missing));
        if free >= needed || missing.is_empty() {
            return Ok(());
        }
        Err(hint(
            format!("the disk of `{}` has {free} bytes free, and {needed} are needed", self.place.folder().display()),
            "free some space, or choose a folder on another disk with `-o`",
        ))
    }

    fn disk_needed(&self, missing: &[&RemoteFile]) -> u64 {
        let bytes = missing.iter().map(|file| file.bytes - self.place.reserved_bytes(file));
        bytes.fold(DISK_MARGIN_BYTES, u64::saturating_add)
    }
}

impl Options {
    fn place(&self, commit: &str) -> Place {
        match &self.destination {
            Destination::Cache(root) => Place::cache(root, &self.address.repo, commit),
            Destination::Folder(folder) => Place::Folder(folder.clone()),
        }
    }
}

/// Downloads: [`Job::new`] and [`Job::run`].
///
/// # Errors
/// As these.
pub fn run(options: &Options, control: &Control<'_>) -> Result<Report> {
    Job::new(options, control)?.run(control)
}
