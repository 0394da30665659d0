"""Times an expert-parallel MoE layer, forward and backward, with each dispatcher.

All cases run on the same ranks, with the same expert weights and GEMM, on recorded routing; rounds
are interleaved, so that a disturbance hits all of them. Only what is sent, and how, differs.
"""

from c2r.timing.cases import (
    Case,
    CaseTimes,
    Network,
    TimedLayer,
    dispatcher_cases,
    layer_plan,
    predict_rows,
)
from c2r.timing.clocks import Spread, Stopwatch, interface_bytes, spread_of_ratios
from c2r.timing.cluster import ClusterReport, ClusterSettings, measure_cluster
from c2r.timing.experts import DeviceRate, EmulatedExperts, SwiGLUExperts
from c2r.timing.placing import Placing, place
from c2r.timing.predicted import predict_case, shares_of, workload_of
from c2r.timing.recording import (
    RecordedRouting,
    Recording,
    name_policies,
    record_routings,
    share_recording,
    spread_windows,
)
from c2r.timing.report import TimingReport, time_dispatchers
from c2r.timing.run import interleave, time_cases
from c2r.timing.trace_file import read_routing, record_file

__all__ = [
    "Case",
    "CaseTimes",
    "ClusterReport",
    "ClusterSettings",
    "DeviceRate",
    "EmulatedExperts",
    "Network",
    "Placing",
    "RecordedRouting",
    "Recording",
    "Spread",
    "Stopwatch",
    "SwiGLUExperts",
    "TimedLayer",
    "TimingReport",
    "dispatcher_cases",
    "interface_bytes",
    "interleave",
    "layer_plan",
    "measure_cluster",
    "name_policies",
    "place",
    "predict_case",
    "predict_rows",
    "read_routing",
    "record_file",
    "record_routings",
    "share_recording",
    "shares_of",
    "spread_of_ratios",
    "spread_windows",
    "time_cases",
    "time_dispatchers",
    "workload_of",
]
