"""A constrained model's own `save_pretrained`, and all that calls it, keeps the plan."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel

from c2r.adapters.huggingface.parallel_models import check_whole
from c2r.adapters.huggingface.routers.model_identity import fingerprint
from c2r.adapters.huggingface.routers.sites import RouterSite
from c2r.plans import Plan
from c2r.plans.model_folder import save_plan

_METHOD = "save_pretrained"


class Constraint(Protocol):
    """The routers of a model, and the plan in force, if any."""

    plan: Plan | None

    @property
    def sites(self) -> tuple[RouterSite, ...]:
        """Of the routers, in the model's order."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PlanKeeper:
    """Stands in for the `save_pretrained` of one model; copied and pickled along with it."""

    model: Any
    constraint: Constraint

    def __call__(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Saves as the model's class does, and the plan in force beside it.

        config.json names the plan, which is stamped with the fingerprint of the weights; with that
        given as `model_fingerprint`, where this process alone cannot tell.

        Raises:
            InputError: the model's experts are spread over ranks, and no weights are given.
        """
        if kwargs.get("state_dict") is None:
            check_whole(self.model)
        save, plan = getattr(type(self.model), _METHOD), self.constraint.plan
        if plan is None or not kwargs.get("is_main_process", True):
            save(self.model, save_directory, *args, **kwargs)
            return
        known = kwargs.pop("model_fingerprint", None)
        to_hub = kwargs.pop("push_to_hub", False)
        hub_names = ("repo_id", "commit_message", "create_pr", "private") if to_hub else ()
        hub = {name: kwargs.pop(name) for name in hub_names if name in kwargs}
        if isinstance(self.model, PreTrainedModel):
            found = known or fingerprint(self.model, self.constraint.sites)
            stamp = {"model_fingerprint": found}
            plan = replace(plan, provenance={**plan.provenance, **stamp})
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        save_plan(plan, Path(save_directory))
        with _named_in(self.model.config, plan):
            save(self.model, save_directory, *args, **kwargs)
        if to_hub:  # by way of this method again: the class would upload no plan
            name = hub.pop("repo_id", Path(save_directory).name)
            self.model.push_to_hub(name, token=kwargs.get("token"), **hub)


def keep_plan(model: Any, constraint: Constraint) -> None:
    """From now on the model is saved with the plan in force, as long as there is one."""
    if hasattr(type(model), _METHOD):
        setattr(model, _METHOD, PlanKeeper(model, constraint))


def forget_plan(model: Any) -> None:
    """Undoes `keep_plan`."""
    if isinstance(vars(model).get(_METHOD), PlanKeeper):
        delattr(model, _METHOD)


@contextmanager
def _named_in(config: Any, plan: Plan) -> Iterator[None]:
    before = getattr(config, "c2r", None)
    config.c2r = {"plan_fingerprint": plan.fingerprint}
    try:
        yield
    finally:
        if before is None:
            del config.c2r
        else:
            config.c2r = before
