"""How much of a rank's memory the weights take, and how many replicas still fit.

A rank holds all dense weights and shared experts, and its part of the routed experts. In training a
parameter takes 16 bytes: itself and its gradient in half precision, Adam's two moments and a copy
in single precision (Rajbhandari et al. 2020, "ZeRO", section 3.1). The embedding is not counted.
"""

from collections.abc import Sequence

from c2r.errors import PlanError
from c2r.prediction.cluster import Cluster
from c2r.prediction.workload import Phase, Workload

WEIGHTS_SHARE = 0.8
"""Of a rank's memory that weights may fill: the rest is for activations and caches."""
TRAINING_BYTES = 16.0
"""Of a parameter that is trained."""


def weights_fit(gigabytes: float, cluster: Cluster) -> bool:
    """Whether so many GB of weights leave a rank the memory that it needs besides."""
    return gigabytes <= WEIGHTS_SHARE * cluster.memory_gigabytes


def room(cluster: Cluster) -> str:
    """How much weights may fill, in words."""
    return (
        f"{WEIGHTS_SHARE * cluster.memory_gigabytes:.3g} GB, {100 * WEIGHTS_SHARE:.0f} % of the "
        f"{cluster.memory_gigabytes:g} GB of a rank of {cluster.name}"
    )


def weight_gigabytes(workload: Workload, experts_per_layer: Sequence[int]) -> float:
    """GB of weights on a rank that holds so many experts of each layer."""
    sizes = workload.sizes
    parameters = sizes.dense_parameters + len(experts_per_layer) * sizes.shared_parameters
    parameters += sum(experts_per_layer) * sizes.expert_parameters
    each = TRAINING_BYTES if workload.phase is Phase.TRAINING else workload.value_bytes
    return parameters * each / 1e9


def most_replicas(cluster: Cluster, workload: Workload, num_experts: Sequence[int]) -> int:
    """Replicas a rank that fit in every layer at once; layers of `num_experts` experts each."""
    own = [-(-size // cluster.num_ranks) for size in num_experts]
    base = weight_gigabytes(workload, own)
    each = weight_gigabytes(workload, [size + 1 for size in own]) - base
    free = WEIGHTS_SHARE * cluster.memory_gigabytes - base
    return max(int(free / each), 0) if each > 0 else max(num_experts)


def check_memory(
    cluster: Cluster, workload: Workload, num_experts: Sequence[int], num_replicas: int
) -> None:
    """Raises `PlanError` where so many replicas a rank in every layer do not fit the memory."""
    fitting = most_replicas(cluster, workload, num_experts)
    if num_replicas <= fitting:
        return
    own = [-(-size // cluster.num_ranks) for size in num_experts]
    held = weight_gigabytes(workload, [size + num_replicas for size in own])
    raise PlanError(
        f"with {num_replicas} replicas a rank holds {held:.1f} GB of weights, without "
        f"{weight_gigabytes(workload, own):.1f}; it may hold {room(cluster)}: choose at most "
        f"{fitting} replicas"
    )
