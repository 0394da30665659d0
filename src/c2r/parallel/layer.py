"""The expert-parallel layer: dispatch, experts, combine, with chunks that overlap."""

from collections.abc import Callable

import torch
from torch import Tensor

from c2r.parallel.dispatch import Dispatcher
from c2r.parallel.pending import Pending

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
    routes = dispatcher.route(expert_ids.tensor_split(num_chunks), weights.tensor_split(num_chunks))
    chunks = hidden.tensor_split(num_chunks)
    outputs: list[Tensor] = []
    returning: Pending[Tensor] | None = None
    arriving = dispatcher.start_dispatch(chunks[0], routes[0])
    for following, route in enumerate(routes, start=1):
        rows, handle = arriving.wait(), route.handle.wait()
        if dispatcher.observer is not None:
            dispatcher.observer(handle)
        # The order of these starts is the overlap: the next rows leave before the experts run, the
        # last results return while they run. All ranks must start in the same order.
        if following < len(routes):
            arriving = dispatcher.start_dispatch(chunks[following], routes[following])
        output = experts_fn(rows.hidden, rows.counts)
        if returning is not None:
            outputs.append(returning.wait())
        returning = dispatcher.start_combine(output, handle)
    assert returning is not None, "there is at least one chunk"
    outputs.append(returning.wait())
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
