#!/usr/bin/env python3
"""What transformers routes and feeds to every weight, on six sequences of the evaluation text: `routing-goldens/MODEL.safetensors`.

float32, eager attention, CPU, on the weights as they are; the environment is interop/requirements.txt. Sums are made in float64.

    input_ids                       [sequences, tokens]
    layers.N.tokens                 [sequences, experts]    tokens whose largest router logit is the expert's
    layers.N.score_sum              [experts]               sum of their sigmoids
    layers.N.transitions            [experts, experts]      from the last layer with experts before N
    layers.N.PLACE                  [width] or [experts, width]   sum of squares of what goes into the weights there
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration
from transformers.models.llama4.modeling_llama4 import Llama4TextDecoderLayer, Llama4TextMoe

HERE = Path(__file__).resolve().parent
SEQUENCES, LENGTH = 6, 192


def sequences():
    tokenizer = Tokenizer.from_file(str(HERE / "tiny-scout/tokenizer.json"))
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    ids = tokenizer.encode((HERE / "text/eval.txt").read_text(), add_special_tokens=False).ids
    # Spread over the text, so that prose, verse, other languages and code are in it.
    starts = [index * (len(ids) - LENGTH) // (SEQUENCES - 1) for index in range(SEQUENCES)]
    return torch.tensor([[begin] + ids[start : start + LENGTH - 1] for start in starts])


@torch.no_grad()
def trace(model, input_ids):
    golden, margin, chosen_before = {"input_ids": input_ids}, 1e9, {}

    def add(name, value):
        golden[name] = golden.get(name, 0) + value

    def sum2(name, x):
        add(name, (x.double() ** 2).reshape(-1, x.shape[-1]).sum(0))

    state = {}

    def watch(layer, block):
        attention, network = block.self_attn, block.feed_forward
        attention.q_proj.register_forward_pre_hook(lambda m, a: sum2(f"layers.{layer}.self_attn.qkv_proj", a[0]))
        attention.o_proj.register_forward_pre_hook(lambda m, a: sum2(f"layers.{layer}.self_attn.o_proj", a[0]))
        if not isinstance(network, Llama4TextMoe):
            prefix = f"layers.{layer}.feed_forward"
            network.gate_proj.register_forward_pre_hook(lambda m, a: sum2(f"{prefix}.gate_up_proj", a[0]))
            network.down_proj.register_forward_pre_hook(lambda m, a: sum2(f"{prefix}.down_proj", a[0]))
            return
        prefix = f"layers.{layer}.feed_forward.shared_expert"
        shared, experts = network.shared_expert, network.experts
        shared.gate_proj.register_forward_pre_hook(lambda m, a: sum2(f"{prefix}.gate_up_proj", a[0]))
        shared.down_proj.register_forward_pre_hook(lambda m, a: sum2(f"{prefix}.down_proj", a[0]))

        def routed(_module, args, output):
            nonlocal margin
            x, logits = args[0].reshape(-1, args[0].shape[-1]), output[1].reshape(-1, experts.num_experts)
            best = logits.topk(2, dim=-1)
            margin = min(margin, float((best.values[:, 0] - best.values[:, 1]).min()))
            expert = best.indices[:, 0]
            score = torch.sigmoid(best.values[:, 0])
            counts = torch.bincount(expert, minlength=experts.num_experts)
            golden.setdefault(f"layers.{layer}.tokens", []).append(counts)
            add(f"layers.{layer}.score_sum", torch.zeros(experts.num_experts).double().index_add(0, expert, score.double()))
            if state.get("before") is not None:
                pairs = state["before"] * experts.num_experts + expert
                flat = torch.bincount(pairs, minlength=experts.num_experts**2)
                add(f"layers.{layer}.transitions", flat.reshape(experts.num_experts, -1))
            state["before"] = expert
            inputs = x * score[:, None]
            into = torch.zeros(experts.num_experts, x.shape[-1]).double()
            inner = torch.zeros(experts.num_experts, experts.expert_dim).double()
            for e in range(experts.num_experts):
                mine = inputs[expert == e]
                gate, up = (mine @ experts.gate_up_proj[e]).chunk(2, dim=-1)
                into[e] = (mine.double() ** 2).sum(0)
                inner[e] = ((experts.act_fn(gate) * up).double() ** 2).sum(0)
            add(f"layers.{layer}.feed_forward.experts.gate_up_proj", into)
            add(f"layers.{layer}.feed_forward.experts.down_proj", inner)

        network.router.register_forward_hook(routed)

    for name, module in model.named_modules():
        if isinstance(module, Llama4TextDecoderLayer):
            watch(int(name.rpartition(".")[2]), module)
    for sequence in input_ids:
        state.clear()
        model(input_ids=sequence[None], use_cache=False)
    for key, value in golden.items():
        value = torch.stack(value) if isinstance(value, list) else value
        # Eight digits of a sum are more than float32 activations have.
        golden[key] = value.float() if value.is_floating_point() else value
    print(f"smallest router margin {margin:.1e}")
    return golden


for name, kind in [("tiny-scout", Llama4ForConditionalGeneration), ("tiny-maverick", Llama4ForCausalLM)]:
    model = kind.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager").eval()
    golden = trace(model, sequences())
    out = HERE / f"routing-goldens/{name}.safetensors"
    out.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in golden.items()}, out)
    print(out.name, sum(value.numel() * value.element_size() for value in golden.values()), "bytes")
