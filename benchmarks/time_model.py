"""Layer times on emulated hosts with emulated devices, against the time model's prediction.

    python benchmarks/time_model.py RECORDING=RESULT.json [RECORDING=RESULT.json ...]

RECORDING is what `c2r bench parallel --save-recording` kept, RESULT what
`benchmarks/expert_parallel.py --device emulated` wrote with it. Links and devices are as the result
states them. What real processors add is two figures of the machine: the time of an exchange of
nothing, and the rate of copies. They are fitted on k-fold dispatch, whole and in four chunks, of
all results with as many ranks, for these share the cores; every other case is predicted. Baseline:
the measured time.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import finish, print_table

from c2r.prediction import Cluster
from c2r.timing import (
    Case,
    DeviceRate,
    Recording,
    TimedLayer,
    layer_plan,
    predict_case,
    shares_of,
)

FITTED = ("k_fold", "k_fold, 4 chunks")


class Result:
    """A result and the routing that it replayed."""

    def __init__(self, recording, path):
        self.document = json.loads(Path(path).read_text(encoding="utf-8"))
        settings = self.document["settings"]
        self.recording = Recording.load(recording).of_layers(settings["num_layers"])
        self.cluster = replace(Cluster(**settings["cluster"]), is_outer_shared=True)
        self.shape = _shape(settings)
        self.cases = [(Case(**times["case"]), times) for times in self.document["cases"]]
        self._shares = {}

    def layers(self, case, exchange_microseconds, copy_gigabytes):
        """The predicted times of the layers of a case."""
        cluster = replace(
            self.cluster,
            inner_microseconds=exchange_microseconds,
            outer_microseconds=exchange_microseconds,
            memory_gigabytes_per_second=copy_gigabytes,
        )
        return [
            predict_case(case, case.num_chunks, each, cluster, self.shape)
            for each in self.shares(case)
        ]

    def shares(self, case):
        """What comes to each rank, by layer."""
        key = case.routing, case.is_placed, case.has_replicas
        if key not in self._shares:
            recording, topology = self.recording, self.recording.topology
            tokens = self.shape.num_tokens * topology.num_ranks
            self._shares[key] = [
                shares_of(
                    ids[:tokens],
                    layer_plan(case, recording, index).ranks_of(ids[:tokens], topology),
                    topology,
                )
                for index, ids in enumerate(recording.routings[case.routing].expert_ids)
            ]
        return self._shares[key]

    def total(self, case, *constants):
        """Milliseconds of a case, mean over layers."""
        return float(np.mean([layer.total for layer in self.layers(case, *constants)]))


def _shape(settings):
    import torch

    return TimedLayer(
        num_tokens=settings["tokens_per_rank"],
        hidden_size=settings["hidden_size"],
        intermediate_size=settings["intermediate_size"],
        dtype=getattr(torch, settings["dtype"]),
        device=DeviceRate(**settings["device"]),
    )


def fit(results):
    """Microseconds of an exchange and GB/s of copies that suit the fitted cases best."""
    fitted = [
        (result, case, 1e3 * times["seconds"]["median"])
        for result in results
        for case, times in result.cases
        if case.name in FITTED
    ]

    def shares(exchange, seconds):
        """Predicted over measured times, of an exchange and the copy of a gigabyte."""
        return np.array(
            [result.total(case, exchange, 1 / seconds) / ms for result, case, ms in fitted]
        )

    point = np.array([500.0, 0.5])
    for _ in range(5):  # the time is nearly linear in both
        steps = np.diag(0.01 * point)
        here = shares(*point)
        slopes = np.stack([(shares(*(point + step)) - here) / step.sum() for step in steps], axis=1)
        point = _least_squares(slopes, 1 - here + slopes @ point)
    return float(point[0]), 1 / float(point[1])


def _least_squares(slopes, rest):
    """Positive factors that bring `slopes` `[n, 2]` near to `rest`."""
    found, *_ = np.linalg.lstsq(slopes, rest)
    return np.maximum(found, 1e-3)


def compare(result, machines):
    """A row for each case, predicted by the two figures of its number of ranks."""
    constants = machines[result.cluster.num_ranks]
    rows = []
    for case, times in result.cases:
        measured, predicted = 1e3 * times["seconds"]["median"], result.total(case, *constants)
        rows.append(
            {
                "ranks": result.cluster.num_ranks,
                "nodes": result.cluster.num_nodes,
                "links": result.document["network"].partition(", ")[2],
                "case": case.name,
                "fitted": case.name in FITTED,
                "measured_ms": measured,
                "predicted_ms": predicted,
                "error": predicted / measured - 1,
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", help="RECORDING=RESULT.json")
    args = parser.parse_args()
    results = [Result(*pair.split("=", 1)) for pair in args.results]
    machines = {
        size: fit([result for result in results if result.cluster.num_ranks == size])
        for size in sorted({result.cluster.num_ranks for result in results})
    }
    rows = [row for result in results for row in compare(result, machines)]
    print_table(rows)
    errors = np.array([abs(row["error"]) for row in rows if not row["fitted"]])
    figures = {"error_median": float(np.median(errors)), "error_worst": float(errors.max())}
    for size, (exchange, copies) in machines.items():
        figures[f"exchange_microseconds_{size}_ranks"] = exchange
        figures[f"copy_gigabytes_{size}_ranks"] = copies
    print("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    settings = {"results": [Path(pair.split("=", 1)[1]).name for pair in args.results]}
    finish("time_model", "measured time of the layer", rows, settings, **figures)


if __name__ == "__main__":
    main()
