"""Many plans under measurement on the same text; can stop after any batch and resume."""

import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from c2r.adapters.huggingface import prepare
from c2r.measuring import Tally, check_predicted, measure_plans, unconstrained
from c2r.planning import with_policy
from c2r.plans import Plan
from c2r.profiling import CollaborationProfile
from c2r.results import Measurement, SweepPoint
from c2r.text import Batch
from c2r.traces import RoutingTrace


@dataclass(kw_only=True, slots=True, eq=False)
class RunningSweep:
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
    ) -> "RunningSweep":
        """Nothing measured yet. Raises `PlanError` if a strength does not fit a layer."""
        plans = [with_policy(placed, profile, point.policy, point.strength) for point in points]
        plans = [unconstrained(placed), *plans]
        return cls(points=tuple(points), plans=tuple(plans), tallies=tuple(Tally() for _ in plans))

    @property
    def num_batches(self) -> int:
        """Batches measured so far."""
        return self.tallies[0].num_batches

    def run(
        self,
        model: Any,
        batches: Iterable[Batch],
        on_trace: Callable[[int, RoutingTrace], None] | None = None,
    ) -> Generator[int, None, None]:
        """Measures the batches that are left of `batches`; yields the tokens of each after it.

        `on_trace` is called as `measure_plans` does.

        Raises:
            ModelError, PlanMismatchError, RoutingError: as `measure_plans`.
        """
        prepared = [prepare(model, plan) for plan in self.plans]
        left = itertools.islice(batches, self.num_batches, None)
        yield from measure_plans(model, left, prepared, self.tallies, on_trace)

    def to_json(self) -> list[dict[str, Any]]:
        """The tallies as JSON data, for `restore`."""
        return [tally.to_json() for tally in self.tallies]

    def restore(self, documents: Sequence[dict[str, Any]]) -> None:
        """Resumes from tallies of the same plans on the same batches.

        Raises:
            KeyError, TypeError, ValueError: they are damaged, or of other plans.
        """
        self.clear()
        self.add(documents)

    def clear(self) -> None:
        """Nothing is measured yet."""
        self.tallies = tuple(Tally() for _ in self.plans)

    def add(self, documents: Sequence[dict[str, Any]]) -> None:
        """Adds tallies of the same plans on other batches.

        Raises:
            KeyError, TypeError, ValueError: as `restore`.
        """
        tallies = tuple(Tally.from_json(document) for document in documents)
        if len(tallies) != len(self.plans):
            raise ValueError(f"{len(tallies)} tallies of {len(self.plans)} plans")
        for ours, theirs in zip(self.tallies, tallies, strict=True):
            ours.add(theirs)

    def measured(self) -> tuple[Measurement, ...]:
        """Plain top-k, then each of the points against it.

        Raises `InputError` if the batches held no token to predict.
        """
        check_predicted(self.tallies[0])
        reference = self.tallies[0]
        measured = zip(self.points, self.plans[1:], self.tallies[1:], strict=True)
        return (
            reference.measured(self.plans[0]),
            *(
                replace(tally.measured(plan, reference), strength=point.strength)
                for point, plan, tally in measured
            ),
        )
