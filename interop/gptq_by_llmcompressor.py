#!/usr/bin/env python3
"""Quantizes a model with llm-compressor's GPTQ, on the same tokens as l4tool, for the table in docs/accuracy.md.

    gptq_by_llmcompressor.py MODEL OUT --tokens FILE.jsonl

FILE has an object with `input_ids` on each line, as `accuracy.py` writes it and l4tool's `--data` reads it. Needs
llmcompressor beside what interop/requirements.txt lists (0.14 was used). Prints the CPU time that calibration took.
"""

import argparse
import json
import time

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForImageTextToText, AutoTokenizer

IGNORE = ["re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model.*", "re:.*multi_modal_projector.*"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--tokens", required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.bfloat16)
    rows = [json.loads(line)["input_ids"] for line in open(arguments.tokens)]
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    began = time.process_time()
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(arguments.model),
        dataset=data,
        recipe=GPTQModifier(targets="Linear", scheme="W4A16", ignore=IGNORE),
        # The sequential pipeline traces the multimodal model, which text alone does not run through.
        pipeline="basic",
        max_seq_length=max(map(len, rows)),
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    print(f"llm-compressor: {time.process_time() - began:.1f} s of CPU time")
    model.save_pretrained(arguments.out, save_compressed=True)
    AutoTokenizer.from_pretrained(arguments.model).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
