"""Which experts may accompany a top-1 expert: its closest collaborators, closest first."""

import numpy as np

from c2r.types import Int


def order_partners(coactivation: Int) -> Int:
    """The other experts of each expert, those that it was chosen with most often first.

    `[[0, 2, 5], [2, 0, 1], [5, 1, 0]]` gives `[[2, 1], [0, 2], [0, 1]]`.

    Args:
        coactivation: `[E, E]` counts of tokens that chose both experts; the diagonal is ignored,
            so that an expert is never its own collaborator.

    Returns:
        `[E, E - 1]` int64; of equal counts the lower expert id comes first.
    """
    num_experts = len(coactivation)
    # The expert itself is moved to the front of its row, whatever its count, and cut off.
    keys = -coactivation.astype(np.float64)
    np.fill_diagonal(keys, -np.inf)
    order = np.argsort(keys, axis=1, kind="stable")
    return order[:, 1:].astype(np.int64).reshape(num_experts, max(num_experts - 1, 0))
