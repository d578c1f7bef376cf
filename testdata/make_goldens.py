#!/usr/bin/env python3
"""Makes the test models of this folder, and what other programs compute on them.

    make_goldens.py tiny-scout      recompute the goldens of the text model and compare them with the file
    make_goldens.py tiny-maverick   make the model and its goldens
    make_goldens.py ct              make the checkpoints quantized by compressed-tensors and their goldens

Goldens are what transformers computes in float32 with eager attention, and what compressed-tensors decompresses. The
environment is interop/requirements.txt; see interop/README.md.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    Llama4Config,
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    Llama4VisionConfig,
)
from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextDecoderLayer
from transformers.quantizers.base import SequentialLlama4TextExperts

HERE = Path(__file__).resolve().parent


def eval_tokens(count):
    """The first `count` tokens of the evaluation text, begin token included, in tiny-scout's vocabulary."""
    tokenizer = Tokenizer.from_file(str(HERE / "tiny-scout/tokenizer.json"))
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    text = (HERE / "text/eval.txt").read_text()
    return torch.tensor([begin] + tokenizer.encode(text, add_special_tokens=False).ids[: count - 1])


@torch.no_grad()
def trace(model, input_ids):
    """Residual stream after every layer, router logits of every MoE layer, and logits, without a batch axis."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, Llama4TextDecoderLayer):
            layer = name.rpartition(".")[2]

            def keep_hidden(_module, _args, output, layer=layer):
                hidden = output[0] if isinstance(output, tuple) else output
                found[f"text.hidden.{layer}"] = hidden.reshape(-1, hidden.shape[-1]).clone()

            hooks.append(module.register_forward_hook(keep_hidden))
        elif isinstance(module, Llama4Router):
            layer = name.split(".layers.")[1].split(".")[0]

            def keep_router(_module, _args, output, layer=layer):
                found[f"text.router_logits.{layer}"] = output[1].clone()

            hooks.append(module.register_forward_hook(keep_router))
    found["text.logits"] = model(input_ids=input_ids[None], use_cache=False).logits[0].clone()
    for hook in hooks:
        hook.remove()
    found["text.input_ids"] = input_ids
    return found


def router_margin(golden):
    """Smallest distance between the best and the second best router logit of any token in any layer."""
    best = [v.topk(2, dim=-1).values for k, v in golden.items() if "router_logits" in k]
    return min(float((t[:, 0] - t[:, 1]).min()) for t in best)


def randomize(model, seed, router_gain=1.0):
    """Normal weights with unit gain, norms near one; all exactly representable in BF16. Same order, same seed, same
    weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("norm.weight", "layernorm.weight", "layernorm_pre.weight", "layernorm_post.weight")):
                value = 1 + 0.1 * noise
            elif parameter.dim() == 1:
                value = 0.02 * noise
            elif "embed_tokens" in name:
                value = noise
            else:
                fan_in = parameter.shape[-2] if parameter.dim() == 3 else parameter.shape[-1]
                value = noise / math.sqrt(fan_in) * (router_gain if ".router." in name else 1.0)
            parameter.copy_(value.bfloat16())


def compare_tiny_scout():
    model = Llama4ForConditionalGeneration.from_pretrained(
        HERE / "tiny-scout", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    golden = load_file(HERE / "tiny-scout/golden.safetensors")
    ours = trace(model, golden["text.input_ids"])
    worst = 0.0
    for key, value in sorted(ours.items()):
        error = float((value - golden[key]).abs().max() / golden[key].abs().max())
        worst = max(worst, error)
        print(f"{key:24} {tuple(value.shape)!s:14} max error / max value {error:.1e}")
    print(f"smallest router margin {router_margin(golden):.2e}")
    return worst < 1e-5


def make_tiny_maverick():
    out = HERE / "tiny-maverick"
    shutil.rmtree(out, ignore_errors=True)
    config = Llama4TextConfig(
        hidden_size=64,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=16,
        intermediate_size=32,
        intermediate_size_mlp=96,
        num_local_experts=128,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        vocab_size=2048,
        use_qk_norm=False,
        attention_chunk_size=64,
        attn_temperature_tuning=True,
        floor_scale=48,
        attn_scale=0.1,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=2033,
        eos_token_id=[2034, 2037, 2038],
        pad_token_id=2041,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )
    config._attn_implementation = "eager"
    input_ids = eval_tokens(200)
    # Of twenty random models the one whose router decides most clearly, so that rounding can't change its mind.
    best = None
    for seed in range(20):
        model = Llama4ForCausalLM(config).float().eval()
        randomize(model, seed)
        margin = router_margin(trace(model, input_ids))
        if best is None or margin > best[0]:
            best = (margin, seed)
    margin, seed = best
    model = Llama4ForCausalLM(config).float().eval()
    randomize(model, seed)
    golden = trace(model, input_ids)
    model.bfloat16().save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(HERE / "tiny-scout" / name, out / name)

    # The goldens come from the files, not from the model that was in memory.
    model = Llama4ForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    again = trace(model, input_ids)
    assert all(torch.equal(golden[key], again[key]) for key in golden)
    save_file({key: value.contiguous() for key, value in again.items()}, out / "golden.safetensors")
    for key, value in again.items():
        print(f"{key:24} {tuple(value.shape)!s:14} deviation {value.float().std():.3f}")
        if "router_logits" in key:
            used = value.argmax(-1).unique().numel()
            print(f"{'':24} experts used {used}, largest load {int(value.argmax(-1).bincount().max())}")
    print(f"seed {seed}, smallest router margin {margin:.2e}")
    return True


# Name of the folder, arguments of the weights, arguments of the activations, multimodal or text only.
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
CT = {
    "ct-w4a16": ({**INT4, "symmetric": True}, None, True),
    "ct-w4a16-asym": ({**INT4, "symmetric": False}, None, False),
    "ct-fp8-channel": ({**FP8, "strategy": "channel"}, {**FP8, "strategy": "token", "dynamic": True}, False),
    "ct-fp8-block": (
        {**FP8, "strategy": "block", "block_structure": [128, 128]},
        {**FP8, "strategy": "group", "group_size": 128, "dynamic": True},
        False,
    ),
    "ct-fp8-tensor": ({**FP8, "strategy": "tensor"}, {**FP8, "strategy": "tensor", "dynamic": False}, False),
}
IGNORE = ["re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model.*", "re:.*multi_modal_projector.*"]


def ct_model(block, multimodal):
    """A layer with a dense feed-forward and one with experts. For block quantization the dimensions are beyond one block
    and divide by none; for groups they divide by 32, with an odd number of groups."""
    text = Llama4TextConfig(
        hidden_size=144 if block else 96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=136 if block else 32,
        intermediate_size_mlp=160,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        vocab_size=128,
        use_qk_norm=True,
        attention_chunk_size=8,
        attn_temperature_tuning=True,
        floor_scale=8,
        attn_scale=0.1,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=113,
        eos_token_id=114,
        pad_token_id=121,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )
    if not multimodal:
        return Llama4ForCausalLM(text).bfloat16().eval()
    vision = Llama4VisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=28,
        patch_size=7,
        vision_output_dim=32,
        projector_input_dim=32,
        projector_output_dim=32,
    )
    config = Llama4Config(
        vision_config=vision,
        text_config=text,
        boi_token_index=122,
        eoi_token_index=123,
        image_token_index=127,
        dtype=torch.bfloat16,
    )
    return Llama4ForConditionalGeneration(config).bfloat16().eval()


def linearize(model):
    """Replaces fused experts by one MLP per expert, as transformers does when it loads a quantized Llama 4."""
    for module in list(model.modules()):
        if type(module).__name__ != "Llama4TextMoe":
            continue
        fused = module.experts
        split = SequentialLlama4TextExperts(model.config.get_text_config()).to(torch.bfloat16)
        for expert, mlp in enumerate(split):
            gate, up = fused.gate_up_proj[expert].chunk(2, dim=-1)
            mlp.gate_proj.weight.data = gate.T.contiguous()
            mlp.up_proj.weight.data = up.T.contiguous()
            mlp.down_proj.weight.data = fused.down_proj[expert].T.contiguous()
        module.experts = split


def minimum_and_maximum(weight, args):
    """Extrema of what shares a scale, in the shape of the scales."""
    if args.strategy == "group":
        weight = weight.unflatten(-1, (-1, args.group_size))
        return weight.amin(-1), weight.amax(-1)
    if args.strategy == "channel":
        return weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    if args.strategy == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    height, width = args.block_structure
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
    blocks = padded.unflatten(0, (-1, height)).unflatten(-1, (-1, width))
    return blocks.amin((1, 3)), blocks.amax((1, 3))


def make_ct(name):
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    weights, activations, multimodal = CT[name]
    model = ct_model(weights["strategy"] == "block", multimodal)
    randomize(model, seed=len(name), router_gain=2.0)
    linearize(model)
    if weights.get("symmetric"):
        # Rows of zeros get compressed-tensors' replacement for a scale of zero. (Its asymmetric zero point would be
        # the cast of a NaN, which is nobody's definition.)
        experts = [m for m in model.modules() if isinstance(m, SequentialLlama4TextExperts)]
        experts[0][2].up_proj.weight.data[5] = 0

    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    config = QuantizationConfig(config_groups={"group_0": group}, ignore=IGNORE)
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        scale, zero_point = calculate_qparams(*minimum_and_maximum(module.weight.data, scheme.weights), scheme.weights)
        module.weight_scale.data = scale
        module.weight_zero_point.data = zero_point
        if hasattr(module, "input_scale"):
            # Nothing was calibrated; any plausible number shows that it is kept.
            module.input_scale.data.fill_(0.01)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)
    return make_ct_golden(out, multimodal)


def make_ct_golden(out, multimodal):
    """From the files: what compressed-tensors decompresses, and the logits of transformers with these weights."""
    from compressed_tensors.compressors import decompress_module

    model_class = Llama4ForConditionalGeneration if multimodal else Llama4ForCausalLM
    model, info = model_class.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    golden = {}
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None:
            decompress_module(module)
            golden[f"weight.{name}"] = module.weight.data.clone()
    assert len(golden) == 3 * (1 + 1 + 4)

    # The same weights in a model that knows no quantization, so that activations are not quantized either.
    # (Loaded with dtype=float32, transformers would decompress in float32, without compressed-tensors' rounding to BF16.)
    config = model_class.config_class.from_pretrained(out)
    del config.quantization_config
    config._attn_implementation = "eager"
    dense = model_class(config)
    linearize(dense)
    dense.float().eval()
    state = model.state_dict()
    dense.load_state_dict({key: state[key].float() for key in dense.state_dict()})
    golden.update(trace(dense, torch.arange(20) * 7 % 113))
    with safe_open(out / "model.safetensors", "pt") as file:
        kinds = {key.rpartition(".")[2] for key in file.keys()}
    save_file({key: value.contiguous() for key, value in golden.items()}, out / "golden.safetensors")
    size = (out / "model.safetensors").stat().st_size
    print(f"{out.name}: {size} bytes, smallest router margin {router_margin(golden):.2e}, {sorted(kinds)}")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tiny-scout", "tiny-maverick", "ct"])
    what = parser.parse_args().what
    torch.set_grad_enabled(False)
    if what == "tiny-scout":
        ok = compare_tiny_scout()
    elif what == "tiny-maverick":
        ok = make_tiny_maverick()
    else:
        ok = all([make_ct(name) for name in CT])
    raise SystemExit(0 if ok else 1)


if __name__ == "__main__":
    main()
