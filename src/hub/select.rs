//! Which files of a repository are fetched: what was asked for, or the weights in one format and what belongs to them. It goes by names alone.

use anyhow::{Result, anyhow};
use regex::Regex;

use super::listing::{Listing, RemoteFile};
use crate::error::hint;

/// What to fetch.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only files that match one of these; all that a checkpoint needs, if there are none.
    pub include: Vec<Regex>,
    /// None that match one of these.
    pub exclude: Vec<Regex>,
}

/// A pattern as shells have it, over whole paths: `*` and `?` stand for any characters, also `/`, and `[..]` for one of a set; a pattern
/// that ends in `/` means everything below. These are the patterns of huggingface_hub (Python's `fnmatch`).
///
/// # Errors
/// It is no pattern.
pub fn pattern(glob: &str) -> Result<Regex> {
    let mut regex = String::from("^(?s:");
    let whole = if glob.ends_with('/') { format!("{glob}*") } else { glob.to_owned() };
    let mut rest = whole.as_str();
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match (c, rest.get(1..).and_then(|tail| tail.find(']'))) {
            ('*', _) => regex += ".*",
            ('?', _) => regex.push('.'),
            ('[', Some(end)) => {
                let (set, after) = rest.split_at(end + 1);
                let (not, set) = set.strip_prefix('!').map_or(("", set), |set| ("^", set));
                regex += &format!("[{not}{}]", set.replace('\\', "\\\\").replace('[', "\\[").replace('^', "\\^"));
                rest = &after[1..];
            }
            _ => regex += &regex::escape(c.encode_utf8(&mut [0; 4])),
        }
    }
    Regex::new(&(regex + ")$")).map_err(|_| anyhow!("`{glob}` is not a pattern"))
}

impl Selection {
    /// The files to fetch, sorted by path.
    ///
    /// # Errors
    /// Nothing matches, or the repository holds several versions of the weights and does not say which is meant.
    pub fn choose<'a>(&self, listing: &'a Listing) -> Result<Vec<&'a RemoteFile>> {
        let matches = |patterns: &[Regex], file: &RemoteFile| patterns.iter().any(|one| one.is_match(&file.path));
        let left = listing.files.iter().filter(|file| !matches(&self.exclude, file));
        let files: Vec<&RemoteFile> = if self.include.is_empty() {
            usual(left.collect(), &listing.address.repo)?
        } else {
            left.filter(|file| matches(&self.include, file)).collect()
        };
        if files.is_empty() {
            let count = listing.files.len();
            return Err(hint(
                format!("none of the {count} files of `{}` is wanted", listing.address.repo),
                "`--include '*' --dry-run` lists all of them",
            ));
        }
        Ok(files)
    }
}

/// Weights in the best format that is there, and the files beside them.
fn usual<'a>(files: Vec<&'a RemoteFile>, repo: &str) -> Result<Vec<&'a RemoteFile>> {
    let of_kind = |kind: fn(&str) -> bool| -> Vec<&'a RemoteFile> {
        files.iter().copied().filter(|file| kind(&file.path)).collect()
    };
    let indexed = files.iter().any(|file| file.path == "model.safetensors.index.json");
    let safetensors = if indexed { of_kind(is_indexed) } else { of_kind(is_safetensors) };
    let mut chosen =
        if safetensors.is_empty() { one_gguf(of_kind(|path| path.ends_with(".gguf")), repo)? } else { safetensors };
    if chosen.is_empty() {
        chosen = of_kind(|path| path.ends_with(".pth"));
    }
    // Meta's own files may lie in a folder, with their tokenizer beside them.
    let folders: Vec<&str> = chosen.iter().map(|file| folder(&file.path)).chain([""]).collect();
    chosen.extend(files.iter().filter(|file| folders.contains(&folder(&file.path)) && is_beside(&file.path)));
    chosen.sort_by(|a, b| a.path.cmp(&b.path));
    chosen.dedup_by(|a, b| a.path == b.path);
    Ok(chosen)
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn is_safetensors(path: &str) -> bool {
    path.ends_with(".safetensors") && folder(path).is_empty()
}

/// The names that transformers gives; a folder with an index may hold other copies of the weights beside them.
fn is_indexed(path: &str) -> bool {
    is_safetensors(path) && path.starts_with("model-")
}

/// Repositories of GGUF files hold the same model many times over, in different types.
fn one_gguf<'a>(files: Vec<&'a RemoteFile>, repo: &str) -> Result<Vec<&'a RemoteFile>> {
    let model = |path: &str| {
        let name = path.trim_end_matches(".gguf");
        // `NAME-00001-of-00003`, as llama.cpp's gguf-split writes it.
        let split = name.rsplit_once("-of-").and_then(|(rest, _)| rest.rsplit_once('-'));
        split.map_or(name, |(name, _)| name).to_owned()
    };
    let projectors = |file: &&RemoteFile| file.path.rsplit('/').next().is_some_and(|name| name.starts_with("mmproj"));
    let mut models: Vec<String> = files.iter().filter(|file| !projectors(file)).map(|file| model(&file.path)).collect();
    models.dedup();
    if models.len() < 2 {
        return Ok(files);
    }
    let first: Vec<&str> = models.iter().take(4).map(String::as_str).collect();
    Err(hint(
        format!("`{repo}` holds {} models in GGUF: {}, ...", models.len(), first.join(", ")),
        "name one of them with `--include`, such as `--include '*Q4_K_M*'`",
    ))
}

/// Config, tokenizer, chat template, licence and the like.
fn is_beside(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let endings = [".json", ".jinja", ".model", ".txt", ".tiktoken", ".md", ".pdf"];
    let beginnings = ["license", "licence", "notice", "use_policy", "acceptable_use"];
    endings.iter().any(|end| name.ends_with(end)) || beginnings.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::address::Address;
    use crate::hub::listing::Digest;

    fn chosen(paths: &[&str], selection: &Selection) -> Result<Vec<String>> {
        let file = |path: &&str| RemoteFile { path: (*path).into(), bytes: 1, digest: Digest::GitSha1("a".repeat(40)) };
        let address = Address::parse("a/b").unwrap();
        let listing = Listing { address, commit: "c".repeat(40), files: paths.iter().map(file).collect() };
        Ok(selection.choose(&listing)?.iter().map(|file| file.path.clone()).collect())
    }

    #[test]
    fn patterns_are_those_of_fnmatch() {
        // Each with what Python's fnmatch.fnmatchcase says.
        for (glob, path, expected) in [
            ("*.json", "a/b.json", true),
            ("*.json", "a.jsonl", false),
            ("original/", "original/a.pth", true),
            ("model-0000[1-3]-*", "model-00002-of-00050.safetensors", true),
            ("model-0000[!1-3]-*", "model-00002-of-00050.safetensors", false),
            ("a?c", "abc", true),
            ("a.c", "abc", false),
            ("a[b", "a[b", true),
        ] {
            assert_eq!(pattern(glob).unwrap().is_match(path), expected, "{glob} {path}");
        }
    }

    #[test]
    fn the_usual_files_are_weights_in_one_format_and_what_belongs_to_them() {
        let scout = [
            ".gitattributes",
            "LICENSE",
            "USE_POLICY.md",
            "config.json",
            "consolidated.safetensors",
            "logo.png",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "original/consolidated.00.pth",
            "original/params.json",
            "tokenizer.json",
        ];
        let usual = chosen(&scout, &Selection::default()).unwrap();
        let expected: Vec<&str> = [1, 2, 3, 6, 7, 8, 11].map(|index| scout[index]).into();
        assert_eq!(usual, expected);
        let meta =
            ["LICENSE", "original/consolidated.00.pth", "original/params.json", "original/tokenizer.model", "x/y.json"];
        assert_eq!(chosen(&meta, &Selection::default()).unwrap(), meta[..4]);
        let only =
            Selection { include: vec![pattern("original/*").unwrap()], exclude: vec![pattern("*.pth").unwrap()] };
        assert_eq!(chosen(&scout, &only).unwrap(), ["original/params.json"]);
        let gguf = ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf", "m-Q4_K_M.gguf"];
        assert!(chosen(&gguf, &Selection::default()).unwrap_err().to_string().contains("2 models in GGUF"));
        assert_eq!(chosen(&gguf[..2], &Selection::default()).unwrap(), gguf[..2]);
    }
}
