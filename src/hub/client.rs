//! Requests to a hub: one at a time, with every answer checked, and the token kept where it belongs. It must not know what a file is for.
//!
//! Redirects are followed here and not by the HTTP library: the token goes to the endpoint that the user named and to no other host, and a
//! transfer wants to keep the address that it was sent to. Nothing here is read from the environment; [`Settings`] says it all.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use ureq::Agent;
use ureq::http::{HeaderMap, Response};

use super::denial::Denial;
use super::retry::{self, LONGEST_GRANTED};
use super::settings::{Settings, Token, agent, tls};
use super::throttle::Throttle;
use super::url::{next_page, origin, resolved, shown};
use crate::error::{Interrupted, hint};
use crate::progress::Control;

/// Redirects in a row before something is wrong.
const REDIRECTS_MAX: usize = 8;

/// The longest JSON answer that is read. A page of a listing has 1,000 files in 300 kB.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// The longest answer that is read only to keep its connection.
const DRAINED_BYTES_MAX: u64 = 64 << 10;

/// Failures in a row to reach a host that never answered before: a wrong name should show soon.
const FIRST_CONTACT_FAILURES: u32 = 3;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// It may go better next time.
    Passing(Passing),
    /// Another host than the endpoint says no: the address that led there has run out.
    Expired,
    /// The hub says no.
    Denied(Denial),
    /// It will not go better.
    Final(anyhow::Error),
}

/// A failure that may pass.
#[derive(Debug)]
pub(super) struct Passing {
    /// What happened.
    pub(super) what: String,
    /// How long the server wants to be left alone.
    pub(super) after: Option<Duration>,
}

impl Fault {
    pub(super) fn passing(what: impl Into<String>) -> Self {
        Self::Passing(Passing { what: what.into(), after: None })
    }
}

/// An answer with status 200 or 206.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: ureq::BodyReader<'static>,
    /// Where it came from in the end.
    pub(super) url: String,
    /// The content's `ETag`, as the hub itself names it.
    pub(super) etag: Option<String>,
}

/// Talks to one hub.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    /// For `http:` and `https:`; they may have different proxies.
    agents: [Agent; 2],
    throttle: Option<Throttle>,
    /// Whether anybody ever answered.
    reached: AtomicBool,
    /// Failures that were tried again.
    retried: AtomicU64,
}

impl Client {
    /// Prepares to talk to the hub; opens no connection.
    ///
    /// # Errors
    /// The endpoint, a proxy or the certificates cannot be used.
    pub fn new(mut settings: Settings) -> Result<Self> {
        settings.endpoint.truncate(settings.endpoint.trim_end_matches('/').len());
        if origin(&settings.endpoint).is_none() {
            return Err(hint(
                format!("the endpoint `{}` is no address of a server", settings.endpoint),
                "write it like https://huggingface.co",
            ));
        }
        let tls = tls(settings.certificates.as_deref())?;
        let proxies = &settings.proxies;
        let agent = |proxy: &Option<String>| agent(&settings, &tls, proxy.as_deref(), proxies.none_for.as_deref());
        let agents = [agent(&proxies.http)?, agent(&proxies.https)?];
        let throttle = settings.bandwidth.map(Throttle::new);
        Ok(Self { settings, agents, throttle, reached: AtomicBool::new(false), retried: AtomicU64::new(0) })
    }

    /// How the hub is reached.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Failures that were tried again so far.
    pub fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// Runs `work` so that a stop that the caller asks for also ends requests that wait for the network.
    pub fn interruptible<T>(&self, control: &Control<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) && !control.stop_requested() {
                    std::thread::park_timeout(Duration::from_millis(50));
                }
                if !over.load(Ordering::Relaxed) {
                    self.agents.iter().for_each(|agent| agent.clone().shutdown());
                }
            });
            let result = work();
            over.store(true, Ordering::Relaxed);
            watcher.thread().unpark();
            result
        })
    }

    /// Waits as the bandwidth limit demands for `bytes` that have arrived.
    pub(super) fn throttle(&self, bytes: usize, control: &Control<'_>) -> Result<()> {
        match &self.throttle {
            Some(throttle) => retry::pause(throttle.take(bytes as u64), control),
            None => Ok(()),
        }
    }

    /// Tries `request` until it succeeds, is refused for good, or has failed too often in a row.
    ///
    /// # Errors
    /// The refusal or the last failure; [`Interrupted`] after a stop.
    pub(super) fn persist<T>(
        &self,
        control: &Control<'_>,
        what: &dyn Fn(&Denial) -> anyhow::Error,
        mut request: impl FnMut() -> Result<T, Fault>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            match request() {
                Ok(answer) => return Ok(answer),
                Err(fault) => self.bear(fault, &mut failures, control, what)?,
            }
        }
    }

    /// Waits after a failure, or gives up. `failures` counts those in a row.
    ///
    /// # Errors
    /// As [`Client::persist`].
    pub(super) fn bear(
        &self,
        fault: Fault,
        failures: &mut u32,
        control: &Control<'_>,
        denied: &dyn Fn(&Denial) -> anyhow::Error,
    ) -> Result<()> {
        if control.stop_requested() {
            // What failed may well have failed because it was told to.
            return Err(Interrupted.into());
        }
        *failures += 1;
        let passing = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Denied(denial) => return Err(denied(&denial)),
            Fault::Expired => Passing { what: "the address of the file has run out".into(), after: None },
            Fault::Passing(passing) => passing,
        };
        let reached = self.reached.load(Ordering::Relaxed);
        let most = if reached { self.settings.retries } else { self.settings.retries.min(FIRST_CONTACT_FAILURES) };
        if *failures > most {
            let again =
                if reached { "run the same command again to go on" } else { "check the endpoint and the network" };
            return Err(hint(format!("{}, {failures} times in a row", passing.what), again));
        }
        self.retried.fetch_add(1, Ordering::Relaxed);
        match passing.after {
            Some(time) if time > LONGEST_GRANTED => Err(hint(
                format!("{}, and the server asks to wait {} s", passing.what, time.as_secs()),
                "run the same command again after that",
            )),
            Some(time) => {
                control.progress.note(&format!("{}; waiting {} s as the server asks", passing.what, time.as_secs()));
                retry::pause(time, control)
            }
            None => retry::pause(retry::wait_after(*failures), control),
        }
    }

    /// One request, along its redirects. Status and headers are checked, the body is not read.
    pub(super) fn get(&self, url: &str, range: Option<&Range<u64>>) -> Result<Answer, Fault> {
        let mut url = url.to_owned();
        let mut etag = None;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(&url, range)?;
            let text = |name| header(response.headers(), name);
            let own = self.is_own(&url);
            if own {
                etag = text("x-linked-etag").or(etag);
            }
            match (response.status().as_u16(), text("location")) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => {
                    let target = resolved(&url, &location);
                    let wrong = || Fault::Final(anyhow::anyhow!("`{}` redirects to what is no address", shown(&url)));
                    url = target.ok_or_else(wrong)?;
                    // A connection whose answer was read to the end is kept for the next request.
                    let _ = io::copy(&mut response.into_body().into_reader().take(DRAINED_BYTES_MAX), &mut io::sink());
                }
                (status @ (200 | 206), _) => {
                    let (parts, body) = response.into_parts();
                    let etag = etag.or_else(|| header(&parts.headers, "etag").filter(|_| own));
                    let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
                    return Ok(Answer { status, headers: parts.headers, body: body.into_reader(), url, etag });
                }
                (status, _) => return Err(self.refusal(status, &url, response)),
            }
        }
        Err(Fault::Final(anyhow::anyhow!("`{}` redirects without end", shown(&url))))
    }

    /// A JSON document, and the path and query of the next page, if there is one.
    pub(super) fn json(&self, url: &str) -> Result<(serde_json::Value, Option<String>), Fault> {
        let answer = self.get(url, None)?;
        let text = read_to_end(answer.body, JSON_BYTES_MAX, &answer.url)?;
        // A page of HTML from a captive portal comes with status 200, too.
        let value = serde_json::from_slice(&text)
            .map_err(|error| Fault::passing(format!("`{}` did not answer as a hub does ({error})", shown(url))))?;
        let next = header(&answer.headers, "link").and_then(|links| next_page(&links));
        Ok((value, next))
    }

    fn send(&self, url: &str, range: Option<&Range<u64>>) -> Result<Response<ureq::Body>, Fault> {
        let agent = &self.agents[usize::from(url.starts_with("https:"))];
        let mut request = agent.get(url).header("accept-encoding", "identity");
        if let Some(range) = range {
            request = request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
        }
        if let Some(Token(token)) = self.settings.token.as_ref().filter(|_| self.is_own(url)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| connection_fault(&error, url))?;
        self.reached.store(true, Ordering::Relaxed);
        Ok(response)
    }

    /// Whether a URL leads to the endpoint itself.
    fn is_own(&self, url: &str) -> bool {
        origin(url) == origin(&self.settings.endpoint)
    }

    fn refusal(&self, status: u16, url: &str, response: Response<ureq::Body>) -> Fault {
        let text = |name| header(response.headers(), name);
        let place = shown(url);
        match status {
            408 | 425 | 429 | 500..=599 => {
                let [after, date, limit] = ["retry-after", "date", "ratelimit"].map(text);
                let limit = limit.filter(|_| status == 429);
                let after = retry::granted(after.as_deref(), date.as_deref(), limit.as_deref());
                Fault::Passing(Passing { what: format!("`{place}` answered {status}"), after })
            }
            400..=499 if !self.is_own(url) => Fault::Expired,
            400..=499 => Fault::Denied(Denial {
                status,
                code: text("x-error-code"),
                message: text("x-error-message"),
                url: place,
                endpoint: self.settings.endpoint.clone(),
                with_token: self.settings.token.is_some(),
            }),
            _ => Fault::Final(anyhow::anyhow!("`{place}` answered {status}")),
        }
    }
}

fn connection_fault(error: &ureq::Error, url: &str) -> Fault {
    let place = shown(url);
    let text = error.to_string();
    let wrong_certificate = text.to_ascii_lowercase().contains("certificate");
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => Fault::Final(anyhow::anyhow!("`{place}` is no address")),
        _ if wrong_certificate => Fault::Final(hint(
            format!("`{place}` is not who it says it is: {text}"),
            "behind a proxy that looks into connections, name its certificates with `--ca-file`",
        )),
        ureq::Error::Timeout(_) => Fault::passing(format!("`{place}` did not answer in time")),
        _ => Fault::passing(format!("no answer from `{place}` ({text})")),
    }
}

/// Reads a body of at most `most` bytes.
pub(super) fn read_to_end(body: impl Read, most: u64, url: &str) -> Result<Vec<u8>, Fault> {
    let mut text = Vec::new();
    body.take(most + 1)
        .read_to_end(&mut text)
        .map_err(|error| Fault::passing(format!("the answer of `{}` broke off ({error})", shown(url))))?;
    if text.len() as u64 > most {
        return Err(Fault::Final(anyhow::anyhow!("the answer of `{}` has no end", shown(url))));
    }
    Ok(text)
}

/// The value of a header, if it is text.
pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_told_from_its_look_alikes() {
        let client = Client::new(Settings { endpoint: "https://hub.example/".into(), ..Settings::default() }).unwrap();
        assert!(client.is_own("https://HUB.example/a") && client.is_own("https://hub.example:443/a"));
        for other in [
            "http://hub.example/a",
            "https://hub.example.evil/a",
            "https://hub.example:444/a",
            "https://hub.example@evil/a",
        ] {
            assert!(!client.is_own(other), "{other}");
        }
        assert!(Client::new(Settings { endpoint: "hub.example".into(), ..Settings::default() }).is_err());
    }
}
