"""Writes quant-goldens.safetensors: what compressed-tensors itself makes of random weights.

Run: python testdata/make_quant_goldens.py  (needs torch and compressed-tensors 0.19)

The arithmetic is the one that l4tool documents: largest magnitude and scale in float32, the scale rounded to bfloat16,
then compressed-tensors' own quantize, pack_to_int32 and dequantize on float32 weights and that rounded scale.
"""

import os
import pathlib

os.environ["CT_ENFORCE_EAGER"] = "1"

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file


def rounded(scale):
    scale = scale.to(torch.bfloat16)
    return torch.where(scale == 0, torch.tensor(torch.finfo(torch.bfloat16).eps, dtype=torch.bfloat16), scale)


def weights(outs, ins, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(outs, ins, generator=generator) * torch.rand(outs, 1, generator=generator).add(0.1) * 0.05
    w[1, 3] = 2.5  # an outlier
    w[2] = 0.0  # an output of zeros
    w[3] = w[3].abs()  # one sign only
    return w.to(dtype)


def int4(w, group, symmetric):
    args = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=group)
    x = w.float()
    groups = x.unflatten(1, (-1, group))
    low, high = groups.amin(-1), groups.amax(-1)
    exact, _ = calculate_qparams(low, high, args)
    amax = torch.maximum(low.abs(), high.abs())
    scale = rounded(torch.where(amax == 0, torch.zeros_like(exact), exact))
    out = {"scale": scale}
    if symmetric:
        zero = torch.zeros(scale.shape, dtype=torch.int8)
    else:
        # calculate_qparams' zero point, from the rounded scale; 0 where the group is zero (theirs is 0 / 0 there).
        zero = torch.clamp(-8 - torch.clamp(low, max=0) / scale.float(), -8, 7).round().to(torch.int8)
        zero[amax == 0] = 0
        out["zero"] = zero
        out["zero_packed"] = pack_to_int32(zero, 4, packed_dim=0).contiguous()
    codes = quantize(x, scale.float(), zero, args, dtype=torch.int8)
    out["packed"] = pack_to_int32(codes, 4)
    out["dequantized"] = dequantize(codes, scale, None if symmetric else zero, args)
    return out


def fp8(w, strategy):
    block = [32, 48]
    extra = {"block_structure": block} if strategy == "block" else {}
    args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=strategy, **extra)
    x = w.float()
    if strategy == "channel":
        amax = x.abs().amax(1, keepdim=True)
    elif strategy == "tensor":
        amax = x.abs().amax().reshape(1)
    else:
        tall, wide = -(-x.shape[0] // block[0]), -(-x.shape[1] // block[1])
        padded = torch.zeros(tall * block[0], wide * block[1])
        padded[: x.shape[0], : x.shape[1]] = x
        amax = padded.abs().reshape(tall, block[0], wide, block[1]).amax((1, 3))
    scale = rounded(amax / 448)
    codes = quantize(x, scale.float(), None, args, dtype=torch.float8_e4m3fn)
    return {"scale": scale, "codes": codes.view(torch.uint8), "dequantized": dequantize(codes, scale, None, args)}


def main():
    tensors = {}
    cases = {
        "bf16": weights(24, 256, torch.bfloat16, 1),
        "f32": weights(21, 128, torch.float32, 2),
        "ragged": weights(37, 100, torch.bfloat16, 3),
    }
    for name, w in cases.items():
        tensors[f"{name}.weight"] = w
        for group in [4, 20] if name == "ragged" else [32, 128]:
            for symmetric in (True, False):
                for key, value in int4(w, group, symmetric).items():
                    tensors[f"{name}.int4.{group}.{'sym' if symmetric else 'asym'}.{key}"] = value
        for strategy in ("channel", "block", "tensor"):
            for key, value in fp8(w, strategy).items():
                tensors[f"{name}.fp8.{strategy}.{key}"] = value
    path = pathlib.Path(__file__).with_name("quant-goldens.safetensors")
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    print(path.stat().st_size, "bytes")


main()
