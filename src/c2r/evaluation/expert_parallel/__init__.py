"""How long an expert-parallel MoE layer takes, forward and backward, with each dispatcher.

All cases run on the same ranks, with the same expert weights and GEMM, on recorded routing; rounds
are interleaved, so that a disturbance hits all of them. Only what is sent, and how, differs.
"""

from c2r.evaluation.expert_parallel.cases import Case, CaseTimes, LayerShape, predict_rows
from c2r.evaluation.expert_parallel.experts import SwiGLUExperts
from c2r.evaluation.expert_parallel.run import interleave, time_cases

__all__ = [
    "Case",
    "CaseTimes",
    "LayerShape",
    "SwiGLUExperts",
    "interleave",
    "predict_rows",
    "time_cases",
]
