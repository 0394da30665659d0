"""Whether a mixture's routing matters: its loss when routers are not obeyed."""

from collections import Counter
from contextlib import contextmanager

import torch

from .distilling import loss_of

CHOICES = ("own", "another token's", "at random", "always the same", "none")


def losses_by_choice(model, windows, seed=0):
    """Loss by whose choice of experts is used; weights are those of the choice.

    `another token's` is that of the token drawn in its place from the same windows; `always the
    same` the most used experts with equal weights; `none` leaves the shared expert alone.
    """
    counts = _count(model, windows)
    found = {}
    for choice in CHOICES:
        generator = torch.Generator().manual_seed(seed)
        with _choosing(model, choice, counts, generator):
            found[choice] = loss_of(model, windows)
    return found


def _routers(model):
    return [layer.block_sparse_moe.router for layer in model.model.layers]


def _count(model, windows):
    """How often each expert of each layer is chosen."""
    counts = [Counter() for _ in _routers(model)]
    hooks = [
        router.register_forward_hook(
            lambda _, __, out, mine=mine: mine.update(out[2].flatten().tolist())
        )
        for router, mine in zip(_routers(model), counts, strict=True)
    ]
    loss_of(model, windows[:8])
    for hook in hooks:
        hook.remove()
    return counts


@contextmanager
def _choosing(model, choice, counts, generator):
    hooks = []
    for router, used in zip(_routers(model), counts, strict=True):
        usual = torch.tensor([expert for expert, _ in used.most_common(router.top_k)])
        change = _change(choice, usual, router.num_experts, generator)
        hooks.append(router.register_forward_hook(change))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _change(choice, usual, num_experts, generator):
    """A hook on a router whose outputs are logits, weights and ids."""

    def change(_, __, outputs):
        logits, weights, ids = outputs
        if choice == "another token's":
            order = torch.randperm(len(ids), generator=generator)
            return logits, weights[order], ids[order]
        if choice == "at random":
            drawn = torch.rand(len(ids), num_experts, generator=generator)
            return logits, torch.full_like(weights, 1 / ids.shape[1]), drawn.topk(ids.shape[1])[1]
        if choice == "always the same":
            return logits, torch.full_like(weights, 1 / ids.shape[1]), usual.expand_as(ids)
        if choice == "none":
            return logits, torch.zeros_like(weights), ids
        return None

    return change
