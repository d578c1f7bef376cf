#!/usr/bin/env python3
"""Checks the input scales of an fp8-static checkpoint, and the tokens that its experts saw, against transformers.

    check_input_scales.py OUT --tokens FILE.jsonl

FILE is what OUT was calibrated with: an object with `input_ids` on each line. transformers runs OUT in float32 over it, so every layer sees what
the quantized layers before it give, as it did while l4tool calibrated. For every matrix that was judged by its own inputs (`policy` `rtn` in the manifest)
the largest input over 448, rounded to BF16, must be the stored scale (to one BF16 step, because float32 sums differ in their last bits), and the number of
tokens must agree exactly. Exit code: 0 all is well, 1 something is not.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from check_output import Checkpoint, load, logical
from compressed_tensors.quantization import disable_quantization


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--tokens", required=True)
    arguments = parser.parse_args()
    model, _ = load(arguments.out, dequantize=True)
    model = model.float()
    model.apply(disable_quantization)
    largest, tokens = {}, {}

    def note(name, rows):
        if rows.numel():
            largest[name] = max(largest.get(name, 0.0), rows.abs().max().item())
        tokens[name] = tokens.get(name, 0) + rows.shape[0]

    def watch(name):
        return lambda module, inputs: note(name, inputs[0].reshape(-1, inputs[0].shape[-1]))

    def watch_experts(name):
        def hook(module, inputs):
            x = inputs[0].view(module.num_experts, -1, inputs[0].shape[-1])
            for expert in range(module.num_experts):
                rows = x[expert][x[expert].abs().sum(-1) > 0]  # The others were not sent here: their score is zero.
                gate, up = (rows @ module.gate_up_proj[expert]).chunk(2, dim=-1)
                note(f"{name}.{expert}.gate_proj", rows)
                note(f"{name}.{expert}.up_proj", rows)
                note(f"{name}.{expert}.down_proj", up * torch.nn.functional.silu(gate))

        return hook

    for name, module in model.named_modules():
        if type(module).__name__ == "Llama4TextExperts":
            module.register_forward_pre_hook(watch_experts(logical_path(name)))
        elif isinstance(module, torch.nn.Linear) and "feed_forward" in name:
            module.register_forward_pre_hook(watch(logical_path(name)))
    with torch.no_grad():
        for line in open(arguments.tokens):
            model(input_ids=torch.tensor([json.loads(line)["input_ids"]]))

    records = json.loads((Path(arguments.out) / "l4tool.manifest.json").read_text())["weights"]
    wrong = compared = 0
    with ExitStack() as stack:
        out = Checkpoint(arguments.out, stack)
        scales = {logical(name[: -len(".input_scale")]): name for name in out.names() if name.endswith(".input_scale")}
        for record in records:
            name = record["name"]
            stored = out[scales[name]].float().item()
            seen = tokens.get(name, 0)
            if record["tokens"] != seen:
                print(f"{name}: {record['tokens']} tokens, and {seen} in transformers")
                wrong += 1
            if record["policy"] == "rtn":
                expected = torch.tensor(largest[name] / 448).bfloat16().float().item()
                compared += 1
                if abs(stored - expected) > expected / 128:
                    print(f"{name}: an input scale of {stored}, and {expected} in transformers")
                    wrong += 1
    print(f"{len(records)} matrices, the scales of {compared} compared, {wrong} wrong")
    sys.exit(1 if wrong or not compared else 0)


def logical_path(name):
    """l4tool's name of a module, whatever the model class puts before it."""
    return name[name.index("layers.") :]


if __name__ == "__main__":
    main()
