"""transformers' experts on `c2r`'s layer: `model.set_experts_implementation("c2r")`."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from c2r.ops.gated_activation import silu_gated
from c2r.ops.grouped_linear import grouped_linear
from c2r.ops.local_moe import local_moe


def experts_forward(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The weighted sums `[tokens, h]`, as the module's own forward gives them."""
    output = local_moe(
        hidden_states,
        top_k_index,
        top_k_weights,
        partial(_run_experts, module),
        module.num_experts,
    )
    return output.to(hidden_states.dtype)


def _run_experts(module: Any, rows: Tensor, counts: Tensor) -> Tensor:
    """The experts of `module` on rows `[rows, h]` by expert; rows beyond the counts become 0."""
    # Ids of experts elsewhere come as E. Their rows lie last and are in no product: memory there
    # may hold NaN, which the weight 0 does not undo. So they are zeroed after each step.
    is_none = None
    if module._is_expert_parallel:
        is_none = (torch.arange(len(rows), device=rows.device) >= counts.sum())[:, None]
        rows = rows.masked_fill(is_none, 0)
    rows = _linear(module, "gate_up_proj" if module.has_gate else "up_proj", rows, counts)
    if is_none is not None:
        rows = rows.masked_fill(is_none, 0)
    rows = _activate(module, rows)
    rows = _linear(module, "down_proj", rows, counts)
    if is_none is not None:
        rows = rows.masked_fill(is_none, 0)
    # transformers before 5.23 has no family with such a norm, nor the attribute.
    if getattr(module, "has_post_expert_norm", False):
        rows = module.post_expert_norm(rows)
    return rows


def _activate(module: Any, rows: Tensor) -> Tensor:
    if not module.has_gate:
        activated: Tensor = module.act_fn(rows)
        return activated
    # The fused kernel knows SwiGLU only; a family with a gate of its own keeps it.
    is_plain = type(module)._apply_gate is _default_apply_gate
    if is_plain and isinstance(module.act_fn, nn.SiLU):
        return silu_gated(rows)
    gated: Tensor = module._apply_gate(rows)
    return gated


def _linear(module: Any, name: str, rows: Tensor, counts: Tensor) -> Tensor:
    weight = getattr(module, name)
    weight = weight if module.is_transposed else weight.transpose(-2, -1)
    product = grouped_linear(rows.to(weight.dtype), weight, counts)
    if not module.has_bias:
        return product
    # Whose row is it? By the ends of the experts' rows, without reading counts back to the host.
    positions = torch.arange(len(rows), device=rows.device)
    experts = torch.searchsorted(counts.cumsum(0), positions, right=True).clamp_(
        max=len(counts) - 1
    )
    bias: Tensor = getattr(module, name + "_bias")
    return product + bias[experts]


ALL_EXPERTS_FUNCTIONS.register("c2r", experts_forward)
