#!/usr/bin/env bash
# Quantizes the models in testdata with every scheme and lets compressed-tensors and transformers judge each result.
#
#   interop/run.sh [FOLDER]      keeps the outputs in FOLDER (default: a temporary one)
#
# PYTHON is the interpreter that has interop/requirements.txt (default: interop/.venv/bin/python, then python3).
set -euo pipefail
cd "$(dirname "$0")/.."

source interop/common.sh
work_in "${1:-}"

cargo build --release --quiet --workspace
cargo build --release --quiet --workspace --example dump_weights
target=${CARGO_TARGET_DIR:-target}/release
failed=()

check() { # NAME SOURCE OPTION...
    local name=$1 source=$2
    shift 2
    local out=$work/$name against=(--source "$source")
    # AWQ moves factors from one matrix to another: what the model computes is what counts.
    [[ " $* " == *" awq "* ]] && against=()
    echo "== $name: l4tool quantize $source $*"
    rm -rf "$out" "$out".weights.safetensors "$out".logits.safetensors
    if ! { "$target/l4tool" -q quantize "$source" -o "$out" "$@" &&
        "$target/examples/dump_weights" "$out" "$out.weights.safetensors" &&
        "$target/l4tool" -q verify "$out" --text testdata/text/eval.txt --tokens 200 --logits "$out.logits.safetensors" >/dev/null &&
        "$PYTHON" interop/check_output.py "$out" "${against[@]}" \
            --weights "$out.weights.safetensors" --logits "$out.logits.safetensors" 2>"$out.log"; }; then
        failed+=("$name")
        [[ -f $out.log ]] && tail -n 20 "$out.log"
    fi
}

scout=testdata/tiny-scout
check scout-int4 $scout --int4
check scout-int4-rtn $scout --int4 --method rtn
check scout-int4-g32 $scout --int4 --group-size 32
check scout-int4-g64 $scout --int4 --group-size 64
check scout-w4a16-asym $scout --scheme w4a16-asym
check scout-w4a16-asym-g32 $scout --scheme w4a16-asym --group-size 32
check scout-fp8 $scout --fp8
check scout-fp8-block $scout --scheme fp8-block
check scout-fp8-static $scout --scheme fp8-static --calibrate --samples 16 --seq-len 256
check scout-gptq $scout --int4 --calibrate --samples 16 --seq-len 256
check scout-awq $scout --int4 --method awq --calibrate --samples 16 --seq-len 256

# Its narrowest matrix has 32 columns.
maverick=testdata/tiny-maverick
check maverick-int4-g32 $maverick --int4 --group-size 32
check maverick-int4-g32-rtn $maverick --int4 --group-size 32 --method rtn
check maverick-w4a16-asym-g32 $maverick --scheme w4a16-asym --group-size 32
check maverick-fp8 $maverick --fp8
check maverick-fp8-static $maverick --scheme fp8-static --calibrate --samples 4 --seq-len 128
check maverick-gptq-asym-g32 $maverick --scheme w4a16-asym --group-size 32 --calibrate --samples 4 --seq-len 128
check maverick-fp8-block $maverick --scheme fp8-block

# The same weights in other files: transformers loads them all, and computes the same.
repacked() { # NAME LAYOUT...
    local name=$1
    shift
    for layout in "$@"; do
        local out=$work/$name-$layout
        echo "== $name-$layout: l4tool repack"
        rm -rf "$out"
        if ! { "$target/l4tool" -q repack "$work/$name" -o "$out" --layout "$layout" >/dev/null &&
            "$PYTHON" interop/check_output.py "$out" \
                --weights "$work/$name.weights.safetensors" --logits "$work/$name.logits.safetensors" 2>"$out.log"; }; then
            failed+=("$name-$layout")
            [[ -f $out.log ]] && tail -n 20 "$out.log"
        fi
    done
}
for name in scout-int4 scout-w4a16-asym scout-fp8 maverick-int4-g32 maverick-fp8; do
    repacked $name scout-1xh100 maverick-8xh100 hf
done

if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "all checks passed"
