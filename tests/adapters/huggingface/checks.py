"""What must hold for every family; run by the tests and by the script that writes the table."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2r.adapters.huggingface import RouterSite, apply, capture, find_sites, remove
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.profiling import CollaborationProfile
from c2r.traces import LayerTrace
from tests.adapters.huggingface.families import Family

NUM_SEQUENCES, NUM_TOKENS = 2, 24


def token_ids(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 96, (NUM_SEQUENCES, NUM_TOKENS), generator=generator)


def expert_loads(profile: CollaborationProfile) -> np.ndarray[Any, Any]:
    """Of every layer, `[layers, E]`."""
    return np.array([layer.load for layer in profile.layers])


def random_plan(sites: tuple[RouterSite, ...], top_t: int | None = None) -> Plan:
    """Random lists; `top_t` None is T = E - 1."""
    rng = np.random.default_rng(0)
    layers = []
    for site in sites:
        size = site.num_experts
        others = [rng.permutation(np.delete(np.arange(size), i)) for i in range(size)]
        partners = np.array(others)[:, : size - 1 if top_t is None else top_t]
        layers.append(
            LayerPlan(
                name=site.name,
                num_experts=size,
                top_k=site.top_k,
                policy="c2r",
                strength=float(partners.shape[1]),
                partners=partners,
                placement=np.zeros(size, dtype=np.int64),
            )
        )
    return Plan(layers=tuple(layers), topology=ClusterTopology(num_ranks=1))


def small_plan(sites: tuple[RouterSite, ...]) -> Plan:
    """The tightest lists that still leave every router a choice."""
    return random_plan(sites, min(max(site.top_k for site in sites), sites[0].num_experts - 1))


def run(model: Any, ids: Tensor | None = None) -> Tensor:
    return model(input_ids=token_ids() if ids is None else ids, use_cache=False)[0]


def gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    output = run(model)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@dataclass(frozen=True, kw_only=True)
class FamilyResult:
    """A row of the family table."""

    family: Family
    router: str
    score_kind: str
    limits: str
    experts: tuple[str, ...]


def check_family(family: Family) -> FamilyResult:
    for experts in family.experts:
        model = family.model(experts)
        sites = find_sites(model)
        check_identical(model, sites)
    check_lists(model, sites)
    check_gradient(model, sites)
    check_removed(model, sites)
    check_unconstrained_capture(model, sites)
    site = sites[0]
    return FamilyResult(
        family=family,
        router=f"{type(site.module).__name__} at {site.name}",
        score_kind=str(site.score_kind),
        limits="" if site.group_mark is None else f"groups, others at {site.group_mark:g}",
        experts=family.experts,
    )


def check_identical(model: Any, sites: tuple[RouterSite, ...]) -> None:
    """T = E - 1 changes no bit of output and gradients."""
    before, gradients_before = run(model), gradients(model)
    apply(model, random_plan(sites))
    after, gradients_after = run(model), gradients(model)
    remove(model)
    assert torch.equal(before, after)
    assert gradients_before.keys() == gradients_after.keys()
    for name, gradient in gradients_before.items():
        assert torch.equal(gradient, gradients_after[name]), name


def check_lists(model: Any, sites: tuple[RouterSite, ...]) -> None:
    """Every chosen set is the one that a loop over tokens finds."""
    plan = small_plan(sites)
    apply(model, plan)
    with capture(model) as recorder, torch.no_grad():
        run(model)
        trace = recorder.take()
    remove(model)
    assert [layer.name for layer in trace.layers] == [site.name for site in sites]
    for site, layer, lists in zip(sites, trace.layers, plan.layers, strict=True):
        assert layer.num_tokens == NUM_SEQUENCES * NUM_TOKENS
        for scores, ids in zip(layer.scores, layer.expert_ids, strict=True):
            assert ids.tolist() == expected_choice(scores, lists, site), site.name


def expected_choice(scores: Tensor, lists: LayerPlan, site: RouterSite) -> list[int]:
    """The rule, for one token, in plain Python."""
    values = scores.tolist()
    first = max(range(site.num_experts), key=lambda expert: values[expert])
    free = range(site.num_experts - site.num_free_experts, site.num_experts)
    allowed = {first, *lists.partners[first].tolist(), *free}

    def rank(expert: int) -> tuple[bool, bool, bool, float]:
        is_blocked = site.group_mark is not None and values[expert] == site.group_mark
        return expert != first, is_blocked, expert not in allowed, -values[expert]

    return sorted(range(site.num_experts), key=rank)[: site.top_k]


def check_gradient(model: Any, sites: tuple[RouterSite, ...]) -> None:
    """Under tight lists the gradient of each router is finite and not zero."""
    apply(model, small_plan(sites))
    found = gradients(model)
    remove(model)
    for site in sites:
        names = [f"{site.name}.{name}" for name, _ in site.module.named_parameters()]
        own = [found[name] for name in names if name in found and "experts" not in name]
        assert own and all(gradient.isfinite().all() for gradient in own), site.name
        assert any(gradient.abs().max() > 0 for gradient in own), site.name


def check_removed(model: Any, sites: tuple[RouterSite, ...]) -> None:
    """Applying and removing leaves no mark."""
    before, marks_before = run(model), _marks(model)
    apply(model, small_plan(sites))
    assert [type(site.module) for site in sites] != marks_before["classes"]
    assert list(model.state_dict()) == marks_before["state"]
    assert not torch.equal(run(model), before) or sites[0].top_k == 1
    remove(model)
    assert torch.equal(run(model), before)
    assert _marks(model) == marks_before


def _marks(model: Any) -> dict[str, Any]:
    modules = list(model.modules())
    return {
        "classes": [type(module) for module in modules],
        "attributes": [sorted(module.__dict__) for module in modules],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
        "state": list(model.state_dict()),
        "config": sorted(vars(model.config)),
    }


def check_unconstrained_capture(model: Any, sites: tuple[RouterSite, ...]) -> None:
    """A capture tells what the experts were handed, the top-1 first, and leaves no mark."""
    before = _marks(model)
    with _Handed(model) as handed, capture(model) as recorder, torch.no_grad():
        run(model)
        trace = recorder.take()
    assert _marks(model) == before
    for site, layer in zip(sites, trace.layers, strict=True):
        _check_layer(layer, site)
        given = handed.experts_of(site)
        if given is not None:
            assert torch.equal(layer.expert_ids.sort(-1).values, given[0].sort(-1).values)
            if layer.weights is not None:
                _check_weights(layer, *given)


def _check_layer(layer: LayerTrace, site: RouterSite) -> None:
    assert layer.expert_ids.shape == (NUM_SEQUENCES * NUM_TOKENS, site.top_k)
    assert layer.scores.shape == (NUM_SEQUENCES * NUM_TOKENS, site.num_experts)
    assert not layer.scores.requires_grad
    assert torch.equal(layer.expert_ids[:, 0], layer.scores.argmax(-1))


def _check_weights(layer: LayerTrace, ids: Tensor, weights: Tensor) -> None:
    assert layer.weights is not None
    dense = torch.zeros_like(layer.scores, dtype=torch.float64)
    expected = dense.scatter(-1, ids, weights.double())
    assert torch.equal(dense.scatter(-1, layer.expert_ids, layer.weights.double()), expected)


class _Handed:
    """Notes the ids and weights that every `experts` module is called with."""

    def __init__(self, model: Any) -> None:
        self._seen: dict[str, list[Tensor]] = {}
        self._modules = [(n, m) for n, m in model.named_modules() if n.endswith("experts")]

    def __enter__(self) -> "_Handed":
        self._handles = [
            module.register_forward_pre_hook(self._noting(name), with_kwargs=True)
            for name, module in self._modules
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _noting(self, name: str) -> Any:
        def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            self._seen[name] = [t.detach().clone() for t in tensors]

        return note

    def experts_of(self, site: RouterSite) -> tuple[Tensor, Tensor] | None:
        for prefix in (site.name, site.name.rpartition(".")[0]):
            tensors = self._seen.get(f"{prefix}.experts", ())
            shaped = [t for t in tensors if t.shape[-1] == site.top_k]
            ids = [t for t in shaped if not t.is_floating_point()]
            weights = [t for t in shaped if t.is_floating_point()]
            if ids and weights:
                return ids[0], weights[0]
        return None
