"""Writes checkpoints in Meta's own format, as torch saves them, and what they must become.

    python make_meta.py meta-tiny meta-fp8     # the committed folders

The way from Hugging Face's names to Meta's is the inverse of transformers' `convert_llama4_weights_to_hf.py` (07497505)
and of llama-models' `models/checkpoint.py`: which key a weight has, how it lies, how ranks divide it. `golden.json` holds
the SHA-256 of every tensor of the model in Hugging Face's layout, its config, and the tokens that transformers' own
`TikTokenConverter` gives for `text/eval.txt`. Needs torch, transformers, tiktoken (see ../interop/requirements.txt).
"""

import base64
import hashlib
import io
import json
import re
import sys
from pathlib import Path

import torch
from transformers import Llama4Config, Llama4ForCausalLM, Llama4ForConditionalGeneration, Llama4TextConfig
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

HERE = Path(__file__).resolve().parent
SPECIALS = 2048

PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special_tokens():
    """The list of `convert_llama4_weights_to_hf.py`."""
    reserved = lambda name, count, start: [f"<|{name}_reserved_special_token_{i}|>" for i in range(start, start + count)]
    basic = ["<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    text = ["<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"]
    text += reserved("text_post_train", 6, 0) + ["<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"]
    text += reserved("text_post_train", 61, 8)
    vision = ["<|image_start|>", "<|image_end|>"] + reserved("vision", 2, 0)
    vision += ["<|tile_x_separator|>", "<|tile_y_separator|>"] + reserved("vision", 4, 2)
    vision += ["<|image|>"] + reserved("vision", 1, 6) + ["<|patch|>"] + reserved("vision", 1041, 7)
    return basic + text + vision


def write_ranks(path, count):
    """The first tokens of tiny-scout's vocabulary, in tiktoken's file format."""
    vocabulary = json.loads((HERE / "tiny-scout/tokenizer.json").read_text())["model"]["vocab"]
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    ranked = sorted((rank, token) for token, rank in vocabulary.items())[:count]
    lines = [base64.b64encode(bytes(letters[c] for c in token)) + b" %d\n" % rank for rank, token in ranked]
    path.write_bytes(b"".join(lines))


def reference_tokenizer(path):
    return TikTokenConverter(str(path), pattern=PATTERN, extra_special_tokens=special_tokens()).converted()


def widths(params):
    """`compute_intermediate_size` of the converter, and `MoE.__init__`."""
    multiple, factor, dim = params["multiple_of"], params["ffn_dim_multiplier"], params["dim"]
    up = lambda n: -(-n // multiple) * multiple
    dense = up(int(factor * int(params["ffn_exp"] * int(2 * dim / 3))))
    expert = up(int(int(factor * int(2 * int(params["ffn_exp"] * dim) / 3)) / (params["moe_args"]["capacity_factor"] + 1)))
    return expert, dense


def hf_config(params, instruct=False):
    """What the published configs say of such a model."""
    expert, dense = widths(params)
    base, layers, moe = params["vocab_size"] - SPECIALS, params["n_layers"], params["moe_args"]
    step = moe["interleave_moe_layer_step"]
    context = 10485760 if moe["num_experts"] == 16 else 1048576
    text = dict(
        hidden_size=params["dim"], num_hidden_layers=layers, num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"], head_dim=params["dim"] // params["n_heads"],
        intermediate_size=expert, intermediate_size_mlp=dense, num_local_experts=moe["num_experts"],
        num_experts_per_tok=moe["top_k"], interleave_moe_layer_step=step, moe_layers=list(range(step - 1, layers, step)),
        vocab_size=params["vocab_size"], rms_norm_eps=params["norm_eps"], rope_theta=params["rope_theta"],
        use_qk_norm=params["use_qk_norm"], attention_chunk_size=params["attention_chunk_size"], floor_scale=8192,
        attn_temperature_tuning=True, max_position_embeddings=context if instruct else 262144, bos_token_id=base,
        eos_token_id=[base + 1, base + 7, base + 8] if instruct else base + 1, pad_token_id=base + 18,
        tie_word_embeddings=False, dtype="bfloat16",
        no_rope_layers=[int((i + 1) % params["nope_layer_interval"] != 0) for i in range(layers)],
    )
    if params["use_scaled_rope"]:
        text["rope_scaling"] = dict(
            rope_type="llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_position_embeddings=8192
        )
    vision = params.get("vision_args")
    if vision is None:
        return Llama4TextConfig(**text)
    output = vision["output_dim"]
    vision = dict(
        hidden_size=vision["dim"], num_hidden_layers=vision["n_layers"], num_attention_heads=vision["n_heads"],
        intermediate_size=int(vision["dim"] * vision["mlp_ratio"]), image_size=vision["image_size"]["height"],
        patch_size=vision["patch_size"]["height"], vision_output_dim=output, projector_input_dim=output,
        projector_output_dim=output, pixel_shuffle_ratio=vision["pixel_shuffle_ratio"],
    )
    ids = dict(boi_token_index=base + 80, eoi_token_index=base + 81, image_token_index=base + 92)
    return Llama4Config(text_config=text, vision_config=vision, **ids)


def hf_model(params, seed, instruct=False):
    """A model of that shape with random weights: its state, and its config."""
    config = hf_config(params, instruct)
    cls = Llama4ForCausalLM if params.get("vision_args") is None else Llama4ForConditionalGeneration
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in cls(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator) * 0.05
        state[name] = (values + 1 if "norm" in name and name.endswith("weight") else values).to(torch.bfloat16)
    return state, config


def cut(tensor, dim, ranks):
    return [piece.clone() for piece in tensor.chunk(ranks, dim)]


def to_meta(state, params, ranks):
    """Meta's state of every rank."""
    multimodal = params.get("vision_args") is not None
    prefix = "language_model." if multimodal else ""
    text = lambda name: state[f"{prefix}model.{name}"]
    files = [{} for _ in range(ranks)]

    def split(key, tensor, dim=None):
        pieces = [tensor.clone() for _ in files] if dim is None else cut(tensor, dim, ranks)
        for file, piece in zip(files, pieces):
            file[key] = piece

    split("tok_embeddings.weight", text("embed_tokens.weight"), 0)
    split("norm.weight", text("norm.weight"))
    split("output.weight", state[f"{prefix}lm_head.weight"], 0)
    split("rope.freqs", torch.ones(4, dtype=torch.bfloat16))
    step, heads = params["moe_args"]["interleave_moe_layer_step"], params["n_kv_heads"]
    for n in range(params["n_layers"]):
        ours, key = (lambda name: text(f"layers.{n}.{name}")), f"layers.{n}."
        # Both spellings of the norm occur.
        norm = "attention.wqkv.layer_norm_weight" if n % 4 != 3 else "attention_norm.weight"
        split(key + norm, ours("input_layernorm.weight"))
        q = cut(ours("self_attn.q_proj.weight"), 0, ranks)
        k, v = (cut(ours(f"self_attn.{name}_proj.weight"), 0, min(ranks, heads)) for name in "kv")
        for rank, file in enumerate(files):
            head = rank * len(k) // ranks
            file[key + "attention.wqkv.weight"] = torch.cat([q[rank], k[head], v[head]])
            # Objects of another library, and statistics of training.
            file[key + "attention.wqkv._extra_state"] = io.BytesIO(b"\x80\x04state")
            file[key + "attention.wo._extra_state"] = io.BytesIO(b"")
        split(key + "attention.wo.weight", ours("self_attn.o_proj.weight"), 1)
        if (n + 1) % step == 0:
            moe(split, key + "feed_forward.", ours, files, ranks)
        else:
            split(key + "feed_forward.mlp.layer_norm_weight", ours("post_attention_layernorm.weight"))
            gate, up = (cut(ours(f"feed_forward.{name}_proj.weight"), 0, ranks) for name in ("gate", "up"))
            for rank, file in enumerate(files):
                file[key + "feed_forward.mlp.fc1_weight"] = torch.cat([gate[rank], up[rank]])
            split(key + "feed_forward.mlp.fc2_weight", ours("feed_forward.down_proj.weight"), 1)
    if multimodal:
        vision(split, state, params)
    return files


def moe(split, key, ours, files, ranks):
    split(key + "norm.weight", ours("post_attention_layernorm.weight"))
    router = ours("feed_forward.router.weight")
    split(key + "router_DE", router.T.contiguous())
    gate, up = ours("feed_forward.experts.gate_up_proj").chunk(2, -1)
    down = ours("feed_forward.experts.down_proj")
    for name, tensor, dim in [("moe_w_in_eD_F", gate, -1), ("moe_w_swiglu_eD_F", up, -1), ("moe_w_out_eF_D", down, 1)]:
        for file, piece in zip(files, cut(tensor, dim, ranks)):
            file[f"{key}experts.{name}"] = piece.reshape(-1, piece.shape[-1]).contiguous()
    split(key + "w_in_shared_FD.weight", ours("feed_forward.shared_expert.gate_proj.weight"), 0)
    split(key + "w_swiglu_FD.weight", ours("feed_forward.shared_expert.up_proj.weight"), 0)
    split(key + "w_out_shared_DF.weight", ours("feed_forward.shared_expert.down_proj.weight"), 1)
    experts = router.shape[0]
    split(key + "expert_activation_DE", torch.zeros(router.shape[1], experts))
    split(key + "global_gate_stats_3E", torch.zeros(3, experts))
    split(key + "running_gate_stats_3E", torch.zeros(3, experts))


def vision(split, state, params):
    encoder = "vision_embeddings.vision_encoder."
    ours = lambda name: state[f"vision_model.{name}"]
    split(encoder + "conv1._linear.weight", ours("patch_embedding.linear.weight"), 0)
    for name in ("class_embedding", "positional_embedding_vlm"):
        split(encoder + name, ours(name))
    for theirs, name in [("ln_pre", "layernorm_pre"), ("ln_post", "layernorm_post")]:
        for part in ("weight", "bias"):
            split(f"{encoder}{theirs}.{part}", ours(f"{name}.{part}"))
    for n in range(params["vision_args"]["n_layers"]):
        key, layer = f"{encoder}transformer.resblocks.{n}.", f"model.layers.{n}."
        for theirs, name in [("wq", "q"), ("wk", "k"), ("wv", "v")]:
            for part in ("weight", "bias"):
                split(f"{key}attn.{theirs}.{part}", ours(f"{layer}self_attn.{name}_proj.{part}"), 0)
        split(key + "attn.wo.weight", ours(layer + "self_attn.o_proj.weight"), 1)
        split(key + "attn.wo.bias", ours(layer + "self_attn.o_proj.bias"))
        for part in ("weight", "bias"):
            split(f"{key}mlp.c_fc.{part}", ours(f"{layer}mlp.fc1.{part}"), 0)
        split(key + "mlp.c_proj.weight", ours(layer + "mlp.fc2.weight"), 1)
        split(key + "mlp.c_proj.bias", ours(layer + "mlp.fc2.bias"))
        for theirs, name in [("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm")]:
            for part in ("weight", "bias"):
                split(f"{key}{theirs}.{part}", ours(f"{layer}{name}.{part}"))
    split("vision_embeddings.vision_adapter.mlp.c_fc.weight", ours("vision_adapter.mlp.fc1.weight"), 0)
    split("vision_embeddings.vision_adapter.mlp.c_proj.weight", ours("vision_adapter.mlp.fc2.weight"), 1)
    split("vision_projection.weight", state["multi_modal_projector.linear_1.weight"], 0)


def quantize_fp8(files, params, state):
    """`fp8_mixed` of llama-models' `scripts/quantize.py`: experts of all MoE blocks but the first and the last, a scale per
    output and rank. Gives the scales of each rank, and puts into `state` what the codes stand for."""
    experts, step = params["moe_args"]["num_experts"], params["moe_args"]["interleave_moe_layer_step"]
    prefix = "language_model." if params.get("vision_args") is not None else ""
    scales = [{} for _ in files]
    for n in range(1, params["n_layers"] - 1):
        if (n + 1) % step != 0:
            continue
        values = {}
        for name in ("moe_w_in_eD_F", "moe_w_swiglu_eD_F", "moe_w_out_eF_D"):
            key, pieces = f"layers.{n}.feed_forward.experts.{name}", []
            for rank, file in enumerate(files):
                weight = file[key].view(experts, -1, file[key].shape[-1]).float()
                scale = weight.abs().amax(1) / 448
                codes = (weight / scale[:, None, :]).clamp(-448, 448).to(torch.float8_e4m3fn)
                file[key] = torch.nn.Parameter(codes.reshape(-1, codes.shape[-1]), requires_grad=False)
                scales[rank][key] = scale
                pieces.append((codes.float() * scale[:, None, :]).to(torch.bfloat16))
            values[name] = torch.cat(pieces, 1 if name == "moe_w_out_eF_D" else -1)
        module = f"{prefix}model.layers.{n}.feed_forward.experts."
        state[module + "gate_up_proj"] = torch.cat([values["moe_w_in_eD_F"], values["moe_w_swiglu_eD_F"]], -1)
        state[module + "down_proj"] = values["moe_w_out_eF_D"]
    return scales


def write(folder, params, ranks, seed, fp8=False):
    """Writes the folder and gives the model in Hugging Face's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    state, config = hf_model(params, seed)
    files = to_meta(state, params, ranks)
    if fp8:
        for rank, scales in enumerate(quantize_fp8(files, params, state)):
            torch.save(scales, folder / f"fp8_scales_{rank}.pt")
    for rank, file in enumerate(files):
        torch.save(file, folder / f"consolidated.{rank:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params, indent=1) + "\n")
    write_ranks(folder / "tokenizer.model", params["vocab_size"] - SPECIALS)
    return state, config


def digest(tensor):
    raw = tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def golden(folder, state, config):
    text = (HERE / "text/eval.txt").read_text()
    tokenizer = reference_tokenizer(folder / "tokenizer.model")
    tensors = {name: [list(tensor.shape), digest(tensor)] for name, tensor in sorted(state.items())}
    document = {"tensors": tensors, "config": config.to_dict(), "tokens": tokenizer.encode(text).ids}
    text = json.dumps(document, indent=1)
    # Numbers of a list on one line.
    text = re.sub(r"\[([^\[\]\"{}]*)\]", lambda found: "[" + re.sub(r"\s+", "", found.group(1)) + "]", text)
    (folder / "golden.json").write_text(text + "\n")


TINY = dict(
    dim=64, n_layers=4, n_heads=8, n_kv_heads=8, vocab_size=512 + SPECIALS, multiple_of=32, ffn_dim_multiplier=1.2,
    ffn_exp=4.0, norm_eps=1e-5, rope_theta=500000.0, use_scaled_rope=True, use_qk_norm=True, attention_chunk_size=64,
    nope_layer_interval=4,
    moe_args=dict(num_experts=3, capacity_factor=1.0, auto_scale_F=True, top_k=1, interleave_moe_layer_step=2),
    vision_args=dict(
        image_size=dict(height=28, width=28), patch_size=dict(height=14, width=14), dim=32, n_layers=2, n_heads=8,
        mlp_ratio=4.0, output_dim=64, pixel_shuffle_ratio=0.5,
    ),
)
FP8 = {key: value for key, value in TINY.items() if key != "vision_args"} | dict(
    dim=32, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=272 + SPECIALS, use_scaled_rope=False, use_qk_norm=False,
    moe_args=TINY["moe_args"] | dict(num_experts=4, interleave_moe_layer_step=1),
)
FOLDERS = {"meta-tiny": (TINY, 8, 5, False), "meta-fp8": (FP8, 2, 6, True)}

if __name__ == "__main__":
    for name in sys.argv[1:] or FOLDERS:
        params, ranks, seed, fp8 = FOLDERS[name]
        golden(HERE / name, *write(HERE / name, params, ranks, seed, fp8))
