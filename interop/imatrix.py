#!/usr/bin/env python3
"""Steps of imatrix.sh.

    imatrix.py convert LLAMA_CPP CHECKPOINT OUT.gguf      by llama.cpp's own converter, in float32
    imatrix.py model CHECKPOINT OUT                       a copy with the settings that llama.cpp takes for granted
    imatrix.py tokens CHECKPOINT TEXT COUNT OUT.jsonl     the tokens of llama-imatrix's chunks, for l4tool
    imatrix.py compare LLAMA_CPP OURS THEIRS              counts equal, sums within 1 %
"""

import json
import runpy
import shutil
import sys
from pathlib import Path


def convert(llama, checkpoint, out):
    sys.path[:0] = [llama, f"{llama}/gguf-py"]
    from conversion.base import TextModel

    # The converter knows pre-tokenizers by a digest of what they make of a sample text, which a vocabulary of our own
    # fails. Its splitting pattern is Llama 4's.
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama4"
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", out, "--outtype", "f32"]
    runpy.run_path(f"{llama}/convert_hf_to_gguf.py", run_name="__main__")


def model(checkpoint, out):
    """llama.cpp reads none of these from a file (`src/models/llama4.cpp`); the small models have other values."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(checkpoint, out)
    path = Path(out) / "config.json"
    config = json.loads(path.read_text())
    config.get("text_config", config).update(attention_chunk_size=8192, floor_scale=8192, attn_scale=0.1)
    path.write_text(json.dumps(config, indent=2))


def tokens(checkpoint, text, count, out):
    from tokenizers import Tokenizer

    count = int(count)
    ids = Tokenizer.from_file(f"{checkpoint}/tokenizer.json").encode(Path(text).read_text()).ids
    chunks = [ids[i : i + count] for i in range(0, len(ids) - count + 1, count)]
    with open(out, "w") as file:
        for chunk in chunks:
            # `compute_imatrix` puts the beginning of a text in place of each chunk's first token.
            print(json.dumps({"input_ids": [ids[0], *chunk[1:]]}), file=file)
    print(f"{len(chunks)} chunks of {count} tokens")


def compare(llama, ours, theirs):
    sys.path.insert(0, f"{llama}/gguf-py")
    import gguf
    import numpy as np

    def read(path):
        return {t.name: np.array(t.data, dtype=np.float64) for t in gguf.GGUFReader(path).tensors}

    ours, theirs = read(ours), read(theirs)
    missing = sorted(set(theirs) - set(ours))
    more = sorted(set(ours) - set(theirs))
    if missing:
        sys.exit(f"ours lacks {missing}")
    flips, worst, total = 0.0, 0.0, 0.0
    for name in sorted(theirs):
        if not name.endswith(".counts"):
            continue
        a, b = ours[name].ravel(), theirs[name].ravel()
        flips, total = flips + np.abs(a - b).sum() / 2, total + b.sum()
        if not np.array_equal(a, b):
            print(f"{name}: ours {a.astype(int).tolist()}, theirs {b.astype(int).tolist()}")
    means = []
    for name in sorted(theirs):
        if not name.endswith(".in_sum2"):
            continue
        a, b = np.squeeze(ours[name]), np.squeeze(theirs[name])
        if a.shape != b.shape:
            sys.exit(f"{name}: shapes {a.shape} and {b.shape}")
        error = np.abs(a - b).sum() / b.sum()
        row = max((np.abs(x - y).sum() / y.sum() for x, y in zip(np.atleast_2d(a), np.atleast_2d(b)) if y.sum() > 0))
        means.append(error)
        worst = max(worst, row)
    print(f"{len(means)} weights; counts differ by {flips:.0f} of {total:.0f}")
    print(f"sums: difference over sum {np.mean(means):.2e} on average, {worst:.2e} in the worst matrix; only in ours: {more or 'none'}")
    if worst > 0.01 or flips:
        sys.exit("FAILED: counts must be equal and sums within 1 %")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"model": model, "convert": convert, "tokens": tokens, "compare": compare}[command](*arguments)
