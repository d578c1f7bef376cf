#!/usr/bin/env bash
# One layer of Scout with real dimensions to GGUF: l4tool from safetensors beside llama-quantize from a BF16 GGUF of the same weights.
# CPU seconds, wall seconds and peak memory of each, on two threads, input in the page cache. Needs LLAMA_CPP, a built llama.cpp, and 15 GB of disk.
# Options by environment: SPACE (a folder on the disk to be measured), SCHEMES.
set -euo pipefail
cd "$(dirname "$0")/.."

quantizer=${LLAMA_CPP:?names a built llama.cpp}/build/bin/llama-quantize
cargo build --release --quiet --workspace
bin=$(realpath "${CARGO_TARGET_DIR:-target}/release")
work=$(mktemp -d ${SPACE:+-p "$SPACE"})
trap 'rm -rf "$work"' EXIT

"$bin/testkit" real-layers scout "$work/layer"
"$bin/l4tool" -q convert "$work/layer" -o "$work/bf16.gguf" --to gguf --dtype bf16 >/dev/null

measured() { # NAME COMMAND...
    local name=$1
    shift
    /usr/bin/time -f '%U %S %e %M' -o "$work/time" "$@" >"$work/log" 2>&1 || { cat "$work/log" && exit 1; }
    read -r user system wall memory <"$work/time"
    awk "BEGIN { printf \"%-22s %8.1f CPU-s %8.1f s %8d MiB\n\", \"$name\", $user + $system, $wall, $memory / 1024 }"
}

for scheme in ${SCHEMES:-q4_k_m q4_0 q8_0 q6_k}; do
    cat "$work"/layer/*.safetensors >/dev/null
    measured "l4tool $scheme" "$bin/l4tool" -q --threads 2 --memory 1G quantize "$work/layer" -o "$work/ours.gguf" --scheme "$scheme"
    cat "$work/bf16.gguf" >/dev/null
    measured "llama-quantize $scheme" "$quantizer" "$work/bf16.gguf" "$work/theirs.gguf" "${scheme^^}" 2
    # The data of all tensors; keys may differ.
    "$bin/l4tool" -q diff "$work/ours.gguf" "$work/theirs.gguf" >"$work/diff" || { cat "$work/diff" && exit 1; }
    rm -f "$work/ours.gguf"* "$work/theirs.gguf"
done
