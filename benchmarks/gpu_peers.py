"""Layers of others under one signature: hidden, expert ids and weights in, weighted sums out.

Each maker takes transformers' experts and k, and gives a function with the same weights and the
parameters that it trains. A package that is not installed raises ImportError.
"""

import torch
import torch.nn.functional as F
from torch import nn


def scattermoe(experts, k):
    from scattermoe.mlp import GLUMLP

    num_experts, width, hidden = experts.down_proj.shape[0], *experts.down_proj.shape[1:]
    layer = GLUMLP(width, hidden, num_experts, k, activation=nn.SiLU())
    layer = layer.to(experts.down_proj.device, experts.down_proj.dtype)
    gate, up = experts.gate_up_proj.detach().chunk(2, dim=1)
    with torch.no_grad():
        layer.experts.weight.copy_(torch.cat([up, gate], dim=1))
        layer.output_experts.weight.copy_(experts.down_proj)
    return lambda x, ids, weights: layer(x, weights, ids), list(layer.parameters())


def megablocks(experts, k):
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import ParallelDroplessMLP

    num_experts, width, hidden = experts.down_proj.shape[0], *experts.down_proj.shape[1:]
    layer = ParallelDroplessMLP(
        Arguments(
            hidden_size=width,
            ffn_hidden_size=hidden,
            moe_num_experts=num_experts,
            moe_top_k=k,
            mlp_type="glu",
            mlp_impl="grouped",
            activation_fn=F.silu,
            bias=False,
            return_bias=False,
            fp16=False,
            bf16=True,
            device=experts.down_proj.device,
        )
    )
    gate, up = experts.gate_up_proj.detach().chunk(2, dim=1)
    with torch.no_grad():
        layer.mlp.w1.copy_(gate.reshape(-1, width))
        layer.mlp.v1.copy_(up.reshape(-1, width))
        layer.mlp.w2.copy_(experts.down_proj.transpose(1, 2).reshape(-1, width))
    scores = torch.ones(1, num_experts, device=experts.down_proj.device)  # for its losses only

    def run(x, ids, weights):
        return layer(x, scores.expand(len(x), -1), weights, ids)

    return run, list(layer.parameters())


PEERS = {"megablocks": megablocks, "scattermoe": scattermoe}
