//! Connections and requests: who may ask for what, and which answer that is. It must not know where a checkpoint's files come from.

use std::convert::Infallible;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use super::body::Answer;
use super::fault::{self, FaultKind};
use super::repo::{Repo, RepoFile};
use super::{Request, Shared, lock};

type Reply = Response<Answer>;

/// Takes connections for ever; each has a thread.
pub(super) fn accept(listener: &TcpListener, shared: &Arc<Shared>, cdn: bool, tls: Option<&TlsAcceptor>) {
    for stream in listener.incoming().flatten() {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let (shared, tls) = (Arc::clone(shared), tls.cloned());
        // A connection that fails is the client's business, and often what a test wants.
        std::thread::spawn(move || drop(connection(stream, shared, cdn, tls)));
    }
}

fn connection(stream: TcpStream, shared: Arc<Shared>, cdn: bool, tls: Option<TlsAcceptor>) -> anyhow::Result<()> {
    if let Some(bytes) = shared.options.send_buffer {
        rustix::net::sockopt::set_socket_send_buffer_size(&stream, bytes)?;
    }
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let socket = Arc::new(stream.try_clone()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async move {
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let service = service_fn(move |request| {
            let reply = Handler { shared: &shared, cdn, socket: &socket }.reply(&request);
            async move { Ok::<_, Infallible>(reply) }
        });
        let http = hyper::server::conn::http1::Builder::new();
        match tls {
            Some(tls) => http.serve_connection(TokioIo::new(tls.accept(stream).await?), service).await?,
            None => http.serve_connection(TokioIo::new(stream), service).await?,
        }
        Ok(())
    })
}

struct Handler<'a> {
    shared: &'a Shared,
    cdn: bool,
    socket: &'a Arc<TcpStream>,
}

impl Handler<'_> {
    fn reply(&self, request: &hyper::Request<Incoming>) -> Reply {
        let header = |name| Some(request.headers().get(name)?.to_str().ok()?.to_owned());
        let (authorization, range): (Option<String>, Option<String>) = (header("authorization"), header("range"));
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        if target == "/_stats" {
            let stats = json!({"served": self.shared.served.load(Ordering::Relaxed),
                               "connections": self.shared.connections.load(Ordering::Relaxed),
                               "requests": lock(&self.shared.requests).len()});
            return self.json(StatusCode::OK, &stats);
        }
        lock(&self.shared.requests).push(Request {
            cdn: self.cdn,
            method: request.method().to_string(),
            path: target.to_owned(),
            authorization: authorization.clone(),
            range: range.clone(),
        });
        if self.cdn && authorization.is_some() {
            // What Amazon S3 says to a signed URL with a token on top.
            return self.plain(StatusCode::BAD_REQUEST, "Only one auth mechanism allowed");
        }
        let fault = fault::take(&mut lock(&self.shared.faults), target);
        if let Some(FaultKind::Status(code, retry_after)) = fault {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let reply = self.plain(status, "on purpose");
            return match retry_after {
                Some(time) => with(reply, "retry-after", &time),
                None => reply,
            };
        }
        if fault == Some(FaultKind::ErrorPage) {
            return self.plain(StatusCode::OK, "<html><body>Please log in to the network</body></html>");
        }
        if !self.cdn
            && let Some(refusal) = self.refusal(authorization.as_deref())
        {
            return refusal;
        }
        let wanted = Wanted { head: request.method() == Method::HEAD, range, fault };
        self.route(request.uri().path(), request.uri().query().unwrap_or(""), &wanted)
    }

    /// The hub's refusals, with the headers that its own client goes by.
    fn refusal(&self, authorization: Option<&str>) -> Option<Reply> {
        let options = &self.shared.options;
        let known = options.token.as_ref().is_none_or(|token| authorization == Some(&format!("Bearer {token}")));
        let (status, code, message) = match (known, options.gated) {
            (true, false) => return None,
            (_, true) if authorization.is_some() => {
                (StatusCode::FORBIDDEN, "GatedRepo", "Access to this model is restricted and you are not in the list")
            }
            (_, true) => (StatusCode::UNAUTHORIZED, "GatedRepo", "Access to this model is restricted"),
            (false, _) => (StatusCode::UNAUTHORIZED, "RepoNotFound", "Invalid username or password."),
        };
        let reply = self.plain(status, message);
        Some(with(with(reply, "x-error-code", code), "x-error-message", message))
    }

    fn route(&self, path: &str, query: &str, wanted: &Wanted) -> Reply {
        let path = percent_decoded(path);
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match parts[..] {
            ["api", "models", owner, name, "revision", revision] => {
                self.in_repo(owner, name, revision, |repo, _| self.info(&format!("{owner}/{name}"), repo))
            }
            ["api", "models", owner, name, "tree", revision] => {
                self.in_repo(owner, name, revision, |repo, _| self.tree(&path, query, repo))
            }
            [owner, name, "resolve", revision, ref file @ ..] => self.in_repo(owner, name, revision, |repo, name| {
                self.with_file(repo, &file.join("/"), |found| self.resolve(name, repo, found, wanted))
            }),
            ["api", "resolve-cache", "models", owner, name, revision, ref file @ ..] if !self.cdn => {
                self.in_repo(owner, name, revision, |repo, _| {
                    self.with_file(repo, &file.join("/"), |found| self.send(repo, found, wanted))
                })
            }
            ["lfs", owner, name, revision, ref file @ ..] if self.cdn => {
                self.in_repo(owner, name, revision, |repo, _| {
                    self.with_file(repo, &file.join("/"), |found| self.send(repo, found, wanted))
                })
            }
            _ => self.plain(StatusCode::NOT_FOUND, "Not Found"),
        }
    }

    fn in_repo(&self, owner: &str, name: &str, revision: &str, then: impl FnOnce(&Repo, &str) -> Reply) -> Reply {
        let name = format!("{owner}/{name}");
        match self.shared.repo(&name) {
            Err(error) => self.plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
            Ok(None) => {
                let reply = self.plain(StatusCode::UNAUTHORIZED, "Repository not found");
                with(reply, "x-error-code", "RepoNotFound")
            }
            Ok(Some(repo)) if revision == "main" || revision == repo.commit => then(&repo, &name),
            Ok(Some(_)) => {
                let reply = self.plain(StatusCode::NOT_FOUND, "Invalid rev id");
                with(reply, "x-error-code", "RevisionNotFound")
            }
        }
    }

    fn with_file(&self, repo: &Repo, path: &str, then: impl FnOnce(&RepoFile) -> Reply) -> Reply {
        match repo.file(path) {
            Some(file) => then(file),
            None => with(self.plain(StatusCode::NOT_FOUND, "Entry not found"), "x-error-code", "EntryNotFound"),
        }
    }

    fn info(&self, name: &str, repo: &Repo) -> Reply {
        let siblings: Vec<Value> = repo.files.iter().map(|file| json!({"rfilename": file.path})).collect();
        let info = json!({"_id": "0", "id": name, "modelId": name, "sha": repo.commit, "private": false,
                          "gated": self.shared.options.gated, "tags": [], "downloads": 0, "likes": 0,
                          "siblings": siblings});
        self.json(StatusCode::OK, &info)
    }

    /// One page of a listing, with a link to the next.
    fn tree(&self, path: &str, query: &str, repo: &Repo) -> Reply {
        let cursor = query.split('&').find_map(|pair| pair.strip_prefix("cursor=")).unwrap_or("0");
        let start = cursor.parse().unwrap_or(0).min(repo.files.len());
        let end = (start + self.shared.options.page.max(1)).min(repo.files.len());
        let entries = repo.files[start..end].iter().map(|file| {
            let mut entry = json!({"type": "file", "oid": file.git_oid, "size": file.bytes, "path": file.path});
            if let Some(sha256) = &file.sha256 {
                entry["lfs"] = json!({"oid": sha256, "size": file.bytes, "pointerSize": 130});
            }
            entry
        });
        let reply = self.json(StatusCode::OK, &entries.collect());
        if end == repo.files.len() {
            return reply;
        }
        // The hub names itself here, also if it is reached through a mirror.
        let url = self.shared.url(self.shared.address);
        with(reply, "link", &format!("<{url}{path}?recursive=true&expand=false&cursor={end}>; rel=\"next\""))
    }

    /// Where a file is: large ones on the other host, small ones under another path.
    fn resolve(&self, name: &str, repo: &Repo, file: &RepoFile, wanted: &Wanted) -> Reply {
        let location = match &file.sha256 {
            Some(_) => {
                let cdn = self.shared.url(self.shared.cdn_address);
                format!("{cdn}/lfs/{name}/{}/{}?X-Amz-Signature=secret", repo.commit, file.path)
            }
            None => format!("/api/resolve-cache/models/{name}/{}/{}", repo.commit, file.path),
        };
        let status = if file.sha256.is_some() { StatusCode::FOUND } else { StatusCode::TEMPORARY_REDIRECT };
        let reply = with(self.plain(status, "Redirecting"), "location", &location);
        let other = "0".repeat(file.etag().len());
        let etag = if wanted.fault == Some(FaultKind::OtherEtag) { &other } else { file.etag() };
        let reply = with(reply, "x-linked-etag", &format!("\"{etag}\""));
        let reply = with(reply, "x-linked-size", &file.bytes.to_string());
        with(reply, "x-repo-commit", &repo.commit)
    }

    fn send(&self, repo: &Repo, file: &RepoFile, wanted: &Wanted) -> Reply {
        let range = wanted.range.as_deref().filter(|_| wanted.fault != Some(FaultKind::WholeFile));
        let (status, (mut start, mut end)) = match range.map(|range| parse_range(range, file.bytes)) {
            None => (StatusCode::OK, (0, file.bytes)),
            Some(Some(range)) => (StatusCode::PARTIAL_CONTENT, range),
            Some(None) => return self.plain(StatusCode::RANGE_NOT_SATISFIABLE, ""),
        };
        match wanted.fault {
            Some(FaultKind::WrongRange) if end < file.bytes => (start, end) = (start + 1, end + 1),
            Some(FaultKind::ShortAnswer) => end = start + (end - start) / 2,
            _ => {}
        }
        let open = if wanted.head { File::open("/dev/null") } else { File::open(&file.real) };
        let Ok(open) = open else { return self.plain(StatusCode::INTERNAL_SERVER_ERROR, "gone") };
        let sent = if wanted.head { (0, 0) } else { (start, end) };
        let (socket, counter) = (Arc::clone(self.socket), Arc::clone(&self.shared.served));
        let mut reply = Response::new(Answer::file(open, sent, wanted.fault.clone(), socket, counter));
        *reply.status_mut() = status;
        let reply = with(reply, "content-length", &(end - start).to_string());
        let reply = with(reply, "accept-ranges", "bytes");
        let reply = with(reply, "etag", &format!("\"{}\"", file.etag()));
        let reply = with(reply, "x-repo-commit", &repo.commit);
        if status == StatusCode::PARTIAL_CONTENT {
            return with(reply, "content-range", &format!("bytes {start}-{}/{}", end - 1, file.bytes));
        }
        reply
    }

    fn plain(&self, status: StatusCode, text: &str) -> Reply {
        let mut reply = Response::new(Answer::bytes(text.to_owned(), Arc::clone(self.socket)));
        *reply.status_mut() = status;
        reply
    }

    fn json(&self, status: StatusCode, value: &Value) -> Reply {
        with(self.plain(status, &value.to_string()), "content-type", "application/json")
    }
}

/// What is asked of a file.
struct Wanted {
    head: bool,
    range: Option<String>,
    fault: Option<FaultKind>,
}

fn with(mut reply: Reply, name: &'static str, value: &str) -> Reply {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
    reply
}

/// `bytes=A-B` or `bytes=A-` as begin and end, if it lies inside the file.
fn parse_range(range: &str, bytes: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = first.parse().ok()?;
    let end = if last.is_empty() { bytes } else { last.parse::<u64>().ok()?.saturating_add(1).min(bytes) };
    (start < end).then_some((start, end))
}

fn percent_decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = || u8::from_str_radix(std::str::from_utf8(tail.get(..2)?).ok()?, 16).ok();
        match (first, (first == b'%').then(code).flatten()) {
            (_, Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (byte, None) => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
