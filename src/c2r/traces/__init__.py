"""What routers decided: the value that a forward pass gives, and the profile built from it."""

from c2r.traces.profile_builder import ProfileBuilder
from c2r.traces.trace import LayerTrace, RoutingTrace, ScoreKind, score_mass, used_places

__all__ = [
    "LayerTrace",
    "ProfileBuilder",
    "RoutingTrace",
    "ScoreKind",
    "score_mass",
    "used_places",
]
