"""What routers decided: the value that a model's forward pass gives and profiling takes."""

from c2r.traces.trace import LayerTrace, RoutingTrace, ScoreKind, kept_slots, score_mass

__all__ = ["LayerTrace", "RoutingTrace", "ScoreKind", "kept_slots", "score_mass"]
