"""SGLang: the top-k of every MoE layer chooses by the plan's policy.

SGLang calls the plugin in each of its processes (entry point group `sglang.srt.plugins`). A layer's
`TopK` is given its number when it is made; there it gets a routing function of ours, and no groups,
so that SGLang calls that function in place of its own. What SGLang does afterwards stays: the
scaling factor, where it is applied at all, the renumbering of experts under EPLB, and padding.
When the model is made, every layer of the plan must have been bound; when it is loaded, its router
weights must be those that the plan was made for.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from c2r.errors import InputError, ModelError, PlanMismatchError
from c2r.plans import LayerPlan, Plan
from c2r.plans.model_folder import is_renumbered
from c2r.routing import TopKPolicy, make_policy
from c2r.serving.binding import (
    check_bound,
    check_family,
    check_weights,
    layers_by_number,
    plan_of,
    router_tensors,
)
from c2r.serving.placements import check_placement, is_in_order
from c2r.serving.scoring import Scoring

_TESTED = "0.5.23"
_CHECKED_TOKENS = 64
_TOPK = "sglang.srt.layers.moe.topk"
_LOADER = "sglang.srt.model_loader.loader"
_logger = logging.getLogger("sglang.c2r")


def register() -> None:
    """Makes SGLang run models under their plans; a model without a plan runs as before.

    Raises `ModelError` where this version of SGLang has no such functions.
    """
    try:
        from sglang.srt.layers.moe import topk
        from sglang.srt.model_loader import loader
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        targets = topk.TopK.__init__, topk.TopK.bind_runner_backend, topk.select_experts
        # It makes every model, and most loaders fill it by the other.
        loader._initialize_model, loader.DefaultModelLoader.load_weights_only  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"c2r cannot reach the routers of this SGLang ({error}); use SGLang {_TESTED}"
        ) from error
    if any(hasattr(target, "__wrapped__") for target in targets):
        return
    for name, hook in (
        (f"{_TOPK}.TopK.__init__", _make),
        (f"{_TOPK}.TopK.bind_runner_backend", _bind_runner),
        (f"{_TOPK}.select_experts", _select),
        (f"{_LOADER}._initialize_model", _initialize),
        (f"{_LOADER}.DefaultModelLoader.load_weights_only", _load),
    ):
        HookRegistry.register(name, hook, HookType.AROUND)


def _make(make: Callable[..., None], topk: Any, *args: Any, **options: Any) -> None:
    make(topk, *args, **options)
    plan = None if topk.is_draft else _current_plan()
    if plan is not None:
        constrain(topk, plan)


def _initialize(make: Callable[..., Any], model_config: Any, *args: Any, **options: Any) -> Any:
    model = make(model_config, *args, **options)
    if model_config.is_draft_model:
        return model
    plan = _current_plan()
    if plan is not None:
        families = [model_config.hf_config.model_type, model_config.hf_text_config.model_type]
        _check_model(model, families, plan)
        model.c2r_made_for = plan, families
    elif getattr(model_config.hf_config, "c2r", None) is not None:
        raise InputError(
            f"the config of {model_config.model_path} names a plan that cannot be found; give the "
            "model's folder, or name the plan's file in C2R_PLAN"
        )
    return model


def _load(load: Callable[..., None], model: Any, *args: Any, **options: Any) -> None:
    load(model, *args, **options)
    made_for = vars(model).pop("c2r_made_for", None)
    if made_for is None:  # without a plan, or a trainer sends new weights
        return
    plan, families = made_for
    routers = {
        module.layer_id: router_tensors(model, path)
        for path, module in model.named_modules()
        if _is_bound(module)
    }
    unknown = check_weights(plan, families, routers)
    if unknown is not None:
        _logger.warning(
            "c2r: the router weights are not compared with plan %s: %s", plan.fingerprint, unknown
        )


def _is_bound(module: Any) -> bool:
    config = getattr(module, "topk_config", None)
    return isinstance(getattr(config, "custom_routing_function", None), _Choice)


def _check_model(model: Any, families: Sequence[str], plan: Plan) -> None:
    """Raises `PlanMismatchError` or `ModelError` unless the whole model runs under the plan."""
    check_family(plan, families)
    bound, within = set(), range(max(layers_by_number(plan)) + 1)
    for module in model.modules():
        if _is_bound(module):
            bound.add(module.layer_id)
        if isinstance(getattr(module, "start_layer", None), int):  # pipeline parallelism
            within = range(module.start_layer, module.end_layer)
    check_bound(plan, bound, "SGLang", within)


def _bind_runner(bind: Callable[..., None], topk: Any, runner: Any, **options: Any) -> None:
    bind(topk, runner, **options)
    own = topk.topk_config.custom_routing_function
    output = topk.topk_config.output_format
    if isinstance(own, _Choice) and output is not None and output.name != "STANDARD":
        raise ModelError(
            f"SGLang's MoE runner routes layer {topk.layer_id} by itself ({output.name}), where "
            "c2r cannot choose; start it with moe_runner_backend triton"
        )


def _select(select: Callable[..., Any], *args: Any, **options: Any) -> Any:
    config = options["topk_config"] if "topk_config" in options else args[2]
    if (
        isinstance(config.custom_routing_function, _Choice)
        and options.get("dynamic_expert_bias") is not None
    ):
        raise ModelError(
            f"SGLang gives layer {config.layer_id} a bias for every token, where c2r cannot "
            "choose; serve the model without its plan"
        )
    return select(*args, **options)


def _current_plan() -> Plan | None:
    """The plan of the model that SGLang is building."""
    from sglang.srt.runtime_context import get_server_args

    arguments = get_server_args()
    return _plan(arguments.model_path, getattr(arguments, "init_expert_location", None))


@functools.cache
def _plan(model: str, placement: str | None) -> Plan | None:
    plan = plan_of(model, is_named=False)
    if plan is not None:
        _logger.info(
            "c2r: %s runs under plan %s: %s in layers %s, for %d ranks",
            model,
            plan.fingerprint,
            " and ".join(sorted({f"{layer.policy} {layer.strength:g}" for layer in plan.layers})),
            ", ".join(str(number) for number in layers_by_number(plan)),
            plan.topology.num_ranks,
        )
        _check_placement(model, plan, placement)
    return plan


def _check_placement(model: str, plan: Plan, placement: str | None) -> None:
    """Raises `PlanMismatchError` where SGLang is given a file that places a folder's experts wrong.

    A folder that `c2r permute` wrote may be given none but its own; for others it is a warning.
    """
    is_file = placement is not None and Path(placement).is_file()
    if not is_file:
        if not is_in_order(plan):
            _logger.info(
                "c2r: where experts are spread over ranks, SGLang places them in order, and not as "
                "plan %s does; give what `c2r export` writes as --init-expert-location, or serve "
                "what `c2r permute %s` writes",
                plan.fingerprint,
                model,
            )
        return
    try:
        check_placement(model, plan, Path(str(placement)))
    except PlanMismatchError as error:
        if is_renumbered(Path(model)):
            raise
        _logger.warning("c2r: %s", error)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Choice:
    """A `custom_routing_function` of SGLang's, whose routed experts the plan's policy chooses."""

    layer: LayerPlan
    layer_id: int
    scoring: Scoring
    policy: Any
    shared_weight: float

    def __call__(
        self, *, hidden_states: Tensor, gating_output: Tensor, topk: int, renormalize: bool
    ) -> tuple[Tensor, Tensor]:
        """Weights `[tokens, topk]` float32 and ids int32: the chosen, then the shared experts."""
        num_experts, k = self.layer.num_experts, self.layer.top_k
        if gating_output.shape[-1] != num_experts:
            raise PlanMismatchError(
                f"the plan is for {num_experts} experts in layer {self.layer_id}, the model has "
                f"{gating_output.shape[-1]}; give a plan made for it"
            )
        weights, ids = self.scoring.route(gating_output, k, self.policy)
        ids = ids.to(torch.int32)
        if topk > k:
            shared = torch.arange(num_experts, num_experts + topk - k, device=ids.device)
            ids = torch.cat((ids, shared.to(ids.dtype).expand(len(ids), -1)), -1)
            weights = torch.cat(
                (weights, weights.new_full((len(ids), topk - k), self.shared_weight)), -1
            )
        return weights.contiguous(), ids.contiguous()


def constrain(topk: Any, plan: Plan) -> None:
    """Leaves the choice of a layer's `TopK` to the plan, once its arithmetic is seen to be known.

    Raises:
        PlanMismatchError: the plan has no such layer, or another k.
        ModelError: SGLang routes the layer in a way that is not reached.
    """
    config = topk.topk_config
    layer = layers_by_number(plan).get(topk.layer_id)
    if layer is None:
        raise PlanMismatchError(
            f"plan {plan.fingerprint} has no layer {topk.layer_id}; give one made for this model"
        )
    k = config.top_k - config.num_shared_topk_slots
    if layer.top_k != k:
        raise PlanMismatchError(
            f"plan {plan.fingerprint} is for k = {layer.top_k} in layer {topk.layer_id}, the model "
            f"has k = {k}; give a plan made for it"
        )
    _check_dropping(layer, topk.layer_id)
    scoring = _scoring(config)
    bias = scoring.bias
    device = torch.get_default_device() if bias is None else bias.device
    _check_arithmetic(config, scoring, layer, device)
    factor = config.routed_scaling_factor
    is_scaled_later = factor and not config.apply_routed_scaling_factor_on_output
    config.custom_routing_function = _Choice(
        layer=layer,
        layer_id=topk.layer_id,
        scoring=scoring,
        policy=make_policy(layer, scoring.score_kind).to(device),
        # The output of all experts is scaled later, and that of a shared one must not be.
        shared_weight=1.0 / factor if is_scaled_later else 1.0,
    )
    config.use_grouped_topk = False


def _check_dropping(layer: LayerPlan, layer_id: int) -> None:
    """Raises `ModelError` where the place of a dropped expert cannot repeat another."""
    if layer.policy != "pruned":
        return
    from sglang.srt.layers.moe.utils import get_moe_a2a_backend

    backend = get_moe_a2a_backend()
    if not backend.is_none():
        raise ModelError(
            f"the policy pruned drops experts in layer {layer_id}, which SGLang's moe_a2a_backend "
            f"{backend.value} cannot; plan with budgeted instead"
        )


def _scoring(config: Any) -> Scoring:
    """The arithmetic that SGLang asks of a layer. Raises `ModelError` for one that is not known."""
    from sglang.srt.layers.moe import topk

    foreign = []
    if config.custom_routing_function is not None:
        foreign.append("custom_routing_function")
    if config.output_format is not None and config.output_format.name != "STANDARD":
        foreign.append(f"output_format={config.output_format.name}")
    if config.scoring_func not in ("softmax", "sigmoid"):
        foreign.append(f"scoring_func={config.scoring_func}")
    if topk._is_npu:
        foreign.append("kernels for NPUs")
    if foreign:
        raise ModelError(
            f"SGLang routes layer {config.layer_id} by {', '.join(foreign)}, where c2r cannot "
            "choose; serve the model without its plan"
        )
    is_grouped, bias = config.use_grouped_topk, config.correction_bias
    return Scoring(
        # SGLang's biased grouped router takes the sigmoid, whatever scoring_func says.
        function="sigmoid" if is_grouped and bias is not None else config.scoring_func,
        renormalize=config.renormalize,
        bias=bias,
        num_groups=config.num_expert_group if is_grouped else 1,
        num_chosen_groups=config.topk_group if is_grouped else 1,
    )


def _check_arithmetic(
    config: Any, scoring: Scoring, layer: LayerPlan, device: torch.device
) -> None:
    """Raises `ModelError` unless, unconstrained, our weights and choice are those of SGLang.

    Random logits are routed both ways, with a random bias: the layer's own is loaded later.
    """
    from sglang.srt.layers.moe import topk

    drawn = torch.Generator().manual_seed(0)
    size = (_CHECKED_TOKENS, layer.num_experts)
    logits = torch.randn(size, generator=drawn, dtype=torch.float32, device="cpu").to(device)
    bias = scoring.bias
    if bias is not None:
        values = torch.randn(bias.shape, generator=drawn, dtype=torch.float32, device="cpu") / 10
        bias = values.to(device)
    options = {
        "hidden_states": torch.zeros(_CHECKED_TOKENS, 8, device=device),
        "gating_output": logits,
        "topk": layer.top_k,
        "renormalize": config.renormalize,
    }
    groups = {"num_expert_group": config.num_expert_group, "topk_group": config.topk_group}
    with torch.compiler.set_stance("force_eager"):  # once, for which compiling does not pay
        if not config.use_grouped_topk:
            theirs = topk.fused_topk_torch_native(
                **options, correction_bias=bias, scoring_func=config.scoring_func
            )
        elif bias is None:
            theirs = topk.grouped_topk_gpu(**options, **groups, scoring_func=config.scoring_func)
        else:
            theirs = topk.biased_grouped_topk_impl(**options, **groups, correction_bias=bias)
    ours = dataclasses.replace(scoring, bias=bias).route(logits, layer.top_k, TopKPolicy())
    expected, found = (
        torch.zeros(size, device=device).scatter_(1, ids.long(), weights.float())
        for weights, ids in (theirs, ours)
    )
    if not torch.allclose(expected, found, atol=1e-5, rtol=1e-4):
        raise ModelError(
            f"SGLang weighs the experts of layer {config.layer_id} in a way that c2r does not "
            "know; serve the model without its plan"
        )
