"""Dispatchers by name."""

import torch
from numpy.typing import ArrayLike

from c2r.errors import InputError, PlanError
from c2r.parallel.all_gather import AllGatherDispatcher
from c2r.parallel.comm import Comm
from c2r.parallel.dispatch import Dispatcher
from c2r.parallel.k_fold import KFoldDispatcher
from c2r.parallel.slots import expert_slots
from c2r.parallel.zero_redundancy import HierarchicalDispatcher, ZeroRedundancyDispatcher

DISPATCHERS = ("zero_redundancy", "hierarchical", "all_gather", "k_fold")
"""The names that `make_dispatcher` knows."""


def make_dispatcher(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    name: str,
    *,
    comm: Comm,
    placement: ArrayLike,
    replicas: ArrayLike = (),
    num_nodes: int = 1,
    dispatch_dtype: torch.dtype | None = None,
    layer: str = "the layer",
) -> Dispatcher:
    """The dispatcher `name` for experts placed as `placement` `[E]` says, the rank of each.

    Args:
        name: one of `DISPATCHERS`.
        comm: the ranks.
        placement: the rank of each expert.
        replicas: `[ranks, r]` further experts of each rank, as in `LayerPlan`. A token takes the
            replica that `c2r.plans.assign_ranks` says.
        num_nodes: nodes that the ranks are on, in order; `hierarchical` sends by them, and
            replicas are chosen by them.
        dispatch_dtype: type of the rows on the way; float8_e4m3fn, or a type to round to.
        layer: what errors call the layer.

    Raises:
        InputError: an unknown name.
        PlanError: the placement, the replicas or the nodes do not fit the ranks.
    """
    if num_nodes < 1 or comm.size % num_nodes:
        raise PlanError(
            f"{comm.size} ranks cannot be split evenly over {num_nodes} nodes; choose a number of "
            "nodes that divides the ranks"
        )
    slots = expert_slots(placement, comm.size, comm.device, replicas, comm.size // num_nodes)
    if name == "hierarchical":
        return HierarchicalDispatcher(comm, slots, num_nodes, dispatch_dtype, layer)
    kinds: dict[str, type[Dispatcher]] = {
        "zero_redundancy": ZeroRedundancyDispatcher,
        "all_gather": AllGatherDispatcher,
        "k_fold": KFoldDispatcher,
    }
    if name not in kinds:
        raise InputError(f"no dispatcher is called {name!r}; choose {', '.join(DISPATCHERS)}")
    return kinds[name](comm, slots, dispatch_dtype, layer)
