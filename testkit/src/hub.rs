//! A hub on localhost: what huggingface.co answers to those who list and download models, over real HTTP, with ranges, redirects of large
//! files to another host, tokens, and faults on purpose.
//!
//! huggingface_hub, curl and aria2c work against it, which shows that it is one. It must not know `l4`. Files are streamed:
//! a sparse model of 800 GB is served as well as a small one.
//!
//! A folder `DIR/owner/name` is the repository `owner/name`; its branch `main` is at a commit that follows from the files' digests.

mod body;
mod fault;
mod repo;
mod serve;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use fault::{Fault, FaultKind};
use repo::Repo;

/// How a hub behaves.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Where it listens; 0 for any free port.
    pub port: u16,
    /// Where the other host listens that large files are redirected to.
    pub cdn_port: u16,
    /// Only requests with this token are answered.
    pub token: Option<String>,
    /// Only those who accepted the licence are answered: nobody.
    pub gated: bool,
    /// Files in one page of a listing.
    pub page: usize,
    /// Files larger than this get a digest that is not theirs.
    pub fake_digests_above: u64,
    /// Certificate chain and key in PEM: the hub then speaks HTTPS.
    pub tls: Option<(Vec<u8>, Vec<u8>)>,
    /// Bytes that the system keeps for a connection before they count as served; `None` leaves it to the system.
    pub send_buffer: Option<usize>,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            port: 0,
            cdn_port: 0,
            token: None,
            gated: false,
            page: 1000,
            fake_digests_above: u64::MAX,
            tls: None,
            send_buffer: None,
        }
    }
}

/// A request that the hub was sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whether it went to the host of large files.
    pub cdn: bool,
    /// `GET` or `HEAD`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Range` header.
    pub range: Option<String>,
}

/// A hub that listens until the process ends.
#[derive(Clone, Debug)]
pub struct Hub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    options: HubOptions,
    address: SocketAddr,
    cdn_address: SocketAddr,
    served: Arc<AtomicU64>,
    connections: AtomicU64,
    requests: Mutex<Vec<Request>>,
    faults: Mutex<Vec<Fault>>,
    repos: Mutex<HashMap<String, Arc<Repo>>>,
}

impl Hub {
    /// Begins to serve the repositories in `root`.
    ///
    /// # Errors
    /// The ports are taken, or certificate and key are none.
    pub fn start(root: impl Into<PathBuf>, options: HubOptions) -> Result<Self> {
        let listen = |port| TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("listening on port {port}"));
        let (listener, cdn) = (listen(options.port)?, listen(options.cdn_port)?);
        let acceptor = options.tls.as_ref().map(acceptor).transpose()?;
        let shared = Arc::new(Shared {
            root: root.into(),
            options,
            address: listener.local_addr()?,
            cdn_address: cdn.local_addr()?,
            served: Arc::default(),
            connections: AtomicU64::new(0),
            requests: Mutex::default(),
            faults: Mutex::default(),
            repos: Mutex::default(),
        });
        for (listener, is_cdn) in [(listener, false), (cdn, true)] {
            let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
            std::thread::spawn(move || serve::accept(&listener, &shared, is_cdn, acceptor.as_ref()));
        }
        Ok(Self { shared })
    }

    /// What to give as `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        self.shared.url(self.shared.address)
    }

    /// Bytes of files that were sent so far, headers and listings not counted.
    pub fn served(&self) -> u64 {
        self.shared.served.load(Ordering::Relaxed)
    }

    /// Connections that were opened so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// Makes something go wrong with a coming request.
    pub fn fault(&self, fault: Fault) {
        lock(&self.shared.faults).push(fault);
    }

    /// Whether every fault has happened.
    pub fn faults_are_over(&self) -> bool {
        lock(&self.shared.faults).is_empty()
    }

    /// The commit that `main` of a repository is at.
    ///
    /// # Errors
    /// There is no such repository, or it cannot be read.
    pub fn commit(&self, name: &str) -> Result<String> {
        Ok(self.shared.repo(name)?.context("no such repository")?.commit.clone())
    }
}

impl Shared {
    fn url(&self, address: SocketAddr) -> String {
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        // Certificates are for names; and another name is another host.
        let host = if address == self.address { "localhost" } else { "127.0.0.1" };
        format!("{scheme}://{host}:{}", address.port())
    }

    /// The repository as its folder is now.
    fn repo(&self, name: &str) -> Result<Option<Arc<Repo>>> {
        let folder = self.root.join(name);
        if name.contains("..") || !folder.is_dir() {
            return Ok(None);
        }
        // Holding the lock while hashing keeps two requests from hashing the same.
        let mut repos = lock(&self.repos);
        let repo = Repo::read(&folder, repos.get(name).map(|repo| &**repo), self.options.fake_digests_above)?;
        let repo = Arc::new(repo);
        repos.insert(name.to_owned(), Arc::clone(&repo));
        Ok(Some(repo))
    }
}

fn acceptor((chain, key): &(Vec<u8>, Vec<u8>)) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().context("the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("the key")?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds the lock")
}
