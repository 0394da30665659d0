"""What torch makes of a call of the model's own, it makes under the probe and in a router too."""

import inspect
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import get_testing_overrides

from c2r.adapters.huggingface import RouterSite, SelectionRule, apply, find_sites, remove
from c2r.adapters.huggingface.routers.probe import _Observer
from c2r.adapters.huggingface.routers.torch_calls import read_gather, read_removal, read_top_k
from c2r.adapters.huggingface.taps.tap import ForwardState, attach
from c2r.plans import LayerPlan
from c2r.routing import make_policy
from c2r.traces import ScoreKind
from tests.adapters.huggingface.checks import random_plan, run, small_plan
from tests.adapters.huggingface.families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}
NUM_EXPERTS, TOP_K = 8, 3


class Calling(nn.Module):
    """A router that makes one call of torch."""

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()


@contextmanager
def probed() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    router, observer = Calling(), _Observer()
    with observer.following(router), observer:
        yield router


def tapped(rule: SelectionRule, policy: str) -> Any:
    router = Calling()
    site = RouterSite(
        path="",
        module=router,
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        call_k=TOP_K,
        score_kind=ScoreKind.LOGITS,
        group_mark=-math.inf,
        rule=rule,
    )
    others = [np.delete(np.arange(NUM_EXPERTS), i)[:TOP_K] for i in range(NUM_EXPERTS)]
    layer = LayerPlan(
        name="",
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        policy=policy,
        strength=0.3 if policy == "pruned" else float(TOP_K),
        partners=np.array(others) if policy == "c2r" else np.empty((0, 0), dtype=np.int64),
        placement=np.arange(NUM_EXPERTS) // 2,
    )
    attached = attach(site, ForwardState(is_running=True, is_recording=True))
    attached.c2r_policy = make_policy(layer, ScoreKind.LOGITS)
    return nullcontext(router)


WAYS = {
    "probe": probed,
    "plain": lambda: tapped(SelectionRule.TOP_K, "top_k"),
    "lists": lambda: tapped(SelectionRule.TOP_K, "c2r"),
    "pruned": lambda: tapped(SelectionRule.TOP_K, "pruned"),
    "scatter": lambda: tapped(SelectionRule.SCATTER, "c2r"),
}


def scores(dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(4, NUM_EXPERTS, generator=torch.Generator().manual_seed(0))
    return (10 * drawn).to(dtype)


def outcome(call: Callable[[], Any]) -> Any:
    """What the call gives, or its error, in a form that compares."""
    torch.default_generator.manual_seed(0)
    try:
        return _comparable(call())
    except Exception as error:  # noqa: BLE001  whatever torch raises
        return type(error), re.sub("0x[0-9a-f]+", "", str(error))


def _comparable(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized:
            return str(value)
        return value.dtype, tuple(value.shape), repr(value.detach().tolist())
    if isinstance(value, tuple | list):
        return type(value), [_comparable(entry) for entry in value]
    if isinstance(value, bool | int | float | complex | str | None | torch.Size):
        return repr(value)
    return type(value)


def _name(func: Any) -> str:
    return f"{getattr(func, '__module__', '')} {getattr(func, '__name__', '')}"


# Not the same twice to the last bit, or changing more than their arguments.
UNSTABLE = re.compile(
    r"distributed|empty|resize|set_|stream|memory|new$|_ptr|fbgemm|__get__|linalg|lstsq|svd|eig"
)
FUNCTIONS = [func for func in get_testing_overrides() if not UNSTABLE.search(_name(func))]


def ids(num_ids: int = NUM_EXPERTS) -> Tensor:
    return scores().abs().long()[:, :num_ids] % 4


def _one() -> Tensor:
    return torch.tensor(1)


PATTERNS = {
    "scores in every place": (scores, scores, scores, scores),
    "ids in every place": (ids, ids, ids, ids),
    "one number in every place": (_one, _one, _one, _one),
    "a tensor for each number": (scores, _one, ids, scores),
}


def _num_places(func: Any) -> int:
    parameters = inspect.signature(get_testing_overrides()[func]).parameters.values()
    return min(sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters), 4)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_in_every_place_of_every_function(pattern: str) -> None:
    calls = [
        lambda func=func, count=count: func(*(make() for make in PATTERNS[pattern][:count]))
        for func in FUNCTIONS
        for count in range(1, _num_places(func) + 1)
    ]
    assert len(calls) > 2000
    expected = [outcome(call) for call in calls]
    for way in ("probe", "pruned", "scatter"):
        with WAYS[way]() as router:
            found = [outcome(lambda call=call: router(call)) for call in calls]
        assert found == expected, way


def _values_and_ids() -> tuple[Tensor, Tensor]:
    return torch.empty(4, TOP_K), torch.empty(4, TOP_K, dtype=torch.int64)


INF, ONE = math.inf, torch.tensor(1.0)
NOT_THE_CHOICE = {
    "the smallest": lambda x: x.topk(TOP_K, largest=False),
    "the smallest, by place": lambda x: torch.topk(x, TOP_K, -1, False, True),
    "another k": lambda x: x.topk(TOP_K + 1),
    "no k": lambda x: x.topk(0),
    "k as a tensor": lambda x: x.topk(torch.tensor(TOP_K)),
    "k as many": lambda x: x.topk(torch.tensor([TOP_K, TOP_K])),
    "k as an array": lambda x: x.topk(np.array([TOP_K, TOP_K])),
    "another dimension": lambda x: x.T.contiguous().topk(TOP_K, 0),
    "a dimension that is not there": lambda x: x.topk(TOP_K, dim=2),
    "a dimension by name": lambda x: x.topk(TOP_K, dim="experts"),
    "more dimensions": lambda x: x[None].topk(TOP_K),
    "one number": lambda x: x[0, 0].topk(1),
    "into tensors of its own": lambda x: torch.topk(x, TOP_K, out=_values_and_ids()),
    "without k": lambda x: torch.topk(x),
    "k twice": lambda x: x.topk(TOP_K, k=TOP_K),
    "weights by a tensor": lambda x: x.scatter(1, ids(TOP_K), x),
    "weights by name": lambda x: torch.scatter(x, dim=-1, index=ids(TOP_K), src=x),
    "zero by name": lambda x: torch.scatter(input=x, dim=1, index=ids(1), value=0.0),
    "-inf in several places": lambda x: x.scatter(-1, ids(TOP_K), -INF),
    "-inf as a tensor": lambda x: x.scatter(-1, ids(1), torch.tensor(-INF)),
    "-inf along the tokens": lambda x: x.scatter(0, ids(1), -INF),
    "a product with -inf": lambda x: x.scatter(-1, ids(1), -INF, reduce="multiply"),
    "scatter of one number": lambda x: torch.scatter(x[0, 0], 0, torch.tensor(0), 2.0),
    "gather along the tokens": lambda x: x.gather(0, ids(TOP_K)),
    "gather of one number": lambda x: torch.gather(x[0, 0], 0, torch.tensor(0)),
    "gather by names": lambda x: torch.gather(input=x, dim=-1, index=ids(2)),
    "gather of scores in another shape": lambda x: x[None].gather(-1, ids(TOP_K)),
    "a mask by name": lambda x: torch.masked_fill(input=x, mask=x > 0, value=ONE),
    "a mask of one number": lambda x: x[0, 0].masked_fill(torch.tensor(True), 1),
    "softmax of one number": lambda x: x[0, 0].softmax(0),
    "softmax by names": lambda x: F.softmax(input=x, dim=-1),
    "sigmoid of one number": lambda x: torch.sigmoid(x[0, 0]),
    "softplus into": lambda x: F.softplus(input=x, beta=2),
    "a mask without memory": lambda x: x.to("meta").masked_fill(x.to("meta") > 0, 0.0).shape,
    "inside vmap": lambda x: torch.vmap(lambda row: row.masked_fill(row > 0, 0.0).topk(2)[0])(x),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NOT_THE_CHOICE)
def test_a_call_that_does_not_choose_stays_as_it_is(name: str, way: str) -> None:
    call = NOT_THE_CHOICE[name]
    expected = outcome(lambda: call(scores()))
    with WAYS[way]() as router:
        assert outcome(lambda: router(lambda: call(scores()))) == expected


THE_CHOICE = {
    "by place": lambda x: x.topk(TOP_K, -1, True, False),
    "by name": lambda x: torch.topk(input=x, k=TOP_K, dim=1, largest=True, sorted=True),
    "by a number of numpy": lambda x: x.topk(np.int64(TOP_K)),
}


@pytest.mark.parametrize("name", THE_CHOICE)
def test_the_choice_is_constrained_however_it_is_written(name: str) -> None:
    call = THE_CHOICE[name]
    with WAYS["lists"]() as router:
        values, chosen = router(lambda: call(scores()))
    assert torch.equal(values, scores().gather(-1, chosen))
    for first, *others in chosen.tolist():
        assert first == int(scores()[chosen[:, 0].tolist().index(first)].argmax())
        assert set(others) <= set(np.delete(np.arange(NUM_EXPERTS), first)[:TOP_K].tolist())


@pytest.mark.parametrize(
    "call",
    [
        lambda x, top1: torch.scatter(x, -1, top1, -INF),
        lambda x, top1: x.scatter(1, top1, float("-inf")),
        lambda x, top1: torch.scatter(input=x, dim=1, index=top1, value=-INF),
    ],
)
def test_the_removal_of_the_top1_is_seen_however_it_is_written(call: Any) -> None:
    top1 = scores().argmax(-1, keepdim=True)
    with WAYS["scatter"]() as router:
        left = router(lambda: call(scores(), top1))
    assert torch.equal(left.isfinite().sum(-1), torch.full((4,), TOP_K))


def scattering(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """All experts on all tokens, by weights from a dense table, 0 for those not chosen."""
    full = torch.zeros(len(hidden), NUM_EXPERTS, dtype=weights.dtype).scatter(1, ids, weights)
    every = torch.arange(NUM_EXPERTS).expand(len(hidden), -1)
    return type(experts).forward(experts, hidden, every, full)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3 (groups)"])
def test_experts_that_scatter_their_weights(name: str) -> None:
    model = BY_NAME[name].model("eager")
    expected = run(model)
    sites = find_sites(model)
    for layer in model.model.layers:
        layer.mlp.experts.forward = MethodType(scattering, layer.mlp.experts)
    torch.testing.assert_close(run(model), expected)
    found = find_sites(model)
    assert [(s.name, s.top_k, s.group_mark) for s in found] == [
        (s.name, s.top_k, s.group_mark) for s in sites
    ]
    apply(model, random_plan(found))
    torch.testing.assert_close(run(model), expected)
    apply(model, small_plan(found))
    assert not torch.allclose(run(model), expected)
    remove(model)


def test_calls_are_read_by_type_before_they_are_compared() -> None:
    x = scores()
    assert read_top_k((x, TOP_K), {}) == (x, TOP_K)
    for args in [(), (x,), (x, x), (x, TOP_K, x), (x, TOP_K, -1, x), (TOP_K, x), (None, None)]:
        assert read_top_k(args, {}) is None
    for args in [(), (x,), (x, x, x), (x, 1, None), (x, 1, torch.tensor(0)), (1, 1, x)]:
        assert read_gather(args, {}) is None
    for args in [(), (x, 1, ids(1)), (x, 1, ids(1), x), (x, x, x, x), (x, 1, 0, -INF)]:
        assert read_removal(args, {}) is None
