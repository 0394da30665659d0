"""An objective for routers that needs no backward pass: each layer against its own original.

On what a layer is given, its experts' sum under the constraint should be that of the original
router without constraint. The only gradient is that of the routing weights, so the rest of the
model runs forward only, and of the experts that the original would have chosen only those run
that did not run anyway.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from c2r.adapters.huggingface import RouterSite, find_sites
from c2r.adapters.huggingface.sites import output_entries
from c2r.errors import ModelError

_STRIDE = 4
"""One token in so many is compared: another one gives the routers little that is new."""

Routing = tuple[Tensor, Tensor]
"""Expert ids and their weights, `[tokens, k]` each."""


@contextmanager
def local_objective(
    model: nn.Module, originals: Mapping[nn.Parameter, Tensor], mask: Tensor
) -> Iterator[list[Tensor]]:
    """Collects a loss from every layer that runs inside the block, and cuts the graph behind it.

    A loss is the mean squared error of the experts' weighted sum, over the mean square of the
    original's.

    Args:
        model: tapped by a plan.
        originals: weights of the routers before training, by the parameters that train.
        mask: `[tokens]` bool, the tokens that count.

    Raises:
        ModelError: a router shows no ids and weights, or its block has no experts that take them.
    """
    losses: list[Tensor] = []
    layers = [_Layer(model, site, originals) for site in find_sites(model)]
    try:
        for layer in layers:
            layer.install(mask, losses)
        yield losses
    finally:
        for layer in layers:
            layer.remove()


class _Layer:
    def __init__(
        self,
        model: nn.Module,
        site: RouterSite,
        originals: Mapping[nn.Parameter, Tensor],
    ) -> None:
        block = model.get_submodule(site.name.rpartition(".")[0])
        experts = getattr(block, "experts", None)
        if not isinstance(experts, nn.Module):
            raise ModelError(f"router {site.name} has no experts beside it; use the loss lm")
        self.site, self.router, self.experts = site, site.module, experts
        self.originals = {p: originals[p] for p in site.module.parameters()}
        self.run: Callable[..., Tensor] = experts.forward
        self.handle: Any = None
        self.original: Routing | None = None

    def install(self, mask: Tensor, losses: list[Tensor]) -> None:
        self.tokens, self.losses = mask.nonzero()[::_STRIDE, 0], losses
        self.handle = self.router.register_forward_pre_hook(self._ask_original, with_kwargs=True)
        self.experts.forward = self._compare

    def remove(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            del self.experts.forward

    def _ask_original(self, router: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.original is not None:  # this is the question itself
            return
        trained = {parameter: parameter.data for parameter in self.originals}
        policy, state = router.c2r_policy, router.c2r_tap.state
        self.original = (torch.empty(0), torch.empty(0))
        router.c2r_policy, state.is_running = None, False
        try:
            for parameter, data in self.originals.items():
                parameter.data = data
            with torch.no_grad():
                self.original = self._routing(router(*args, **kwargs))
        finally:
            router.c2r_policy, state.is_running = policy, True
            for parameter, data in trained.items():
                parameter.data = data

    def _routing(self, output: Any) -> Routing:
        entries = [
            entry.reshape(-1, self.site.top_k)
            for entry in output_entries(output)
            if isinstance(entry, Tensor) and entry.shape[-1] == self.site.top_k
        ]
        ids = [entry for entry in entries if not entry.is_floating_point()]
        weights = [entry for entry in entries if entry.is_floating_point()]
        if len(ids) != 1 or len(weights) != 1:
            raise ModelError(
                f"router {self.site.name} does not show its experts and their weights; use the "
                "loss lm"
            )
        return ids[0], weights[0]

    def _compare(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """The experts' sum, detached, with its error against the original's noted."""
        assert self.original is not None, "the router runs before its experts"
        (wanted, target), self.original = self.original, None
        with torch.no_grad():
            output = self.run(hidden, expert_ids, weights)
        part = self.tokens
        self.losses.append(
            self._error(
                hidden[part], (expert_ids[part], weights[part]), (wanted[part], target[part])
            )
        )
        return output

    def _error(self, hidden: Tensor, ours: Routing, theirs: Routing) -> Tensor:
        """Mean squared error of our sum over the mean square of theirs, each expert run once."""
        (chosen, weights), (wanted, target) = ours, theirs
        is_same = chosen[:, :, None] == wanted[:, None, :]
        is_other = ~is_same.any(1)
        rows, other_rows = self._outputs(hidden, chosen, wanted, is_other)
        shared = (is_same * target[:, None, :]).sum(-1)
        factors = torch.stack([weights - shared, shared], dim=1).to(rows.dtype)
        error, original = (factors @ rows).unbind(1)
        others = torch.zeros_like(hidden).index_add(
            0, is_other.nonzero()[:, 0], other_rows * target[is_other][:, None]
        )
        return (error - others).square().mean() / (original + others).square().mean()

    @torch.no_grad()
    def _outputs(
        self, hidden: Tensor, chosen: Tensor, wanted: Tensor, is_other: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs of the chosen experts `[tokens, k, h]` and of others `[rows, h]`, unweighted."""
        num_tokens, top_k = chosen.shape
        every = torch.arange(num_tokens, device=hidden.device).repeat_interleave(top_k)
        tokens = torch.cat([every, is_other.nonzero()[:, 0]])
        ids = torch.cat([chosen.flatten(), wanted[is_other]])
        rows = self.run(hidden[tokens], ids[:, None], hidden.new_ones(len(ids), 1))
        return rows[: len(every)].view(num_tokens, top_k, -1), rows[len(every) :]
