"""Measures many plans of one model, and picks the one that meets a target."""

from c2r.sweeps.grid import DEFAULT_POLICIES, default_points
from c2r.sweeps.resumable import ResumableSweep, SweepRequest
from c2r.sweeps.sensitivity import measure_sensitivity, spread_points
from c2r.sweeps.sweep import Sweep, SweepPoint
from c2r.sweeps.target import Target, plan_from_sweep, read_partial, read_sweep, write_sweep

__all__ = [
    "DEFAULT_POLICIES",
    "ResumableSweep",
    "Sweep",
    "SweepPoint",
    "SweepRequest",
    "Target",
    "default_points",
    "measure_sensitivity",
    "plan_from_sweep",
    "read_partial",
    "read_sweep",
    "spread_points",
    "write_sweep",
]
