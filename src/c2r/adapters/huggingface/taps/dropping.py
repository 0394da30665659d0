"""Whether a model lets go of experts: the check before a policy may drop some."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from c2r.adapters.huggingface.models import model_type
from c2r.adapters.huggingface.routers.probe import FORWARD_ERRORS, run_tiny
from c2r.adapters.huggingface.taps.tap import TappedRouter, output_entries
from c2r.errors import ModelError
from c2r.routing import RoutingPolicy


def check_dropping(
    model: nn.Module, tapped: Sequence[TappedRouter], dropping: Sequence[TappedRouter]
) -> None:
    """Runs the model with all experts of a token dropped but its top-1, in the `dropping` routers.

    The policies and counts of all routers, `tapped`, are put back.

    Raises:
        ModelError: a router shows no weights, or gives a dropped expert any.
    """
    if not dropping:
        return
    with _keeping_taps(tapped):
        for router in dropping:
            router.c2r_policy = _KeepTop1()
        try:
            run_tiny(model)
            failed = next((router for router in dropping if not _weighs_only_top1(router)), None)
        except FORWARD_ERRORS:  # JetMoE cannot be told the same expert twice
            failed = dropping[0]
    if failed is not None:
        raise ModelError(
            f"router {failed.c2r_site.name} of {model_type(model)} does not weigh its experts in a "
            "way by which one could be dropped exactly; plan with the budgeted policy, which "
            "replaces them"
        )


@contextmanager
def _keeping_taps(routers: Sequence[TappedRouter]) -> Iterator[None]:
    """Records inside the block; policies and counts are put back, decisions are forgotten."""
    state = routers[0].c2r_tap.state
    was_recording, state.is_recording = state.is_recording, True
    before = [
        (router, router.c2r_policy, router.c2r_tap.num_tokens, router.c2r_tap.num_filled)
        for router in routers
    ]
    try:
        yield
    finally:
        state.is_recording = was_recording
        state.forget()
        for router, policy, num_tokens, num_filled in before:
            tap, router.c2r_policy = router.c2r_tap, policy
            tap.num_tokens, tap.num_filled = num_tokens, num_filled
            tap.choices.clear()


class _KeepTop1(RoutingPolicy):
    drops_experts = True

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        return scores.detach().argmax(-1, keepdim=True).repeat_interleave(k, dim=-1)


def _weighs_only_top1(router: TappedRouter) -> bool:
    """Whether each output showed weights `[..., k]` that are 0 but for the first."""
    choices = router.c2r_tap.choices
    shown = [
        entry
        for choice in choices
        for entry in output_entries(choice.output)
        if isinstance(entry, Tensor)
        and entry.is_floating_point()
        and entry.ndim >= 2
        and entry.shape[-1] == router.c2r_site.top_k
    ]
    return len(shown) == len(choices) and all(
        bool((entry[..., 0] != 0).all() and (entry[..., 1:] == 0).all()) for entry in shown
    )
