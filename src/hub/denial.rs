//! The hub's no, in words that say what to do. It must not hold a token.

use crate::error::hint;

/// A refusal of the hub itself (status 4xx), with the headers that tell its own client why.
#[derive(Clone, Debug)]
pub(super) struct Denial {
    pub(super) status: u16,
    /// `X-Error-Code`: `GatedRepo`, `RepoNotFound`, `RevisionNotFound`, `EntryNotFound`.
    pub(super) code: Option<String>,
    /// `X-Error-Message`.
    pub(super) message: Option<String>,
    /// What was asked for, without its query.
    pub(super) url: String,
    pub(super) endpoint: String,
    pub(super) with_token: bool,
}

impl Denial {
    /// The error for whoever wanted something of `repo` at `revision`.
    pub(super) fn error(&self, repo: &str, revision: &str) -> anyhow::Error {
        let Self { status, endpoint, url, .. } = self;
        let said = self.message.as_ref().map_or_else(String::new, |message| format!(": {}", message.trim()));
        let token = "set HF_TOKEN, run `hf auth login`, or use `--token-file`";
        match (self.code.as_deref(), status) {
            (Some("GatedRepo"), _) if self.with_token => hint(
                format!("access to `{repo}` is restricted ({status}){said}"),
                format!(
                    "accept the licence at {endpoint}/{repo} with the account of your token, and wait until it is granted"
                ),
            ),
            (Some("GatedRepo"), _) => hint(
                format!("access to `{repo}` is restricted ({status}){said}"),
                format!("accept the licence at {endpoint}/{repo}, then {token}"),
            ),
            (Some("RevisionNotFound"), _) => hint(
                format!("`{repo}` has no revision `{revision}`"),
                format!("{endpoint}/{repo}/tree/main shows its branches"),
            ),
            (Some("EntryNotFound"), _) => {
                anyhow::anyhow!("`{repo}` lists a file that it does not have: `{url}` ({status})")
            }
            (Some("RepoNotFound"), _) | (None, 404) if self.with_token => hint(
                format!("{endpoint} has no repository `{repo}` that this token may see ({status}){said}"),
                "check the name, and whether the token's account has access",
            ),
            (Some("RepoNotFound"), _) | (None, 404) => hint(
                format!("{endpoint} has no public repository `{repo}` ({status}){said}"),
                format!("check the name; for a private repository {token}"),
            ),
            (_, 401 | 403) if self.with_token => hint(
                format!("{endpoint} does not accept the token ({status}){said}"),
                "check that it is still valid and may read this repository",
            ),
            (_, 401 | 403) => hint(format!("{endpoint} wants to know who asks for `{repo}` ({status}){said}"), token),
            _ => anyhow::anyhow!("`{url}` answered {status}{said}"),
        }
    }
}
