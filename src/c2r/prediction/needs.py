"""What c2r's own commands take on many devices, derived from the sizes of a model alone.

N devices are N / R replicas of R ranks; the R ranks share the experts, R being the largest power of
two that is neither above N nor above the experts. All weights are sharded over all N. With t tokens
of a device at a time, b bytes a value, h the hidden size, V the vocabulary and k experts a token:

    weights      all parameters / N, of b bytes; 16 where they train (see `c2r.prediction.memory`)
    gathered     twice the largest part that a device has whole while it computes, the next coming:
                 a layer's weights without its experts, or the head; with several replicas also a
                 rank's experts of a layer
    activations  b t (10 h + k (2 h + 3 i)) of a layer, i the width of an expert, and the logits: of
                 a profile b t V; of a sweep 2 b t V, the reference's held; of tasks (b + 4) t V,
                 with a softmax in float32; of fine-tuning (b + 8) t V, with float32 and gradient,
                 three times the layer, and b t h for each layer (gradient checkpointing)

A step takes the predicted time of a step with experts in the order of their ids, routing drawn at
skew 0.5, or the time in which the gathered weights come, whichever is longer: the two overlap.
Loading and saving, and what a process takes before it loads, are not counted.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from c2r.prediction.cluster import Cluster
from c2r.prediction.memory import TRAINING_BYTES, weights_fit
from c2r.prediction.time import predict_time
from c2r.prediction.workload import ModelSizes, Phase, Workload
from c2r.profiling import CollaborationProfile

SWEEP_POINTS = 25
"""Five strengths of five policies, about what `c2r sweep` measures by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What a configuration tells of a model.

    Attributes:
        sizes: of its layers.
        num_experts: E.
        top_k: experts per token.
        vocabulary: ids that it predicts.
        embedding_parameters: of tables that are only looked up; 0 where the head is the table.
    """

    sizes: ModelSizes
    num_experts: int
    top_k: int
    vocabulary: int
    embedding_parameters: int

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        sizes = self.sizes
        layer = self.num_experts * sizes.expert_parameters + sizes.shared_parameters
        return self.embedding_parameters + sizes.dense_parameters + sizes.num_moe_layers * layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a command takes of each device.

    Attributes:
        command: of c2r.
        tokens: that go through the model, in all.
        weights: GB of each device's share; with gradients and the optimizer's state in training.
        gathered: GB of what is whole at a time.
        activations: GB.
        fits: whether weights fill no more than they may, and all of it no more than there is.
        steps: in which every device takes its tokens.
        seconds: of all steps.
    """

    command: str
    tokens: int
    weights: float
    gathered: float
    activations: float
    fits: bool
    steps: int
    seconds: float

    @property
    def memory(self) -> float:
        """GB of a device in all."""
        return self.weights + self.gathered + self.activations

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return {**asdict(self), "memory": self.memory}


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    tokens: int
    phase: Phase
    logit_bytes: float  # besides those of values
    num_logits: int  # of the type of values


_COMMANDS = (
    _Command("profile", 204_800, Phase.PREFILL, 0, 1),
    _Command("sweep", 65_536 * (2 + SWEEP_POINTS), Phase.PREFILL, 0, 2),
    _Command("evaluate", 20_000_000, Phase.PREFILL, 4, 1),
    _Command("finetune", 100_000_000, Phase.TRAINING, 8, 1),
)


def command_needs(
    shape: ModelShape, routing: CollaborationProfile, cluster: Cluster, tokens_per_rank: int
) -> Iterator[Need]:
    """What each command that runs a model takes; the module tells how it is derived.

    Args:
        shape: of the model.
        routing: of such a model, drawn perhaps.
        cluster: the devices.
        tokens_per_rank: of each device at a time.
    """
    group = sharing_group(cluster, cluster.num_ranks, shape.num_experts)
    for command in _COMMANDS:
        workload = Workload(sizes=shape.sizes, tokens_per_rank=tokens_per_rank, phase=command.phase)
        held = TRAINING_BYTES if command.phase is Phase.TRAINING else workload.value_bytes
        weights = shape.parameters * held / cluster.num_ranks / 1e9
        gathered = 2 * max(_parts(shape, cluster, group)) * workload.value_bytes / 1e9
        activations = _activation_bytes(shape, workload, command) / 1e9
        steps = -(-command.tokens // (cluster.num_ranks * tokens_per_rank))
        step = predict_time(routing, None, group, workload).total / 1e3
        yield Need(
            command=command.name,
            tokens=command.tokens,
            weights=weights,
            gathered=gathered,
            activations=activations,
            fits=weights_fit(weights, cluster)
            and weights + gathered + activations <= cluster.memory_gigabytes,
            steps=steps,
            seconds=steps * max(step, _gather_seconds(shape, cluster, group, workload)),
        )


def sharing_group(cluster: Cluster, num_ranks: int, num_experts: int) -> Cluster:
    """The ranks, of so many, that share the experts, on as few nodes as they fit on evenly."""
    group = min(num_ranks, 1 << (num_experts.bit_length() - 1))
    nodes = 1
    while group / nodes > cluster.topology.ranks_per_node or group % nodes:
        nodes += 1
    return cluster.of_size(group, nodes)


def _parts(shape: ModelShape, cluster: Cluster, group: Cluster) -> tuple[float, float, float]:
    """Parameters that a device gathers: of a layer, of the head, of its experts of a layer."""
    sizes = shape.sizes
    head = shape.vocabulary * sizes.hidden_size
    layer = (sizes.dense_parameters - head) / sizes.num_layers + sizes.shared_parameters
    experts = -(-shape.num_experts // group.num_ranks) * sizes.expert_parameters
    return layer, head, experts if cluster.num_ranks > group.num_ranks else 0


def _activation_bytes(shape: ModelShape, workload: Workload, command: _Command) -> float:
    sizes, tokens = shape.sizes, workload.tokens_per_rank
    value, hidden = workload.value_bytes, workload.sizes.hidden_size
    layer = value * (10 * hidden + shape.top_k * (2 * hidden + 3 * sizes.expert_size))
    logits = shape.vocabulary * (command.num_logits * value + command.logit_bytes)
    if command.phase is Phase.TRAINING:
        return tokens * (3 * layer + logits + sizes.num_layers * hidden * value)
    return tokens * (layer + logits)


def _gather_seconds(
    shape: ModelShape, cluster: Cluster, group: Cluster, workload: Workload
) -> float:
    """All weights that a device gathers in a step; in training twice, and their gradients once."""
    layer, head, experts = _parts(shape, cluster, group)
    sizes = shape.sizes
    parameters = layer * sizes.num_layers + head + experts * sizes.num_moe_layers
    times = 3 if workload.phase is Phase.TRAINING else 1
    is_one_node = cluster.num_nodes == 1
    rate = cluster.inner_gigabytes if is_one_node else cluster.outer_gigabytes
    return times * parameters * workload.value_bytes / (rate * 1e9)
