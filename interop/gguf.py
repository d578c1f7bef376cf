#!/usr/bin/env python3
"""Steps of gguf.sh, and of testdata/make_gguf_goldens.sh.

    gguf.py convert LLAMA_CPP CHECKPOINT OUT.gguf TYPE       by llama.cpp's own converter
    gguf.py mmproj LLAMA_CPP CHECKPOINT OUT.gguf TYPE        the same for the vision part, with the names that the reader wants
    gguf.py imatrix LLAMA_CPP MODEL.gguf OUT.gguf            an importance matrix by a formula, some experts without data
    gguf.py compare LLAMA_CPP OURS THEIRS                    every tensor's name, type, extents and bytes; the keys
    gguf.py digests LLAMA_CPP FILE NAME...                   what the goldens of `cli/tests/gguf.rs` hold of files
    gguf.py keys LLAMA_CPP FILE                              the same for keys; long arrays by the beginning of their SHA-256
    gguf.py perplexity LOGITS.safetensors THEIRS.log         over the tokens that llama-perplexity counts, within 0.5 %
    gguf.py vision CHECKPOINT THEIRS.log                     what transformers makes of a picture, and what llama-mtmd-debug printed
    gguf.py tokens CHECKPOINT TEXT THEIRS.txt                tokens of a text, and those that llama-tokenize printed
"""

import ast
import hashlib
import math
import re
import runpy
import sys
from pathlib import Path


def package(llama):
    sys.path.insert(0, f"{llama}/gguf-py")
    import gguf

    return gguf


def convert(llama, checkpoint, out, kind, *options):
    sys.path[:0] = [llama, f"{llama}/gguf-py"]
    from conversion.base import TextModel

    # The converter knows pre-tokenizers by a digest of what they make of a sample text, which a vocabulary of our own
    # fails. Its splitting pattern is Llama 4's.
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama4"
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", out, "--outtype", kind, *options]
    runpy.run_path(f"{llama}/convert_hf_to_gguf.py", run_name="__main__")


def mmproj(llama, checkpoint, out, kind):
    """The converter's table has an entry for Gemma 4 that wins over Llama 4's; only the name of one norm is put right here."""
    gguf = package(llama)
    table = gguf.TensorNameMap.block_mappings_cfg
    wrong = gguf.MODEL_TENSOR.V_ENC_ATTN_POST_NORM
    table[wrong] = tuple(name for name in table[wrong] if not name.startswith("vision_model.model.layers."))
    convert(llama, checkpoint, out, kind, "--mmproj")


def imatrix(llama, model, out):
    """The same formula is in `cli/tests/gguf.rs`. Every fourth expert has seen nothing."""
    gguf = package(llama)
    import numpy as np

    writer = gguf.GGUFWriter(out, "")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["formula"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor in gguf.GGUFReader(model).tensors:
        shape = [int(n) for n in tensor.shape]
        if not tensor.name.startswith("blk.") or len(shape) < 2:
            continue
        inputs, matrices = shape[0], shape[2] if len(shape) > 2 else 1
        counts = [0 if m % 4 == 3 else m + 1 for m in range(matrices)]
        i, m = np.arange(inputs), np.arange(matrices)[:, None]
        sums = ((i * 31 + m * 17 + len(tensor.name) * 7) % 97 + 1) * np.array(counts)[:, None]
        writer.add_tensor(f"{tensor.name}.counts", np.array(counts, dtype=np.float32).reshape(matrices, 1))
        writer.add_tensor(f"{tensor.name}.in_sum2", sums.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(llama, ours, theirs):
    gguf = package(llama)
    ours, theirs = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    names = [[tensor.name for tensor in file.tensors] for file in (ours, theirs)]
    # The converter's own order is that of its source; llama-quantize sorts, and so do we.
    is_sorted = theirs.fields["general.architecture"].contents() != "clip"
    if (names[0] != names[1]) if is_sorted else (names[0] != sorted(names[1])):
        sys.exit(f"FAILED: other tensors, or another order: {sorted(set(names[0]) ^ set(names[1]))}")
    by_name = {tensor.name: tensor for tensor in theirs.tensors}
    for a in ours.tensors:
        b = by_name[a.name]
        if (a.tensor_type, list(a.shape)) != (b.tensor_type, list(b.shape)):
            sys.exit(f"FAILED: {a.name} is {a.tensor_type.name} {list(a.shape)}, theirs {b.tensor_type.name} {list(b.shape)}")
        if a.data.tobytes() != b.data.tobytes():
            different = (a.data.view("u1") != b.data.view("u1")).sum()
            sys.exit(f"FAILED: {a.name}, {a.tensor_type.name}: {different} of {a.data.nbytes} bytes differ")
    # The converter names a model after its folder, and llama-quantize says where an importance matrix lay.
    free = {"general.name", "general.license", "general.license.name"}
    for key in {**ours.fields, **theirs.fields}:
        if key in free or key.startswith(("quantize.imatrix.", "GGUF.")):
            continue
        a, b = ours.fields.get(key), theirs.fields.get(key)
        if a is None or b is None or a.types != b.types or a.contents() != b.contents():
            sys.exit(f"FAILED: the key {key} is {a and a.contents()}, theirs {b and b.contents()}")
    print(f"equal: {len(names[0])} tensors, {sum(int(t.data.nbytes) for t in ours.tensors)} bytes, and the keys")


def digests(llama, *files):
    """A line for each tensor, a cell for each file: its type and the beginning of its SHA-256."""
    gguf = package(llama)
    paths = [file.split("=", 1) for file in files]
    print("tensor", *(name for name, _ in paths), sep="\t")
    cells = {}
    for _, path in paths:
        for tensor in gguf.GGUFReader(path).tensors:
            digest = hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16]
            cells.setdefault(tensor.name, []).append(f"{tensor.tensor_type.name}:{digest}")
    for name, row in cells.items():
        print(name, *row, sep="\t")


def keys(llama, file):
    gguf = package(llama)
    for name, field in gguf.GGUFReader(file).fields.items():
        if name.startswith("GGUF.") or name == "general.name":
            continue
        value, kind = field.contents(), field.types[-1].name
        if isinstance(value, list):
            digest = hashlib.sha256("\n".join(str(entry) for entry in value).encode()).hexdigest()[:16]
            kind, value = f"[{kind}]", f"{len(value)}:{digest}"
        elif kind == "FLOAT32":
            value = f"{value:.6g}"
        print(name, kind, value, sep="\t")


def perplexity(logits, log):
    import torch
    from safetensors.torch import load_file

    data = load_file(logits)
    scores, ids = data["logits"].double(), data["input_ids"].long().ravel()
    # `perplexity.cpp` counts the second half of a chunk.
    first, last = len(ids) // 2, len(ids) - 1
    log_probs = torch.log_softmax(scores, -1)[torch.arange(first, last), ids[first + 1 :]]
    ours = (-log_probs.mean()).exp().item()
    theirs = float(re.search(r"Final estimate: PPL = ([0-9.]+)", Path(log).read_text()).group(1))
    print(f"perplexity {ours:.4f}, llama.cpp's {theirs:.4f}: {100 * abs(ours - theirs) / ours:.3f} % apart")
    if abs(ours - theirs) > 0.005 * ours:
        sys.exit("FAILED: more than 0.5 %")


def rainbow(side):
    """The picture that `llama-mtmd-debug --image rainbow` draws: hue by angle, saturation by distance from the middle."""
    import colorsys

    import torch

    picture, middle = torch.zeros(1, 3, side, side), side / 2
    for y in range(side):
        for x in range(side):
            hue = math.atan2(y - middle, x - middle) / (2 * math.pi) % 1.0
            saturation = min(math.hypot(x - middle, y - middle) / math.hypot(middle, middle), 1.0)
            picture[0, :, y, x] = torch.tensor(colorsys.hsv_to_rgb(hue, saturation, 1.0))
    return picture


def vision(checkpoint, log):
    import torch
    from transformers import Llama4ForConditionalGeneration

    model = Llama4ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    picture = rainbow(model.config.vision_config.image_size)
    with torch.no_grad():
        states = model.vision_model(picture).last_hidden_state
        ours = model.multi_modal_projector(states.reshape(-1, states.shape[-1]))
    # llama.cpp's graph leaves the last transposition of the pixel shuffle out, so that the patches come column by column.
    side = math.isqrt(len(ours))
    ours = ours.reshape(side, side, -1).transpose(0, 1).reshape(len(ours), -1)
    # Of each row, llama.cpp prints the first and the last three numbers, to four digits.
    printed = Path(log).read_text().split(" projected = ")[1]
    rows = re.findall(r"\[ *(-?\d[^\[\]]*)\]", printed)
    theirs = torch.tensor([[float(n) for n in row.replace("...,", "").split(",")] for row in rows])
    ours = torch.cat([ours[:, :3], ours[:, -3:]], 1)
    if ours.shape != theirs.shape:
        sys.exit(f"FAILED: {tuple(ours.shape)} numbers, and llama.cpp has {tuple(theirs.shape)}")
    apart = ((ours - theirs).norm() / ours.norm()).item()
    print(f"{theirs.numel()} numbers of the projector's output, {100 * apart:.2f} % apart")
    # Four digits are printed of numbers around 0.005, and llama.cpp attends in float16.
    if apart > 0.02:
        sys.exit("FAILED: more than 2 %")


def tokens(checkpoint, text, printed):
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(f"{checkpoint}/tokenizer.json").encode(Path(text).read_text()).ids
    theirs = ast.literal_eval(Path(printed).read_text().strip().splitlines()[-1])
    if ours != theirs:
        sys.exit(f"FAILED: {len(ours)} tokens, and llama.cpp has {len(theirs)} others")
    print(f"equal: {len(ours)} tokens")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {f.__name__: f for f in (convert, mmproj, imatrix, compare, digests, keys, perplexity, vision, tokens)}[command](*arguments)
