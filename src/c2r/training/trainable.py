"""Which parameters train, and the unconstrained teacher made from the same weights."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from c2r.adapters.huggingface import PreparedPlan, enforce, evaluating, find_sites
from c2r.errors import InputError
from c2r.plans import Plan
from c2r.plans.model_folder import save_plan
from c2r.training.settings import Mode


def router_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of all routers by their names in `model`, selection biases included."""
    return {
        f"{site.name}.{name}": parameter
        for site in find_sites(model)
        for name, parameter in site.module.named_parameters()
        if not name.startswith("experts.")  # DBRX selects in the module that holds the experts
    }


def freeze_routers(model: nn.Module) -> int:
    """Stops all routers of a model from training, selection biases included.

    Call it before the optimizer is made. The choice of experts still changes, by what comes to the
    routers.

    Returns:
        the parameters that were training.

    Raises:
        ModelError: the model is not supported.
    """
    frozen = 0
    for parameter in router_parameters(model).values():
        frozen += parameter.numel() * parameter.requires_grad
        parameter.requires_grad_(False)
    return frozen


@contextmanager
def training_only(
    model: nn.Module, mode: Mode, lora_rank: int, routers: bool = True
) -> Iterator[Any]:
    """The model to train, with gradients for what `mode` trains and nothing else.

    Without `routers`, these do not train either. In `lora` mode that is a PEFT model around
    `model`, whose adapters are merged into `model` when the block ends. `requires_grad` is
    restored.

    Raises:
        InputError: `lora` without PEFT installed.
    """
    # By name: where the weights are sharded meanwhile, the parameters are others.
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    adapted = None
    try:
        if mode != "full":
            model.requires_grad_(False)
            adapted = _with_adapters(model, lora_rank) if mode == "lora" else None
            for parameter in router_parameters(model).values():
                parameter.requires_grad_(True)
        if not routers:
            freeze_routers(model)
        yield adapted or model
    finally:
        if adapted is not None:
            adapted.merge_and_unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def _with_adapters(model: nn.Module, rank: int) -> Any:
    """The PEFT model around `model`: adapters in all linear layers but those of routers."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError(
            "mode lora needs PEFT; install it with `pip install 'c2r-moe[train]'`"
        ) from None
    routers = "|".join(re.escape(site.name) for site in find_sites(model))
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,  # the usual choice: updates scaled by 2, whatever the rank
        target_modules="all-linear",
        exclude_modules=rf"(?:{routers})(?:\..*)?",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks by a name that v6 will drop
        warnings.simplefilter("ignore", RuntimeWarning)  # its ranks for experts, which stay
        return get_peft_model(model, config)


def save_adapter(adapted: Any, model: nn.Module, plan: Plan, folder: Path) -> None:
    """Writes the adapters as PEFT loads them, the trained routers among them, and the plan.

    `PeftModel.from_pretrained(model, folder)` gives the tuned model, which `merge_and_unload`
    makes an ordinary one; `c2r.apply` constrains it by the plan in the folder.
    """
    from peft import get_peft_model_state_dict

    routers = router_parameters(model)
    weights = get_peft_model_state_dict(adapted)
    weights |= {f"base_model.model.{name}": value.detach() for name, value in routers.items()}
    names = [site.name for site in find_sites(model)]
    config = replace(adapted.peft_config["default"], modules_to_save=names, inference_mode=True)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    save_plan(plan, folder)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teacher:
    """The model without constraint, made from the training model itself, without a copy.

    In `full` mode the same weights routed by plain top-k, so that it moves along. In the other
    modes exactly the model that training began with: adapters off, `originals` in the routers.

    Attributes:
        model: the transformers model.
        free: plain top-k, prepared.
        adapted: the PEFT model around it; None outside `lora` mode.
        originals: weights of the routers before training, by the parameters that train.
    """

    model: nn.Module
    free: PreparedPlan
    adapted: Any = None
    originals: Mapping[nn.Parameter, Tensor] = field(default_factory=dict)

    @contextmanager
    def in_place(self, current: PreparedPlan) -> Iterator[None]:
        """Turns the model into the teacher inside the block, and back to `current` after it."""
        # Tensors change places, nothing is copied; the optimizer knows parameters, not their data.
        trained = {parameter: parameter.data for parameter in self.originals}
        adapters = nullcontext() if self.adapted is None else self.adapted.disable_adapter()
        try:
            for parameter, original in self.originals.items():
                parameter.data = original
            enforce(self.model, self.free)
            with evaluating(self.model), adapters:
                yield
        finally:
            for parameter, data in trained.items():
                parameter.data = data
            enforce(self.model, current)
