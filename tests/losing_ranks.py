"""Work that ranks share out, done again and again while ranks are lost."""

import random

from c2r.parallel import simulate


def after_losses(seed, work):
    """What each rank of the last start has, after up to three starts whose ranks were lost.

    Args:
        seed: draws the starts, their numbers of ranks, and when each rank is lost.
        work: takes a `Comm`, None for one process, and when each rank is lost, None for never.
    """
    rng = random.Random(seed)
    for _ in range(rng.randint(0, 3)):
        size = rng.choice([2, 3, 3])
        stops = [rng.randint(0, 4) for _ in range(size)]
        simulate(size, lambda comm, stops=stops: work(comm, stops))
    size = rng.choice([1, 2, 3])
    return [work(None, None)] if size == 1 else simulate(size, lambda comm: work(comm, None))
