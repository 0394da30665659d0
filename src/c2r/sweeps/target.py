"""What a user asks of a plan, and the measured point of a sweep that gives it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from c2r.artifacts import write_text
from c2r.errors import ArtifactError, PlanError, PlanMismatchError
from c2r.planning import make_plan
from c2r.plans import ClusterTopology, Plan
from c2r.profiling import CollaborationProfile


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a user asks of a plan; None where it does not matter.

    Attributes:
        max_loss_increase: relative, 0.003 for 0.3 %.
        copies: the most copies per token.
        max_load: the largest rank load over the mean.
    """

    max_loss_increase: float | None = None
    copies: float | None = None
    max_load: float | None = None

    def pick(self, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The measured point that meets the target best.

        Under a bound on copies the one with the least loss, else the one with the fewest copies.

        Raises:
            PlanError: no point meets the target; the message says what comes nearest.
        """
        loads = [point["rank_load_max_over_mean"] for point in points]
        balanced = [p for p, load in zip(points, loads, strict=True) if self._bears(load)]
        if not balanced:
            raise PlanError(
                f"no measured point keeps the rank load within {self.max_load:g}; the best has "
                f"{min(loads):.3f}: sweep with --max-load, or allow that much"
            )
        fitting = [point for point in balanced if self._fits(point)]
        if not fitting:
            raise PlanError(self._nearest(balanced))
        if self.copies is not None:
            return min(fitting, key=lambda point: point["loss_increase"])
        return min(fitting, key=lambda point: point["copies"])

    def _bears(self, load: float) -> bool:
        return self.max_load is None or load <= self.max_load

    def _fits(self, point: dict[str, Any]) -> bool:
        loss, copies = self.max_loss_increase, self.copies
        return (loss is None or point["loss_increase"] <= loss) and (
            copies is None or point["copies"] <= copies
        )

    def _nearest(self, points: Sequence[dict[str, Any]]) -> str:
        least_loss = min(points, key=lambda point: point["loss_increase"])
        fewest = min(points, key=lambda point: point["copies"])
        return (
            "no measured point meets the target; the least loss is "
            f"{100 * least_loss['loss_increase']:+.2f} % at {least_loss['copies']:.3f} copies "
            f"({_name(least_loss)}), the fewest copies {fewest['copies']:.3f} at "
            f"{100 * fewest['loss_increase']:+.2f} % ({_name(fewest)}): ask for less, or sweep "
            "more strengths"
        )


def _name(point: dict[str, Any]) -> str:
    return f"{point['policy']} {point['strength']}"


def plan_from_sweep(
    document: dict[str, Any],
    profile: CollaborationProfile,
    topology: ClusterTopology,
    target: Target,
) -> Plan:
    """The plan of the measured point that meets `target` best.

    Its provenance holds the target, and under `expected` the figures that were measured.

    Args:
        document: what `read_sweep` gives.
        profile: the one that the sweep planned by, which it wrote beside its JSON.
        topology: the devices, those of the sweep.
        target: what is asked.

    Raises:
        PlanError: no point meets the target.
        PlanMismatchError: the sweep was of other devices or of another profile.
    """
    request = document["request"]
    swept = ClusterTopology(num_ranks=request["num_ranks"], num_nodes=request["num_nodes"])
    if swept != topology:
        raise PlanMismatchError(
            f"the sweep is of {swept.num_ranks} ranks on {swept.num_nodes} nodes, not of "
            f"{topology.num_ranks} on {topology.num_nodes}; sweep those"
        )
    baseline = {**document["baseline"], "strength": 0.0, "loss_increase": 0.0}
    point = target.pick([baseline, *document["points"]])
    plan = make_plan(
        profile,
        num_ranks=topology.num_ranks,
        num_nodes=topology.num_nodes,
        policy=point["policy"],
        strength=point["strength"],
        seed=request["seed"],
        max_load=request["max_load"],
    )
    if plan.fingerprint != point["plan_fingerprint"]:
        raise PlanMismatchError(
            "the sweep planned by another profile; give the one that it wrote beside its JSON "
            "(*.profile.safetensors)"
        )
    provenance = {**plan.provenance, "target": asdict(target), "expected": point}
    return replace(plan, provenance=provenance)


def read_sweep(path: Path) -> dict[str, Any]:
    """The document that a finished `c2r sweep` wrote.

    Raises:
        ArtifactError: the file cannot be read, is no sweep, or was interrupted.
    """
    document = read_partial(path)
    if document is None or not document["complete"]:
        raise ArtifactError(f"{path} is not a finished sweep; run the same `c2r sweep` to go on")
    return document


def read_partial(path: Path) -> dict[str, Any] | None:
    """The document of a sweep, finished or not; None where there is no such file.

    Raises `ArtifactError` if the file is something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"cannot read {path} as a sweep: {error}; give another file") from None
    if not isinstance(document, dict) or not {"request", "points", "complete"} <= set(document):
        raise ArtifactError(f"{path} was not written by `c2r sweep`; give another file")
    return document


def write_sweep(path: Path, document: dict[str, Any]) -> None:
    """Writes the document atomically. Raises `InputError` if it cannot be written."""
    write_text(path, json.dumps(document, allow_nan=False) + "\n")
