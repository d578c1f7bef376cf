#!/usr/bin/env python3
"""Measures what the methods cost on text: the tables of docs/accuracy.md.

    accuracy.py [--samples 16,96] [--llmcompressor PYTHON] [--l4tool PATH]

Calibrates testdata/tiny-scout on testdata/text/nine/calib (sequences of 256 tokens, drawn in turn from the nine files) and compares with the
unquantized model on the first 1,536 tokens of each file in testdata/text/nine/eval: mean of the files' KL divergences and shares of equal next
tokens, geometric mean of their perplexities' ratios. Needs Python's `tokenizers`; with --llmcompressor, an interpreter that can run gptq_by_llmcompressor.py.
"""

import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "testdata/tiny-scout"
TEXT = ROOT / "testdata/text/nine"
LENGTH = 256
EVALUATED = 1536


def draw(samples, path):
    """Writes sequences of tokens, one of each file in turn."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    files = []
    for file in sorted((TEXT / "calib").iterdir()):
        ids = tokenizer.encode(file.read_text()).ids
        files.append([ids[at : at + LENGTH] for at in range(0, len(ids) - LENGTH + 1, LENGTH)])
    turns = [file[turn] for turn in range(max(map(len, files))) for file in files if turn < len(file)]
    path.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in turns[:samples]))


def measure(l4tool, out):
    """KL divergence, share of equal next tokens, relative change of perplexity."""
    files = sorted((TEXT / "eval").iterdir())
    sums = [0.0, 0.0, 0.0]
    for file in files:
        command = [l4tool, "-q", "verify", out, "--against", MODEL, "--text", file, "--tokens", str(EVALUATED), "--json"]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        perplexity = report["perplexity"]
        ratio = math.log(perplexity["candidate"] / perplexity["reference"])
        for index, value in enumerate((report["logits"]["kl_mean"], report["logits"]["top1_agreement"], ratio)):
            sums[index] += value / len(files)
    return sums[0], sums[1], math.expm1(sums[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default="16,96")
    parser.add_argument("--llmcompressor")
    parser.add_argument("--l4tool", default=str(ROOT / "target/release/l4tool"))
    arguments = parser.parse_args()
    print("| method | tokens | KL divergence | same next token | perplexity |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        runs = [("rtn", 0, "--int4 --method rtn"), ("search", 0, "--int4 --method search"), ("FP8, rtn", 0, "--fp8")]
        for samples in map(int, arguments.samples.split(",")):
            runs += [(method, samples, f"--int4 --method {method}") for method in ("search", "awq", "gptq")]
            runs.append(("gptq, by stored Hessians", samples, "--int4 --method gptq"))
            runs.append(("FP8, search", samples, "--fp8 --method search"))
            if arguments.llmcompressor:
                runs.append(("llm-compressor's GPTQ", samples, None))
        for index, (name, samples, flags) in enumerate(runs):
            out, tokens = work / str(index), work / f"{samples}.jsonl"
            if samples:
                draw(samples, tokens)
            if flags is None:
                script = [arguments.llmcompressor, ROOT / "interop/gptq_by_llmcompressor.py", MODEL, out, "--tokens", tokens]
                subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
            else:
                command = [arguments.l4tool, "-q", "quantize", MODEL, "-o", out, *flags.split()]
                data = ["--data", tokens, "--samples", str(samples), "--seq-len", str(LENGTH)]
                if "stored" in name:
                    stats = work / f"{index}.stats"
                    calibrate = [arguments.l4tool, "-q", "calibrate", MODEL, "-o", stats, "--hessians", *data]
                    subprocess.run(calibrate, check=True, stdout=subprocess.DEVNULL)
                    command += ["--stats", stats]
                elif samples:
                    command += data
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            kl, top1, perplexity = measure(arguments.l4tool, out)
            row = (name, f"{samples * LENGTH:,}" if samples else "none", f"{kl:.5f}", f"{top1:.2%}", f"{perplexity:+.2%}")
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
