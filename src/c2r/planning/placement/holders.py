"""Which copy of an expert a token takes, where experts live on several ranks.

The choice depends on the token's experts and the plan alone, not on the batch: what is predicted
from routing sets is then what a dispatcher sends.
"""

import numpy as np
import numpy.typing as npt

from c2r.planning.placement.copies import Int

Bool = npt.NDArray[np.bool_]


def assign_ranks(expert_ids: Int, holders: Bool, ranks_per_node: int | None = None) -> Int:
    """The rank that computes each of a token's experts.

    A token visits the ranks of its experts that live on one rank only. While one of its experts
    is on no visited rank, it visits another: the rank that holds most such experts, among the
    ranks of visited nodes if any of these holds one; of equals the lowest. Each expert is then
    computed on the lowest visited rank that holds it. Lowest is least loaded: `make_plan` numbers
    the ranks of a layer with replicas by the load of their own experts.

    Expert 0 on ranks 0 and 1 and expert 1 on rank 1: a token with both visits rank 1 only, a token
    with expert 0 alone rank 0.

    Args:
        expert_ids: `[tokens, k]` in any order, which does not matter.
        holders: `[E, ranks]` bool, the ranks that hold each expert, at least one.
        ranks_per_node: ranks on each node; one node where None.

    Returns:
        `[tokens, k]` int64.
    """
    held = holders[expert_ids]
    visited = _visited_ranks(held, ranks_per_node or holders.shape[1])
    ranks: Int = (held & visited[:, None]).argmax(2)
    return ranks


def _visited_ranks(held: Bool, ranks_per_node: int) -> Bool:
    """Ranks that each token visits, `[tokens, ranks]`, for the holders `[tokens, k, ranks]`."""
    top_k, num_ranks = held.shape[1:]
    visited: Bool = (held & (held.sum(2, keepdims=True) == 1)).any(1)
    tokens = np.arange(len(held))
    while True:
        missing = ~(held[tokens] & visited[tokens, None]).any(2)
        unserved = missing.any(1)
        tokens, missing = tokens[unserved], missing[unserved]
        if len(tokens) == 0:
            return visited
        serves = (held[tokens] & missing[:, :, None]).sum(1)
        nodes = visited[tokens].reshape(len(tokens), -1, ranks_per_node).any(2)
        near = nodes.repeat(ranks_per_node, axis=1)
        preference = serves + np.where(near & (serves > 0), top_k, 0)
        visited[tokens, preference.argmax(1)] = True


def holders_of(placement: Int, replicas: Int, num_ranks: int) -> Bool:
    """`[E, ranks]` bool: the ranks that hold each expert.

    Args:
        placement: `[E]` the rank of each expert.
        replicas: `[ranks, r]` further experts of each rank; empty for none.
        num_ranks: R.
    """
    holders = placement[:, None] == np.arange(num_ranks)
    if replicas.size:
        holders[replicas, np.arange(num_ranks)[:, None]] = True
    return holders
