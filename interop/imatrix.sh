#!/usr/bin/env bash
# Holds `l4tool calibrate --imatrix` against llama.cpp: the same tokens through both, and llama-quantize with our file.
#
#   LLAMA_CPP=FOLDER interop/imatrix.sh [FOLDER]      keeps the outputs in FOLDER (default: a temporary one)
#
# LLAMA_CPP is a source tree of llama.cpp (tried with the one in the sdist of llama-cpp-python 0.3.36) in whose build/bin are
# llama-imatrix and llama-quantize. PYTHON has interop/requirements.txt; it finds `gguf` in that tree.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${LLAMA_CPP:?name the folder of llama.cpp}"
source interop/common.sh
work_in "${1:-}"
build
tokens=${TOKENS:-512}

for model in tiny-scout tiny-maverick; do
    echo "== $model"
    "$PYTHON" interop/imatrix.py model "testdata/$model" "$work/$model"
    "$PYTHON" interop/imatrix.py convert "$LLAMA_CPP" "$work/$model" "$work/$model.gguf" >"$work/$model.log" 2>&1 ||
        { tail -n 20 "$work/$model.log"; exit 1; }
    # All tokens of llama.cpp's chunks: whole ones of the text, each with the beginning of a text in place of its first token.
    "$PYTHON" interop/imatrix.py tokens "$work/$model" testdata/text/eval.txt "$tokens" "$work/$model.jsonl"
    "$L4TOOL" -q calibrate "$work/$model" --data "$work/$model.jsonl" --seq-len "$tokens" --samples 1000 --force \
        --imatrix "$work/$model.ours.imatrix.gguf" >/dev/null
    "$LLAMA_CPP/build/bin/llama-imatrix" -m "$work/$model.gguf" -f testdata/text/eval.txt -c "$tokens" -b "$tokens" -ub "$tokens" -t 2 \
        --no-ppl -ctk f32 -ctv f32 -fa off -o "$work/$model.theirs.imatrix.gguf" >"$work/$model.log" 2>&1 ||
        { tail -n 20 "$work/$model.log"; exit 1; }
    "$PYTHON" interop/imatrix.py compare "$LLAMA_CPP" "$work/$model.ours.imatrix.gguf" "$work/$model.theirs.imatrix.gguf"
    for imatrix in ours theirs; do
        "$LLAMA_CPP/build/bin/llama-quantize" --imatrix "$work/$model.$imatrix.imatrix.gguf" "$work/$model.gguf" \
            "$work/$model.$imatrix.q.gguf" Q4_0 2 >"$work/$model.$imatrix.quantize.log" 2>&1 ||
            { tail -n 20 "$work/$model.$imatrix.quantize.log"; exit 1; }
    done
    grep -h "have importance matrix data\|loaded.*importance" "$work/$model.ours.quantize.log" || true
    # Their own file has none for the embeddings and the head either.
    if grep -h "did not find weights" "$work/$model.ours.quantize.log" | grep -v "token_embd\|output.weight"; then exit 1; fi
    echo "llama-quantize accepts our file for $model"
done
echo "all checks passed"
