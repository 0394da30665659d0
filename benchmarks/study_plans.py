"""The cases of a study, and the plan of each.

A case is a policy at a strength, `priced=0.1`, on the placement of all cases: for the least time,
rank load bounded. After an @ it names a variant, in which its plan differs:

    copies      placed for the fewest copies, with the same bound
    replicas    each rank holds replicas of two further experts
    again       placed again for what is chosen under the policy on the first placement
    per-layer   strengths spread over the layers by their sensitivity, for as many copies
"""

import json
from dataclasses import dataclass, replace

from c2r import apply
from c2r.adapters.huggingface import profile
from c2r.artifacts import write_text
from c2r.errors import InputError
from c2r.planning import make_plan, parse_policy, with_policy
from c2r.plans import Plan, contiguous_placement
from c2r.prediction import Phase, Workload, find_cluster
from c2r.prediction.workload import UNKNOWN_SIZES
from c2r.profiling import CollaborationProfile
from c2r.results import SweepPoint
from c2r.sweeps import spread_points

PLACED_FOR = "hosts-4-10g"
WORKLOAD = Workload(sizes=UNKNOWN_SIZES, tokens_per_rank=4096, phase=Phase.TRAINING)
VARIANTS = ("copies", "replicas", "again", "per-layer")
_CONTROL = "top_k"
_REPLICAS = 2
_SPREAD_STRENGTHS = (0.03, 0.1, 0.3)
_SPREAD_BATCHES = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A policy at a strength, in a variant of the plan."""

    policy: str
    strength: float
    variant: str = ""

    @property
    def is_control(self):
        """Plain top-k on the placement of all."""
        return self == CONTROL

    @property
    def name(self):
        name = "control" if self.policy == _CONTROL else f"{self.policy} {self.strength:g}"
        return f"{name}, {self.variant}" if self.variant else name

    @property
    def slug(self):
        """The name in names of files."""
        return self.name.replace(",", "").replace(" ", "-")


CONTROL = Case(policy=_CONTROL, strength=0.0)


def parse_cases(texts):
    """Cases as `priced=0.03,0.1@again`, the control first."""
    found = [CONTROL]
    for text in texts:
        setting, _, variant = text.partition("@")
        if variant and variant not in VARIANTS:
            raise InputError(f"{text}: there is no variant {variant}; it is {', '.join(VARIANTS)}")
        policy, strengths = parse_policy(setting)
        for strength in strengths or (0.0,):
            found.append(Case(policy=policy, strength=strength, variant=variant))
    return list(dict.fromkeys(found))


def cluster_of(name, num_ranks):
    """A preset with as many ranks: on nodes of one rank each, or on one node, as it has them."""
    cluster = find_cluster(name)
    return cluster.of_size(num_ranks, 1 if cluster.num_nodes == 1 else num_ranks)


class StudyPlans:
    """The plans of a study, kept in its folder; `material` as `study_base.ByteMaterial`.

    Ranks and bound are of a placement that is made: one that is kept stays.
    """

    def __init__(self, folder, material, num_ranks=4, max_load=1.1):
        self.folder, self.material = folder, material
        self.num_ranks, self.max_load = num_ranks, max_load
        self.profile = self._profile()
        self.placed = self._kept("placed", self._placed)

    def of(self, case):
        """The plan of a case."""
        if not case.variant:
            return self._with_policy(self.placed, case)
        make = getattr(self, f"_{case.variant.replace('-', '_')}")
        return self._kept(f"plan-{case.slug}", lambda: make(case))

    def in_order(self):
        """Plain top-k with the experts in the order of their ids."""
        layers = tuple(
            replace(layer, placement=contiguous_placement(layer.num_experts, self.num_ranks))
            for layer in self.placed.layers
        )
        return replace(self.placed, layers=layers)

    def _kept(self, name, make):
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            make().save(path)
        return Plan.load(path)

    def _profile(self):
        """The base model's profile on the text that experts are placed by."""
        path = self.folder / "profile.safetensors"
        if not path.exists():
            self._profile_under().save(path)
        return CollaborationProfile.load(path)

    def _profile_under(self, plan=None):
        model = self._open()
        if plan is not None:
            apply(model, plan, strict=False)
        return profile(model, self.material.calibration())

    def _open(self):
        return self.material.scale.measured_form(self.material.open())

    def _with_policy(self, placed, case):
        return with_policy(placed, self.profile, case.policy, case.strength or None)

    def _placed(self, profile=None, **options):
        cluster = cluster_of(PLACED_FOR, self.num_ranks)
        options = {"cluster": cluster, "workload": WORKLOAD, **options}
        return make_plan(
            profile or self.profile,
            num_ranks=cluster.num_ranks,
            num_nodes=cluster.num_nodes,
            policy=_CONTROL,
            max_load=self.max_load,
            **options,
        )

    def _copies(self, case):
        placed = self._kept("placed-copies", lambda: self._placed(objective="sets"))
        return self._with_policy(placed, case)

    def _replicas(self, case):
        # The layer that is timed has more weights than the one that is studied.
        roomy = replace(cluster_of(PLACED_FOR, self.num_ranks), memory_gigabytes=80.0)
        placed = self._kept(
            "placed-replicas", lambda: self._placed(cluster=roomy, replicas=_REPLICAS)
        )
        return self._with_policy(placed, case)

    def _again(self, case):
        first = self._with_policy(self.placed, case)
        return self._with_policy(self._placed(self._profile_under(first)), case)

    def _per_layer(self, case):
        path = self.folder / f"spread-{case.policy}.json"
        if not path.exists():
            write_text(path, json.dumps(self._spread(case.policy)))
        found = dict(zip(_SPREAD_STRENGTHS, json.loads(path.read_text()), strict=True))
        if case.strength not in found:
            raise InputError(f"strengths per layer are found for {_SPREAD_STRENGTHS} only")
        return with_policy(self.placed, self.profile, case.policy, found[case.strength])

    def _spread(self, policy):
        """Strengths of all layers, for as many copies as each of `_SPREAD_STRENGTHS` gives."""
        model = self._open()
        text = self.material.calibration()[:_SPREAD_BATCHES]
        points = [SweepPoint(policy=policy, strength=strength) for strength in _SPREAD_STRENGTHS]
        spread = spread_points(model, text, self.placed, self.profile, points)
        return [list(point.strength) for point in spread]
