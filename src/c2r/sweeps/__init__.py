"""Measures many plans of one model: the curve of quality against traffic."""

from c2r.sweeps.grid import DEFAULT_POLICIES, default_points
from c2r.sweeps.optimizing import Optimized, optimize
from c2r.sweeps.resumable import SweepRequest, describe_request, profile_beside, sweep
from c2r.sweeps.running import RunningSweep
from c2r.sweeps.sensitivity import measure_sensitivity, spread_points
from c2r.sweeps.times import with_times

__all__ = [
    "DEFAULT_POLICIES",
    "Optimized",
    "RunningSweep",
    "SweepRequest",
    "default_points",
    "describe_request",
    "measure_sensitivity",
    "optimize",
    "profile_beside",
    "spread_points",
    "sweep",
    "with_times",
]
