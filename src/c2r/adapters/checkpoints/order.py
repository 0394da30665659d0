"""The order of experts under which contiguous placement is a plan's placement."""

from dataclasses import dataclass, replace

import numpy as np

from c2r.errors import PlanError
from c2r.plans import ClusterTopology, LayerPlan, contiguous_placement
from c2r.types import Int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExpertOrder:
    """How the experts of one layer are renumbered.

    Attributes:
        experts: `[E]` int64, the old id of each new id.
        ranks: `[R]` int64, the old rank of each new rank.
    """

    experts: Int
    ranks: Int

    @property
    def inverse(self) -> "ExpertOrder":
        """The order that undoes this one."""
        return ExpertOrder(experts=np.argsort(self.experts), ranks=np.argsort(self.ranks))


def contiguous_order(
    layer: LayerPlan, topology: ClusterTopology, num_stored: int | None = None
) -> ExpertOrder:
    """The order that makes the layer's placement contiguous, ids ascending within each rank.

    Placement `[1, 0, 1, 0]` gives the experts `[1, 3, 0, 2]`. Engines give the first E % R ranks
    one expert more; on one node the ranks are renumbered so that the larger ones come first.

    Args:
        layer: the plan of the layer.
        topology: the ranks.
        num_stored: experts that have weights; those after them compute nothing, lie on no rank
            and keep their ids. None where all have weights.

    Raises:
        PlanError: the ranks hold other numbers of experts than contiguous placement gives them.
    """
    num_stored = layer.num_experts if num_stored is None else num_stored
    num_ranks = topology.num_ranks
    placement = layer.placement[:num_stored]
    sizes = np.bincount(placement, minlength=num_ranks)
    wanted = np.bincount(contiguous_placement(num_stored, num_ranks), minlength=num_ranks)
    ranks = np.arange(num_ranks)
    if topology.num_nodes == 1:
        # On several nodes ranks keep their numbers: another order could move them to another node.
        ranks = np.argsort(-sizes, kind="stable")
    if not np.array_equal(sizes[ranks], wanted):
        raise PlanError(
            f"the plan puts {sizes.tolist()} of {num_stored} experts of {layer.name or 'a layer'} "
            f"on the ranks, but contiguous placement holds {wanted.tolist()}; plan for a number of "
            f"ranks that divides {num_stored}"
        )
    own = [np.flatnonzero(placement == rank) for rank in ranks]
    rest = np.arange(num_stored, layer.num_experts)
    return ExpertOrder(experts=np.concatenate([*own, rest]), ranks=ranks)


def renumber_layer(layer: LayerPlan, order: ExpertOrder) -> LayerPlan:
    """The same plan in the new numbers: partners, placement and replicas."""
    new_expert, new_rank = order.inverse.experts, order.inverse.ranks
    replicas = layer.replicas
    return replace(
        layer,
        partners=new_expert[layer.partners[order.experts]] if layer.top_t else layer.partners,
        placement=new_rank[layer.placement[order.experts]],
        replicas=new_expert[replicas[order.ranks]] if replicas.size else replicas,
    )


def check_groups(name: str, order: ExpertOrder, num_groups: int) -> None:
    """Raises `PlanError` unless the order keeps the router's groups of experts together.

    A group-limited router compares groups of E / `num_groups` neighbouring experts: experts may
    change places within a group, and groups with groups, but nothing else keeps its function.
    """
    size, rest = divmod(len(order.experts), num_groups)
    groups = order.experts[: size * num_groups].reshape(num_groups, size) // max(size, 1)
    if rest or (groups != groups[:, :1]).any():
        raise PlanError(
            f"the router {name} limits tokens to some of {num_groups} groups of {size} experts, "
            "and the plan's placement splits groups: no permutation that keeps groups together "
            "realises it; export the plan for an engine that loads placements, such as SGLang"
        )
