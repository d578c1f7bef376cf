#!/usr/bin/env bash
# Holds `l4tool quantize --scheme q4_k_m` and its like against llama.cpp: the bytes of every tensor, with and without an importance matrix;
# the models run, and compute what `l4tool verify` computes; texts become the same tokens.
#
#   LLAMA_CPP=FOLDER interop/gguf.sh [FOLDER]         keeps the outputs in FOLDER (default: a temporary one)
#
# LLAMA_CPP is a source tree of llama.cpp (tried with the one in the sdist of llama-cpp-python 0.3.36) in whose build/bin are
# llama-quantize, llama-perplexity, llama-tokenize and llama-mtmd-debug. PYTHON has interop/requirements.txt; it finds `gguf` in that tree.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${LLAMA_CPP:?name the folder of llama.cpp}"
source interop/common.sh
work_in "${1:-}"
build
testkit=${L4TOOL%/*}/testkit
bin=$LLAMA_CPP/build/bin
text=testdata/text/eval.txt
helper() { "$PYTHON" interop/gguf.py "$@"; }
# Runs something loud; shows the end of what it said if it fails.
quiet() { "$@" >"$work/log" 2>&1 || { tail -n 20 "$work/log"; exit 1; }; }
presets=${PRESETS:-q8_0 q4_0 q4_k_m q5_k_m q6_k iq4_nl iq4_xs mxfp4 q4_1 q5_0 q5_1 q2_k q3_k_s q3_k_m q3_k_l q4_k_s q5_k_s f16 f32 bf16}

# llama.cpp takes attention chunks of 8192 and more for granted (`limits.rs`); the small models have other values.
"$PYTHON" interop/imatrix.py model testdata/tiny-scout "$work/tiny-scout"
"$PYTHON" interop/imatrix.py model testdata/tiny-maverick "$work/tiny-maverick"
shape=(--hidden 256 --layers 8 --heads 8 --kv-heads 2 --head-dim 32 --vocab 2048 --chunk 8192 --floor-scale 8192 --text-only --no-vision --tokenizer)
"$testkit" random --like scout "${shape[@]}" --intermediate 512 --intermediate-mlp 512 --experts 16 --interleave 1 \
    --qk-norm true "$work/random-scout"
"$testkit" random --like maverick "${shape[@]}" --intermediate 256 --intermediate-mlp 512 --experts 128 --interleave 2 \
    --qk-norm false "$work/random-maverick"

for model in ${MODELS:-tiny-scout tiny-maverick random-scout random-maverick}; do
    echo "== $model"
    source=$work/$model
    quiet helper convert "$LLAMA_CPP" "$source" "$source.bf16.gguf" bf16
    quiet helper imatrix "$LLAMA_CPP" "$source.bf16.gguf" "$source.imatrix.gguf"
    # llama.cpp reads no experts one by one; we make the same bytes of them.
    rm -rf "$source-per-expert"
    quiet "$L4TOOL" -q convert "$source" -o "$source-per-expert" --to hf --experts per-expert
    for preset in $presets; do
        kind=${preset^^}
        [[ $preset == mxfp4 ]] && kind=MXFP4_MOE
        quiet "$bin/llama-quantize" "$source.bf16.gguf" "$work/theirs.gguf" "$kind" 2
        quiet "$L4TOOL" -q quantize "$source" -o "$work/ours.gguf" --scheme "$preset" --force
        echo "$preset: $(helper compare "$LLAMA_CPP" "$work/ours.gguf" "$work/theirs.gguf")"
        quiet "$L4TOOL" -q quantize "$source-per-expert" -o "$work/of-experts.gguf" --scheme "$preset" --force
        cmp "$work/ours.gguf" "$work/of-experts.gguf"
        case $preset in f16 | f32 | bf16) continue ;; esac
        quiet "$bin/llama-quantize" --imatrix "$source.imatrix.gguf" "$source.bf16.gguf" "$work/theirs.gguf" "$kind" 2
        quiet "$L4TOOL" -q quantize "$source" -o "$work/ours.gguf" --scheme "$preset" --force \
            --stats "$source.imatrix.gguf" --imatrix-fallback ones
        echo "$preset with importances: $(helper compare "$LLAMA_CPP" "$work/ours.gguf" "$work/theirs.gguf")"
    done
done

echo "== vision"
for preset in ${VISION:-bf16 f16 f32 q8_0 q4_0 q4_k_m}; do
    case $preset in
    bf16 | f16 | f32) quiet helper mmproj "$LLAMA_CPP" testdata/tiny-scout "$work/theirs.gguf" $preset ;;
    *)
        quiet helper mmproj "$LLAMA_CPP" testdata/tiny-scout "$work/mmproj.gguf" bf16
        quiet "$bin/llama-quantize" "$work/mmproj.gguf" "$work/theirs.gguf" "${preset^^}" 2
        ;;
    esac
    quiet "$L4TOOL" -q quantize testdata/tiny-scout -o "$work/ours.gguf" --mmproj --scheme "$preset" --force
    echo "$preset: $(helper compare "$LLAMA_CPP" "$work/ours.gguf" "$work/theirs.gguf")"
done

echo "== running"
runs() { # NAME FILE SOURCE: llama.cpp with FILE against `verify` of SOURCE
    rm -f "$work/logits.safetensors"
    quiet "$L4TOOL" -q verify "$3" --text "$text" --tokens 512 --logits "$work/logits.safetensors"
    "$bin/llama-perplexity" -m "$2" -f "$text" -c 512 -b 512 --chunks 1 -t 2 -ctk f32 -ctv f32 -fa off >"$work/ppl.log" 2>&1 ||
        { tail -n 20 "$work/ppl.log"; exit 1; }
    echo "$1: $(helper perplexity "$work/logits.safetensors" "$work/ppl.log")"
}
for model in tiny-scout random-scout random-maverick; do
    # llama.cpp computes in the file's format, and the router of a random model decides otherwise for the least of reasons.
    quiet "$L4TOOL" -q convert "$work/$model" -o "$work/$model.ours.gguf" --to gguf --dtype f32 --force
    runs "$model" "$work/$model.ours.gguf" "$work/$model"
done
for preset in q8_0 q4_k_m; do
    quiet "$L4TOOL" -q quantize "$work/tiny-scout" -o "$work/tiny-scout.$preset.gguf" --scheme $preset --force
    runs "tiny-scout $preset" "$work/tiny-scout.$preset.gguf" "$work/tiny-scout.$preset.gguf"
done
quiet "$L4TOOL" -q convert "$work/tiny-scout" -o "$work/mmproj.gguf" --to gguf --mmproj --dtype f32 --force
"$bin/llama-mtmd-debug" -m "$work/tiny-scout.ours.gguf" --mmproj "$work/mmproj.gguf" -n 56 --image rainbow -p encode >"$work/image.log" 2>&1 ||
    { tail -n 20 "$work/image.log"; exit 1; }
echo "vision: $(helper vision testdata/tiny-scout "$work/image.log" 2>/dev/null)"
rm -rf "$work/split"
quiet "$L4TOOL" -q convert "$work/tiny-scout" -o "$work/split" --to gguf --split-max-size 4M
runs "tiny-scout in $(ls "$work"/split/*.gguf | wc -l) files" "$(ls "$work"/split/*.gguf | head -n 1)" "$work/tiny-scout"
"$bin/llama-tokenize" -m "$work/tiny-scout.ours.gguf" -f "$text" --ids --no-escape --log-disable >"$work/tokens.txt" 2>/dev/null
echo "tokens: $(helper tokens "$work/tiny-scout" "$text" "$work/tokens.txt")"
echo "all checks passed"
