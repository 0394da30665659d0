"""What the vLLM plugin refuses, by its own functions; test_vllm.py has the real engine."""

import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from c2r.errors import ModelError, PlanMismatchError
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.serving import vllm

LAYER = LayerPlan(
    name="model.layers.1.mlp.gate",
    num_experts=4,
    top_k=2,
    policy="priced",
    strength=0.2,
    partners=np.empty((4, 0), dtype=np.int64),
    placement=np.array([0, 0, 1, 1]),
)
PLAN = Plan(layers=(LAYER,), topology=ClusterTopology(num_ranks=2))
NAME = "model.layers.1.mlp.experts"


def runner_of(*, is_bound=True, is_monolithic=False):
    runner = torch.nn.Module()
    runner.layer_name = NAME
    runner.router = SimpleNamespace(c2r_policy=None) if is_bound else SimpleNamespace()
    runner.routed_experts = SimpleNamespace(
        quant_method=SimpleNamespace(is_monolithic=is_monolithic)
    )
    return torch.nn.ModuleList([runner])


@pytest.fixture
def check(monkeypatch):
    config = SimpleNamespace(get_current_vllm_config=lambda: SimpleNamespace(parallel_config=None))
    monkeypatch.setitem(sys.modules, "vllm.config", config)

    def checked(model, num_layers=2, first=0):
        model_config = SimpleNamespace(
            get_layers_start_end_indices=lambda _parallel: (first, num_layers),
        )
        vllm._check_model(model, model_config, PLAN)

    return checked


def test_a_model_with_all_layers_bound_is_served(check):
    check(runner_of())
    check(torch.nn.ModuleList(), first=2, num_layers=4)  # this process has none of them


def test_a_layer_that_was_not_bound_is_refused(check):
    with pytest.raises(ModelError, match="vLLM routes 1 of the 1 layers"):
        check(runner_of(is_bound=False))


def test_a_kernel_that_chooses_by_itself_is_refused(check):
    with pytest.raises(ModelError, match=rf"chooses the experts of {NAME} inside its kernel"):
        check(runner_of(is_monolithic=True))


@pytest.mark.parametrize(
    ("policy", "uses", "backend", "is_refused"),
    [
        ("pruned", True, "deepep_low_latency", True),
        ("pruned", True, "allgather_reducescatter", False),
        ("pruned", False, "deepep_low_latency", False),
        ("budgeted", True, "deepep_low_latency", False),
    ],
)
def test_dropping_needs_an_exchange_that_can(policy, uses, backend, is_refused):
    layer = replace(LAYER, policy=policy)
    parallel = SimpleNamespace(use_all2all_kernels=uses, all2all_backend=backend)
    check = partial(
        vllm._check_dropping, layer, NAME, SimpleNamespace(moe_parallel_config=parallel)
    )
    if not is_refused:
        check()
        return
    with pytest.raises(ModelError, match=f"{backend} cannot; plan with budgeted"):
        check()


@pytest.mark.parametrize(("num_experts", "k"), [(8, 2), (4, 3)])
def test_another_number_of_experts_is_refused(num_experts, k):
    config = SimpleNamespace(num_logical_experts=num_experts, experts_per_token=k)
    with pytest.raises(PlanMismatchError, match=f"the model has {num_experts} with k = {k}"):
        vllm._layer_of(PLAN, NAME, config)


def test_a_router_outside_vllm_is_refused_by_name():
    def choose():
        pass

    choose.__module__ = "vllm.model_executor.models.transformers.moe"
    with pytest.raises(ModelError, match="--model-impl transformers"):
        vllm._scoring({"custom_routing_function": partial(choose)})
    with pytest.raises(ModelError, match="by custom_routing_function"):
        vllm._scoring({"custom_routing_function": len})
    with pytest.raises(ModelError, match="scoring_func=sqrtsoftplus"):
        vllm._scoring({"scoring_func": "sqrtsoftplus"})
