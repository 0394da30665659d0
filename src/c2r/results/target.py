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
    """

    max_loss_increase: float | None = None
    copies: float | None = None
    max_load: float | None = None

    def pick(self, measured: Sequence[Measurement]) -> Measurement:
        """The one of `measured` that meets the target best.

        Under a bound on copies the one with the least loss, else the one with the fewest copies.

        Raises:
            PlanError: none meets the target; the message says what comes nearest.
        """
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
        if self.copies is not None:
            return min(fitting, key=lambda found: found.loss_increase)
        return min(fitting, key=lambda found: found.copies)

    def _bears(self, load: float) -> bool:
        return self.max_load is None or load <= self.max_load

    def _fits(self, found: Measurement) -> bool:
        loss, copies = self.max_loss_increase, self.copies
        return (loss is None or found.loss_increase <= loss) and (
            copies is None or found.copies <= copies
        )


def _nearest(measured: Sequence[Measurement]) -> str:
    least_loss = min(measured, key=lambda found: found.loss_increase)
    fewest = min(measured, key=lambda found: found.copies)
    return (
        "no measured point meets the target; the least loss is "
        f"{100 * least_loss.loss_increase:+.2f} % at {least_loss.copies:.3f} copies "
        f"({_name(least_loss)}), the fewest copies {fewest.copies:.3f} at "
        f"{100 * fewest.loss_increase:+.2f} % ({_name(fewest)}): ask for less, or sweep "
        "more strengths"
    )


def _name(found: Measurement) -> str:
    return f"{found.policy} {found.strength}"
