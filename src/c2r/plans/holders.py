"""Which replica of an expert a token takes, where experts live on several ranks.

The choice depends on the token's experts and the plan alone, not on the batch: what is predicted
from routing sets is then what a dispatcher sends.
"""

import numpy as np

from c2r.types import Bool, Int

NO_EXPERTS: Int = np.empty((0, 0), dtype=np.int64)
"""What a layer without replicas, or without lists of partners, has of them."""


def assign_ranks(expert_ids: Int, holders: Bool, ranks_per_node: int | None = None) -> Int:
    """The rank that computes each of a token's experts.

    A token visits the ranks of its experts that live on one rank only. While one of its experts
    is on no visited rank, it visits another: the rank that holds most such experts, but a rank of
    a visited node before any other. Each expert is then computed on a visited rank that holds it.
    Of equal ranks the first is taken, counted upwards from the sum of the token's expert ids modulo
    R, so that tokens are spread over them. Nothing depends on the order of the experts.

    Expert 0 on ranks 0 and 1 and expert 1 on rank 1: a token with both visits rank 1 only, a token
    with expert 0 alone rank 0.

    Args:
        expert_ids: `[tokens, k]` distinct expert ids in each row.
        holders: `[E, ranks]` bool, the ranks that hold each expert, at least one.
        ranks_per_node: ranks on each node; one node where None.

    Returns:
        `[tokens, k]` int64.
    """
    num_ranks = holders.shape[1]
    several = holders.sum(1)[expert_ids] > 1
    ranks: Int = holders.argmax(1)[expert_ids]  # final for experts that only one rank holds
    visited = np.zeros((len(expert_ids), num_ranks), dtype=np.bool_)
    tokens, column = np.nonzero(~several)
    visited[tokens, ranks[tokens, column]] = True
    tokens, column = np.nonzero(several)
    held = holders[expert_ids[tokens, column]]
    # Each rank's precedence among equals, R - 1 for the first: counted from the token's own start,
    # so that ties spread over ranks and the order of the experts does not matter.
    turn = (expert_ids.sum(1)[tokens, None] - 1 - np.arange(num_ranks)) % num_ranks
    _visit_more(visited, tokens, held, turn, ranks_per_node or num_ranks)
    ranks[tokens, column] = np.where(held & visited[tokens], turn, -1).argmax(1)
    return ranks


def _visit_more(visited: Bool, tokens: Int, held: Bool, turn: Int, ranks_per_node: int) -> None:
    """Adds to `visited` `[tokens, ranks]` until each choice has a visited holder.

    `tokens` `[choices]` ascending are the tokens whose choices they are, `held` `[choices, ranks]`
    the ranks that hold the chosen expert.
    """
    num_choices, num_ranks = held.shape
    while True:
        missing = ~(held & visited[tokens]).any(1)
        tokens, held, turn = tokens[missing], held[missing], turn[missing]
        if len(tokens) == 0:
            return
        # One rank for every token that still misses one, then look again: at most R rounds.
        some, first = np.unique(tokens, return_index=True)
        serves = np.add.reduceat(held, first, axis=0, dtype=np.int64)
        nodes = visited[some].reshape(len(some), -1, ranks_per_node).any(2)
        near = nodes.repeat(ranks_per_node, axis=1) & (serves > 0)
        # Three keys in one number, so that one argmax decides: near ranks first (none serves more
        # than num_choices), then by how many choices they serve, then by turn, which is below R.
        visited[some, ((serves + num_choices * near) * num_ranks + turn[first]).argmax(1)] = True


def experts_of(placement: Int, replicas: Int, rank: int) -> Int:
    """The experts on `rank` in the order of their slots: its own ascending, then replicas.

    Placement `[1, 0, 1]` with replicas `[[0], [1]]` puts `[1, 0]` on rank 0, `[0, 2, 1]` on 1.
    """
    own = np.flatnonzero(placement == rank)
    return np.concatenate([own, replicas[rank]]) if replicas.size else own


def holders_of(placement: Int, replicas: Int, num_ranks: int) -> Bool:
    """`[E, ranks]` bool: the ranks that hold each expert.

    Args:
        placement: `[E]` the rank of each expert.
        replicas: `[ranks, r]` further experts of each rank; empty for none.
        num_ranks: R.
    """
    holders: Bool = placement[:, None] == np.arange(num_ranks)
    if replicas.size:
        holders[replicas, np.arange(num_ranks)[:, None]] = True
    return holders
