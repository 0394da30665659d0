"""Routing drawn at random, for models of which no routing is at hand."""

import numpy as np

from c2r.errors import InputError
from c2r.profiling.id_builder import IdProfileBuilder
from c2r.profiling.profile import CollaborationProfile

_MOST_EXPERTS = 65_536


def draw_profile(
    num_experts: int,
    top_k: int,
    skew: float,
    *,
    num_layers: int = 1,
    num_tokens: int = 16_384,
    seed: int = 0,
) -> CollaborationProfile:
    """A profile of tokens that choose experts independently, some experts more often than others.

    Expert e has the weight exp(skew z_e), z_e drawn from a standard normal distribution; a token
    draws k experts by these weights without replacement (Gumbel top-k). At skew 0 all experts are
    alike. No two experts belong together: what a placement saves comes from load alone.

    Raises:
        InputError: k is not between 1 and the number of experts, or the skew is not between 0 and
            5.
    """
    if not 1 <= top_k <= num_experts <= _MOST_EXPERTS:
        raise InputError(
            f"{num_experts} experts with k = {top_k}; give 1 to {_MOST_EXPERTS:,} experts, and k "
            "no larger"
        )
    if not 0 <= skew <= 5:
        raise InputError(f"a skew of {skew:g}; give 0 (all alike) to 5, such as 0.5")
    builder = IdProfileBuilder(num_experts, is_ordered=True)
    for layer in range(num_layers):
        rng = np.random.default_rng([seed, layer])
        weights = skew * rng.standard_normal(num_experts)
        scores = weights + rng.gumbel(size=(num_tokens, num_experts))
        builder.update(layer, np.argsort(-scores, axis=1)[:, :top_k])
    return builder.build(dict.fromkeys(range(num_layers), ""))
