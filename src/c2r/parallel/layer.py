"""The expert-parallel layer: dispatch, experts, combine, with chunks that overlap."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from c2r.parallel.dispatch import Dispatcher
from c2r.parallel.pending import Pending
from c2r.prediction.pipeline import chunk_parts

ExpertsFn = Callable[[Tensor, Tensor], Tensor]
"""Rows `[rows, h]` by local expert and `[local experts]` int64 counts in, `[rows, h]` out."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def parallel_moe(
    hidden: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    experts_fn: ExpertsFn,
    dispatcher: Dispatcher,
    num_chunks: int = 1,
) -> Tensor:
    """The weighted sum of each token's experts, wherever these are.

    With several chunks the rows of the next travel to the experts and the results of the last
    travel back while the experts run on one. Backward overlaps in the same way. All ranks give the
    same number of chunks. torch.compile does not enter: a graph breaks here.

    Args:
        hidden: `[tokens, h]` of this rank.
        expert_ids: `[tokens, k]` int64; -1 for none.
        weights: `[tokens, k]` floats.
        experts_fn: this rank's experts; must let gradients through even for no rows.
        dispatcher: how rows travel.
        num_chunks: parts that the tokens are cut into.

    Returns:
        `[tokens, h]`.

    Raises:
        RoutingError: an expert id of any rank is out of range.
        CommunicationError: a rank does not answer.
    """
    sizes = chunk_sizes(len(hidden), num_chunks)
    routes = dispatcher.route(expert_ids, weights, sizes)
    chunks = torch.split(hidden, sizes)
    # The order of these starts is the overlap, and all ranks must start in the same order. Rows
    # leave as soon as those before them have arrived; copying and index work are done while rows
    # travel. Backward runs the same lines from the last to the first: what is started here waits
    # there, and what waits here is started there.
    arriving = dispatcher.start_sending(dispatcher.rows_to_send(chunks[0], routes[0]), routes[0])
    handles = [route.handle.wait() for route in routes]
    departing = []
    if num_chunks > 1:
        departing.append(dispatcher.rows_to_send(chunks[1], routes[1]))
    outputs: list[Tensor] = []
    returning: Pending[Tensor] | None = None
    for index, handle in enumerate(handles):
        if dispatcher.observer is not None:
            dispatcher.observer(handle)
        arrived = arriving.wait()
        if departing:
            arriving = dispatcher.start_sending(departing.pop(), routes[index + 1])
        rows = dispatcher.expert_rows(arrived, handle)
        results = dispatcher.rows_to_return(experts_fn(rows.hidden, rows.counts), handle)
        returned = None if returning is None else returning.wait()
        returning = dispatcher.start_returning(results, handle)
        if returned is not None:
            outputs.append(dispatcher.token_rows(returned, handles[index - 1]))
        if index + 2 < num_chunks:
            departing.append(dispatcher.rows_to_send(chunks[index + 2], routes[index + 2]))
    assert returning is not None, "there is at least one chunk"
    outputs.append(dispatcher.token_rows(returning.wait(), handles[-1]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def chunk_sizes(num_tokens: int, num_chunks: int) -> list[int]:
    """Tokens of each chunk, cut as `chunk_parts` says."""
    parts = chunk_parts(num_chunks)
    bounds = [num_tokens * sum(parts[:end]) // sum(parts) for end in range(num_chunks + 1)]
    return [stop - start for start, stop in pairwise(bounds)]
