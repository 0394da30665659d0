"""A sweep: many plans on the same text, and their curve of quality against traffic."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from c2r.adapters.huggingface import prepare
from c2r.measuring.measure import check_predicted, measure_plans, unconstrained
from c2r.measuring.tally import Tally
from c2r.planning import with_policy
from c2r.plans import Plan
from c2r.profiling import CollaborationProfile

Strength = float | list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPoint:
    """A policy and its strength, one number for all layers or one for each."""

    policy: str
    strength: Strength


@dataclass(kw_only=True, slots=True, eq=False)
class Sweep:
    """Plans of one placement under measurement, plain top-k before all others.

    Attributes:
        points: what the plans are, the reference not counted.
        plans: the reference, and one plan for each point.
        tallies: what was measured of each plan so far.
    """

    points: tuple[SweepPoint, ...]
    plans: tuple[Plan, ...]
    tallies: tuple[Tally, ...]

    @classmethod
    def of(
        cls, placed: Plan, profile: CollaborationProfile, points: Sequence[SweepPoint]
    ) -> "Sweep":
        """Nothing measured yet. Raises `PlanError` if a strength does not fit a layer."""
        plans = [with_policy(placed, profile, point.policy, point.strength) for point in points]
        plans = [unconstrained(placed), *plans]
        return cls(points=tuple(points), plans=tuple(plans), tallies=tuple(Tally() for _ in plans))

    @property
    def num_batches(self) -> int:
        """Batches measured so far."""
        return self.tallies[0].num_batches

    def run(self, model: Any, batches: Iterable[dict[str, Tensor]]) -> Iterator[None]:
        """Measures the batches that are left of `batches`; yields after each.

        Raises:
            InputError: the batches hold no token to predict.
            ModelError, PlanMismatchError, RoutingError: as `measure_plans`.
        """
        prepared = [prepare(model, plan) for plan in self.plans]
        left = itertools.islice(batches, self.num_batches, None)
        yield from measure_plans(model, left, prepared, self.tallies)
        check_predicted(self.tallies[0])

    def to_json(self) -> list[dict[str, Any]]:
        """The tallies as JSON data, for `restore`."""
        return [tally.to_json() for tally in self.tallies]

    def restore(self, documents: Sequence[dict[str, Any]]) -> None:
        """Resumes from tallies of the same plans on the same batches."""
        tallies = tuple(Tally.from_json(document) for document in documents)
        assert len(tallies) == len(self.plans), "tallies of another sweep"
        self.tallies = tallies

    def results(self) -> dict[str, Any]:
        """JSON data: the figures of `baseline`, and of the `points` against it."""
        reference = self.tallies[0]
        measured = zip(self.points, self.plans[1:], self.tallies[1:], strict=True)
        return {
            "baseline": {
                "policy": "top_k",
                **asdict(reference.figures(self.plans[0])),
                "plan_fingerprint": self.plans[0].fingerprint,
            },
            "points": [
                {**asdict(point), **_against(reference, tally, plan)}
                for point, plan, tally in measured
            ],
        }


def _against(reference: Tally, tally: Tally, plan: Plan) -> dict[str, Any]:
    increase, interval = tally.loss_increase(reference)
    return {
        **asdict(tally.figures(plan)),
        "loss_increase": increase,
        "loss_increase_interval": list(interval),
        "plan_fingerprint": plan.fingerprint,
    }
