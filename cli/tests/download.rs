//! `l4tool download` as a user runs it, against a hub on localhost: what arrives where, who is asked for what, and what works without
//! the network.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::hub::{Served, noise, sha256sum};
use common::{contents, edit, read_json, run, start, testdata};
use l4_testkit::HubOptions;

/// The files of tiny-scout that a checkpoint needs.
const USUAL: usize = 13;

#[test]
fn a_folder_gets_the_usual_files_and_a_manifest_that_verify_agrees_with() {
    let served = Served::scout(HubOptions::default());
    let report = run(&mut served.download("meta/scout", "--json")).ok().json();
    assert_eq!(
        (report["schema"].as_str(), report["files"].as_array().unwrap().len()),
        (Some("l4tool.download/1"), USUAL)
    );
    let out = served.out();
    let mut got = contents(&out);
    assert!(got.remove(Path::new("l4tool.manifest.json")).is_some());
    assert_eq!(got.len(), USUAL);
    let source = contents(&served.repo("meta/scout"));
    assert!(got.iter().all(|(name, bytes)| source[name] == *bytes));
    let manifest = read_json(&out.join("l4tool.manifest.json"));
    assert_eq!(manifest["source"]["repo"], "meta/scout");
    assert_eq!(manifest["source"]["revision"], served.hub.commit("meta/scout").unwrap());
    for file in manifest["files"].as_array().unwrap() {
        assert_eq!(file["sha256"], sha256sum(&out.join(file["name"].as_str().unwrap())), "{file}");
    }
    // Nothing is fetched twice.
    let before = served.hub.served();
    let again = run(&mut served.download("meta/scout", "--json")).ok().json();
    assert_eq!((again["bytes_received"].as_u64(), served.hub.served()), (Some(0), before));
    assert!(again["files"].as_array().unwrap().iter().all(|file| file["state"] == "present"));

    let verify = || run(served.l4tool("verify").arg(&out));
    assert!(verify().ok().stdout.contains("13 checksums as in the manifest"));
    // `quantize` takes over where the weights came from.
    let small = served.scratch.path("small");
    run(served.l4tool("quantize --int4 -o").arg(&small).arg(&out)).ok();
    let made = read_json(&small.join("l4tool.manifest.json"));
    assert_eq!(
        (&made["source"]["repo"], &made["source"]["revision"]),
        (&manifest["source"]["repo"], &manifest["source"]["revision"])
    );
    let shard = &made["source"]["files"]
        .as_array()
        .unwrap()
        .iter()
        .find(|file| file["name"] == "model-00001-of-00006.safetensors")
        .unwrap()["sha256"];
    assert_eq!(*shard, sha256sum(&out.join("model-00001-of-00006.safetensors")));
    // A flipped bit.
    let path = out.join("model-00003-of-00006.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let done = verify();
    assert_eq!(done.code, Some(1));
    assert!(done.stdout.contains("model-00003-of-00006.safetensors"), "{}", done.stdout);
}

#[test]
fn the_cache_is_laid_out_as_hubs_tools_expect_and_works_offline() {
    let served = Served::scout(HubOptions { page: 2, ..HubOptions::default() });
    let commit = served.hub.commit("meta/scout").unwrap();
    run(&mut served.l4tool("download meta/scout")).ok();
    let repo = served.cached("models--meta--scout");
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), commit);
    let shard = repo.join("snapshots").join(&commit).join("model-00001-of-00006.safetensors");
    let sha256 = sha256sum(&shard);
    assert_eq!(fs::read_link(&shard).unwrap(), Path::new("../../blobs").join(&sha256));
    assert_eq!(fs::read_dir(repo.join("blobs")).unwrap().count(), USUAL);
    let config = repo.join("snapshots").join(&commit).join("config.json");
    let oid = fs::read_link(&config).unwrap().file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(oid.len(), 40, "small files are named by git's SHA-1");

    let requests = served.hub.requests().len();
    let offline =
        |flags: &str| run(served.l4tool("download meta/scout --json --offline").args(flags.split_whitespace()));
    let report = offline("").ok().json();
    assert_eq!((report["commit"].as_str(), report["offline"].as_bool()), (Some(commit.as_str()), Some(true)));
    run(served.l4tool("download meta/scout").env("HF_HUB_OFFLINE", "1")).ok();
    run(served.l4tool("download meta/scout@other --offline").env("HF_HUB_OFFLINE", "1"))
        .refused(&["is not in the cache", "hint: "]);
    offline("--include *.png").refused(&["none of the"]);
    assert_eq!(served.hub.requests().len(), requests, "no request was made");

    // Damage is found without the network, and mended with it.
    fs::write(repo.join("blobs").join(&sha256), noise(1_925_328, 2)).unwrap();
    let done = offline("");
    assert_eq!(
        (done.code, done.json()["problems"][0]["file"].as_str()),
        (Some(1), Some("model-00001-of-00006.safetensors"))
    );
    let mended = run(&mut served.l4tool("download meta/scout --json")).ok();
    assert!(mended.stderr.contains("is damaged; it is fetched again"), "{}", mended.stderr);
    assert_eq!(mended.json()["bytes_received"], 1_925_328);
    assert_eq!(sha256sum(&shard), sha256);
    fs::remove_file(&shard).unwrap();
    offline("").refused(&["is not complete: `model-00001-of-00006.safetensors`"]);
}

#[test]
fn what_another_tool_put_into_the_cache_is_checked_and_not_fetched_again() {
    let served = Served::scout(HubOptions::default());
    run(&mut served.l4tool("download meta/scout")).ok();
    let commit = served.hub.commit("meta/scout").unwrap();
    let snapshot = served.cached("models--meta--scout/snapshots").join(&commit);
    // As Python leaves it: no manifest.
    fs::remove_file(snapshot.join("l4tool.manifest.json")).unwrap();
    let before = served.hub.served();
    run(&mut served.l4tool("download meta/scout")).ok();
    assert_eq!(served.hub.served(), before);
    // A new commit shares what has not changed.
    served.put("meta/scout", "config.json", &fs::read(testdata("tiny-maverick/config.json")).unwrap());
    let report = run(&mut served.l4tool("download meta/scout --json")).ok().json();
    let config = fs::metadata(testdata("tiny-maverick/config.json")).unwrap().len();
    assert_eq!(report["bytes_received"], config);
    assert_eq!(fs::read_dir(served.cached("models--meta--scout/snapshots")).unwrap().count(), 2);
}

#[test]
fn patterns_choose_and_a_dry_run_changes_nothing() {
    let served = Served::scout(HubOptions::default());
    let done = run(&mut served
        .download("meta/scout", "--json --dry-run --include *.json --include original/ --exclude tokenizer*"));
    let plan = done.ok().json();
    let names: Vec<&str> =
        plan["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "original/consolidated.00.pth",
            "preprocessor_config.json"
        ]
    );
    assert_eq!((plan["disk_fits"].as_bool(), plan["bytes"].clone()), (Some(true), plan["bytes_missing"].clone()));
    assert!(!served.out().exists());
    run(&mut served.download("meta/scout", "--include original/")).ok();
    // The manifest speaks of everything that was fetched from this commit, and files in folders are verified too.
    run(&mut served.download("meta/scout", "")).ok();
    assert!(run(served.l4tool("verify").arg(served.out())).ok().stdout.contains("14 checksums"));
}

#[test]
fn a_users_own_file_is_not_replaced_unless_forced() {
    let served = Served::scout(HubOptions::default());
    fs::create_dir(served.out()).unwrap();
    fs::write(served.out().join("config.json"), "mine").unwrap();
    run(&mut served.download("meta/scout", "")).refused(&["config.json", "hint: `--force` replaces it"]);
    assert_eq!(fs::read_to_string(served.out().join("config.json")).unwrap(), "mine");
    run(&mut served.download("meta/scout", "--force")).ok();
    // What l4tool put there makes way for a newer version by itself.
    served.put("meta/scout", "config.json", b"{}");
    run(&mut served.download("meta/scout", "")).ok();
    assert_eq!(fs::read_to_string(served.out().join("config.json")).unwrap(), "{}");
}

#[test]
fn the_token_goes_to_the_endpoint_alone() {
    let served = Served::scout(HubOptions { token: Some("hf_secret".into()), ..HubOptions::default() });
    run(&mut served.download("meta/scout", "")).refused(&["401", "hint: ", "HF_TOKEN"]);
    let wrong = run(served.download("meta/scout", "").env("HF_TOKEN", "hf_wrong")).refused(&["401", "hint: "]);
    assert!(!wrong.stderr.contains("hf_wrong"), "{}", wrong.stderr);
    let done = run(served.download("meta/scout", "-v").env("HF_TOKEN", "hf_secret\n")).ok();
    let (to_cdn, to_hub): (Vec<_>, Vec<_>) = served.hub.requests().into_iter().partition(|request| request.cdn);
    assert!(!to_cdn.is_empty() && to_cdn.iter().all(|request| request.authorization.is_none()), "{to_cdn:?}");
    assert!(to_hub.iter().any(|request| request.authorization.as_deref() == Some("Bearer hf_secret")));
    let manifest = fs::read_to_string(served.out().join("l4tool.manifest.json")).unwrap();
    assert!(![done.stdout, done.stderr, manifest].iter().any(|text| text.contains("hf_secret")));
    // Where the hub's own tool leaves it, and where the user says.
    fs::create_dir_all(served.scratch.path("home")).unwrap();
    fs::write(served.scratch.path("home/token"), "hf_secret").unwrap();
    run(&mut served.l4tool("inspect hf://meta/scout")).ok();
    run(served.l4tool("inspect hf://meta/scout").env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")).refused(&["401"]);
    let file = served.scratch.path("my-token");
    fs::write(&file, "hf_secret\n").unwrap();
    run(served.l4tool("inspect hf://meta/scout --token-file").arg(&file).env("HF_TOKEN", "hf_wrong")).ok();
}

#[test]
fn gated_and_missing_repositories_say_what_to_do() {
    let served = Served::scout(HubOptions { gated: true, ..HubOptions::default() });
    let page = format!("accept the licence at {}/meta/scout", served.hub.endpoint());
    run(&mut served.download("meta/scout", "")).refused(&["restricted (401)", &page, "HF_TOKEN"]);
    run(served.download("meta/scout", "").env("HF_TOKEN", "hf_x")).refused(&[
        "restricted (403)",
        &page,
        "account of your token",
    ]);
    let served = Served::scout(HubOptions::default());
    run(&mut served.download("meta/none", "")).refused(&["no public repository `meta/none`"]);
    run(&mut served.download("meta/scout@v9", "")).refused(&["has no revision `v9`"]);
    run(&mut served.download("../scout", "")).refused(&["is not the name of a repository"]);
    run(served.download("meta/scout", "").env("HF_ENDPOINT", "http://localhost:1"))
        .refused(&["Connection refused", "hint: check the endpoint"]);
}

#[test]
fn two_processes_with_one_folder_take_turns() {
    let served = Served::scout(HubOptions::default());
    let mut first = start(&mut served.download("meta/scout", "--max-bandwidth 10M"));
    assert!(common::wait_until(&mut first, || served.out().join(".l4tool/lock").exists()));
    let second = run(&mut served.download("meta/scout", "")).ok();
    assert!(
        second.stderr.contains(&format!("waiting for another l4tool (process {})", first.id())),
        "{}",
        second.stderr
    );
    assert!(first.wait().unwrap().success());
    let bytes: u64 = fs::read_dir(served.out()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(served.hub.served() < bytes, "{} of {bytes}", served.hub.served());
}

#[test]
fn https_wants_a_certificate_that_is_trusted() {
    let read = |name| fs::read(testdata("tls").join(name)).unwrap();
    let served =
        Served::scout(HubOptions { tls: Some((read("server.pem"), read("server.key"))), ..HubOptions::default() });
    assert!(served.hub.endpoint().starts_with("https://"));
    run(&mut served.download("meta/scout", "")).refused(&["ertificate", "hint: ", "--ca-file"]);
    let authority = testdata("tls/ca.pem");
    run(served.l4tool("download meta/scout --ca-file").arg(&authority).arg("-o").arg(served.out())).ok();
    run(served.l4tool("inspect hf://meta/scout").env("SSL_CERT_FILE", &authority)).ok();
}

/// A proxy that connects every `CONNECT` to the host that it stands for.
fn proxy(target: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::Relaxed);
            let target = target.clone();
            std::thread::spawn(move || relay(client, &target));
        }
    });
    (address, count)
}

fn relay(mut client: TcpStream, target: &str) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let wanted = String::from_utf8(head).ok()?.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    let host = if wanted.starts_with("hub.invalid:") { target.to_owned() } else { wanted };
    let mut server = TcpStream::connect(host).ok()?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    std::io::copy(&mut server, &mut client).ok()?;
    Some(())
}

#[test]
fn proxies_of_the_environment_are_used_and_left_out() {
    let served = Served::scout(HubOptions::default());
    let port = served.hub.endpoint().rsplit(':').next().unwrap().to_owned();
    let (proxy, count) = proxy(format!("127.0.0.1:{port}"));
    // A host that only the proxy knows.
    let endpoint = format!("http://hub.invalid:{port}");
    run(served.download("meta/scout", "").env("HF_ENDPOINT", &endpoint).env("http_proxy", &proxy)).ok();
    let used = count.load(Ordering::Relaxed);
    assert!(used > 1);
    run(served.l4tool("inspect hf://meta/scout").env("ALL_PROXY", &proxy).env("NO_PROXY", "localhost,127.0.0.1")).ok();
    assert_eq!(count.load(Ordering::Relaxed), used);
    let done = run(served.download("meta/scout", "").env("http_proxy", "http://user:hunter2@127.0.0.1:1"));
    assert!(done.code == Some(2) && !done.stderr.contains("hunter2"), "{}", done.stderr);
}

#[test]
fn headers_alone_tell_the_same_as_the_files() {
    let served = Served::scout(HubOptions::default());
    let local = |command: &str| run(served.l4tool(command).arg(served.repo("meta/scout"))).ok().json();
    let remote = |command: &str| run(served.l4tool(command).arg("hf://meta/scout")).ok().json();
    let same = |command: &str, path: &str| {
        let (mut local, mut remote) = (local(command), remote(command));
        local[path] = "x".into();
        remote[path] = "x".into();
        // Free space is another one at another time.
        local["disk_free_bytes"] = 0.into();
        remote["disk_free_bytes"] = 0.into();
        assert_eq!(local, remote, "{command}");
    };
    same("inspect --json", "checkpoint");
    let out = served.scratch.path("out");
    same(&format!("quantize --json --int4 --dry-run -o {}", out.display()), "source");
    assert!(served.hub.served() < 400_000, "{}", served.hub.served());
    for command in ["quantize --int4 -o x", "verify"] {
        run(served.l4tool(command).arg("hf://meta/scout"))
            .refused(&["this needs the weights", "l4tool download meta/scout"]);
    }
    // A repository that was damaged is refused with the same words.
    edit_shard(&served);
    let error = run(served.l4tool("inspect hf://meta/scout").env("NO_COLOR", "1"))
        .refused(&["model-00002-of-00006.safetensors"])
        .stderr;
    let files = run(served.l4tool("inspect").arg(served.repo("meta/scout"))).refused(&[]).stderr;
    assert_eq!(error.replace("hf://meta/scout", ""), files.replace(served.repo("meta/scout").to_str().unwrap(), ""));
}

#[test]
fn headers_of_gguf_files_tell_the_same_as_the_files() {
    let served = Served::with(HubOptions::default());
    // A text model with its vision part, and one in three parts whose rope is scaled by a tensor, not by a key.
    let folders: [(&str, &[&str]); 2] = [
        ("a/both", &["cut-q4_k_m.gguf", "cut-mmproj.gguf"]),
        (
            "a/many/BF16",
            &["small-00001-of-00003.gguf", "small-00002-of-00003.gguf", "small-00003-of-00003.gguf", "types.gguf"],
        ),
    ];
    for (folder, names) in folders {
        fs::create_dir_all(served.repo(folder)).unwrap();
        for name in names {
            // A vision part is known by its name before it is opened.
            let to = name.replace("cut-mmproj", "mmproj-cut");
            fs::copy(testdata("gguf").join(name), served.repo(folder).join(to)).unwrap();
        }
    }
    let out = served.scratch.path("out.gguf");
    let plan = format!("quantize --json --scheme q8_0 --requantize --dry-run -o {}", out.display());
    for (address, local) in [
        ("hf://a/both", served.repo("a/both")),
        ("hf://a/many/BF16/small-00002-of-00003.gguf", served.repo("a/many/BF16/small-00002-of-00003.gguf")),
        ("hf://a/many@main/BF16/types.gguf", served.repo("a/many/BF16/types.gguf")),
    ] {
        // One of them has no tokenizer, of which a plan warns in other words.
        let commands =
            if address.ends_with("types.gguf") { &["inspect --json"][..] } else { &["inspect --json", &plan] };
        for command in commands {
            let mut remote = run(served.l4tool(command).arg(address)).ok().json();
            let mut local = run(served.l4tool(command).arg(&local)).ok().json();
            for key in ["checkpoint", "source", "disk_free_bytes"] {
                (remote[key], local[key]) = (0.into(), 0.into());
            }
            assert_eq!(remote, local, "{command} {address}");
        }
    }
    let report = run(&mut served.l4tool("inspect --json hf://a/many/BF16/small-00001-of-00003.gguf")).ok().json();
    assert_eq!(report["config"]["rope"]["factor"], 8.0, "{}", report["config"]["rope"]);
    run(&mut served.l4tool("inspect hf://a/many")).refused(&["hf://a/many", "no `.safetensors` file"]);
    run(&mut served.l4tool("inspect hf://a/many/BF16/small.gguf")).refused(&["BF16/small.gguf"]);
    fs::copy(testdata("gguf/types.gguf"), served.repo("a/both").join("types.gguf")).unwrap();
    run(&mut served.l4tool("inspect hf://a/both")).refused(&[
        "2 text models in GGUF",
        "`cut-q4_k_m.gguf` and `types.gguf`",
        "hf://a/both/cut-q4_k_m.gguf",
    ]);
    run(&mut served.l4tool("verify hf://a/both/types.gguf"))
        .refused(&["this needs the weights", "l4tool download a/both --include 'types.gguf'"]);
    run(&mut served.l4tool("verify hf://a/many@refs/pr/1/BF16/small-00001-of-00003.gguf"))
        .refused(&["l4tool download a/many@refs/pr/1 --include 'BF16/small-*-of-00003.gguf'"]);
    // An importance matrix is no model, and a tensor that is to be fetched no large one.
    fs::remove_file(served.repo("a/both").join("types.gguf")).unwrap();
    fs::copy(testdata("gguf/sample.gguf"), served.repo("a/both").join("a.imatrix.gguf")).unwrap();
    run(&mut served.l4tool("inspect hf://a/both")).ok();
    // What is wrong is said in the same words.
    let cut = served.repo("a/many/BF16/types.gguf");
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 100]).unwrap();
    run(&mut served.l4tool("inspect hf://a/many/BF16/types.gguf")).refused(&["types.gguf`, tensor `", "truncated"]);
}

#[test]
fn long_heads_of_gguf_files_are_fetched_in_steps() {
    let served = Served::with(HubOptions::default());
    let folder = served.repo("a/b");
    fs::create_dir_all(&folder).unwrap();
    let source = testdata("tiny-scout");
    let path = folder.join("b.gguf");
    run(served.l4tool("convert --to gguf --quiet -o").arg(&path).arg(&source)).ok();
    // A key as long as a real tokenizer, which moves the data by whole blocks of the alignment.
    let mut bytes = fs::read(&path).unwrap();
    let count = bytes[16..24].first_chunk_mut::<8>().unwrap();
    *count = (u64::from_le_bytes(*count) + 1).to_le_bytes();
    let text = vec![b'x'; 32 * 100_000 - 23];
    let (key, length) = ([3, 0, 0, 0, 0, 0, 0, 0, b'p', b'a', b'd', 8, 0, 0, 0], (text.len() as u64).to_le_bytes());
    bytes.splice(24..24, [&key[..], &length, &text].concat());
    fs::write(&path, &bytes).unwrap();
    let before = served.hub.served();
    let mut remote = run(&mut served.l4tool("inspect --json hf://a/b")).ok().json();
    let fetched = served.hub.served() - before;
    assert!((3_200_000..12_000_000).contains(&fetched) && bytes.len() > 20_000_000, "{fetched} of {}", bytes.len());
    let mut local = run(served.l4tool("inspect --json").arg(folder.join("b.gguf"))).ok().json();
    (remote["checkpoint"], local["checkpoint"]) = (0.into(), 0.into());
    assert_eq!(remote, local);
}

fn edit_shard(served: &Served) {
    let path = served.repo("meta/scout").join("model-00002-of-00006.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
}

#[test]
fn all_of_maverick_is_inspected_in_a_few_megabytes() {
    let served = Served::with(HubOptions { fake_digests_above: 16 << 20, ..HubOptions::default() });
    let folder = served.repo("meta/maverick");
    l4_testkit::write_sparse_maverick(&folder).unwrap();
    let mut remote = run(&mut served.l4tool("inspect --json hf://meta/maverick")).ok().json();
    assert!(served.hub.served() < 10_000_000, "{}", served.hub.served());
    remote["checkpoint"] = folder.to_str().unwrap().into();
    assert_eq!(remote, run(served.l4tool("inspect --json").arg(&folder)).ok().json());
}

#[test]
fn a_single_file_with_a_long_header_is_read_in_two_requests() {
    let served = Served::with(HubOptions::default());
    let spec = l4_testkit::Spec {
        layers: 4,
        shards: l4_testkit::Shards::Single,
        text_only: true,
        ..l4_testkit::Spec::default()
    };
    spec.write(&served.repo("a/b")).unwrap();
    // A header of more than the first 8 KiB.
    edit(&served.repo("a/b"), |tensors| tensors[0].name += &"x".repeat(10_000));
    let mut local = run(served.l4tool("inspect --json").arg(served.repo("a/b"))).json();
    let mut remote = run(&mut served.l4tool("inspect --json hf://a/b")).json();
    assert!(local["tensors"].as_array().unwrap().len() > 20);
    (local["checkpoint"], remote["checkpoint"]) = ("".into(), "".into());
    assert_eq!(local, remote);
}
