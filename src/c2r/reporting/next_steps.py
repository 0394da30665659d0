"""What to do next with a plan, as a sentence and as a command."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from c2r.assets import tiny_folder
from c2r.plans import Plan
from c2r.prediction import PRESETS, Cluster, Phase, Workload, Worth
from c2r.prediction.cluster import default_cluster


class NextStep(NamedTuple):
    """What to do, and the same as a command."""

    todo: str
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFiles:
    """A plan, and what a command line calls it and what it was made from.

    Attributes:
        plan: what the next step is about.
        file: where it is.
        profile: the file of the profile.
        where: the options that name cluster and workload, as `cluster_options` and
            `workload_options` give them.
        model: what the user calls the model.
        measurement: the JSON of `c2r measure` of it, for the model card.
    """

    plan: Plan
    file: str = "plan.safetensors"
    profile: str = "profile.safetensors"
    where: str
    model: str = "MODEL"
    measurement: str | None = None

    def next_step(
        self, worth: Worth, *, is_measured: bool, is_own_text: bool, lacks_replicas: bool
    ) -> NextStep:
        """The step after a verdict.

        Args:
            worth: what the plan is on its cluster.
            is_measured: whether loss and routing were measured under the plan.
            is_own_text: whether it was judged on the text that it was made from.
            lacks_replicas: whether replicas would save what its placement cannot.
        """
        if self.plan.is_constrained and not is_measured:
            return self.measure()
        if worth is Worth.PAYS:
            return self.judge() if is_own_text else self.use()
        if lacks_replicas:
            return self.replicate()
        if worth is Worth.SLOWER:
            return NextStep("place the experts for the least time on this cluster", self._again())
        command = (
            f"c2r estimate {shlex.quote(self.profile)} --plan {shlex.quote(self.file)} {self.where}"
        )
        return NextStep("see for which batches it would pay", command)

    def replicate(self) -> NextStep:
        """To plan the same, policy included, with replicas."""
        layers, policy = self.plan.layers, ""
        if self.plan.is_constrained:
            strengths = [f"{layer.strength:g}" for layer in layers]
            if len(set(strengths)) == 1:
                strengths = strengths[:1]
            policy = f" --policy {layers[0].policy}={','.join(strengths)}"
        command = self._again(f"{policy} --replicas auto")
        return NextStep("plan again, with replicas of the busiest experts", command)

    def _again(self, options: str = "") -> str:
        """The command that makes another plan in the place of this one."""
        plan = f"c2r plan {shlex.quote(self.profile)} {self.where}{options}"
        return f"{plan} --out {shlex.quote(self.file)} --force"

    def judge(self) -> NextStep:
        """To find out whether the plan saves as much on text that it was not made from."""
        command = (
            f"c2r profile {shlex.quote(self.model)} --text OTHER.txt --out other.safetensors && "
            f"c2r report other.safetensors {shlex.quote(self.file)} --out other.html"
        )
        return NextStep("judge it on other text than it was planned on", command)

    def measure(self) -> NextStep:
        """To find out what the plan's policy costs and sends."""
        command = f"c2r measure {self._model_and_plan} --text OTHER.txt --json > measured.json"
        return NextStep("measure what the policy costs and sends, and report it too", command)

    def tune(self) -> NextStep:
        """To recover the quality that the policy costs."""
        command = f"c2r finetune {self._model_and_plan} --data TEXT --out tuned"
        return NextStep("recover the quality by fine-tuning", command)

    def use(self) -> NextStep:
        """To run the model under the plan."""
        if self.plan.is_constrained:
            card = self.measurement and f" --measurement {shlex.quote(self.measurement)}"
            command = f"c2r apply {self._model_and_plan}{card or ''} --out constrained"
            return NextStep("save the model with its plan", command)
        if self.plan.num_replicas:
            command = (
                f"c2r export --plan {shlex.quote(self.file)} --model {shlex.quote(self.model)} "
                "--format sglang --out placement.json"
            )
            return NextStep("give the placement to an engine that knows replicas", command)
        command = f"c2r permute {self._model_and_plan} --out renumbered"
        return NextStep(
            "renumber the checkpoint, so that any engine places its experts as planned", command
        )

    @property
    def _model_and_plan(self) -> str:
        return f"{shlex.quote(self.model)} --plan {shlex.quote(self.file)}"


def model_in(provenance: Mapping[str, Any]) -> str:
    """What the user called the model, as a profile's or a plan's provenance tells; else MODEL."""
    for name in ("profile", "request"):
        inner = provenance.get(name)
        provenance = inner if isinstance(inner, Mapping) else provenance
    model = provenance.get("model")
    if model == str(tiny_folder()):
        return "tiny"
    return model if isinstance(model, str) and model else "MODEL"


def workload_options(workload: Workload) -> str:
    """The options that name tokens and phase, each with a blank before it; none that are usual."""
    phase, tokens = workload.phase, workload.tokens_per_rank
    options = "" if phase is Phase.PREFILL else f" --phase {phase}"
    return options if tokens == phase.usual_tokens else f"{options} --tokens-per-rank {tokens}"


def cluster_options(cluster: Cluster) -> str:
    """The options that name a cluster on a command line."""
    if PRESETS.get(cluster.name) == cluster:
        return f"--cluster {cluster.name}"
    if default_cluster(cluster.num_ranks, cluster.num_nodes) == cluster:
        return f"--ranks {cluster.num_ranks} --nodes {cluster.num_nodes}"
    return "--cluster CLUSTER.yaml"
