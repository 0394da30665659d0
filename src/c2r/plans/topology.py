"""The devices that experts are placed on."""

from dataclasses import dataclass

from c2r.errors import PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterTopology:
    """Ranks numbered node by node: rank r is on node r // (num_ranks // num_nodes).

    Attributes:
        num_ranks: devices that hold experts.
        num_nodes: machines; ranks of one machine are joined by a fast link.

    Raises:
        PlanError: a count is below 1, or the nodes do not divide the ranks.
    """

    num_ranks: int
    num_nodes: int = 1

    def __post_init__(self) -> None:
        """Checks the counts."""
        if self.num_ranks < 1 or self.num_nodes < 1:
            raise PlanError(
                f"{self.num_ranks} ranks on {self.num_nodes} nodes; both must be at least 1"
            )
        if self.num_ranks % self.num_nodes:
            raise PlanError(
                f"{self.num_ranks} ranks cannot be split evenly over {self.num_nodes} nodes; "
                "choose a number of nodes that divides the ranks"
            )

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each node."""
        return self.num_ranks // self.num_nodes
