"""The choice of experts on few ranks, which the placement-aware policies make."""

from c2r.ops.backend import by_device
from c2r.ops.rank_choice import reference
from c2r.ops.rank_choice.reference import Criterion, RankRule, RankTables, mass_of, members_of

choose_on_ranks = by_device(reference.choose_on_ranks)

__all__ = ["Criterion", "RankRule", "RankTables", "choose_on_ranks", "mass_of", "members_of"]
