"""Converts checkpoints in Meta's format, of several shapes and numbers of ranks, and holds the result against the model that
they were written from: every tensor, the config, the tokenizer, and what transformers computes.

    python interop/check_convert.py target/release/l4tool

Writes the sources with `testdata/make_meta.py`, which needs torch, transformers and tiktoken.
"""

import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "testdata"))
import make_meta  # noqa: E402

TEXT = (ROOT / "testdata/text/eval.txt").read_text()


def shapes():
    """Name, parameters, number of ranks, whether experts are in FP8."""
    tiny, plain = make_meta.TINY, make_meta.FP8
    for ranks in (1, 2, 4, 8):
        yield f"multimodal, {ranks} ranks", tiny, ranks, False
    for ranks in (1, 2, 4):
        yield f"text only, {ranks} ranks", plain, ranks, False
        yield f"FP8, {ranks} ranks", plain, ranks, True
    yield "more ranks than key heads", tiny | dict(n_heads=16, n_kv_heads=4), 8, False
    moe = copy.deepcopy(tiny["moe_args"]) | dict(num_experts=16, interleave_moe_layer_step=3, capacity_factor=2.0)
    yield "16 experts in every third layer", tiny | dict(n_layers=7, moe_args=moe, attention_chunk_size=32), 8, False
    yield "other sizes", plain | dict(dim=96, n_heads=6, n_kv_heads=2, multiple_of=48, ffn_exp=3.0, nope_layer_interval=2), 2, True


def tensors_of(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}
    return found


def differences(ours, theirs, prefix=""):
    """Fields of our config that say something else than those of the model's own."""
    skipped = {"_name_or_path", "architectures", "dtype", "for_llm_compressor", "transformers_version"}
    for field in sorted(set(map(str, ours)) | set(map(str, theirs))):
        a, b = ours.get(field), theirs.get(field)
        if field in skipped or a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{field}.")
        elif str(a) != str(b):
            yield f"{prefix}{field}: {a} instead of {b}"


def check(tool, params, ranks, fp8):
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch, "source"), Path(scratch, "out")
        state, config = make_meta.write(source, params, ranks, 11, fp8)
        command = [tool, "convert", source, "-o", out, "--to", "hf", "--quiet", "--shard-size", "300K"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = tensors_of(out)
        assert found.keys() == state.keys(), found.keys() ^ state.keys()
        wrong = [name for name, tensor in state.items() if not torch.equal(tensor.view(torch.int16), found[name].view(torch.int16))]
        assert not wrong, wrong
        told = list(differences(AutoConfig.from_pretrained(out).to_dict(), config.to_dict()))
        assert not told, told
        wanted = make_meta.reference_tokenizer(source / "tokenizer.model")
        begin = params["vocab_size"] - make_meta.SPECIALS
        for text in (TEXT, "<|image|><|eot|>a\n\n  \tb\u00e9\u4e2d", "", "123456 don't WON'T <|vision_reserved_special_token_1047|>"):
            assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == [begin] + wanted.encode(text).ids, text
        multimodal = params.get("vision_args") is not None
        auto = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
        model, info = auto.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        reference = type(model)(config).float()
        reference.load_state_dict(state)
        ids = torch.arange(3, 40)[None]
        with torch.no_grad():
            assert torch.equal(model.eval()(input_ids=ids).logits, reference.eval()(input_ids=ids).logits)


if __name__ == "__main__":
    for name, params, ranks, fp8 in shapes():
        check(sys.argv[1], params, ranks, fp8)
        print(f"ok  {name}")
