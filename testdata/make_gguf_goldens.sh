#!/usr/bin/env bash
# Writes `gguf/goldens-*.tsv`: what llama.cpp's converter and llama-quantize make of small models, a cell for each tensor and preset with
# the type and the beginning of the SHA-256 of the data; and `gguf/keys-*.tsv`, the keys that the converter writes; the same
# for vision parts (`mmproj`). `+im`: with an importance matrix by a formula (`interop/gguf.py`).
#
#   LLAMA_CPP=FOLDER PYTHON=PYTHON testdata/make_gguf_goldens.sh        see interop/gguf.sh for what these are
set -euo pipefail
cd "$(dirname "$0")/.."
: "${LLAMA_CPP:?name the folder of llama.cpp}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
helper() { "$python" interop/gguf.py "$@"; }
testkit=${TESTKIT:-target/debug/testkit}
"$testkit" random --like scout --hidden 256 --layers 8 --heads 8 --kv-heads 2 --head-dim 32 --intermediate 256 --intermediate-mlp 256 \
    --experts 4 --interleave 1 --qk-norm true --vocab 2048 --chunk 8192 --floor-scale 8192 --text-only --no-vision --tokenizer --single \
    "$work/random"

"$testkit" random --like tiny --vision-layers 12 --vision-heads 4 --vision-hidden 256 --single "$work/eyes"
echo '{"image_processor": {"image_mean": [0.25, 0.5, 0.75], "image_std": [0.5, 0.25, 0.125]}}' >"$work/eyes/processor_config.json"

# The vision part of a model. Floats are the converter's own.
mmproj() { # NAME FOLDER PRESET...
    local name=$1 folder=$2 cells=()
    shift 2
    for float in bf16 f16 f32; do
        helper mmproj "$LLAMA_CPP" "$folder" "$work/$name.$float" $float >"$work/log" 2>&1 || { tail "$work/log"; exit 1; }
        cells+=("$float=$work/$name.$float")
    done
    helper keys "$LLAMA_CPP" "$work/$name.bf16" >"testdata/gguf/keys-mmproj-$name.tsv"
    for preset in "$@"; do
        "$LLAMA_CPP/build/bin/llama-quantize" "$work/$name.bf16" "$work/$name.$preset" "${preset^^}" 2 >"$work/log" 2>&1
        cells+=("$preset=$work/$name.$preset")
    done
    helper digests "$LLAMA_CPP" "${cells[@]}" >"testdata/gguf/goldens-mmproj-$name.tsv"
}

goldens() { # NAME FOLDER PRESET...
    local name=$1 folder=$2 cells=()
    shift 2
    helper convert "$LLAMA_CPP" "$folder" "$work/$name.gguf" bf16 >"$work/log" 2>&1 || { tail "$work/log"; exit 1; }
    helper imatrix "$LLAMA_CPP" "$work/$name.gguf" "$work/$name.imatrix.gguf"
    helper keys "$LLAMA_CPP" "$work/$name.gguf" >"testdata/gguf/keys-$name.tsv"
    for preset in "$@"; do
        kind=${preset^^}
        [[ $preset == mxfp4 ]] && kind=MXFP4_MOE
        "$LLAMA_CPP/build/bin/llama-quantize" "$work/$name.gguf" "$work/$name.$preset" "$kind" 2 >"$work/log" 2>&1
        "$LLAMA_CPP/build/bin/llama-quantize" --imatrix "$work/$name.imatrix.gguf" "$work/$name.gguf" "$work/$name.$preset+im" "$kind" 2 \
            >"$work/log" 2>&1
        cells+=("$preset=$work/$name.$preset" "$preset+im=$work/$name.$preset+im")
    done
    helper digests "$LLAMA_CPP" "${cells[@]}" >"testdata/gguf/goldens-$name.tsv"
}
goldens tiny-scout testdata/tiny-scout q4_0 q4_k_m q2_k q3_k_m
goldens tiny-maverick testdata/tiny-maverick q8_0 q4_0 q4_k_m q5_k_m q6_k iq4_nl iq4_xs mxfp4
goldens random "$work/random" q8_0 q4_k_m q5_k_m q6_k iq4_xs
mmproj tiny-scout testdata/tiny-scout q8_0 q4_0 q4_k_m
mmproj eyes "$work/eyes" q8_0 q4_k_m q5_k_m q6_k
