"""transformers' Trainer under a routing policy: its losses, its schedule, its log."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback

from c2r.adapters.huggingface import PreparedPlan, capture, enforce, prepare
from c2r.errors import RoutingError, TrainingError
from c2r.measuring import NO_LOSS, next_token_targets
from c2r.plans import Plan
from c2r.traces import RoutingTrace
from c2r.training.annealing import anneal
from c2r.training.data import Window
from c2r.training.losses import balance_loss, cross_entropy_sum, divergence_sum
from c2r.training.metrics import routing_metrics
from c2r.training.resuming import ResumableTrainer
from c2r.training.settings import FinetuneSettings
from c2r.training.trainable import Teacher


class ShuffledWindows(Dataset[Window]):
    """The windows of all steps in their order: one permutation after the other.

    The order depends on the seed alone, not on the number of processes or where a run resumes.
    """

    def __init__(self, windows: Sequence[Window], settings: FinetuneSettings) -> None:
        length = settings.steps(len(windows)) * settings.batch_size
        orders = [
            np.random.default_rng([settings.seed, index]).permutation(len(windows))
            for index in range(-(-length // len(windows)))
        ]
        self._windows = windows
        self._order = np.concatenate(orders)[:length]

    def __len__(self) -> int:
        """Windows of all steps."""
        return len(self._order)

    def __getitem__(self, index: int) -> Window:
        """The window that comes at this place."""
        return self._windows[int(self._order[index])]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Constraint:
    """What a trained model is held to.

    Attributes:
        plan: in force from the end of the annealing, or from the start.
        aux_weight: weight of the balance loss.
        teacher: None where there is no KL loss.
    """

    plan: Plan
    aux_weight: float
    teacher: Teacher | None


class ConstrainedTrainer(ResumableTrainer):
    """Trains on `input_ids`, `labels`, `position_ids` and `attention_mask`, `[batch, tokens]`.

    The mask says which tokens count in the balance of the load and is not shown to the model:
    padding follows the text, so that no token attends to it.
    """

    loss_is_scaled_for_ga = True  # the Trainer is not to divide by the number of passes

    def __init__(self, constraint: Constraint, settings: FinetuneSettings, **options: Any) -> None:
        super().__init__(**options)
        self.constraint = constraint
        self.settings = settings
        self._prepared: PreparedPlan | None = None
        self._metrics: dict[str, float] = {}
        self.add_callback(_Schedule(self))
        self.remove_callback(PrinterCallback)  # standard output is for results

    def enforce_at(self, step: int) -> None:
        """Applies the plan of a step, counted from 0, where it differs from the one in force."""
        plan = anneal(self.constraint.plan, step, self.settings.anneal_steps)
        if self._prepared is None or plan.fingerprint != self._prepared.plan.fingerprint:
            self._prepared = prepare(self.base, plan, strict=False)
            enforce(self.base, self._prepared)

    def _in_force(self) -> PreparedPlan:
        assert self._prepared is not None, "a step has begun"
        return self._prepared

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean nats per predicted token of the whole step, KL and balance loss added."""
        batch = dict(inputs)
        targets = next_token_targets(batch)
        del batch["labels"]
        mask = batch.pop("attention_mask", torch.ones_like(targets)).flatten().bool()
        # DDP takes the mean over processes; times their number it is the sum, over all tokens of
        # the step: so the loss does not depend on how a step is split.
        scale = self.accelerator.num_processes / num_items_in_batch
        wants_trace = self.constraint.aux_weight > 0 or self._logs_next()
        recording = capture(self.base, attached=True) if wants_trace else nullcontext()
        try:
            with recording as recorder:
                parts = self._text_parts(model, batch, targets, scale)
                trace = None if recorder is None else recorder.take()
        except RoutingError as error:
            raise TrainingError(self._failure(str(error))) from error
        if trace is not None:
            parts |= self._routing_parts(trace, mask)
        weights = {"kl": self.settings.kl_weight, "aux_loss": self.constraint.aux_weight}
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0) + part.detach()
        return sum(weights.get(name, 1.0) * part for name, part in parts.items())

    def _text_parts(
        self, model: nn.Module, batch: Window, targets: Tensor, scale: Tensor
    ) -> dict[str, Tensor]:
        """Sums over predicted tokens, scaled; the teacher first, so that the trace is ours."""
        is_predicted = targets != NO_LOSS
        teacher, reference = self.constraint.teacher, None
        if teacher is not None:
            with torch.no_grad(), teacher.in_place(self._in_force()):
                reference = self.model(**batch, **self._forward_options()).logits[is_predicted]
        logits = model(**batch, **self._forward_options()).logits[is_predicted]
        parts = {"lm_loss": cross_entropy_sum(logits, targets[is_predicted]) * scale}
        if reference is not None:
            parts["kl"] = divergence_sum(logits, reference) * scale
        return parts

    def _routing_parts(self, trace: RoutingTrace, mask: Tensor) -> dict[str, Tensor]:
        """The balance loss where it has a weight; notes the routing for the log on the way."""
        if self._logs_next():
            shown = trace.of_tokens(mask)
            self._metrics = routing_metrics(shown, self._in_force().plan)
        if not self.constraint.aux_weight:
            return {}
        aux = balance_loss(trace, mask, self.processes)
        return {"aux_loss": aux / self.current_gradient_accumulation_steps}

    def _forward_options(self) -> dict[str, Any]:
        """Arguments that keep the model from adding a balance loss of its own, and from a cache."""
        has_loss = getattr(self.base.config, "output_router_logits", False)
        return {"use_cache": False} | ({"output_router_logits": False} if has_loss else {})

    def _logs_next(self) -> bool:
        """Whether the step that is running will be logged."""
        step: int = self.state.global_step + 1
        return step % self.settings.log_every == 0

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Tensor]], device: torch.device
    ) -> Tensor:
        """Predicted tokens of a step, over all accumulated batches and processes."""
        counts = [(next_token_targets(batch) != NO_LOSS).sum() for batch in batch_samples]
        total: Tensor = self.accelerator.reduce(torch.stack(counts).sum().to(device), "sum")
        return total

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Stops before the weights are touched, on all processes at the same step."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not torch.isfinite(norm):
            raise TrainingError(self._failure("the loss or its gradient is not finite"))
        return norm

    def _failure(self, what: str) -> str:
        step = self.state.global_step + 1
        return (
            f"{what} at step {step}; {self.last_checkpoint()}; lower the learning rate, or check "
            "the data and the weights"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss and the routing of the last batch."""
        if "loss" in logs and self.parts:
            # Parts are sums since the last entry, which after a resumption is of the earlier run.
            entries = [entry["step"] for entry in self.state.log_history]
            num_steps = self.state.global_step - max(entries, default=0)
            for name, total in self.parts.items():
                mean = self.accelerator.reduce(total, "mean") / num_steps
                logs[name] = float(mean)
            logs.update(self._metrics)
            self.parts = {}
        super().log(logs, start_time)


class _Schedule(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: ConstrainedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.unpack_log()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.enforce_at(state.global_step)
