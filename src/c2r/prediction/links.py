"""The exchange where links are not alike: from each rank to each at its own rate."""

import numpy as np

from c2r.prediction.cluster import Cluster
from c2r.types import Float

_BYTES_PER_SECOND = 1e9


def seconds_by_link(
    visits: Float, node_visits: Float, cluster: Cluster, sent: float, is_hierarchical: bool
) -> tuple[Float, Float]:
    """Seconds in which each rank sends, or receives if that is longer, inside and between nodes.

    A rank sends to one peer after the other: it takes the sum over peers of bytes over the
    bandwidth to that peer, and alike to receive. Latency is not counted.

    Args:
        visits: `[ranks]` rows per token that come to each rank.
        node_visits: `[nodes]` the same of nodes.
        cluster: with `link_gigabytes`.
        sent: bytes of all tokens of a rank.
        is_hierarchical: rows go to the rank of the same place on each node, and then inside.

    Returns:
        `[ranks]` inside nodes, and `[ranks]` between them.
    """
    ranks = np.arange(cluster.num_ranks)
    nodes, places = np.divmod(ranks, cluster.topology.ranks_per_node)
    same_node = nodes[:, None] == nodes
    to_ranks = np.tile(visits, (len(ranks), 1))
    within, across = to_ranks * same_node, to_ranks * ~same_node
    if is_hierarchical:
        within = within * cluster.num_nodes
        doors = ~same_node & (places[:, None] == places)
        across = node_visits[nodes] * doors
    rates = np.array(cluster.link_gigabytes) * _BYTES_PER_SECOND
    np.fill_diagonal(rates, np.inf)
    inside, between = (
        np.maximum(t.sum(0), t.sum(1)) for t in (within * sent / rates, across * sent / rates)
    )
    return inside, between
