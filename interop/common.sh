# What the scripts here share; they source it from the root of the repository.

# PYTHON is the interpreter with interop/requirements.txt.
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ -x interop/.venv/bin/python ]] && PYTHON=interop/.venv/bin/python
fi

# Makes $work: the folder that was named, or a temporary one that goes with the script.
work_in() { # [FOLDER]
    if [[ -n ${1:-} ]]; then
        work=$1
        mkdir -p "$work"
    else
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
    fi
}

# Makes $L4TOOL, unless it is given.
build() {
    [[ -n ${L4TOOL:-} ]] && return
    cargo build --release --quiet --workspace
    L4TOOL=${CARGO_TARGET_DIR:-target}/release/l4tool
}
