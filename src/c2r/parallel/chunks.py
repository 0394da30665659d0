"""Into how many parts a batch is cut: found by a trial."""

import time

import torch
from torch import Tensor

from c2r.parallel.dispatch import Dispatcher
from c2r.parallel.layer import ExpertsFn, parallel_moe

TRIED_CHUNKS = (1, 2, 4, 8)
"""Twice as many save at most half of what is left. Chosen by hand."""
_ROUNDS = 3  # the first warms up


def fastest_chunks(
    hidden: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    experts_fn: ExpertsFn,
    dispatcher: Dispatcher,
) -> int:
    """The number of chunks with which `parallel_moe` takes least; arguments as there.

    Each of `TRIED_CHUNKS` runs three times without gradients, in turn; the first time warms up. All
    ranks find the same number, as their times are added up. It may differ from run to run.

    Raises:
        RoutingError, CommunicationError: as `parallel_moe`.
    """
    observer, dispatcher.observer = dispatcher.observer, None
    comm = dispatcher.comm
    # Whole nanoseconds, whose sum over ranks is the same on each of them.
    spent = torch.zeros(len(TRIED_CHUNKS), dtype=torch.int64, device=comm.device)
    with torch.no_grad():
        for round_ in range(_ROUNDS):
            for column, number in enumerate(TRIED_CHUNKS):
                comm.barrier()
                before = _now(comm.device)
                parallel_moe(hidden, expert_ids, weights, experts_fn, dispatcher, number)
                if round_ > 0:
                    spent[column] += _now(comm.device) - before
    dispatcher.observer = observer
    comm.all_reduce(spent)
    return TRIED_CHUNKS[int(spent.argmin())]


def _now(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns()
