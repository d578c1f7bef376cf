#!/usr/bin/env python3
"""Writes ggml/blocks.safetensors: what llama.cpp makes of special rows, and what Python's `gguf` decodes.

    pip install gguf==0.19.0 && testdata/make_ggml.py LLAMA_CPP

LLAMA_CPP is a built tree of llama.cpp (ggml 0.25.3, gcc 12, x86-64 without -march=native, as releases are built); its
libggml-base.a is the one that llama-quantize is linked with. Tensors:

- `rows` F32 [R, 512], `importance` F32 [512]
- `TYPE` and `TYPE.importance` U8: what `ggml_quantize_chunk` writes for the rows, without and with the importance
- `TYPE.random` U8 and `TYPE.decoded` F32: blocks of random bits with finite scales, and their values by
  `gguf.quants.dequantize`; llama.cpp's `to_float` is checked to give the same bits
"""

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).resolve().parent / "ggml"
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
# Where the float16 scales of a block lie.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip
LENGTH = 512


def oracle(llama, folder):
    """Builds the program that calls llama.cpp."""
    program = folder / "oracle"
    library = llama / "build/ggml/src/libggml-base.a"
    include = f"-I{llama}/ggml/include"
    links = ["-lstdc++", "-lm", "-lpthread"]
    subprocess.run(["cc", "-O2", include, HERE / "oracle.c", library, *links, "-o", program], check=True)
    return lambda data, *args: subprocess.run([program, *map(str, args)], input=data, stdout=-1, check=True).stdout


def special_rows(random):
    """One row for each kind of trouble."""
    normal = lambda: random.standard_normal(LENGTH).astype(np.float32)  # noqa: E731
    zero = np.zeros(LENGTH, np.float32)
    one = zero.copy()
    one[300] = -0.7
    holes = normal()
    holes[:32], holes[100:140], holes[256:400] = 0, 0, 0
    outliers = normal() * np.float32(0.02)
    outliers[[5, 77, 130, 290, 400, 511]] *= 50
    spike = normal() * np.float32(1e-6)
    spike[40] = 900
    negative_zero = normal() * np.float32(0.1)
    negative_zero[::3] = -0.0
    narrow = (normal() * np.float32(0.02)).view(np.uint32) & np.uint32(0xFFFF0000)
    below = 2.0 ** random.integers(-30, 60, LENGTH // 32).repeat(32) * (1 - 2.0**-24 * random.integers(0, 4, LENGTH))
    scales = 10.0 ** random.uniform(-12, 8, LENGTH // 32).repeat(32)
    return np.stack([
        normal(), narrow.view(np.float32), zero, one, np.full(LENGTH, 0.3, np.float32), np.full(LENGTH, -5, np.float32),
        -np.abs(normal()), np.abs(normal()) + np.float32(0.5), normal() * np.float32(1e-40), normal() * np.float32(1e-20),
        normal() * np.float32(1e-43), normal() * np.float32(1e30), normal() * np.float32(5e37), normal() * np.float32(1e-15),
        random.integers(-8, 9, LENGTH) / 8, random.integers(-127, 128, LENGTH) / 2, holes, outliers, spike,
        np.where(np.arange(LENGTH) % 2, 1, -1) * 0.25, random.laplace(size=LENGTH), negative_zero, below, normal() * scales,
        random.integers(0, 2, LENGTH), normal() + 100, random.standard_t(2, LENGTH) * 0.01, normal() * np.float32(3000),
    ]).astype(np.float32)  # fmt: skip


def random_blocks(random, name):
    """A few blocks of random bits, with scales that are finite."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    blocks = random.integers(0, 256, (8, size), dtype=np.uint8)
    for at in SCALES[name]:
        scale = np.array([0, -0.0, 6e-8, 3e-6, 1, -0.37, 65504, random.standard_normal()], np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(8, 2)
    if name == "MXFP4":
        blocks[:4, 0] = [0, 1, 2, 254]
    return blocks


def write(path, tensors):
    """A safetensors file."""
    header, data = {}, b""
    for name, array in tensors.items():
        kind = {"float32": "F32", "uint8": "U8"}[array.dtype.name]
        piece = array.tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    random = np.random.default_rng(20)
    rows = special_rows(random)
    importance = np.exp(random.standard_normal(LENGTH) * 2).astype(np.float32)
    importance[64:96], importance[110:120], importance[500] = 0, 0, 0
    tensors = {"rows": rows, "importance": importance}
    with tempfile.TemporaryDirectory() as folder:
        ask = oracle(Path(sys.argv[1]), Path(folder))
        for name in TYPES:
            number = gguf.GGMLQuantizationType[name].value
            for key, data, weighted in [("", rows, 0), (".importance", np.vstack([importance, rows]), 1)]:
                out = ask(data.tobytes(), "encode", number, LENGTH, weighted)
                tensors[name + key] = np.frombuffer(out, np.uint8).reshape(len(rows), -1)
            blocks = random_blocks(random, name)
            values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
            assert ask(blocks.tobytes(), "decode", number) == values.tobytes(), name
            for key in ["", ".importance"]:
                back = gguf.quants.dequantize(tensors[name + key], gguf.GGMLQuantizationType[name])
                theirs = np.frombuffer(ask(tensors[name + key].tobytes(), "decode", number), np.float32)
                assert np.array_equal(back.ravel(), theirs, equal_nan=True), name
            tensors |= {f"{name}.random": blocks, f"{name}.decoded": values}
    write(HERE / "blocks.safetensors", tensors)


main()
