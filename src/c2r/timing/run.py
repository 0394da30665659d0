"""Runs all cases on the ranks of this process group, in interleaved rounds."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2r.errors import InputError
from c2r.parallel import (
    Comm,
    Dispatcher,
    Handle,
    fastest_chunks,
    gather_bytes,
    make_dispatcher,
    parallel_moe,
)
from c2r.plans import LayerPlan, load_max_over_mean
from c2r.timing.cases import Case, CaseTimes, Network, TimedLayer, layer_plan, predict_rows
from c2r.timing.clocks import Spread, interface_bytes, spread_of_ratios
from c2r.timing.experts import EmulatedExperts, SwiGLUExperts
from c2r.timing.meter import ClockedComm, Meter
from c2r.timing.predicted import predict_case, shares_of
from c2r.timing.recording import Recording
from c2r.types import Int

_PASSES = 4  # rows travel to the experts and back, forward and backward
_UNKNOWN = Network()
_PARTS = ("reorder", "dispatch", "compute", "combine")

ExpertsFn = Callable[[Tensor, Tensor], Tensor]


def time_cases(
    recording: Recording,
    cases: Sequence[Case],
    shape: TimedLayer,
    num_rounds: int,
    on_round: Callable[[int], None] | None = None,
    network: Network = _UNKNOWN,
) -> list[CaseTimes]:
    """Times every case on every layer of `recording`, in interleaved rounds; the same on all ranks.

    Args:
        recording: the routing, with at least `shape.num_tokens` tokens for every rank.
        cases: what to compare; the first is the baseline.
        shape: of the layer.
        num_rounds: how often each case runs.
        on_round: called with the number of each round when it is over.
        network: what joins the ranks.

    Raises:
        InputError: the recording is for another number of ranks, or has too few tokens.
        CommunicationError: a rank does not answer.
    """
    bench = _Bench(recording, shape, network)
    runners = [_Runner(case, bench) for case in cases]
    for runner in runners:
        runner.warm_up()
    runs = {
        (runner.case.name, what): run
        for runner in runners
        for what, run in (
            ("all", runner.run),
            ("compute", runner.run_compute),
            ("communication", runner.run_communication),
        )
    }
    seconds = interleave(runs, bench.comm, num_rounds, on_round)
    return _report(runners, seconds, num_rounds)


def interleave(
    runs: Mapping[Any, Callable[[], None]],
    comm: Comm,
    num_rounds: int,
    on_round: Callable[[int], None] | None = None,
) -> dict[Any, list[float]]:
    """Seconds of each run in each round, from all ranks of `comm` ready until all are through."""
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for index in range(num_rounds):
        for name, run in runs.items():
            comm.barrier()
            before = time.perf_counter()
            run()
            comm.barrier()
            seconds[name].append(time.perf_counter() - before)
        if on_round is not None:
            on_round(index)
    return seconds


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Inputs:
    """Inputs of one MoE layer on this rank, the same in every case."""

    hidden: Tensor
    expert_ids: Tensor
    weights: Tensor
    grad_output: Tensor


class _Bench:
    """What the cases share on this rank: routing, inputs, expert weights and clocks."""

    def __init__(self, recording: Recording, shape: TimedLayer, network: Network) -> None:
        self.recording = recording
        self.shape = shape
        self.network = network
        self.meter = Meter()
        self.comm = ClockedComm(self.meter)
        self._experts: dict[tuple[int, ...], SwiGLUExperts] = {}
        self._check()

    def _check(self) -> None:
        wanted = self.recording.topology.num_ranks
        if wanted != self.comm.size:
            raise InputError(
                f"the recording is for {wanted} ranks, but {self.comm.size} run; start {wanted}"
            )
        for name, routing in self.recording.routings.items():
            found, needed = routing.expert_ids.shape[1], self.comm.size * self.shape.num_tokens
            if found < needed:
                raise InputError(
                    f"routing {name!r} has {found} tokens, but {self.comm.size} ranks with "
                    f"{self.shape.num_tokens} each need {needed}; record more text"
                )

    def expert_ids(self, case: Case, layer: int) -> Int:
        """Of all ranks, `[ranks, tokens, k]`."""
        ids: Int = self._by_rank(self.recording.routings[case.routing].expert_ids[layer])
        return ids

    def ranks(self, case: Case, layer: int) -> Int:
        """That compute the experts of all ranks' tokens, `[ranks, tokens, k]`."""
        ids = self.expert_ids(case, layer)
        plan = layer_plan(case, self.recording, layer)
        found = plan.ranks_of(ids.reshape(-1, ids.shape[-1]), self.recording.topology)
        return found.reshape(ids.shape)

    def experts(self, plan: LayerPlan) -> SwiGLUExperts:
        """Those of this rank, replicas included."""
        ids = tuple(plan.experts_of(self.comm.rank).tolist())
        if ids not in self._experts:
            shape = self.shape
            self._experts[ids] = SwiGLUExperts(
                ids, shape.hidden_size, shape.intermediate_size, shape.dtype
            )
        return self._experts[ids]

    def inputs(self, case: Case, layer: int) -> _Inputs:
        """Random activations, the same for every case, and the routing recorded for them."""
        drawn = torch.Generator().manual_seed(self.comm.rank * self.recording.num_layers + layer)
        size = (self.shape.num_tokens, self.shape.hidden_size)
        hidden, grad_output = (
            torch.randn(size, generator=drawn).to(self.shape.dtype) for _ in range(2)
        )
        weights = self._by_rank(self.recording.routings[case.routing].weights[layer])
        return _Inputs(
            hidden=hidden.requires_grad_(),
            expert_ids=torch.from_numpy(self.expert_ids(case, layer)[self.comm.rank].copy()),
            weights=torch.from_numpy(weights[self.comm.rank].copy()).requires_grad_(),
            grad_output=grad_output,
        )

    def bytes_sent(self) -> int | None:
        """Bytes that left through the interface of this rank's exchanges so far."""
        counted = interface_bytes(self.network.interface or "")
        return None if counted is None else counted[0]

    def _by_rank(self, tokens: Any) -> Any:
        size, count = self.comm.size, self.shape.num_tokens
        return tokens[: size * count].reshape(size, count, -1)


class _Layer:
    """One MoE layer of one case on this rank."""

    def __init__(self, case: Case, bench: _Bench, index: int) -> None:
        plan = layer_plan(case, bench.recording, index)
        self.meter = bench.meter
        self.dispatcher: Dispatcher = make_dispatcher(
            case.dispatcher,
            comm=bench.comm,
            placement=plan.placement,
            replicas=plan.replicas,
            num_nodes=bench.recording.topology.num_nodes,
        )
        self.experts = bench.experts(plan)
        # The real products are run once, to check the outputs; what is timed may be emulated.
        rate = bench.shape.device
        self.timed_experts: ExpertsFn = self.experts if rate is None else EmulatedExperts(rate)
        self.inputs = bench.inputs(case, index)
        self.expert_inputs: list[tuple[Tensor, Tensor]] = []
        self.num_rows_sent = self.num_rows_received = 0  # other ranks', on the way to experts
        given = self._given(self.timed_experts)
        self.num_chunks = fastest_chunks(*given) if case.num_chunks == "auto" else case.num_chunks

    def _given(self, experts: ExpertsFn) -> tuple[Tensor, Tensor, Tensor, ExpertsFn, Dispatcher]:
        inputs = self.inputs
        return inputs.hidden, inputs.expert_ids, inputs.weights, experts, self.dispatcher

    def step(self, experts: ExpertsFn) -> Tensor:
        """Forward and backward; gives the output."""
        self.meter.begin()
        inputs = self.inputs
        output: Tensor = parallel_moe(*self._given(experts), self.num_chunks)
        torch.autograd.backward(output, inputs.grad_output)
        inputs.hidden.grad = inputs.weights.grad = None
        self.experts.forget_gradients()
        self.meter.end()
        return output.detach()

    def record(self) -> Tensor:
        """One step that keeps what the experts were given."""

        def experts(rows: Tensor, counts: Tensor) -> Tensor:
            self.expert_inputs.append((rows.detach().requires_grad_(), counts))
            return self.experts(rows, counts)

        self.dispatcher.observer = self._count
        output = self.step(experts)
        self.dispatcher.observer = None
        return output

    def _count(self, handle: Handle) -> None:
        rank = self.dispatcher.comm.rank
        rows = handle.num_rows_sent
        self.num_rows_sent += sum(rows) - rows[rank]
        self.num_rows_received += sum(
            sum(leg.receive) - leg.receive[leg.comm.rank] for leg in handle.legs
        )

    def compute(self) -> None:
        """The experts alone, forward and backward, on what they were given."""
        for rows, counts in self.expert_inputs:
            torch.autograd.backward(self.timed_experts(rows, counts), rows.detach())
            rows.grad = None
        self.experts.forget_gradients()


class _Runner:
    """One case on this rank: all layers one after another."""

    def __init__(self, case: Case, bench: _Bench) -> None:
        self.case = case
        self.bench = bench
        self.layers = [_Layer(case, bench, index) for index in range(bench.recording.num_layers)]
        self.seconds = dict.fromkeys(_PARTS, 0.0)
        self.bytes_sent: int | None = 0
        self.error = 0.0

    def warm_up(self) -> None:
        """Runs everything once, and compares the output of the first layer with k-fold's."""
        outputs = [layer.record() for layer in self.layers]
        plain = Case(name="", dispatcher="k_fold", routing=self.case.routing)
        expected = _Layer(plain, self.bench, 0)
        wanted = expected.step(expected.experts)
        self.error = ((outputs[0] - wanted).abs().max() / wanted.abs().max()).item()
        self.run_compute()
        self.run_communication()

    def run(self) -> None:
        """The layers as they are, clocked part by part."""
        meter = self.bench.meter
        meter.watch.seconds.clear()
        before = self.bench.bytes_sent()
        for layer in self.layers:
            layer.step(meter.around(layer.timed_experts))
        self.bench.comm.barrier()  # what is still queued at a slow link has left by then
        after = self.bench.bytes_sent()
        for part in _PARTS:
            self.seconds[part] += meter.watch.seconds[part]
        if before is None or after is None or self.bytes_sent is None:
            self.bytes_sent = None
        else:
            self.bytes_sent += after - before

    def run_compute(self) -> None:
        """The experts alone."""
        for layer in self.layers:
            layer.compute()

    def run_communication(self) -> None:
        """All but the experts, which give back their rows."""
        for layer in self.layers:
            layer.step(lambda rows, counts: rows.view_as(rows))

    def own_figures(self) -> dict[str, Any]:
        """What this rank counted, as JSON data."""
        return {
            "seconds": self.seconds,
            "bytes_sent": self.bytes_sent,
            "rows_sent": [layer.num_rows_sent for layer in self.layers],
            "rows_received": [layer.num_rows_received for layer in self.layers],
            "expert_rows": [
                sum(len(rows) for rows, _ in layer.expert_inputs) for layer in self.layers
            ],
            "error": self.error,
        }

    @property
    def rows_predicted(self) -> float:
        """Rows that leave a rank for another, of all ranks together; mean over layers."""
        bench, topology = self.bench, self.bench.recording.topology
        rows = [
            predict_rows(self.case, bench.ranks(self.case, index), topology)
            for index in range(len(self.layers))
        ]
        return float(np.mean(rows))

    def predicted(self) -> dict[str, float] | None:
        """Seconds that the time model gives, in all and by part; means over layers."""
        bench, case = self.bench, self.case
        if bench.network.cluster is None:
            return None
        layers = [
            predict_case(
                case,
                layer.num_chunks,
                shares_of(
                    bench.expert_ids(case, index),
                    bench.ranks(case, index),
                    bench.recording.topology,
                ),
                bench.network.cluster,
                bench.shape,
            )
            for index, layer in enumerate(self.layers)
        ]
        parts = ("total", "dispatch", "combine", "compute", "reorder", "launches")
        return {
            part: 1e-3 * float(np.mean([getattr(layer, part) for layer in layers]))
            for part in parts
        }


def _report(
    runners: Sequence[_Runner], seconds: Mapping[Any, list[float]], num_rounds: int
) -> list[CaseTimes]:
    own = {
        "seconds": [[*key, times] for key, times in seconds.items()],
        "figures": [runner.own_figures() for runner in runners],
    }
    ranks = [json.loads(content) for content in gather_bytes(json.dumps(own).encode())]
    per_layer = {
        (name, what): np.array(times) / len(runners[0].layers)
        for name, what, times in ranks[0]["seconds"]
    }
    baseline = per_layer[runners[0].case.name, "all"]
    return [
        _case_times(
            runner,
            {
                what: per_layer[runner.case.name, what]
                for what in ("all", "compute", "communication")
            },
            baseline,
            [rank["figures"][index] for rank in ranks],
            num_rounds * len(runner.layers),
        )
        for index, runner in enumerate(runners)
    ]


def _case_times(
    runner: _Runner,
    seconds: Mapping[str, Any],
    baseline: Any,
    figures: Sequence[dict[str, Any]],
    num_steps: int,
) -> CaseTimes:
    """The figures of one case from the figures of all ranks; `num_steps` layers ran in all."""
    counted = [rank["bytes_sent"] for rank in figures]
    shape = runner.bench.shape
    row_bytes = shape.hidden_size * shape.dtype.itemsize
    loads = np.array([rank["expert_rows"] for rank in figures])
    return CaseTimes(
        case=runner.case,
        seconds=Spread.of(seconds["all"]),
        ratio=spread_of_ratios(seconds["all"], baseline),
        parts={
            part: float(np.mean([rank["seconds"][part] for rank in figures])) / num_steps
            for part in _PARTS
        },
        compute_alone=Spread.of(seconds["compute"]),
        communication_alone=Spread.of(seconds["communication"]),
        rank_load_max_over_mean=float(np.mean([load_max_over_mean(rows) for rows in loads.T])),
        rows_received=float(np.mean(np.max([rank["rows_received"] for rank in figures], axis=0))),
        rows_sent=float(np.sum([rank["rows_sent"] for rank in figures])) / len(runner.layers),
        rows_predicted=runner.rows_predicted,
        bytes_sent=None if None in counted else sum(counted) / num_steps,
        bytes_predicted=_PASSES * row_bytes * runner.rows_predicted,
        predicted=runner.predicted(),
        error=max(rank["error"] for rank in figures),
        num_chunks=tuple(layer.num_chunks for layer in runner.layers),
    )
