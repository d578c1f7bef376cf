//! Addresses as text: whose they are, where they lead, and what of them may be shown. It must not know requests.

/// Scheme, host and port of a URL, with the port that is meant if none is written.
pub(super) fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: ureq::http::Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let usual = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    Some((scheme, uri.host()?.to_ascii_lowercase(), uri.port_u16().unwrap_or(usual)))
}

/// Where `location` leads from `url`; `None` if it is no address.
pub(super) fn resolved(url: &str, location: &str) -> Option<String> {
    let target = if location.starts_with("http://") || location.starts_with("https://") {
        Some(location.to_owned())
    } else {
        let scheme_end = url.find("://").map_or(0, |at| at + 3);
        let host_end = url[scheme_end..].find('/').map_or(url.len(), |at| scheme_end + at);
        match location.strip_prefix("//") {
            Some(rest) => Some(format!("{}{rest}", &url[..scheme_end])),
            None if location.starts_with('/') => Some(format!("{}{location}", &url[..host_end])),
            None => None,
        }
    };
    target.filter(|target| origin(target).is_some())
}

/// Path and query of the link to the next page (RFC 8288): `<https://host/path?query>; rel="next"`. The host is left out, because a
/// mirror hands on links that name the hub.
pub(super) fn next_page(links: &str) -> Option<String> {
    let link = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    let url = link.split_once('<')?.1.split_once('>')?.0;
    let path = url.find("://").map_or(url, |at| {
        let rest = &url[at + 3..];
        rest.find('/').map_or("/", |slash| &rest[slash..])
    });
    path.starts_with('/').then(|| path.to_owned())
}

/// A URL for people: without its query, which may hold a signature, and without a password.
pub(super) fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or(url);
    match (plain.find("://"), plain.find('@')) {
        (Some(scheme), Some(at)) if !plain[scheme + 3..at.max(scheme + 3)].contains('/') => {
            format!("{}{}", &plain[..scheme + 3], &plain[at + 1..])
        }
        _ => plain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_a_browser_would_go() {
        let from = "https://hub.example:8443/a/b?c=d";
        let to = |location| resolved(from, location);
        assert_eq!(to("/x?y=z").as_deref(), Some("https://hub.example:8443/x?y=z"));
        assert_eq!(to("//cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(to("http://cdn.example/x").as_deref(), Some("http://cdn.example/x"));
        assert_eq!(to("ftp://cdn.example/x"), None);
        assert_eq!(to("javascript:alert(1)"), None);
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(shown("https://user:secret@cdn.example/x?X-Amz-Signature=secret"), "https://cdn.example/x");
        assert_eq!(shown("https://cdn.example/a@b"), "https://cdn.example/a@b");
    }

    #[test]
    fn the_next_page_is_asked_from_the_same_hub() {
        let links = "<https://huggingface.co/api/models/a/b/tree/main?cursor=xyz>; rel=\"next\"";
        assert_eq!(next_page(links).as_deref(), Some("/api/models/a/b/tree/main?cursor=xyz"));
        assert_eq!(next_page("<https://huggingface.co/a>; rel=\"prev\""), None);
    }
}
