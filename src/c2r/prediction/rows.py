"""What each dispatcher sends to each rank."""

import numpy as np

from c2r.errors import InputError
from c2r.plans import ClusterTopology
from c2r.prediction.shares import RankShares
from c2r.types import Float

DISPATCHERS = ("k_fold", "all_gather", "zero_redundancy", "hierarchical")
"""By the names of `c2r.parallel`."""
DISPATCH_WORDS = {
    "k_fold": "once per expert",
    "all_gather": "to all ranks",
    "zero_redundancy": "once per rank",
    "hierarchical": "once per node, then per rank",
}
"""How each sends a token's row, as outputs call it."""


def dispatch_words(before: str, after: str) -> str:
    """How each sends a token's row without a plan and under it."""
    one, other = (DISPATCH_WORDS.get(name, name) for name in (before, after))
    return one if one == other else f"{one} before, {other} after"


def rows_by_rank(
    shares: RankShares, topology: ClusterTopology, dispatcher: str
) -> tuple[Float, Float]:
    """Rows that each rank sends, or receives if those are more, per token of a rank.

    Returns:
        `[ranks]` to and from the others of its node, and `[ranks]` to and from other nodes.
    """
    per_node, num_nodes = topology.ranks_per_node, topology.num_nodes
    visits, nodes = visits_by_rank(shares, dispatcher), shares.node_visits
    here = visits.reshape(-1, per_node).sum(1).repeat(per_node)
    if dispatcher == "hierarchical":
        # Two hops, one after the other: rows are forwarded when they have arrived at the node.
        between = np.maximum(nodes * (num_nodes - 1), nodes.sum() - nodes).repeat(per_node)
        inside = np.maximum(visits * (len(visits) - num_nodes), num_nodes * (here - visits))
        return inside, between
    inside = np.maximum(visits * (per_node - 1), here - visits)
    return inside, np.maximum(visits * (len(visits) - per_node), visits.sum() - here)


def visits_by_rank(shares: RankShares, dispatcher: str) -> Float:
    """`[ranks]` rows per token that are sent to each rank. Raises `InputError` for one unknown."""
    if dispatcher == "k_fold":
        return shares.rows
    if dispatcher == "all_gather":
        return np.ones_like(shares.visits)
    if dispatcher in DISPATCHERS:
        return shares.visits
    raise InputError(f"there is no dispatcher {dispatcher!r}; choose {', '.join(DISPATCHERS)}")
