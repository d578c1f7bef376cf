//! What flags and environment say about the hub: endpoint, token, proxies, certificates, and where the cache lies. The variables are those of
//! huggingface_hub and curl. It must not open a connection before a command asks for one.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use l4::error::hint;
use l4::hub::{Client, DEFAULT_ENDPOINT, Listing, Location, Proxies, RemoteFolder, Settings, Token};
use l4::llama4::Llama4;

use crate::context::Context;
use crate::size::binary;

/// How to reach the hub, for every command that can.
#[derive(Debug, Args)]
#[command(next_help_heading = "Hub options")]
pub(crate) struct HubArguments {
    /// The hub or a mirror of it [default: $HF_ENDPOINT, or https://huggingface.co]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// File with an access token [default: $HF_TOKEN, or where `hf auth login` puts it]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates to trust, in PEM [default: $SSL_CERT_FILE, $REQUESTS_CA_BUNDLE, or built-in ones]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl HubArguments {
    /// How to reach the hub, by flags and environment.
    pub(crate) fn settings(&self) -> Result<Settings> {
        Ok(Settings {
            endpoint: self.endpoint.clone().or_else(|| var("HF_ENDPOINT")).unwrap_or_else(|| DEFAULT_ENDPOINT.into()),
            token: self.token()?,
            certificates: self.certificates()?,
            proxies: Proxies {
                http: first_var(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]),
                https: first_var(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
                none_for: first_var(&["no_proxy", "NO_PROXY"]),
            },
            ..Settings::default()
        })
    }

    /// The model at an address of the hub, from its headers; `None` if `path` is no such address.
    pub(crate) fn model(&self, path: &Path, context: &Context) -> Result<Option<Llama4>> {
        let Some(Location { address, file }) = Location::of_path(path)? else { return Ok(None) };
        if is_offline() {
            return Err(hint(
                format!("`{}` would need the network, and HF_HUB_OFFLINE is set", path.display()),
                "name a folder; `l4tool download --offline` says where the cache has it",
            ));
        }
        let control = context.control();
        let client = Client::new(Settings { connections: 16, ..self.settings()? })?;
        let listing = client.interruptible(&control, || Listing::fetch(&client, &address, &control))?;
        // A file stands for the folder that it is in, as one on the disk does.
        let (path, folder, file) = match file.as_deref().map(|file| file.rsplit_once('/').unwrap_or(("", file))) {
            None => (path, "", None),
            Some((folder, file)) => (path.parent().unwrap_or(path), folder, Some(file)),
        };
        let folder = RemoteFolder::new(&client, &listing, folder, control);
        let model = Llama4::open_remote(path, file, &folder)?;
        context.note(&format!("fetched {} of headers, at commit {}", binary(folder.fetched()), listing.commit));
        Ok(Some(model))
    }

    fn token(&self) -> Result<Option<Token>> {
        if let Some(path) = &self.token_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("reading `{}`", path.display()))?;
            let token = Token::new(&text)?;
            return match token {
                Some(token) => Ok(Some(token)),
                None => Err(hint(
                    format!("`{}` holds no token", path.display()),
                    "create one in the settings of your account",
                )),
            };
        }
        if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return Ok(None);
        }
        if let Some(text) = first_var(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
            return Token::new(&text);
        }
        let path = var("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home()?.join("token")));
        match path.map(std::fs::read_to_string) {
            Some(Ok(text)) => Token::new(&text),
            // Without a token the hub says what it does not show.
            _ => Ok(None),
        }
    }

    fn certificates(&self) -> Result<Option<Vec<u8>>> {
        let named = first_var(&["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]).map(PathBuf::from);
        match self.ca_file.clone().or_else(|| named.filter(|path| path.is_file())) {
            Some(path) => {
                let pem =
                    std::fs::read(&path).with_context(|| format!("reading the certificates `{}`", path.display()))?;
                Ok(Some(pem))
            }
            None => Ok(None),
        }
    }
}

/// Whether the environment forbids the network.
pub(crate) fn is_offline() -> bool {
    is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE")
}

/// Where the hub's tools keep what they download.
pub(crate) fn cache() -> Result<PathBuf> {
    let named = first_var(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(PathBuf::from);
    named
        .or_else(|| Some(home()?.join("hub")))
        .ok_or_else(|| hint("there is no home folder, and so no cache", "set HF_HOME, or name a folder with `-o`"))
}

/// The folder of the hub's tools.
fn home() -> Option<PathBuf> {
    let set = |name, below: &str| Some(PathBuf::from(var(name)?).join(below));
    set("HF_HOME", "").or_else(|| set("XDG_CACHE_HOME", "huggingface")).or_else(|| set("HOME", ".cache/huggingface"))
}

/// The values that huggingface_hub takes for yes.
fn is_set(name: &str) -> bool {
    var(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str()))
}

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn first_var(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| var(name))
}
