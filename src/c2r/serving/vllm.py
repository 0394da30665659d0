"""vLLM: the router of every MoE layer chooses by the plan's policy.

vLLM calls the plugin in each of its processes (entry point group `vllm.general_plugins`). Three of
its functions are wrapped: the factory that makes a layer's router; the constructor of the runner,
which alone knows the layer's name; and the last step of loading, before which the routers' weights
must be those that the plan was made for, and after which every layer of the plan must have been
bound. Kernels that route by themselves never ask the router; the router therefore calls itself
`Custom`, which vLLM gives to no such kernel.
"""

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from c2r.errors import ModelError, PlanMismatchError
from c2r.plans import LayerPlan, Plan
from c2r.routing import TopKPolicy, make_policy
from c2r.serving.binding import (
    check_bound,
    check_family,
    check_weights,
    layer_number,
    layers_by_number,
    plan_of,
    router_tensors,
)
from c2r.serving.placements import is_in_order
from c2r.serving.scoring import Scoring

_TESTED = "0.32"
_CHECKED_TOKENS = 64
_GATHERING = "allgather_reducescatter"  # every token to every rank
_logger = logging.getLogger("vllm.c2r")  # below vLLM's own logger, so that its level and form hold


def register() -> None:
    """Makes vLLM run models under their plans; a model without a plan runs as before.

    Raises `ModelError` where this version of vLLM has no such functions.
    """
    try:
        from vllm.model_executor.layers.fused_moe import layer
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
        from vllm.model_executor.model_loader import base_loader, utils

        make_router, join = layer.create_fused_moe_router, MoERunner.__init__
        finish = utils.process_weights_after_loading
        base_loader.BaseModelLoader.load_model  # noqa: B018 - it calls the one above
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"c2r cannot reach the routers of this vLLM ({error}); use vLLM {_TESTED}"
        ) from error
    if hasattr(join, "__wrapped__"):  # vLLM may call this several times in one process
        return

    @functools.wraps(make_router)
    def make_constrained(**options: Any) -> Any:
        router = make_router(**options)
        return router if _current_plan() is None else _constrain(router, options)

    @functools.wraps(join)
    def join_and_bind(
        runner: Any, layer_name: str, moe_config: Any, router: Any, *args: Any, **options: Any
    ) -> None:
        join(runner, layer_name, moe_config, router, *args, **options)
        plan = _current_plan()
        if plan is not None:
            _bind(router, layer_name, moe_config, plan)

    @functools.wraps(finish)
    def finish_and_check(model: Any, model_config: Any, *args: Any, **options: Any) -> None:
        with _checked(model, model_config):
            finish(model, model_config, *args, **options)

    layer.create_fused_moe_router = make_constrained
    MoERunner.__init__ = join_and_bind
    _replace_everywhere(finish, finish_and_check)


@contextmanager
def _checked(model: Any, model_config: Any) -> Iterator[None]:
    """The last step of loading `model`, which must then run under its plan."""
    plan = _plan_of_config(model_config)
    if plan is None:
        yield
        return
    _check_origin(model, model_config, plan)  # first: the step may pack the routers' weights
    yield
    _check_model(model, model_config, plan)


def _replace_everywhere(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Puts a function in the place of another, also where modules imported it by its name."""
    for module in list(sys.modules.values()):
        if vars(module).get(old.__name__) is old:  # getattr would load what is lazy
            setattr(module, old.__name__, new)


def _current_plan() -> Plan | None:
    """The plan of the model that vLLM is building."""
    from vllm.config import get_current_vllm_config

    return _plan_of_config(get_current_vllm_config().model_config)


def _plan_of_config(model_config: Any) -> Plan | None:
    if model_config.runner_type == "draft":
        return None  # it proposes tokens, which the model itself accepts or not
    is_named = getattr(model_config.hf_config, "c2r", None) is not None
    return _plan(model_config.model, is_named)


@functools.cache
def _plan(model: str, is_named: bool) -> Plan | None:
    plan = plan_of(model, is_named)
    if plan is not None:
        layers = ", ".join(str(number) for number in layers_by_number(plan))
        policies = sorted({f"{layer.policy} {layer.strength:g}" for layer in plan.layers})
        _logger.info(
            "c2r: %s runs under plan %s: %s in layers %s, for %d ranks",
            model,
            plan.fingerprint,
            " and ".join(policies),
            layers,
            plan.topology.num_ranks,
        )
        if not is_in_order(plan):
            _logger.info(
                "c2r: where experts are spread over ranks, vLLM places them in order, and not as "
                "plan %s does; serve what `c2r permute %s` writes to have them placed too",
                plan.fingerprint,
                model,
            )
    return plan


@functools.cache
def _constrained(own: type) -> type:
    """The class of a router, `own`, that scores as before and chooses by a policy.

    A subclass of that very class, so that an existing router can become one of it.
    """
    from vllm.model_executor.layers.fused_moe.config import RoutingMethodType

    def compute_routing(
        router: Any,
        hidden_states: Tensor,
        router_logits: Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        weights, ids = router.c2r_scoring.route(router_logits, router.top_k, router.c2r_policy)
        # vLLM's CPU kernels read both as contiguous buffers, whatever their strides.
        return weights.contiguous(), ids.to(indices_type or torch.int32).contiguous()

    members = {
        "routing_method_type": RoutingMethodType.Custom,
        "_compute_routing": compute_routing,
        "c2r_own_class": own,
    }
    return type(f"Constrained{own.__name__}", (own,), members)


def _constrain(router: Any, options: Mapping[str, Any]) -> Any:
    """`router` with the choice left to a policy, which `_bind` gives it."""
    router.c2r_scoring = _scoring(options)
    own: Any = type(router)
    router.__class__ = _constrained(own)
    return router


def _scoring(options: Mapping[str, Any]) -> Scoring:
    """The arithmetic that vLLM asks of a router. Raises `ModelError` for one that is not known."""
    function = options.get("scoring_func", "softmax")
    foreign = [
        name
        for name in ("custom_routing_function", "zero_expert_type", "hash_indices_table", "bias_vl")
        if options.get(name) is not None
    ]
    own = options.get("custom_routing_function")
    if ".models.transformers." in getattr(getattr(own, "func", own), "__module__", ""):
        foreign = ["transformers' own block (--model-impl transformers)"]
    if options.get("num_fused_shared_experts"):
        foreign.append("num_fused_shared_experts")
    if function not in ("softmax", "sigmoid"):
        foreign.append(f"scoring_func={function}")
    if foreign:
        raise ModelError(
            f"vLLM routes this model by {', '.join(foreign)}, where c2r cannot choose; serve it "
            "without its plan"
        )
    is_grouped = bool(options.get("use_grouped_topk"))
    return Scoring(
        function=function,
        renormalize=options.get("renormalize", True),
        scaling_factor=options.get("routed_scaling_factor", 1.0),
        bias=options.get("e_score_correction_bias"),
        num_groups=options.get("num_expert_group") or 1 if is_grouped else 1,
        num_chosen_groups=options.get("topk_group") or 1 if is_grouped else 1,
    )


def _bind(router: Any, layer_name: str, moe_config: Any, plan: Plan) -> None:
    """Gives a router the policy of its layer, once its arithmetic was seen to be vLLM's own."""
    if not hasattr(router, "c2r_own_class"):
        raise ModelError(
            f"vLLM made the router of {layer_name} by itself ({type(router).__name__}), where c2r "
            "cannot choose; serve the model without its plan"
        )
    layer = _layer_of(plan, layer_name, moe_config)
    _check_dropping(layer, layer_name, moe_config)
    device = torch.device(moe_config.device)
    _check_arithmetic(router, layer_name, moe_config, device)
    router.c2r_policy = make_policy(layer, router.c2r_scoring.score_kind).to(device)


def _check_origin(model: Any, model_config: Any, plan: Plan) -> None:
    """Raises `PlanMismatchError` where a plan is seen to be of another model than was loaded."""
    from vllm.config import get_current_vllm_config

    configs = model_config.hf_config, model_config.hf_text_config
    families = [config.model_type for config in configs]
    check_family(plan, families)
    routers = {
        number: router_tensors(model, path)
        for path, module in model.named_modules()
        if hasattr(getattr(module, "router", None), "c2r_policy")
        and (number := layer_number(module.layer_name)) is not None
    }
    if get_current_vllm_config().load_config.load_format == "dummy":
        unknown: str | None = "dummy ones were asked for"
    else:
        unknown = check_weights(plan, families, routers)
    if unknown is not None:
        told = model_config.model, plan.fingerprint, unknown
        _logger.warning("c2r: the router weights of %s are not compared with plan %s: %s", *told)


def _check_model(model: Any, model_config: Any, plan: Plan) -> None:
    """Raises `ModelError` unless a loaded model runs under the plan in all of its layers."""
    from vllm.config import get_current_vllm_config

    bound = set()
    for runner in model.modules():
        router = getattr(runner, "router", None)
        if not hasattr(router, "c2r_policy"):
            continue
        method = runner.routed_experts.quant_method
        if method.is_monolithic:
            raise ModelError(
                f"vLLM's {type(method).__name__} chooses the experts of {runner.layer_name} inside "
                "its kernel, where c2r cannot choose; start vLLM with --moe-backend triton, or "
                "serve the model without its plan"
            )
        bound.add(layer_number(runner.layer_name))
    parallel = get_current_vllm_config().parallel_config
    within = range(*model_config.get_layers_start_end_indices(parallel))
    check_bound(plan, {number for number in bound if number is not None}, "vLLM", within)


def _layer_of(plan: Plan, layer_name: str, moe_config: Any) -> LayerPlan:
    number = layer_number(layer_name)
    layer = None if number is None else layers_by_number(plan).get(number)
    if layer is None:
        raise PlanMismatchError(
            f"plan {plan.fingerprint} has no layer for {layer_name}; give one made for this model"
        )
    planned = layer.num_experts, layer.top_k
    found = moe_config.num_logical_experts, moe_config.experts_per_token
    if planned != found:
        raise PlanMismatchError(
            f"plan {plan.fingerprint} is for {planned[0]} experts with k = {planned[1]} in layer "
            f"{number}, the model has {found[0]} with k = {found[1]}; give a plan made for it"
        )
    return layer


def _check_dropping(layer: LayerPlan, layer_name: str, moe_config: Any) -> None:
    """Raises `ModelError` where the place of a dropped expert cannot repeat another.

    An all-to-all kernel keeps room for one row of a token at each expert.
    """
    parallel = moe_config.moe_parallel_config
    sends_rows = parallel.use_all2all_kernels and parallel.all2all_backend != _GATHERING
    if layer.policy == "pruned" and sends_rows:
        raise ModelError(
            f"the policy pruned drops experts in {layer_name}, which vLLM's "
            f"{parallel.all2all_backend} cannot; plan with budgeted instead"
        )


def _check_arithmetic(router: Any, layer_name: str, moe_config: Any, device: torch.device) -> None:
    """Raises `ModelError` unless, unconstrained, our weights and choice are those of vLLM.

    Random logits are routed both ways. The weights are loaded later, so a bias still holds what
    was in memory: it is drawn here.
    """
    drawn = torch.Generator().manual_seed(0)
    size = (_CHECKED_TOKENS, moe_config.num_logical_experts)
    logits = torch.randn(size, generator=drawn).to(device)
    hidden = torch.zeros(_CHECKED_TOKENS, moe_config.hidden_dim, device=device)
    scoring = router.c2r_scoring
    if scoring.bias is not None:
        bias = torch.randn(scoring.bias.shape, generator=drawn) / 10
        scoring.bias.data.copy_(bias)
    theirs = router.c2r_own_class._compute_routing(router, hidden, logits, None)
    ours = scoring.route(logits, router.top_k, TopKPolicy())
    expected, found = (
        torch.zeros(size, device=device).scatter_(1, ids.long(), weights.float())
        for weights, ids in (theirs, ours)
    )
    if not torch.allclose(expected, found, atol=1e-5, rtol=1e-4):
        raise ModelError(
            f"vLLM weighs the experts of {layer_name} in a way that c2r does not know "
            f"({router.c2r_own_class.__name__}); serve the model without its plan"
        )
