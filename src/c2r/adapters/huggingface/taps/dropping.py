"""Whether a model lets go of experts: the check before a policy may drop some."""

from collections.abc import Sequence

from torch import Tensor, nn

from c2r.adapters.huggingface.routers.probe import FORWARD_ERRORS, run_tiny
from c2r.adapters.huggingface.routers.sites import model_type, output_entries
from c2r.adapters.huggingface.taps.tap import Tap
from c2r.errors import ModelError
from c2r.routing import RoutingPolicy


def check_dropping(model: nn.Module, taps: Sequence[Tap]) -> None:
    """Runs the tapped model with all experts of a token dropped but its top-1.

    The policies and counts of the taps are put back.

    Raises:
        ModelError: a router shows no weights, or gives a dropped expert any.
    """
    if not taps:
        return
    policies = [tap.site.module.c2r_policy for tap in taps]
    state, was_recording = taps[0].state, taps[0].state.is_recording
    state.is_recording = True
    try:
        for tap in taps:
            tap.site.module.c2r_policy = _KeepTop1()
        run_tiny(model)
        failed = next((tap.site.name for tap in taps if not _weighs_only_top1(tap)), None)
    except FORWARD_ERRORS:  # JetMoE cannot be told the same expert twice
        failed = taps[0].site.name
    finally:
        state.is_recording = was_recording
        for tap, policy in zip(taps, policies, strict=True):
            tap.site.module.c2r_policy = policy
            tap.choices.clear()
            tap.reset()
    if failed is not None:
        raise ModelError(
            f"router {failed} of {model_type(model)} does not weigh its experts in a way by which "
            "one could be dropped exactly; plan with the budgeted policy, which replaces them"
        )


class _KeepTop1(RoutingPolicy):
    drops_experts = True

    def forward(self, scores: Tensor, k: int, blocked: Tensor | None = None) -> Tensor:
        return scores.detach().argmax(-1, keepdim=True).repeat_interleave(k, dim=-1)


def _weighs_only_top1(tap: Tap) -> bool:
    shown = [
        entry
        for choice in tap.choices
        for entry in output_entries(choice.output)
        if isinstance(entry, Tensor)
        and entry.is_floating_point()
        and entry.shape[-1] == tap.site.top_k
    ]
    return len(shown) == len(tap.choices) and all(
        bool((entry[..., 0] != 0).all() and (entry[..., 1:] == 0).all()) for entry in shown
    )
