#!/usr/bin/env python3
"""Writes the models in `gguf/`: small Llama 4 models as llama.cpp's own programs make them, and what Python says of them.

    testdata/make_gguf_models.py LLAMA_CPP

LLAMA_CPP is a built tree of llama.cpp at 0c1e57098 (`convert_hf_to_gguf.py`, `gguf-py`, `build/bin/llama-quantize`); Python
needs torch, transformers and safetensors.

- `cut-q4_k_m.gguf`: two layers and four experts of tiny-scout, by the converter and `llama-quantize ... Q4_K_M`
- `small-0000N-of-00003.gguf`: a random model with dense layers, by the converter, in BF16 and in three files
- `cut-mmproj.gguf`: tiny-scout's vision part, by the converter, with the wrong names that it gives at present
- `types.gguf`: a random model with a matrix of every type that is decoded, by the Python package
- `models.json`: for each of them every tensor's type and the SHA-256 of its values in float32 by `gguf.quants.dequantize`;
  for `small` the SHA-256 of every tensor of the Hugging Face checkpoint that it was converted from, and its tokens of
  `text/eval.txt` by transformers
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LLAMA = Path(sys.argv[1]).resolve()
sys.path.insert(1, str(LLAMA / "gguf-py"))

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

HERE = Path(__file__).resolve().parent
OUT = HERE / "gguf"
SIDE_FILES = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"]

# The converter knows tokenizers by a digest of what they make of a text, and cannot know tiny-scout's. Nothing else changes.
CONVERT = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama4"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0] + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def convert(folder, out, *options):
    command = [sys.executable, "-c", CONVERT, LLAMA, folder, "--outfile", out, *options]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def save(folder, tensors, config):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in SIDE_FILES:
        shutil.copy(HERE / "tiny-scout" / name, folder)


def cut(folder, layers=2, experts=4):
    """The first layers and experts of tiny-scout."""
    source = HERE / "tiny-scout"
    config = json.loads((source / "config.json").read_text())
    text = config["text_config"]
    text.update(num_hidden_layers=layers, num_local_experts=experts, moe_layers=list(range(layers)))
    # llama.cpp knows no other sizes.
    text.update(attention_chunk_size=8192, floor_scale=8192)
    tensors = {}
    for file in sorted(source.glob("model-*.safetensors")):
        for name, tensor in load_file(file).items():
            parts = name.split(".")
            if "language_model" in name and "layers" in parts and int(parts[parts.index("layers") + 1]) >= layers:
                continue
            if name.endswith((".experts.gate_up_proj", ".experts.down_proj")) or name.endswith("router.weight"):
                tensor = tensor[:experts]
            tensors[name] = tensor.contiguous()
    save(folder, tensors, config)


def small(folder):
    """Random, text only, every second layer dense, and five heads for keys."""
    hidden, head, heads, keys, inner, dense, experts, layers, vocab = 40, 8, 10, 5, 24, 48, 3, 5, 2048
    torch.manual_seed(5)
    rand = lambda *shape: (torch.randn(*shape) * 0.2).to(torch.bfloat16)  # noqa: E731
    tensors = {"model.embed_tokens.weight": rand(vocab, hidden), "lm_head.weight": rand(vocab, hidden)}
    tensors["model.norm.weight"] = 1 + rand(hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors[at + "input_layernorm.weight"] = 1 + rand(hidden)
        tensors[at + "post_attention_layernorm.weight"] = 1 + rand(hidden)
        for name, out, size in [("q", heads * head, hidden), ("k", keys * head, hidden), ("v", keys * head, hidden)]:
            tensors[f"{at}self_attn.{name}_proj.weight"] = rand(out, size)
        tensors[at + "self_attn.o_proj.weight"] = rand(hidden, heads * head)
        ffn = at + "feed_forward."
        moe = layer % 2 == 1
        for module, width in [("shared_expert.", inner)] if moe else [("", dense)]:
            tensors[f"{ffn}{module}gate_proj.weight"] = rand(width, hidden)
            tensors[f"{ffn}{module}up_proj.weight"] = rand(width, hidden)
            tensors[f"{ffn}{module}down_proj.weight"] = rand(hidden, width)
        if moe:
            tensors[ffn + "router.weight"] = rand(experts, hidden)
            tensors[ffn + "experts.gate_up_proj"] = rand(experts, hidden, 2 * inner)
            tensors[ffn + "experts.down_proj"] = rand(experts, inner, hidden)
    config = {
        "architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": head,
        "intermediate_size": inner, "intermediate_size_mlp": dense, "num_local_experts": experts,
        "num_experts_per_tok": 2, "interleave_moe_layer_step": 2, "moe_layers": [1, 3], "use_qk_norm": True,
        "rope_theta": 500000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }, "attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1, "attn_temperature_tuning": True,
        "max_position_embeddings": 131072, "vocab_size": vocab, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "bos_token_id": 2033, "eos_token_id": 2034, "pad_token_id": 2041, "torch_dtype": "bfloat16",
    }  # fmt: skip
    save(folder, tensors, config)
    return {name: sha256(tensor.view(torch.int16).numpy()) for name, tensor in sorted(tensors.items())}


# Types by the length of rows that they need.
TYPES_32 = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "F16", "BF16", "F32"]
TYPES_256 = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
# Where the float16 scales of a block lie; see make_ggml.py.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip


def random_blocks(random, kind, shape):
    """Random bits as a tensor of this type, with scales that make ordinary numbers."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if block == 1:
        values = random.standard_normal(shape).astype(np.float32) * np.float32(0.1)
        halves = {"F32": values.view(np.uint8), "F16": values.astype(np.float16).view(np.uint8)}
        return halves.get(kind, (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8))
    count = int(np.prod(shape)) // block
    data = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = (random.standard_normal(count) * 0.01).astype(np.float16)
        data[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    if kind == "MXFP4":
        data[:, 0] = random.integers(118, 124, count)
    return data.reshape(*shape[:-1], -1)


def types(path):
    """A model with every type that is decoded, experts among them."""
    random = np.random.default_rng(7)
    hidden, head, heads, keys, inner, experts, layers, vocab = 256, 32, 2, 1, 32, 2, 4, 32
    writer = gguf.GGUFWriter(path, "llama4")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(1)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(vocab)
    writer.add_rope_dimension_count(head)
    writer.add_interleave_moe_layer_step(1)
    writer.add_expert_feed_forward_length(inner)
    names = {256: iter(TYPES_256 * 9), 32: iter(TYPES_32 * 9)}

    def add(name, *shape, kind=None):
        kind = kind or next(names[256 if shape[-1] == 256 else 32])
        data = random_blocks(random, kind, shape)
        writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=gguf.GGMLQuantizationType[kind])

    add("token_embd.weight", vocab, hidden)
    add("output_norm.weight", hidden, kind="F32")
    add("output.weight", vocab, hidden)
    for layer in range(layers):
        at = f"blk.{layer}."
        for name in ["attn_norm", "ffn_norm"]:
            add(f"{at}{name}.weight", hidden, kind="F32")
        add(at + "attn_q.weight", heads * head, hidden)
        add(at + "attn_k.weight", keys * head, hidden)
        add(at + "attn_v.weight", keys * head, hidden)
        add(at + "attn_output.weight", hidden, heads * head)
        add(at + "ffn_gate_inp.weight", experts, hidden, kind="F32")
        for suffix, shape in [("shexp", ()), ("exps", (experts,))]:
            add(f"{at}ffn_gate_{suffix}.weight", *shape, inner, hidden)
            add(f"{at}ffn_up_{suffix}.weight", *shape, inner, hidden)
            add(f"{at}ffn_down_{suffix}.weight", *shape, hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def described(paths):
    """Type and digest of every tensor."""
    tensors = {}
    for path in paths:
        for tensor in gguf.GGUFReader(path).tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            tensors[tensor.name] = [tensor.tensor_type.name, sha256(np.ascontiguousarray(values))]
    return dict(sorted(tensors.items()))


def main():
    facts = {}
    for old in [*OUT.glob("cut-*.gguf"), *OUT.glob("small-*.gguf")]:
        old.unlink()
    with tempfile.TemporaryDirectory() as temporary:
        temporary = Path(temporary)
        cut(temporary / "cut")
        convert(temporary / "cut", temporary / "cut.gguf", "--outtype", "bf16")
        quantize = [LLAMA / "build/bin/llama-quantize", temporary / "cut.gguf", OUT / "cut-q4_k_m.gguf", "Q4_K_M", "2"]
        subprocess.run(list(map(str, quantize)), check=True, capture_output=True)
        convert(temporary / "cut", OUT / "cut-mmproj.gguf", "--outtype", "bf16", "--mmproj")
        facts["hf"] = small(temporary / "small")
        convert(temporary / "small", OUT / "small.gguf", "--outtype", "bf16", "--split-max-tensors", "24")
    types(OUT / "types.gguf")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(HERE / "tiny-scout")
    facts["tokens"] = tokenizer((HERE / "text/eval.txt").read_text())["input_ids"][:2000]
    for name, pattern in [("cut", "cut-q4_k_m.gguf"), ("mmproj", "cut-mmproj.gguf"), ("types", "types.gguf"), ("small", "small-*.gguf")]:
        facts[name] = described(sorted(OUT.glob(pattern)))
    (OUT / "models.json").write_text(json.dumps(facts, indent=0, separators=(",", ":")) + "\n")


main()
