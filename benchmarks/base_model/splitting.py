"""The FFNs of a dense Llama, split into a shared expert and routed ones of equal size.

The neurons that answer most, on average over tokens, are the shared expert (none in the manner of
LLaMA-MoE). The others are grouped by what they answer to, and a linear router predicts how much of
the output each group makes. With all experts chosen, and routers whose logits are alike, the
mixture computes what the dense model does.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers import GraniteMoeSharedConfig, GraniteMoeSharedForCausalLM

_REGROUPINGS = 6
_ROUTER_STEPS, _ROUTER_BATCH, _ROUTER_RATE = 120, 2048, 2e-3
_HELD_OUT = 0.1  # of the calibration tokens, for the figures of routers


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerSplit:
    """Which neurons of a layer are shared `[S]`, and which are each expert's `[E, m]`.

    `router` is `[E, hidden]`; its logits are logarithms of shares of the output.
    """

    shared: Tensor
    experts: Tensor
    router: Tensor


@torch.no_grad()
def ffn_inputs(model, windows, batch_size=8):
    """What enters each layer's FFN, `[tokens, hidden]` float16 per layer."""
    found = [[] for _ in model.model.layers]

    def keep(index):
        return lambda _, args: found[index].append(args[0].flatten(0, 1).half())

    hooks = [
        layer.mlp.register_forward_pre_hook(keep(index))
        for index, layer in enumerate(model.model.layers)
    ]
    for batch in windows.split(batch_size):
        model.model(input_ids=batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat(rows) for rows in found]


def split_layer(inputs, mlp, settings, seed):
    """The split of one FFN, and figures of it.

    Returns:
        A `LayerSplit` and its figures on tokens that the router was not fitted to: the shared
        neurons' share of all answers, and what the chosen experts hold of the routed outputs'
        norms, by the best choice (`best`) and by the router's (`routed`).
    """
    inputs = inputs.float()
    with torch.no_grad():
        answers = F.silu(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)  # [tokens, neurons]
        strengths = answers.abs() * mlp.down_proj.weight.norm(dim=0)
        order = strengths.mean(0).argsort(descending=True)
        shared, routed = order[: settings.num_shared], order[settings.num_shared :].sort().values
        groups = group_neurons(strengths[:, routed], settings.num_experts, seed)
        experts = torch.stack([routed[groups == e] for e in range(settings.num_experts)])
        norms = _output_norms(answers, mlp.down_proj.weight, experts)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    kept, fitted = order.split([num := int(_HELD_OUT * len(order)), len(order) - num])
    router = fit_router(inputs[fitted], norms[fitted], generator)
    split = LayerSplit(shared=shared, experts=experts, router=router)
    return split, {
        "shared": (strengths[:, shared].sum() / strengths.sum()).item(),
        "best": _share_of_top(norms[kept], norms[kept], settings.top_k),
        "routed": _share_of_top(norms[kept], F.linear(inputs[kept], router), settings.top_k),
    }


def group_neurons(strengths, num_groups, seed):
    """Equal groups of neurons that answer to the same tokens; `[neurons]` int64.

    Correlations of the square roots of `strengths` `[tokens, neurons]`; seeds as in k-means++, then
    a balanced k-means whose assignments are optimal.
    """
    centred = strengths.sqrt()
    centred = centred - centred.mean(0)
    centred = centred / centred.norm(dim=0).clamp(min=1e-12)
    similarity = (centred.T @ centred).double().numpy()
    num_neurons = len(similarity)
    size = num_neurons // num_groups
    rng = np.random.default_rng(seed)
    seeds = [int(rng.integers(num_neurons))]
    while len(seeds) < num_groups:
        far = np.clip(1 - similarity[:, seeds].max(1), 1e-6, None) ** 2
        far[seeds] = 0
        seeds.append(int(rng.choice(num_neurons, p=far / far.sum())))
    closeness = similarity[:, seeds]
    for _ in range(_REGROUPINGS):
        places = linear_sum_assignment(np.repeat(closeness, size, axis=1), maximize=True)[1]
        groups = places // size
        closeness = similarity @ np.eye(num_groups)[groups] / size
        closeness[np.arange(num_neurons), groups] -= 1 / size  # a neuron is not close to itself
    return torch.from_numpy(groups)


def _output_norms(answers, down, experts):
    """Norm of what each expert adds to each token, `[tokens, E]`."""
    norms = []
    for neurons in experts:
        products = down[:, neurons].T @ down[:, neurons]
        squared = ((answers[:, neurons] @ products) * answers[:, neurons]).sum(1)
        norms.append(squared.clamp(min=1e-12).sqrt())
    return torch.stack(norms, 1)


def fit_router(inputs, norms, generator):
    """The linear map whose softmax is nearest to each expert's share of the norms, by KL."""
    shares = norms / norms.sum(1, keepdim=True)
    router = torch.zeros(norms.shape[1], inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([router], _ROUTER_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _ROUTER_STEPS)
    for _ in range(_ROUTER_STEPS):
        rows = torch.randint(len(inputs), (_ROUTER_BATCH,), generator=generator)
        loss = F.cross_entropy(F.linear(inputs[rows], router), shares[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return router.detach()


def _share_of_top(norms, scores, k):
    chosen = norms.gather(1, scores.topk(k).indices).sum(1)
    return (chosen / norms.sum(1)).mean().item()


def mixture_config(dense, settings):
    """A Granite mixture that computes attention, norms and embeddings as the dense Llama does."""
    num_routed = dense.intermediate_size - settings.num_shared
    return GraniteMoeSharedConfig(
        vocab_size=dense.vocab_size,
        hidden_size=dense.hidden_size,
        intermediate_size=num_routed // settings.num_experts,
        shared_intermediate_size=settings.num_shared,
        num_local_experts=settings.num_experts,
        num_experts_per_tok=settings.top_k,
        num_hidden_layers=dense.num_hidden_layers,
        num_attention_heads=dense.num_attention_heads,
        num_key_value_heads=dense.num_key_value_heads,
        max_position_embeddings=dense.max_position_embeddings,
        rms_norm_eps=dense.rms_norm_eps,
        rope_parameters=dict(dense.rope_parameters),
        hidden_act=dense.hidden_act,
        attention_multiplier=dense.head_dim**-0.5,
        embedding_multiplier=1.0,
        residual_multiplier=1.0,
        logits_scaling=1.0,
        tie_word_embeddings=dense.tie_word_embeddings,
        bos_token_id=dense.bos_token_id,
        eos_token_id=dense.eos_token_id,
        pad_token_id=dense.pad_token_id,
    )


def dense_as_mixture(dense, settings):
    """The dense model as a mixture whose experts are always all chosen, for what takes mixtures."""
    config = dense.config
    settings = replace(settings, num_experts=2, top_k=2, num_shared=0, router_scale=0.0)
    halves = LayerSplit(
        shared=torch.empty(0, dtype=torch.int64),
        experts=torch.arange(config.intermediate_size).view(2, -1),
        router=torch.zeros(2, config.hidden_size),
    )
    return build_mixture(dense, [halves] * config.num_hidden_layers, settings)


@torch.no_grad()
def build_mixture(dense, splits, settings):
    """The mixture; its experts give `top_k` times what they were split from: weights sum to 1."""
    model = GraniteMoeSharedForCausalLM(mixture_config(dense.config, settings)).float().eval()
    weights = {name: w for name, w in dense.state_dict().items() if ".mlp." not in name}
    for index, (split, layer) in enumerate(zip(splits, dense.model.layers, strict=True)):
        gate, up, down = (
            projection.weight
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
        )
        at, experts, shared = f"model.layers.{index}.", split.experts, split.shared
        routed = f"{at}block_sparse_moe."
        weights[f"{routed}router.weight"] = split.router * settings.router_scale
        weights[f"{routed}experts.gate_up_proj"] = torch.cat([gate[experts], up[experts]], 1)
        weights[f"{routed}experts.down_proj"] = (
            down[:, experts].transpose(0, 1).contiguous() * settings.top_k
        )
        if settings.num_shared:
            weights[f"{at}shared_mlp.input_linear.weight"] = torch.cat([gate[shared], up[shared]])
            weights[f"{at}shared_mlp.output_linear.weight"] = down[:, shared].contiguous()
    model.load_state_dict(weights)
    model.tie_weights()
    return model
