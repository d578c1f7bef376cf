"""Writes gptq-goldens.safetensors: what torch computes in float64 for GPTQ on random inputs and weights.

Run: python testdata/make_gptq_goldens.py  (needs torch and safetensors)

Second moments are relative to the mean of their diagonal; inputs that were always zero count as the mean; 0.01 is added to the
diagonal; inputs come in descending order of their second moment. `inverse` is the upper Cholesky factor of the inverse of
that matrix, as llm-compressor computes it (torch.linalg.cholesky, cholesky_inverse, cholesky). `error` is the weighted squared
error of each output after GPTQ with round-to-nearest scales (largest magnitude over 7.5, rounded to BF16), `rtn` that
of round-to-nearest itself.
"""

import pathlib

import torch
from safetensors.torch import save_file

GROUP = 32


def case(seed, rows, ins, outs, dead):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    x = normal(rows, 12) @ normal(12, ins) + normal(rows, ins)
    x = (x * torch.rand(ins, generator=generator).pow(3).add(0.02)).to(torch.bfloat16)
    if dead:
        x[:, 5] = 0
    w = (normal(outs, ins) * 0.05).to(torch.bfloat16)
    h = x.double().T @ x.double()
    moments = h.diagonal().clone()
    live = moments > 0
    mean = moments[live].mean()
    h /= mean
    diagonal = torch.where(live, moments / mean, torch.ones_like(moments))
    h.diagonal().copy_(diagonal + 0.01)
    order = torch.argsort(diagonal, descending=True, stable=True)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h[order][:, order])), upper=True)

    weights = w.double()
    scales = (w.float().unflatten(1, (-1, GROUP)).abs().amax(-1) / 7.5).to(torch.bfloat16).double()
    scales = scales.repeat_interleave(GROUP, 1)
    value = lambda w, s: ((w / s).clamp(-8, 7).round() * s).to(torch.bfloat16).double()
    error_of = lambda v: (((weights - v) @ h) * (weights - v)).sum(1)
    left, values = weights[:, order].clone(), torch.zeros_like(weights)
    for i, column in enumerate(order):
        values[:, column] = value(left[:, i], scales[:, column])
        error = (left[:, i] - values[:, column]) / inverse[i, i]
        left[:, i:] -= error[:, None] * inverse[i, i:]
    return {
        "x": x,
        "w": w,
        "order": order.to(torch.int32),
        "inverse": inverse.float(),
        "error": error_of(values).float(),
        "rtn": error_of(value(weights, scales)).float(),
    }


tensors = {}
for name, arguments in {"many": (1, 400, 160, 24, False), "few": (2, 40, 192, 16, True)}.items():
    tensors |= {f"{name}.{key}": value.contiguous() for key, value in case(*arguments).items()}
save_file(tensors, pathlib.Path(__file__).parent / "gptq-goldens.safetensors")
