#!/usr/bin/env bash
# What huggingface_hub, curl and aria2c say about `l4tool download`, on localhost. Needs curl; aria2c and Python with huggingface_hub and transformers
# where they are there. Options by environment: PYTHON, SIZE (bytes of the file for throughput and kills), SPACE (a folder on the disk to be measured),
# BIN (a folder with l4tool and testkit, in place of a release build).
set -euo pipefail
cd "$(dirname "$0")/.."

source interop/common.sh
SIZE=${SIZE:-4000000000}
[[ -n ${BIN:-} ]] || cargo build --release --quiet --workspace
bin=$(realpath "${BIN:-${CARGO_TARGET_DIR:-target}/release}")
work=$(mktemp -d ${SPACE:+-p "$SPACE"})
hub=
trap 'kill $hub 2>/dev/null; rm -rf "$work"' EXIT

serve() { # OPTION...: serves $work/repos
    [[ -n $hub ]] && kill "$hub" && wait "$hub" 2>/dev/null || true
    rm -f "$work/endpoint"
    "$bin/testkit" hub "$@" "$work/repos" >"$work/endpoint" &
    hub=$!
    until [[ -s $work/endpoint ]] 2>/dev/null; do sleep 0.1; done
    HF_ENDPOINT=$(cat "$work/endpoint")
    export HF_ENDPOINT
}
served() { curl -s "$HF_ENDPOINT/_stats" | sed 's/.*"served":\([0-9]*\).*/\1/'; }
now() { date +%s.%N; }
rate() { awk "BEGIN { printf \"%.2f GB/s\", $SIZE / ($2 - $1) / 1e9 }"; }

export HF_HOME=$work/home HF_HUB_DISABLE_PROGRESS_BARS=1 HF_HUB_DISABLE_TELEMETRY=1
mkdir -p "$work/repos/meta"
cp -r testdata/tiny-scout "$work/repos/meta/scout"
serve

if "$PYTHON" -c 'import huggingface_hub' 2>/dev/null; then
    echo "== Python finds what l4tool fetched, offline"
    "$bin/l4tool" -q download meta/scout >/dev/null
    HF_HUB_OFFLINE=1 "$PYTHON" - <<'P'
import hashlib, huggingface_hub, os
path = huggingface_hub.snapshot_download("meta/scout")
names = sorted(os.listdir(path))
assert "model-00006-of-00006.safetensors" in names, names
assert huggingface_hub.try_to_load_from_cache("meta/scout", "config.json")
for repo in huggingface_hub.scan_cache_dir().repos:
    for revision in repo.revisions:
        assert revision.refs == {"main"}, revision
        for file in revision.files:
            name = file.blob_path.name
            if len(name) == 64:
                assert hashlib.sha256(file.blob_path.read_bytes()).hexdigest() == name, file
assert not huggingface_hub.scan_cache_dir().warnings
try:
    from transformers import AutoModelForImageTextToText
except ImportError:
    print("(no transformers)")
else:
    model = AutoModelForImageTextToText.from_pretrained("meta/scout")
    print("loaded", sum(p.numel() for p in model.parameters()), "parameters")
P
    echo "== l4tool finds what Python fetched"
    export HF_HUB_CACHE=$work/python
    "$PYTHON" -c 'import huggingface_hub; huggingface_hub.snapshot_download("meta/scout")'
    before=$(served)
    "$bin/l4tool" -q download meta/scout >/dev/null
    "$bin/l4tool" -q download meta/scout --offline >/dev/null
    [[ $(served) == "$before" ]]
    unset HF_HUB_CACHE
else
    echo "(no huggingface_hub)"
fi

echo "== inspect of the whole of Maverick"
"$bin/testkit" sparse maverick "$work/repos/meta/maverick"
serve --fake-digests 16000000
start=$(now)
"$bin/l4tool" --json inspect hf://meta/maverick >"$work/remote.json"
awk "BEGIN { printf \"%.2f s, \", $(now) - $start }"
echo "$(served) bytes"
"$bin/l4tool" --json inspect "$work/repos/meta/maverick" >"$work/local.json"
diff <(grep -v '"checkpoint"' "$work/remote.json") <(grep -v '"checkpoint"' "$work/local.json")
rm -rf "$work/repos/meta/maverick"

mkdir -p "$work/repos/meta/big"
head -c "$SIZE" /dev/urandom >"$work/repos/meta/big/model.safetensors"
sum=$(sha256sum <"$work/repos/meta/big/model.safetensors")
serve --send-buffer 131072
curl -s "$HF_ENDPOINT/api/models/meta/big/revision/main" >/dev/null # hashes the file
url=$HF_ENDPOINT/meta/big/resolve/main/model.safetensors

echo "== throughput"
for round in 1 2 3; do
    mkdir "$work/out" && start=$(now) && curl -sL "$url" -o "$work/out/f" && echo "curl       $(rate "$start" "$(now)")"
    rm -rf "$work/out"
    mkdir "$work/out" && start=$(now) && curl -sL "$url" -o "$work/out/f" && sync "$work/out/f" && echo "curl, sync $(rate "$start" "$(now)")"
    rm -rf "$work/out"
    if command -v aria2c >/dev/null; then
        mkdir "$work/out" && start=$(now) && aria2c -q -x8 -s8 -d "$work/out" -o f "$url" && echo "aria2c -x8 $(rate "$start" "$(now)")"
        rm -rf "$work/out"
    fi
    start=$(now) && "$bin/l4tool" -q download meta/big -o "$work/out" >/dev/null && echo "l4tool     $(rate "$start" "$(now)")  (hashed and synced)"
    rm -rf "$work/out"
done

echo "== ten kills"
before=$(served)
kills=0
while ((kills < 10)); do
    "$bin/l4tool" -q download meta/big -o "$work/out" --max-bandwidth "$((SIZE / 6))" >/dev/null &
    child=$!
    sleep "0.$((RANDOM % 90 + 10))"
    # Done already?
    kill -9 $child 2>/dev/null || break
    wait $child 2>/dev/null || true
    kills=$((kills + 1))
done
"$bin/l4tool" -q download meta/big -o "$work/out" >/dev/null
awk "BEGIN { printf \"$kills kills, %.4f of the size served\n\", ($(served) - $before) / $SIZE; exit ($(served) - $before) / $SIZE > 1.05 }"
[[ $(sha256sum <"$work/out/model.safetensors") == "$sum" ]]
"$bin/l4tool" -q download meta/big -o "$work/out" --offline >/dev/null
echo "all checks passed"
