"""The policies token by token, in plain Python."""

import itertools


def top_k(scores, k, among=None):
    """The k best-scored expert ids, best first; lower ids first among equals."""
    pool = range(len(scores)) if among is None else among
    return sorted(pool, key=lambda expert: -scores[expert])[:k]


def mass_of(scores, experts):
    return sum(scores[expert] for expert in experts)


def on_ranks(placement, ranks):
    return [expert for expert, rank in enumerate(placement) if rank in ranks]


def rank_sets(num_ranks):
    for size in range(1, num_ranks + 1):
        yield from itertools.combinations(range(num_ranks), size)


def c2r(scores, k, partners):
    first = top_k(scores, 1)
    return first + top_k(scores, k - 1, partners[first[0]])


def group_limited(scores, k, placement, m):
    """DeepSeek-V3: the m ranks with the largest sums of their best ceil(k / m) scores."""

    def worth(rank):
        return mass_of(scores, top_k(scores, -(-k // m), on_ranks(placement, {rank})))

    best = sorted(range(max(placement) + 1), key=worth, reverse=True)[:m]
    return top_k(scores, k, on_ranks(placement, best))


def kept(scores, k, placement, ranks):
    """Share of the top-k mass that the best k on those ranks hold; None if fewer than k."""
    inside = on_ranks(placement, ranks)
    if len(inside) < k:
        return None
    return mass_of(scores, top_k(scores, k, inside)) / mass_of(scores, top_k(scores, k))


def fewest_ranks(scores, k, placement, eps):
    """How few ranks keep (1 - eps), and the most that so few can keep."""
    shares = [(len(r), kept(scores, k, placement, r)) for r in rank_sets(max(placement) + 1)]
    enough = [(size, share) for size, share in shares if share and share >= 1 - eps]
    size = min(size for size, _ in enough)
    return size, max(share for n, share in enough if n == size)


def best_value(scores, k, placement, price):
    """The most that any set of ranks keeps once each rank's price is paid."""
    shares = [(len(r), kept(scores, k, placement, r)) for r in rank_sets(max(placement) + 1)]
    return max(share - price * size for size, share in shares if share is not None)


def pruned(scores, k, placement, eps):
    """How few ranks of the top-k keep (1 - eps) of its mass, and the most that so few can."""
    best = top_k(scores, k)
    options = []
    for ranks in rank_sets(max(placement) + 1):
        inside = [expert for expert in best if placement[expert] in ranks]
        share = mass_of(scores, inside) / mass_of(scores, best)
        if share >= 1 - eps:
            options.append((len(ranks), share))
    size = min(size for size, _ in options)
    return size, max(share for n, share in options if n == size)
