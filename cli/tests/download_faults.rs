//! `l4tool download` when things go wrong on purpose: answers that lie, connections that break, kills at any moment.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::hub::{Served, noise, sha256sum};
use common::{run, signal, start, wait_until};
use l4_testkit::{Fault, FaultKind, HubOptions};

/// Bytes of the file that is fetched: some blocks and an odd rest.
const BYTES: usize = (20 << 20) + 12_345;

const NAME: &str = "model.safetensors";

fn assert_whole(served: &Served) {
    assert_eq!(sha256sum(&served.out().join(NAME)), sha256sum(&served.repo("meta/big").join(NAME)));
}

/// Downloads with a fault on the way; gives the report and what was said.
fn with_fault(kind: FaultKind, times: usize, flags: &str) -> (serde_json::Value, String, Served) {
    let served = Served::big(BYTES, HubOptions::default());
    served.hub.fault(Fault::times("/lfs/", kind, times).after(1));
    let done = run(&mut served.download("meta/big", &format!("--json {flags}"))).ok();
    assert!(served.hub.faults_are_over());
    assert_whole(&served);
    (done.json(), done.stderr.clone(), served)
}

#[test]
fn answers_that_are_wrong_are_asked_for_again() {
    for (kind, times) in [
        (FaultKind::Status(503, None), 3),
        (FaultKind::Status(429, Some("1".into())), 1),
        (FaultKind::Status(408, None), 1),
        (FaultKind::Reset(300_000), 2),
        (FaultKind::Truncate(300_000), 2),
        (FaultKind::WrongRange, 1),
        (FaultKind::ShortAnswer, 2),
        (FaultKind::ErrorPage, 1),
        // The signature of an address has run out: the hub is asked for another.
        (FaultKind::Status(403, None), 1),
    ] {
        let (report, said, served) = with_fault(kind.clone(), times, "");
        assert!(report["retries"].as_u64().unwrap() >= times as u64, "{kind:?}: {report}");
        assert_eq!(
            (report["restarted"].as_array().unwrap().len(), said.as_str()),
            (0, if times == 1 && said.contains("waiting") { &said } else { "" }),
            "{kind:?}"
        );
        // What was right is not fetched again.
        assert!(served.hub.served() < BYTES as u64 * 3 / 2, "{kind:?}: {}", served.hub.served());
    }
}

#[test]
fn retry_after_is_obeyed_and_said() {
    let began = Instant::now();
    let (_, said, _) = with_fault(FaultKind::Status(429, Some("2".into())), 1, "");
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert!(said.contains("answered 429; waiting 2 s as the server asks"), "{said}");
    let served = Served::big(100, HubOptions::default());
    served.hub.fault(Fault::once("/lfs/", FaultKind::Status(503, Some("3600".into()))));
    run(&mut served.download("meta/big", "")).refused(&["answered 503", "asks to wait 3600 s"]);
}

#[test]
fn a_connection_that_stalls_is_made_anew() {
    let (report, ..) = with_fault(FaultKind::Stall(100_000, Duration::from_secs(20)), 2, "--stall 1");
    assert!(report["retries"].as_u64().unwrap() >= 2);
    assert!(report["seconds"].as_f64().unwrap() < 19.0, "it waited for the server: {}", report["seconds"]);
}

#[test]
fn a_server_without_ranges_will_do() {
    let served = Served::big(BYTES, HubOptions::default());
    served.hub.fault(Fault::times("/lfs/", FaultKind::WholeFile, 1000));
    run(&mut served.download("meta/big", "")).ok();
    assert_whole(&served);
}

#[test]
fn wrong_bytes_start_over_once_and_then_are_set_aside() {
    let (report, said, _) = with_fault(FaultKind::WrongByte(77), 1, "");
    assert_eq!(report["restarted"], serde_json::json!([NAME]));
    assert!(said.contains("and the hub promised SHA-256"), "{said}");

    let served = Served::big(BYTES, HubOptions::default());
    served.put("meta/big", "config.json", b"{}");
    served.hub.fault(Fault::times("/lfs/", FaultKind::WrongByte(77), 1000));
    let done = run(&mut served.download("meta/big", "--json"));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let problem = &done.json()["problems"][0];
    let aside = served.out().join(".l4tool").join(format!("{NAME}.bad"));
    let digests = [sha256sum(&served.repo("meta/big").join(NAME)), sha256sum(&aside)];
    assert_ne!(digests[0], digests[1]);
    assert_eq!(
        (&problem["expected"], &problem["found"]),
        (&format!("SHA-256 {}", digests[0]).into(), &format!("SHA-256 {}", digests[1]).into())
    );
    assert!(!served.out().join(NAME).exists());
    assert_eq!(fs::read(served.out().join("config.json")).unwrap(), b"{}", "other files are not held up");
}

#[test]
fn a_file_that_is_not_what_was_listed_is_refused() {
    let served = Served::big(BYTES, HubOptions::default());
    served.hub.fault(Fault::times("/resolve/", FaultKind::OtherEtag, 1000));
    run(&mut served.download("meta/big", "")).refused(&["is not what was listed", "hint: run the same command again"]);
    assert!(!served.out().join(NAME).exists());
}

#[test]
fn a_server_that_stays_down_is_given_up_and_gone_on_with_later() {
    let served = Served::big(BYTES, HubOptions::default());
    served.hub.fault(Fault::times("/lfs/", FaultKind::Status(500, None), 12).after(1));
    let done = run(&mut served.download("meta/big", "--retries 2 --connections 2"));
    done.refused(&["answered 500, 3 times in a row", "hint: run the same command again to go on"]);
    assert!(!served.hub.faults_are_over() && served.hub.served() > 0);
    run(&mut served.download("meta/big", "")).ok();
    assert_whole(&served);
    assert!(served.hub.faults_are_over() && served.hub.served() < BYTES as u64 * 3 / 2);
}

#[test]
fn the_bandwidth_is_limited() {
    let served = Served::big(3 << 20, HubOptions::default());
    let began = Instant::now();
    run(&mut served.download("meta/big", "--max-bandwidth 2M")).ok();
    assert!(began.elapsed() >= Duration::from_millis(1200), "{:?}", began.elapsed());
}

/// Lines of the record of the file that grows.
fn recorded(served: &Served) -> usize {
    let text = fs::read(served.out().join(".l4tool").join(format!("{NAME}.record"))).unwrap_or_default();
    text.iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn kills_cost_little_and_nothing_is_wrong() {
    let bytes = 48 << 20;
    let served = Served::big(bytes, HubOptions { send_buffer: Some(64 << 10), ..HubOptions::default() });
    for kill in 1..=4 {
        let mut child = start(&mut served.download("meta/big", "--connections 4 --max-bandwidth 40M"));
        assert!(wait_until(&mut child, || recorded(&served) > 10 * kill), "it was too fast");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let report = run(&mut served.download("meta/big", "--json")).ok().json();
    assert_whole(&served);
    assert!(report["bytes_resumed"].as_u64().unwrap() >= 36 << 20, "{report}");
    // Each of four connections may lose the block that it is at, and what lies in buffers of the system and of the server.
    let lost = served.hub.served() - bytes as u64;
    assert!(lost < 4 * 4 * (2 << 20), "{lost} bytes were served twice");
}

#[test]
fn an_interrupt_is_obeyed_at_once_and_keeps_what_there_is() {
    let served = Served::big(BYTES, HubOptions::default());
    served.hub.fault(Fault::times("/lfs/", FaultKind::Stall(5 << 20, Duration::from_secs(30)), 8));
    let mut child = start(&mut served.download("meta/big", ""));
    assert!(wait_until(&mut child, || recorded(&served) > 5));
    let began = Instant::now();
    assert!(signal(&child, "INT"));
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(began.elapsed() < Duration::from_secs(10), "it waited for the network");
    let report = run(&mut served.download("meta/big", "--json")).ok().json();
    assert_whole(&served);
    assert!(report["bytes_resumed"].as_u64().unwrap() >= 5 << 20, "{report}");
}

#[test]
fn a_file_that_changed_in_between_starts_over_and_one_that_did_not_goes_on() {
    let served = Served::big(BYTES, HubOptions::default());
    let interrupt = || {
        let mut child = start(&mut served.download("meta/big", "--max-bandwidth 10M"));
        assert!(wait_until(&mut child, || recorded(&served) > 5));
        child.kill().unwrap();
        child.wait().unwrap();
    };
    interrupt();
    // Another commit, the same file.
    served.put("meta/big", "config.json", b"{}");
    let report = run(&mut served.download("meta/big", "--json --dry-run")).ok().json();
    assert_eq!(report["files"].as_array().unwrap().len(), 2);
    interrupt();
    served.put("meta/big", NAME, &noise(BYTES + 1, 9));
    let done = run(&mut served.download("meta/big", "--json")).ok();
    assert!(done.stderr.contains("has changed on the hub since it was begun; it starts over"), "{}", done.stderr);
    assert_eq!((&done.json()["bytes_resumed"], &done.json()["restarted"]), (&0.into(), &serde_json::json!([NAME])));
    assert_whole(&served);
}

#[test]
fn memory_does_not_grow_with_the_file() {
    let bytes = 640 << 20;
    let served = Served::with(HubOptions::default());
    served.put("meta/big", NAME, b"");
    fs::File::options().write(true).open(served.repo("meta/big").join(NAME)).unwrap().set_len(bytes).unwrap();
    let report = run(&mut served.download("meta/big", "--json")).ok().json();
    assert_eq!(report["bytes"], bytes);
    // The program, a block for each connection, and what may wait for the digest: 64 MiB.
    let peak = report["peak_memory_bytes"].as_u64().unwrap();
    assert!(peak < 128 << 20, "{peak} bytes");
}
