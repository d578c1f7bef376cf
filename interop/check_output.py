#!/usr/bin/env python3
"""Checks a checkpoint that l4tool quantized with the programs that will load it.

    check_output.py OUT [--weights FILE] [--source SRC] [--logits FILE]

1. compressed-tensors decompresses every quantized module. With --weights the result must equal, bit for bit, what l4tool
   says the weights are: FILE has them as BF16 under their logical names (written by l4's example `dump_weights`). With
   --source it is compared with the unquantized checkpoint SRC too, and everything that is not quantized must equal it.
2. transformers loads OUT: no key missing, unexpected or of another shape.
3. With --logits: transformers' logits for the `input_ids` in FILE agree with the `logits` in it (written by
   `l4tool verify OUT --text TEXT --logits FILE`), in float32 with eager attention.

The goldens in testdata/ct-* can stand in for both files. Exit code: 0 all is well, 1 something is not.
"""

import argparse
import json
import os
import re
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("CT_ENFORCE_EAGER", "1")
warnings.filterwarnings("ignore", message="You passed `quantization_config`")

import torch  # noqa: E402
import transformers  # noqa: E402
from compressed_tensors.compressors import BaseCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationConfig, disable_quantization  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import CompressedTensorsConfig  # noqa: E402

# Suffixes of what compressed-tensors stores for a module.
STORED = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "input_scale")
# Largest relative RMS error against the source that a scheme can have unless rows, columns or halves were mixed up.
ERROR_LIMIT = {"pack-quantized": 0.25, "float-quantized": 0.06, "naive-quantized": 0.06}
LOGIT_LIMIT = 1e-2


class Checkpoint:
    """The tensors of a folder (or a file), read one at a time."""

    def __init__(self, path, stack):
        path = Path(path)
        index = path / "model.safetensors.index.json"
        if path.is_file():
            files = {path}
        elif index.exists():
            files = {path / name for name in json.loads(index.read_text())["weight_map"].values()}
        else:
            files = {path / "model.safetensors"}
        self.files = {}
        for file in sorted(files):
            handle = stack.enter_context(safe_open(file, "pt"))
            self.files.update((name, handle) for name in handle.keys())
        self.path = path

    def __contains__(self, name):
        return name in self.files

    def __getitem__(self, name):
        return self.files[name].get_tensor(name)

    def names(self):
        return sorted(self.files)

    def config(self):
        return json.loads((self.path / "config.json").read_text())


def logical(module):
    """l4tool's name of a weight: without the outer prefixes."""
    return re.sub(r"^(language_model\.)?(model\.)?(?=embed_tokens|layers\.|norm|lm_head)", "", module)


def same_bits(a, b):
    """Whether two tensors are the same down to the sign of zero."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def scheme_of(module, config):
    """The group of a quantization config that a module belongs to: regular expressions come before class names."""
    groups = list(config.config_groups.values())
    for group in groups:
        if any(t.startswith("re:") and re.match(t[3:], module) for t in group.targets):
            return group
    return next((group for group in groups if "Linear" in group.targets), None)


def source_weight(source, module):
    """The unquantized weight of a module, `[out, in]`; experts are cut from the fused tensors."""
    expert = re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj", module)
    if not expert or f"{module}.weight" in source:
        return source[f"{module}.weight"]
    experts, number, kind = expert[1], int(expert[2]), expert[3]
    if kind == "down":
        return source[f"{experts}.down_proj"][number].T
    gate, up = source[f"{experts}.gate_up_proj"][number].chunk(2, dim=-1)
    return (gate if kind == "gate" else up).T


def check_weights(out, claims, source):
    """Step 1. Returns whether all is well."""
    config = QuantizationConfig.model_validate(out.config()["quantization_config"])
    modules = sorted(name.removesuffix(".weight_scale") for name in out.names() if name.endswith(".weight_scale"))
    different, missing, far, worst = [], [], [], 0.0
    for module in modules:
        scheme = scheme_of(module, config)
        if scheme is None:
            different.append(f"{module} (no group of the config covers it)")
            continue
        kind = str(getattr(scheme.format or config.format, "value", scheme.format or config.format))
        stored = {suffix: out[f"{module}.{suffix}"] for suffix in STORED if f"{module}.{suffix}" in out}
        weight = BaseCompressor.get_value_from_registry(kind).decompress(stored, scheme)["weight"]
        if claims is not None:
            claim = claims.get(logical(module))
            if claim is None:
                missing.append(module)
            elif not same_bits(claims.tensor(logical(module)), weight):
                different.append(module)
        if source is not None:
            reference = source_weight(source, module).float()
            error = float((weight.float() - reference).norm() / reference.norm())
            worst = max(worst, error)
            if not error < ERROR_LIMIT[kind]:
                far.append(f"{module} ({error:.3f})")
    print(f"1. {len(modules)} quantized modules decompressed by compressed-tensors")
    ok = report("no module is quantized", [] if modules else [str(out.path)])
    if claims is not None:
        ok &= report("the claim has no such weight", missing)
        ok &= report("the claim differs", different)
        print(f"   {len(modules) - len(missing) - len(different)} of {len(modules)} equal l4tool's claim bit for bit")
        ok &= check_kept(out, claims, modules)
    if source is not None:
        print(f"   largest relative RMS error against the source {worst:.4f}")
        ok &= report("too far from the source", far)
        ok &= check_unquantized(out, source, modules)
    return ok


class Claims:
    """What l4tool says: BF16 weights by logical name."""

    def __init__(self, path, stack):
        handle = stack.enter_context(safe_open(path, "pt"))
        keys = [key for key in handle.keys() if not key.startswith("text.")]
        self.keys = {logical(key.removeprefix("weight.")): key for key in keys}
        self.handle = handle

    def get(self, name):
        return self.keys.get(name)

    def tensor(self, name):
        return self.handle.get_tensor(self.keys[name])


def check_kept(out, claims, modules):
    """What the claim says about weights that are stored as they are."""
    quantized = {logical(module) for module in modules}
    stored = {logical(name.removesuffix(".weight")): name for name in out.names()}
    kept = sorted(set(claims.keys) - quantized)
    different = [name for name in kept if name not in stored or not same_bits(claims.tensor(name), out[stored[name]])]
    print(f"   {len(kept) - len(different)} of {len(kept)} weights that are not quantized equal l4tool's claim")
    return report("the claim differs from what is stored", different)


def check_unquantized(out, source, modules):
    """Everything but the quantized modules is the source's, and nothing is lost."""
    quantized = set(modules)
    different, count = [], 0
    for name in out.names():
        if name.rpartition(".")[0] in quantized:
            continue
        count += 1
        reference = source[name] if name in source else source_weight(source, name.removesuffix(".weight"))
        if not same_bits(out[name], reference.contiguous()):
            different.append(name)
    lost = []
    for name in source.names():
        fused = re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj", name)
        if name in out or name.removesuffix(".weight") in quantized:
            continue
        if fused and all(
            f"{fused[1]}.{expert}.{part}_proj" in quantized or f"{fused[1]}.{expert}.{part}_proj.weight" in out
            for expert in range(source.files[name].get_slice(name).get_shape()[0])
            for part in fused[2].split("_")
        ):
            continue
        lost.append(name)
    print(f"   {count - len(different)} of {count} tensors that are not quantized equal the source's")
    return report("differs from the source", different) & report("is lost", lost)


def load(path, dequantize):
    """The model and what transformers says about the keys."""
    config = json.loads((Path(path) / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    extra = {}
    if dequantize and "quantization_config" in config:
        extra["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    model, info = model_class.from_pretrained(
        path,
        dtype=torch.bfloat16,
        attn_implementation="eager",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **extra,
    )
    return model.eval(), {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}


def check_loading(path):
    """Step 2. Returns whether all is well."""
    _, info = load(path, dequantize=False)
    print(f"2. transformers {transformers.__version__} loads it")
    if info["mismatched_keys"] and all("weight_zero_point" in key for key in info["mismatched_keys"]):
        # transformers 5.23 makes room for zero points that are not packed, and refuses everyone's asymmetric models.
        print("   (this version can't load packed zero points, except when it dequantizes while loading)")
        _, info = load(path, dequantize=True)
    ok = True
    for what, keys in info.items():
        print(f"   {what.replace('_', ' ')}: {len(keys)}")
        ok &= report(what.replace("_", " "), keys)
    return ok


@torch.no_grad()
def check_logits(path, file):
    """Step 3. Returns whether all is well."""
    with safe_open(file, "pt") as claim:
        prefix = "text." if "text.logits" in claim.keys() else ""
        input_ids, ours = claim.get_tensor(prefix + "input_ids"), claim.get_tensor(prefix + "logits")
    # Decompressed as BF16, because that is what compressed-tensors says the weights are; calculated in float32.
    # transformers forbids `.float()` on models that were quantized, torch does not.
    model, _ = load(path, dequantize=True)
    # Some versions quantize activations even after dequantizing the weights; that is not part of the question.
    model = torch.nn.Module.float(model)
    model.apply(disable_quantization)
    theirs = model(input_ids=input_ids.reshape(1, -1), use_cache=False).logits[0].float()
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    log_p, log_q = theirs.log_softmax(-1), ours.log_softmax(-1)
    kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    top1 = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    print(f"3. logits of {len(theirs)} tokens against transformers, {len(theirs[0])} each")
    print(f"   largest error relative to the largest logit {error:.2e}, mean KL {kl:.2e}, top-1 agreement {top1:.2%}")
    return report("logits are too far apart", [] if error < LOGIT_LIMIT else [f"{error:.2e} >= {LOGIT_LIMIT}"])


def report(what, names, most=5):
    """Prints what is wrong; returns whether nothing is."""
    for name in names[:most]:
        print(f"   WRONG {what}: {name}")
    if len(names) > most:
        print(f"   WRONG {what}: and {len(names) - most} more")
    return not names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="what l4tool says the weights are")
    parser.add_argument("--source", type=Path, metavar="SRC", help="the checkpoint that OUT was made from")
    parser.add_argument("--logits", type=Path, metavar="FILE", help="input_ids and logits, by l4tool")
    args = parser.parse_args()
    ok = True
    with ExitStack() as stack:
        out = Checkpoint(args.out, stack)
        claims = Claims(args.weights, stack) if args.weights else None
        source = Checkpoint(args.source, stack) if args.source else None
        if "quantization_config" in out.config():
            ok &= check_weights(out, claims, source)
    ok &= check_loading(args.out)
    if args.logits:
        ok &= check_logits(args.out, args.logits)
    print("ok" if ok else "NOT OK")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
