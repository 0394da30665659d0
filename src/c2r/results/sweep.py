"""The curve of quality against traffic that many plans of one model make."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2r.artifacts import damaged_file, read_json, write_text
from c2r.errors import ArtifactError
from c2r.plans import ClusterTopology
from c2r.results.measurement import Measurement, Strength, strength_from_json, strength_to_json
from c2r.results.target import Target
from c2r.summaries import Summarised

_MOST_SHOWN = 8  # points, of which a sweep may have dozens


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPoint:
    """A policy and its strength, one number for all layers or one for each."""

    policy: str
    strength: Strength

    def to_json(self) -> dict[str, Any]:
        """JSON data by the names of the attributes."""
        return {"policy": self.policy, "strength": strength_to_json(self.strength)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "SweepPoint":
        """The point that `to_json` gave."""
        return cls(policy=document["policy"], strength=strength_from_json(document["strength"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferResult:
    """Plans that were made from one text and measured on another.

    Attributes:
        calibration: name of the text that was profiled and planned on.
        evaluation: name of the text that was measured.
        baseline: plain top-k on the placement planned.
        points: a measurement of each plan.
    """

    calibration: str
    evaluation: str
    baseline: Measurement
    points: tuple[Measurement, ...]

    def pick(self, target: Target) -> Measurement:
        """What meets the target best, plain top-k included. Raises `PlanError` if nothing does."""
        return target.pick((self.baseline, *self.points))

    def to_json(self) -> dict[str, Any]:
        """JSON data by the names of the attributes."""
        return {
            "calibration": self.calibration,
            "evaluation": self.evaluation,
            "baseline": self.baseline.to_json(),
            "points": [point.to_json() for point in self.points],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "TransferResult":
        """The result that `to_json` gave."""
        return cls(
            calibration=document["calibration"],
            evaluation=document["evaluation"],
            baseline=Measurement.from_json(document["baseline"]),
            points=tuple(map(Measurement.from_json, document["points"])),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class SweepResult(Summarised):
    """A finished sweep.

    Attributes:
        request: JSON data: what was swept, of which model, on which texts.
        baseline: plain top-k with the experts placed.
        points: a measurement of each plan, in the order asked for.
        spread: those of the points whose strengths were spread over layers by sensitivity.
        transfer: for each pair of texts, plans of the one measured on the other; may be empty.
        seconds: that the sweep took.
    """

    request: Mapping[str, Any]
    baseline: Measurement
    points: tuple[Measurement, ...]
    spread: tuple[SweepPoint, ...] = ()
    transfer: tuple[TransferResult, ...] = ()
    seconds: float = 0.0

    @property
    def topology(self) -> ClusterTopology:
        """The devices that were planned for."""
        return _topology(self.request)

    def summary(self) -> tuple[str, Mapping[str, str]]:
        """See `Summarised`."""
        shown = self.points[:_MOST_SHOWN]
        figures = {
            point.setting: f"loss {100 * point.loss_increase:+.2f} %, copies {point.copies:.2f}, "
            f"load {point.rank_load_max_over_mean:.2f}"
            for point in (self.baseline, *shown)
        }
        if len(shown) < len(self.points):
            figures["..."] = f"and {len(self.points) - len(shown)} more in points"
        return (
            f"SweepResult of {len(self.points)} plans on {self.topology.num_ranks} ranks",
            figures,
        )

    def pick(self, target: Target) -> Measurement:
        """What meets the target best, plain top-k included.

        Raises:
            PlanError: nothing meets the target; the message says what comes nearest.
        """
        return target.pick((self.baseline, *self.points))

    def to_json(self) -> dict[str, Any]:
        """JSON data by the names of the attributes; `transfer` only where there is some."""
        document = {
            "request": dict(self.request),
            "complete": True,
            "seconds": self.seconds,
            "spread": [point.to_json() for point in self.spread],
            "baseline": self.baseline.to_json(),
            "points": [point.to_json() for point in self.points],
        }
        if self.transfer:
            document["transfer"] = [pair.to_json() for pair in self.transfer]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "SweepResult":
        """The sweep that `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing or is not what it must be.
            PlanError: the request asks for devices that cannot be.
        """
        _check_request(document["request"])
        return cls(
            request=document["request"],
            baseline=Measurement.from_json(document["baseline"]),
            points=tuple(map(Measurement.from_json, document["points"])),
            spread=tuple(map(SweepPoint.from_json, document.get("spread", ()))),
            transfer=tuple(map(TransferResult.from_json, document.get("transfer", ()))),
            seconds=float(document.get("seconds", 0.0)),
        )

    def save(self, path: str | Path) -> None:
        """Writes a JSON file atomically. Raises `InputError` if it cannot be written."""
        write_text(Path(path), json.dumps(self.to_json(), allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "SweepResult":
        """Reads what `save` or a finished `c2r sweep` wrote.

        Raises:
            ArtifactError: the file cannot be read, is damaged or no sweep, or was interrupted.
        """
        return cls.from_document(read_json(path), path)

    @classmethod
    def from_document(cls, document: Any, path: str | Path) -> "SweepResult":
        """The sweep in JSON data that was read from `path`. Raises as `load`."""
        if not isinstance(document, dict) or not {"request", "points"} <= set(document):
            raise ArtifactError(f"{path} was not written by `c2r sweep`; give another file")
        if not document.get("complete", True):
            raise ArtifactError(
                f"{path} is not a finished sweep; run the same `c2r sweep` to resume it"
            )
        with damaged_file(path):
            return cls.from_json(document)


_MOST = 1 << 53  # of whole numbers in JSON
_KINDS: dict[str, tuple[type, ...]] = {
    "seed": (int,),
    "max_load": (int, float, type(None)),
    "objective": (str,),
    "cluster": (str, type(None)),
    "cluster_figures": (dict,),
    "tokens_per_rank": (int,),
    "phase": (str,),
    "model": (str,),
}
"""Of a request, what plans and reports are made from; those of earlier versions lack some."""


def _check_request(request: Mapping[str, Any]) -> None:
    """Raises `TypeError` or `ValueError` where plans could not be made again as it asks."""
    _topology(request)
    for name, kinds in _KINDS.items():
        value = request.get(name)
        if name in request and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise TypeError(f"{name} is {value}")
        if isinstance(value, int | float) and not 0 <= value <= _MOST:
            raise ValueError(f"{name} is {value}")


def _topology(request: Mapping[str, Any]) -> ClusterTopology:
    return ClusterTopology(num_ranks=request["num_ranks"], num_nodes=request["num_nodes"])
