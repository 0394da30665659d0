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
    handles = dispatcher.route(
        expert_ids.tensor_split(num_chunks), weights.tensor_split(num_chunks)
    )
    if dispatcher.observer is not None:
        for handle in handles:
            dispatcher.observer(handle)
    chunks = hidden.tensor_split(num_chunks)
    results: list[Pending[Tensor]] = []
    outputs: list[Tensor] = []
    arriving = dispatcher.start_dispatch(chunks[0], handles[0])
    for index, handle in enumerate(handles):
        following = index + 1
        rows = arriving.wait()
        if following < len(handles):
            arriving = dispatcher.start_dispatch(chunks[following], handles[following])
        output = experts_fn(rows.hidden, rows.counts)
        if results:
            outputs.append(results.pop().wait())
        results.append(dispatcher.start_combine(output, handle))
    outputs.append(results.pop().wait())
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
