//! What the tests of downloads share: a hub with repositories in it, and the program pointed at it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use l4_testkit::{Hub, HubOptions, Rng};

use super::{Scratch, copy_folder, l4tool, testdata};

/// A hub that serves what is put into it.
pub(crate) struct Served {
    pub(crate) scratch: Scratch,
    pub(crate) hub: Hub,
}

impl Served {
    pub(crate) fn with(options: HubOptions) -> Self {
        let scratch = Scratch::new();
        fs::create_dir(scratch.path("repos")).unwrap();
        let hub = Hub::start(scratch.path("repos"), options).unwrap();
        Self { scratch, hub }
    }

    /// A hub with a repository `meta/scout`: tiny-scout, and files that nobody wants by default.
    pub(crate) fn scout(options: HubOptions) -> Self {
        let served = Self::with(options);
        copy_folder(&testdata("tiny-scout"), &served.repo("meta/scout"));
        served.put("meta/scout", "original/consolidated.00.pth", b"pickle");
        served.put("meta/scout", "logo.png", b"png");
        served
    }

    /// A hub with a repository `meta/big`: one file of `bytes` random bytes.
    pub(crate) fn big(bytes: usize, options: HubOptions) -> Self {
        let served = Self::with(options);
        served.put("meta/big", "model.safetensors", &noise(bytes, 1));
        served
    }

    pub(crate) fn repo(&self, name: &str) -> PathBuf {
        self.scratch.path("repos").join(name)
    }

    pub(crate) fn put(&self, repo: &str, path: &str, content: &[u8]) {
        let path = self.repo(repo).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The program with arguments that are separated by spaces, with this hub, and with nothing of the user's.
    pub(crate) fn l4tool(&self, arguments: &str) -> Command {
        let mut command = l4tool(arguments);
        command.env_clear().env("HF_ENDPOINT", self.hub.endpoint()).env("HF_HOME", self.scratch.path("home"));
        command
    }

    /// `l4tool download REPO -o OUT FLAGS`.
    pub(crate) fn download(&self, repo: &str, flags: &str) -> Command {
        let mut command = self.l4tool(&format!("download {repo} {flags}"));
        command.arg("-o").arg(self.out());
        command
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.scratch.path("out")
    }

    /// The folder of a repository in the cache.
    pub(crate) fn cached(&self, name: &str) -> PathBuf {
        self.scratch.path("home/hub").join(name)
    }
}

/// Bytes without a pattern.
pub(crate) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed, "noise");
    let mut noise: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
    noise.truncate(bytes);
    noise
}

/// What coreutils say a file's SHA-256 is.
pub(crate) fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}
