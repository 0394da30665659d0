"""What was measured, as values that files keep: of one plan, and of the many of a sweep."""

from c2r.results.measurement import Measurement, Strength, renamed
from c2r.results.sweep import SweepPoint, SweepResult, TransferResult
from c2r.results.target import Target

__all__ = [
    "Measurement",
    "Strength",
    "SweepPoint",
    "SweepResult",
    "Target",
    "TransferResult",
    "renamed",
]
