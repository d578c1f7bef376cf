#!/usr/bin/env python3
"""Compares the blocks that l4 writes with llama.cpp's, byte for byte, on many random rows of every kind.

    cargo build --release --example ggml_blocks
    interop/ggml_blocks.py LLAMA_CPP target/release/examples/ggml_blocks [ROUNDS [TYPE...]]

LLAMA_CPP is a built tree of llama.cpp (see testdata/make_ggml.py). Needs numpy.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "IQ4_NL": 20, "IQ4_XS": 23, "MXFP4": 39,
}  # fmt: skip
SIZES = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110),
    "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "MXFP4": (32, 17),
}  # fmt: skip


def rows_of(random, count, length):
    """Rows of random kinds and scales."""
    kinds = [
        lambda n: random.standard_normal(n),
        lambda n: random.laplace(size=n),
        lambda n: random.standard_t(3, n),
        lambda n: random.integers(-8, 8, n) * 0.125,
        lambda n: random.integers(-128, 128, n) * 1.0,
        lambda n: np.abs(random.standard_normal(n)),
        lambda n: -np.abs(random.standard_normal(n)) - random.random(),
        lambda n: random.standard_normal(n) * (random.random(n) < 0.1),
        lambda n: (random.standard_normal(n).astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
        lambda n: np.full(n, random.standard_normal()),
        lambda n: 2.0 ** random.integers(-20, 20, n),
        lambda n: random.standard_normal(n) * 10.0 ** random.uniform(-12, 8, n // 32).repeat(32),
        lambda n: 1 - random.integers(0, 60, n) * 2.0**-24,
    ]
    rows = np.empty((count, length), np.float32)
    for row in rows:
        scale = 10.0 ** random.choice([random.uniform(-3, 0), random.uniform(-3, 0), random.uniform(-45, 37)])
        with np.errstate(over="ignore"):
            row[:] = np.clip(kinds[random.integers(len(kinds))](length) * scale, -3e38, 3e38)
    return rows


def importance_of(random, length):
    """Importance as calibration gives it, some of it zero."""
    values = np.exp(random.standard_normal(length) * random.uniform(0, 4)) * 10.0 ** random.uniform(-9, 5)
    values[random.random(length) < random.choice([0, 0.01, 0.5])] = 0
    return values.astype(np.float32)


def main():
    llama, ours = Path(sys.argv[1]), sys.argv[2]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 10
    names = sys.argv[4:] or list(TYPES)
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        theirs = Path(folder) / "oracle"
        source = Path(__file__).resolve().parent.parent / "testdata/ggml/oracle.c"
        library = llama / "build/ggml/src/libggml-base.a"
        links = ["-lstdc++", "-lm", "-lpthread"]
        subprocess.run(["cc", "-O2", f"-I{llama}/ggml/include", source, library, *links, "-o", theirs], check=True)

        def ask(program, data, *args):
            return subprocess.run([program, *map(str, args)], input=data, stdout=-1, check=True).stdout

        for seed in range(rounds):
            random = np.random.default_rng(seed)
            length = 256 * int(random.integers(1, 24))
            rows = rows_of(random, int(random.integers(1, 60)), length)
            importance = importance_of(random, length)
            for name in names:
                number = TYPES[name]
                for weighted, data in [(0, rows), (1, np.vstack([importance, rows]))]:
                    data = data.tobytes()
                    a = np.frombuffer(ask(theirs, data, "encode", number, length, weighted), np.uint8)
                    b = np.frombuffer(ask(ours, data, "encode", number, length, weighted), np.uint8)
                    if not np.array_equal(a, b):
                        bad = np.unique(np.flatnonzero(a != b) // SIZES[name][1])
                        where = bad[0] * SIZES[name][0] // length
                        print(f"{name} seed {seed} weighted {weighted}: {len(bad)} blocks differ, first {bad[0]}, in row {where}")
                        different += 1
                    a = np.frombuffer(ask(theirs, b.tobytes(), "decode", number), np.uint32)
                    b = np.frombuffer(ask(ours, b.tobytes(), "decode", number), np.uint32)
                    nan = (a & 0x7FFFFFFF) > 0x7F800000
                    if not np.array_equal(a[~nan], b[~nan]) or not np.isnan(b[nan].view(np.float32)).all():
                        print(f"{name} seed {seed}: decoded values differ")
                        different += 1
        print(f"{rounds} rounds, {different} differences")
    sys.exit(different > 0)


main()
