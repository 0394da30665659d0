"""Losses besides the language-model loss: balance of the load, and a KL anchor."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from c2r.errors import ModelError
from c2r.parallel import Comm
from c2r.traces import LayerTrace, RoutingTrace, ScoreKind, score_mass, used_places

_ROWS = 1024
"""Rows of logits that are widened to float32 at a time: 0.5 GB at a vocabulary of 128,000.
Chosen by hand."""


def balance_loss(trace: RoutingTrace, mask: Tensor, comm: Comm | None = None) -> Tensor:
    """E * sum_i f_i * p_i of the experts that were chosen, as transformers pools it over layers.

    f_i is the number of experts i per token and p_i the mean probability of expert i, both means
    over the tokens of all layers and processes. Where nothing constrains the routing this is
    transformers' `load_balancing_loss_func`; under a policy, that one would count experts that
    were not used. Even load over E experts gives k.

    Args:
        trace: of one forward pass, padding included, scores attached to the graph.
        mask: `[tokens]` bool, the tokens that count.
        comm: the processes that share the batch, where they are several. The gradient of each is
            then that of its own tokens; the mean of the processes' gradients, as DDP takes it, is
            that of the loss.

    Raises:
        ModelError: the layers do not have the same experts.
        CommunicationError: a process does not answer.
    """
    widths = {layer.scores.shape[-1] for layer in trace.layers}
    if len(widths) != 1:
        raise ModelError(
            f"layers of {', '.join(map(str, sorted(widths)))} experts have no balance loss in "
            "common; set aux_weight to 0"
        )
    num_experts = widths.pop()
    counts = torch.stack([_count(layer, mask) for layer in trace.layers]).sum(0)
    mass = torch.stack([_probabilities(layer)[mask].sum(0) for layer in trace.layers]).sum(0)
    totals = torch.cat([counts, (mask.sum() * len(trace.layers)).to(counts.dtype)[None]])
    # Counts carry no gradient, so one sum over processes is all that the frequencies need.
    if comm is not None:
        comm.all_reduce(totals)
    num_processes = 1 if comm is None else comm.size
    frequency, num_rows = totals[:-1] / totals[-1], totals[-1]
    return num_experts * num_processes * (frequency * mass).sum() / num_rows


def _count(layer: LayerTrace, mask: Tensor) -> Tensor:
    """`[E]` tokens of each expert, dropped ones left out."""
    ids = layer.expert_ids[mask]
    return torch.bincount(ids[used_places(ids)], minlength=layer.scores.shape[-1]).float()


def _probabilities(layer: LayerTrace) -> Tensor:
    """`[tokens, E]` scores that sum to 1; gates, each between 0 and 1, are made to."""
    mass = score_mass(layer.scores, layer.score_kind)
    return mass / mass.sum(-1, keepdim=True) if layer.score_kind is ScoreKind.GATES else mass


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of all targets `[rows]` under logits `[rows, vocabulary]`, added up."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def divergence_sum(logits: Tensor, reference: Tensor) -> Tensor:
    """KL from the distributions of `reference` to the ones of `logits`, nats, summed over rows.

    Args:
        logits: `[rows, vocabulary]`.
        reference: the same; no gradient flows to it.
    """
    total: Tensor = _Divergence.apply(logits, reference)  # type: ignore[no-untyped-call]
    return total


class _Divergence(torch.autograd.Function):
    """Computes the gradient in the forward pass, so that no float32 copy of all logits is held."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, reference: Tensor) -> Tensor:
        gradient = torch.empty_like(logits)
        total = logits.new_zeros((), dtype=torch.float32)
        for start in range(0, len(logits), _ROWS):
            part = slice(start, start + _ROWS)
            ours = logits[part].float().log_softmax(-1)
            theirs = reference[part].float().log_softmax(-1)
            chance = theirs.exp()
            # 0 * log 0 is 0, but -inf times 0 is NaN: masked where the reference excludes a token.
            total += (chance * (theirs - ours)).masked_fill_(chance == 0, 0.0).sum()
            gradient[part] = ours.exp_().sub_(chance)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype), None
