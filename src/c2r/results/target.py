"""What a user asks of a plan, and the measured one that gives it."""

from collections.abc import Sequence
from dataclasses import dataclass

from c2r.errors import PlanError
from c2r.results.measurement import Measurement


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a user asks of a plan; None where it does not matter.

    Attributes:
        max_loss_increase: relative, 0.003 for 0.3 %.
        copies: the most copies per token.
        max_load: the largest rank load over the mean.
        max_time: the most milliseconds of an MoE layer, as predicted from what was measured.
    """

    max_loss_increase: float | None = None
    copies: float | None = None
    max_load: float | None = None
    max_time: float | None = None

    def pick(self, measured: Sequence[Measurement]) -> Measurement:
        """The one of `measured` that meets the target best.

        Under a bound on copies or time the one with the least loss; else the one of least time, or
        with the fewest copies where the time is not known.

        Raises:
            PlanError: none meets the target; the message says what comes nearest.
        """
        is_timed = all(found.layer_time is not None for found in measured)
        if self.max_time is not None and not is_timed:
            raise PlanError(
                "the sweep does not tell times, it is of an earlier version; sweep again, or ask "
                "for copies"
            )
        balanced = [found for found in measured if self._bears(found.rank_load_max_over_mean)]
        if not balanced:
            least = min(found.rank_load_max_over_mean for found in measured)
            raise PlanError(
                f"no measured point keeps the rank load within {self.max_load:g}; the best has "
                f"{least:.3f}: sweep with that `max_load`, or allow that much"
            )
        fitting = [found for found in balanced if self._fits(found)]
        if not fitting:
            raise PlanError(_nearest(balanced))
        if self.copies is not None or self.max_time is not None:
            return min(fitting, key=lambda found: found.loss_increase)
        return min(fitting, key=lambda found: found.layer_time or found.copies)

    def _bears(self, load: float) -> bool:
        return self.max_load is None or load <= self.max_load

    def _fits(self, found: Measurement) -> bool:
        loss, copies = self.max_loss_increase, self.copies
        return (
            (loss is None or found.loss_increase <= loss)
            and (copies is None or found.copies <= copies)
            and (self.max_time is None or (found.layer_time or 0.0) <= self.max_time)
        )


def _nearest(measured: Sequence[Measurement]) -> str:
    least_loss = min(measured, key=lambda found: found.loss_increase)
    fewest = min(measured, key=lambda found: found.copies)
    fastest = min(measured, key=lambda found: found.layer_time or 0.0)
    time = ""
    if fastest.layer_time is not None:
        time = f", the least time {fastest.layer_time:.3f} ms a layer ({_name(fastest)})"
    return (
        "no measured point meets the target; the least loss is "
        f"{100 * least_loss.loss_increase:+.2f} % at {least_loss.copies:.3f} copies "
        f"({_name(least_loss)}), the fewest copies {fewest.copies:.3f} at "
        f"{100 * fewest.loss_increase:+.2f} % ({_name(fewest)}){time}: ask for less, or sweep "
        "more strengths"
    )


def _name(found: Measurement) -> str:
    return f"{found.policy} {found.strength}"
