"""Every dispatcher on one recording: what is timed, and the figures as JSON data."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

from c2r.plans import ClusterTopology
from c2r.timing.cases import CaseTimes, Network, NumChunks, TimedLayer, dispatcher_cases
from c2r.timing.recording import Recording
from c2r.timing.run import time_cases

_UNKNOWN = Network()


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingReport:
    """What every case took, and where.

    Attributes:
        cases: what each took; the first is the baseline.
        topology: of the ranks that ran.
        losses: nats per token of the recorded text, by the name of the routing; None of a trace.
        settings: of the layer and the run, as JSON data.
        machine: of the first rank, as JSON data.
        versions: of the packages that were used.
    """

    cases: tuple[CaseTimes, ...]
    topology: ClusterTopology
    losses: Mapping[str, float | None]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data, which `c2r report` reads."""
        return {
            "benchmark": "expert_parallel",
            "baseline": self.cases[0].case.name,
            "settings": dict(self.settings),
            "topology": {
                "num_ranks": self.topology.num_ranks,
                "num_nodes": self.topology.num_nodes,
            },
            "losses": dict(self.losses),
            "cases": [times.to_json() for times in self.cases],
            "machine": dict(self.machine),
            "versions": dict(self.versions),
        }


def time_dispatchers(
    recording: Recording,
    shape: TimedLayer,
    num_rounds: int,
    chunks: Sequence[NumChunks] = (),
    on_round: Callable[[int], None] | None = None,
    network: Network = _UNKNOWN,
) -> TimingReport:
    """Times every dispatcher on `recording`; the same report on all ranks but for `machine`.

    Args:
        recording: the routing, with at least `shape.num_tokens` tokens for every rank.
        shape: of the layer.
        num_rounds: how often each case runs.
        chunks: as in `dispatcher_cases`.
        on_round: called with the number of each round when it is over.
        network: as in `time_cases`.

    Raises:
        InputError, CommunicationError: as `time_cases`.
    """
    cases = dispatcher_cases(recording.routings, recording.topology, chunks, recording.num_replicas)
    times = time_cases(recording, cases, shape, num_rounds, on_round, network)
    return TimingReport(
        cases=tuple(times),
        topology=recording.topology,
        losses={name: routing.loss for name, routing in recording.routings.items()},
        settings={
            "tokens_per_rank": shape.num_tokens,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "dtype": str(shape.dtype).removeprefix("torch."),
            "rounds": num_rounds,
            "num_layers": recording.num_layers,
            "compute": "real" if shape.device is None else "emulated",
            "device": None if shape.device is None else asdict(shape.device),
            "cluster": None if network.cluster is None else asdict(network.cluster),
        },
        machine={
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads_per_rank": torch.get_num_threads(),
        },
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    )
