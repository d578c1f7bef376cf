//! How to reach a hub, and the HTTP library set up for it. Nothing here is read from the environment.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::error::hint;

/// The Hugging Face Hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// An access token. It cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub(super) String);

impl Token {
    /// A token from a variable or a file; surrounding blanks are not part of it. `None` if nothing else is there.
    ///
    /// # Errors
    /// It cannot be sent in a header. The error does not hold it.
    pub fn new(text: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(hint("the access token holds blanks or other characters that no token has", "check its file"));
        }
        Ok((!text.is_empty()).then(|| Self(text.to_owned())))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Proxies by the scheme of what is requested: URLs such as `http://user:password@host:port` or `socks5://host`.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// For `http:`.
    pub http: Option<String>,
    /// For `https:`.
    pub https: Option<String>,
    /// Hosts and domains, separated by commas, that are asked directly; `*` is all of them.
    pub none_for: Option<String>,
}

/// How to reach a hub.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Scheme, host and perhaps a path, without a slash at the end.
    pub endpoint: String,
    /// Who asks.
    pub token: Option<Token>,
    /// Certificates in PEM that are trusted instead of the built-in ones.
    pub certificates: Option<Vec<u8>>,
    /// Ways around.
    pub proxies: Proxies,
    /// Failures in a row of one request before it is given up.
    pub retries: u32,
    /// Time without a byte after which a connection is taken for dead.
    pub stall: Duration,
    /// Requests at the same time, at least 1.
    pub connections: usize,
    /// Bytes per second over all connections.
    pub bandwidth: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.into(),
            token: None,
            certificates: None,
            proxies: Proxies::default(),
            retries: 10,
            stall: Duration::from_secs(30),
            connections: 8,
            bandwidth: None,
        }
    }
}

/// An agent that leaves redirects and statuses to its caller.
pub(super) fn agent(settings: &Settings, tls: &TlsConfig, proxy: Option<&str>, direct: Option<&str>) -> Result<Agent> {
    let proxy = proxy.filter(|proxy| !proxy.is_empty()).map(|proxy| self::proxy(proxy, direct)).transpose()?;
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        // Without this the library would look for proxies in the environment by itself.
        .proxy(proxy)
        .tls_config(tls.clone())
        .user_agent(concat!("l4tool/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(settings.stall))
        .timeout_resolve(Some(settings.stall))
        .timeout_per_read(Some(settings.stall))
        .timeout_per_write(Some(settings.stall))
        .max_idle_connections(2 * settings.connections)
        .max_idle_connections_per_host(settings.connections);
    Ok(config.build().into())
}

fn proxy(url: &str, direct: Option<&str>) -> Result<ureq::Proxy> {
    // The URL may hold a password, so it is not shown.
    let wrong =
        || hint("a proxy is not written as it should be", "write it like http://HOST:PORT or socks5://HOST:PORT");
    let proxy = ureq::Proxy::new(url).map_err(|_| wrong())?;
    let mut builder = ureq::Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
    if let Some(name) = proxy.username() {
        builder = builder.username(name);
    }
    if let Some(password) = proxy.password() {
        builder = builder.password(password);
    }
    for name in direct.unwrap_or("").split(',').map(str::trim).filter(|name| !name.is_empty()) {
        // As curl has it: a name stands for itself and everything below it.
        let name = name.trim_start_matches("*.").trim_start_matches('.');
        builder = builder.no_proxy(name).no_proxy(&format!(".{name}"));
    }
    builder.build().map_err(|_| wrong())
}

/// The certificates that are trusted.
pub(super) fn tls(certificates: Option<&[u8]>) -> Result<TlsConfig> {
    let roots = match certificates {
        None => RootCerts::WebPki,
        Some(pem) => {
            let items = parse_pem(pem).collect::<Result<Vec<_>, _>>().context("reading the file of certificates")?;
            let certificates: Vec<_> = items
                .into_iter()
                .filter_map(|item| match item {
                    PemItem::Certificate(certificate) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(hint(
                    "the file of certificates holds none",
                    "it should be a PEM file, with `BEGIN CERTIFICATE`",
                ));
            }
            RootCerts::Specific(Arc::new(certificates))
        }
    };
    Ok(TlsConfig::builder().root_certs(roots).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_trimmed_and_not_shown() {
        let token = Token::new(" hf_secret\n").unwrap().unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        assert!(Token::new("").unwrap().is_none() && Token::new("a b").is_err());
    }
}
