"""c2r in a Trainer of the user's own: the routing in its log, the plan in what it saves."""

from typing import Any

from transformers import TrainerCallback

from c2r.adapters.huggingface import applied_plan, capture, keep_plan_around
from c2r.errors import PlanError
from c2r.plans import Plan
from c2r.training.metrics import routing_metrics


class RoutingCallback(TrainerCallback):  # type: ignore[misc]
    """Logs the routing of a constrained model while a Trainer trains it.

        c2r.apply(model, plan)
        trainer = Trainer(model, ...)  # or TRL's
        trainer.add_callback(c2r.RoutingCallback(trainer))

    What the Trainer logs of a step, and reports to others, then holds the figures of
    `c2r.routing_metrics`, of one batch of this process. The plan is saved with every
    checkpoint; with adapters, whose folders hold no model, it is saved beside them.

    Args:
        trainer: transformers' `Trainer`, or one made from it.
        plan: whose ranks are counted; default: the plan that is applied to the model.

    Raises:
        PlanError: no plan is applied, and none is given.
        ModelError: the model has no routers that c2r can watch.
    """

    def __init__(self, trainer: Any, plan: Plan | None = None) -> None:
        self._trainer = trainer
        if plan is None and applied_plan(trainer.model) is None:
            raise PlanError("the model carries no plan to watch; call c2r.apply(model, plan) first")
        self._plan = plan
        self._is_due = False
        self._metrics: dict[str, float] = {}
        # Events come too late for the entry of the log, and none ends a recording after an error.
        self._compute_loss, self._log = trainer.compute_loss, trainer.log
        trainer.compute_loss, trainer.log = self._recorded_loss, self._log_with_routing
        keep_plan_around(trainer.model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Finds whether the step may be logged."""
        step = state.global_step + 1
        is_first = step == 1 and args.logging_first_step
        is_between = args.logging_strategy == "steps" and step % state.logging_steps != 0
        self._is_due = is_first or not is_between

    def _recorded_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own loss of a batch; notes the routing of the first one of a step."""
        if not self._is_due:
            return self._compute_loss(*args, **kwargs)
        self._is_due = False
        model = self._trainer.model
        with capture(model) as recorder:
            loss = self._compute_loss(*args, **kwargs)
            plan = self._plan or applied_plan(model)
            if plan is not None:
                self._metrics = routing_metrics(recorder.take(), plan)
        return loss

    def _log_with_routing(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's own log, the figures in its entries of a loss."""
        if "loss" in logs:
            logs.update(self._metrics)
            self._metrics = {}
        self._log(logs, *args, **kwargs)
