"""Models of transformers with their experts on four gloo processes."""

import copy
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import c2r
from c2r.adapters.huggingface import load_model, load_parallel, mesh_of, shard
from c2r.adapters.huggingface.expert_parallel.loading import reading_in_parts
from c2r.adapters.huggingface.expert_parallel.spread import (
    ParallelOptions,
    counting_rows,
    experts_of,
    parallelize,
)
from c2r.adapters.huggingface.expert_parallel.state import (
    expert_parameters,
    gather_state_dict,
    held_rows,
    reduce_gradients,
    refresh_replicas,
)
from c2r.adapters.huggingface.folders import skeleton_of
from c2r.assets import tiny_folder
from c2r.errors import CommunicationError, InputError, ModelError, PlanError, PlanMismatchError
from c2r.parallel import DISPATCHERS, is_sharded, merge_profiles
from tests.adapters.huggingface import saving
from tests.adapters.huggingface.families import FAMILIES, IS_OLD
from tests.adapters.huggingface.spread_models import make_plan, summed_loss, tiny, tokens
from tests.parallel.processes import run_checks

pytestmark = pytest.mark.skipif(IS_OLD, reason="transformers spreads experts from 5.23 on")

SOME_FAMILIES = (
    "mixtral",
    "olmoe",
    "gpt_oss",
    "deepseek_v3",
    "granitemoe",
    "gemma4_text",
    "minimax_m2",
)


def own_part(name, grad, plan, rank):
    """What a rank should hold of a gradient of the whole model: of replicas nothing."""
    if ".mlp.experts." not in name:
        return grad
    layer = plan.layers[int(name.split(".")[2])]
    held = grad[layer.experts_of(rank)].clone()
    held[int((layer.placement == rank).sum()) :] = 0
    return held


def loss_and_gradients(comm):
    single = tiny()
    ids = tokens(comm.size)
    summed_loss(single, ids).backward()
    for dispatcher, num_replicas in product(DISPATCHERS, (0, 3)):
        if num_replicas == 0 and dispatcher in ("all_gather", "k_fold"):
            continue
        num_chunks = "auto" if dispatcher == "zero_redundancy" else 3
        model = tiny()
        plan = make_plan(model, comm.size, num_nodes=2, num_replicas=num_replicas)
        options = ParallelOptions(dispatcher=dispatcher, num_chunks=num_chunks)
        parallelize(model, plan, options=options)
        loss = summed_loss(model, ids[comm.rank : comm.rank + 1])
        expected = summed_loss(single, ids[comm.rank : comm.rank + 1])
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        loss.backward()
        reduce_gradients(model)
        for (name, mine), whole in zip(model.named_parameters(), single.parameters(), strict=True):
            exact = own_part(name, whole.grad, plan, comm.rank)
            assert (mine.grad - exact).norm() <= 1e-5 * exact.norm() + 1e-5, name


def groups_of_ranks(comm):
    """Two groups of two ranks compute what one process does, loaded in parts or spread."""
    single, ids = tiny(), tokens(comm.size)
    summed_loss(single, ids).backward()
    plan = make_plan(single, 2, num_replicas=3)
    loaded, spread = load_parallel(tiny_folder(), plan, dtype=torch.float32), tiny()
    parallelize(spread, plan)
    assert list(mesh_of(loaded).to_torch().mesh.flatten()) == [0, 1, 2, 3]
    for model in (loaded, spread):
        with counting_rows(model) as rows:
            summed_loss(model, ids[comm.rank : comm.rank + 1]).backward()
        assert all(len(sent) == 2 for sent in rows.values())
        reduce_gradients(model)
        for (name, mine), whole in zip(model.named_parameters(), single.parameters(), strict=True):
            exact = own_part(name, whole.grad, plan, comm.rank % 2)
            assert (mine.grad - exact).norm() <= 1e-5 * exact.norm() + 1e-5, name


def sharded(comm):
    """On one group of four ranks, and on two of two: there the experts are sharded too.

    With one expert on a rank, one of the groups has none of it.
    """
    single, ids = tiny(), tokens(comm.size)
    (summed_loss(single, ids) / comm.size).backward()
    lonely = replace(make_plan(single, 2).layers[0], placement=np.arange(32).clip(max=1))
    for num_ranks, num_replicas in ((4, 0), (2, 0), (2, 3)):
        model = tiny()
        plan = make_plan(model, num_ranks, num_replicas=num_replicas)
        if (num_ranks, num_replicas) == (2, 0):
            plan = replace(plan, layers=(lonely, *plan.layers[1:]))
        parallelize(model, plan)
        own = ids[comm.rank : comm.rank + 1]
        with torch.no_grad():
            whole = model(input_ids=own).logits
            shard(model)
            assert torch.equal(model(input_ids=own).logits, whole)
        summed_loss(model, own).backward()
        reduce_gradients(model, average=True)
        experts = expert_parameters(model)
        for (name, mine), one in zip(model.named_parameters(), single.parameters(), strict=True):
            assert is_sharded(mine) == (num_ranks == 2 or mine not in experts), name
            grad = c2r.parallel.whole(mine.grad)
            exact = own_part(name, one.grad, plan, comm.rank % num_ranks)
            assert (grad - exact).norm() <= 1e-5 * exact.norm() + 1e-5, name
    held = held_rows(model)
    for layer in plan.layers:
        of_rank = layer.experts_of(comm.rank % 2)
        half = -(-len(of_rank) // 2)
        part = of_rank[:half] if comm.rank < 2 else of_rank[half:]
        name = layer.name.replace("gate", "experts")
        for key, parameter in model.get_submodule(name).named_parameters():
            assert held[parameter].numbers == part.tolist()
            assert len(parameter.to_local()) == len(part), key


def state_dicts(comm, num_replicas=0):
    whole = tiny().state_dict()
    model = tiny()
    plan = make_plan(model, comm.size, num_replicas=num_replicas)
    parallelize(model, plan)
    c2r.apply(model, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    gathered = [gather_state_dict(model)]
    assert bool(gathered[0]) == (comm.rank == 0)
    dist.broadcast_object_list(gathered)
    assert list(gathered[0]) == list(whole)
    assert all(torch.equal(gathered[0][key], 2 * whole[key]) for key in whole)
    if comm.rank == 0:
        check_saved(model, gathered[0])
    pair = comm.subset([0, 2] if comm.rank % 2 == 0 else [1, 3])
    other = tiny()
    parallelize(other, make_plan(other, 2, seed=1, num_replicas=num_replicas), group=pair.group)
    other.load_state_dict(gathered[0])
    again = gather_state_dict(other)
    assert all(torch.equal(again[key], 2 * whole[key]) for key in again)


def state_dicts_with_replicas(comm):
    state_dicts(comm, num_replicas=3)


def check_saved(model, state):
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(InputError, match=r"call c2r\.save_parallel on all ranks"):
            c2r.save_pretrained(model, Path(folder) / "model")
        with pytest.raises(InputError, match=r"call c2r\.save_parallel on all ranks"):
            model.save_pretrained(Path(folder) / "model")
        c2r.save_pretrained(model, Path(folder) / "model", state_dict=state)
        saved = load_model(Path(folder) / "model").state_dict()
    assert list(saved) == list(state)
    assert all(torch.equal(saved[key], state[key]) for key in state)


def by_the_name_alone(comm):
    single = tiny()
    ids = tokens(comm.size)[comm.rank : comm.rank + 1]
    config = DistributedConfig(fsdp_size=comm.size, ep_size=comm.size, ep_implementation="c2r")
    model = AutoModelForCausalLM.from_pretrained(
        tiny_folder(), dtype=torch.float32, distributed_config=config
    )
    loss = summed_loss(model, ids)
    torch.testing.assert_close(loss, summed_loss(single, ids), rtol=1e-5, atol=0)
    loss.backward()
    shared = DistributedConfig(tp_size=comm.size, ep_size=comm.size, ep_implementation="c2r")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(), distributed_config=shared)
    with pytest.raises(ModelError, match="needs a batch of its own on every rank"):
        summed_loss(model, ids)


def loading_own_experts(comm, num_replicas=0):
    single = tiny()
    plan = make_plan(single, comm.size, seed=2, num_replicas=num_replicas)
    model = load_parallel(tiny_folder(), plan, dtype=torch.float32)
    ids = tokens(comm.size)[comm.rank : comm.rank + 1]
    torch.testing.assert_close(summed_loss(model, ids), summed_loss(single, ids), rtol=1e-5, atol=0)
    whole = single.state_dict()
    gathered = gather_state_dict(model)
    assert all(torch.equal(gathered[key], whole[key]) for key in gathered)
    held = sum(p.numel() for p in expert_parameters(model))
    share = sum(len(layer.experts_of(comm.rank)) for layer in plan.layers) / (4 * 32)
    assert held == share * sum(whole[k].numel() for k in whole if ".mlp.experts." in k)


def loading_own_experts_and_replicas(comm):
    loading_own_experts(comm, num_replicas=3)


def rows_sent_as_predicted(comm, num_replicas=0):
    model = tiny()
    plan = make_plan(model, comm.size, num_replicas=num_replicas)
    parallelize(model, plan)
    c2r.apply(model, plan)
    ids = tokens(comm.size, 64)[comm.rank : comm.rank + 1]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with counting_rows(model) as rows:
        profile = c2r.profile(model, [batch])
    predicted = c2r.predict_traffic(profile, plan)
    for sent, layer in zip(rows.values(), predicted.layers, strict=True):
        assert int(sent.sum()) == round(layer.copies_placed * ids.numel())


def rows_sent_with_replicas(comm):
    rows_sent_as_predicted(comm, num_replicas=3)


def batches_of_unequal_number(comm):
    """Each rank profiles and measures its own; together they count what one process counts."""
    single, model = tiny(), load_parallel(tiny_folder(), dtype=torch.float32)
    batches = [{"input_ids": row[None]} for row in tokens(3 * comm.size, 32)][:10]
    alone = c2r.profile(single, batches)
    merged = merge_profiles(c2r.profile(model, batches[comm.rank :: comm.size]), comm)
    if comm.rank == 0:
        assert_same_counts(merged, alone)
    plan = make_plan(single, 2, seed=4)
    plan = replace(
        plan, layers=tuple(replace(x, policy="group_limited", strength=1) for x in plan.layers)
    )
    ours, theirs = (
        c2r.measure(model, batches, plan, comm=comm),
        c2r.measure(single, batches, plan),
    )
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert ours.kl == pytest.approx(theirs.kl, rel=1e-4)
    assert ours.loss_increase == pytest.approx(theirs.loss_increase, rel=1e-4)
    assert ours.copies == theirs.copies and ours.rank_rows == theirs.rank_rows
    assert ours.active_experts_per_rank == theirs.active_experts_per_rank


def assert_same_counts(one, other):
    assert one.num_tokens == other.num_tokens
    for ours, theirs in zip(one.layers, other.layers, strict=True):
        assert (ours.coactivation == theirs.coactivation).all() and (ours.load == theirs.load).all()


def trained(comm, ids, plan, num_steps=3, is_shared_out=False):
    """The state of the whole model after some steps, on rank 0, and this rank's model."""
    model = tiny()
    if plan is not None:
        parallelize(model, plan)
        ids = ids[comm.rank : comm.rank + 1]
    if is_shared_out:
        shard(model)
    # Not Adam: it makes steps of the rounding of gradients that should be zero, as of key biases.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=0.1)
    for _ in range(num_steps):
        optimizer.zero_grad()
        # FSDP2 takes the mean.
        (summed_loss(model, ids) * (comm.size if is_shared_out else 1)).backward()
        if plan is not None:
            reduce_gradients(model, average=is_shared_out)
        optimizer.step()
    return model.state_dict() if plan is None else gather_state_dict(model), model


def steps_with_replicas(comm, num_ranks=4, is_shared_out=False):
    plan = make_plan(tiny(), num_ranks, num_replicas=3)
    ids = tokens(comm.size)
    state, model = trained(comm, ids, plan, is_shared_out=is_shared_out)
    again, _ = trained(comm, ids, plan, is_shared_out=is_shared_out)
    assert all(torch.equal(again[name], value) for name, value in state.items())
    alone, _ = trained(comm, ids, None)
    start = tiny().state_dict()
    for name, value in state.items():
        moved = (alone[name] - start[name]).norm()
        assert (value - alone[name]).norm() <= 1e-3 * moved + 1e-7, name
    refresh_replicas(model)
    shared = [state]
    dist.broadcast_object_list(shared)
    for name, parameter in model.named_parameters():
        if ".mlp.experts." in name:
            layer = plan.layers[int(name.split(".")[2])]
            expected = shared[0][name][layer.experts_of(comm.rank % num_ranks)]
            assert torch.equal(c2r.parallel.whole(parameter), expected), name


def steps_with_sharded_replicas(comm):
    steps_with_replicas(comm, num_ranks=2, is_shared_out=True)


def constrained(comm):
    single, model = tiny(), tiny()
    plan = make_plan(model, comm.size)
    plan = replace(
        plan,
        layers=tuple(replace(layer, policy="group_limited", strength=2) for layer in plan.layers),
    )
    ids = tokens(comm.size)[comm.rank : comm.rank + 1]
    c2r.apply(single, plan)
    parallelize(model, plan)
    c2r.apply(model, plan)
    with counting_rows(model) as rows:
        torch.testing.assert_close(
            summed_loss(model, ids), summed_loss(single, ids), rtol=1e-5, atol=0
        )
    assert all(sent.sum() <= 2 * ids.numel() for sent in rows.values())


def families(comm):
    for family in FAMILIES:
        if family.name not in SOME_FAMILIES:
            continue
        single, model = (family.model(family.experts[-1]) for _ in range(2))
        parallelize(model, make_plan(model, comm.size, num_replicas=1))
        ids = tokens(comm.size)[comm.rank : comm.rank + 1] % 90
        with torch.no_grad():
            ours, theirs = (m(input_ids=ids, use_cache=False)[0] for m in (model, single))
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm(), family.name


def ranks_that_differ(comm):
    model = tiny()
    plan = make_plan(model, comm.size, seed=comm.rank == 1)
    with pytest.raises(CommunicationError, match="the plan of rank 1 differs"):
        parallelize(model, plan)
    plan = make_plan(model, comm.size)
    model.to(torch.bfloat16 if comm.rank == 3 else torch.float32)
    with pytest.raises(CommunicationError, match="the dtype of rank 3 differs"):
        parallelize(model, plan)


def loading_what_differs(comm):
    plan = make_plan(tiny(), comm.size, seed=comm.rank == 2)
    with pytest.raises(CommunicationError, match="the plan of rank 2 differs"):
        load_parallel(tiny_folder(), plan)


def plans_that_do_not_fit(comm):
    model = tiny()
    problem = "the plan is for 3 ranks, 4 are running; start 3 or another multiple of 3, or plan"
    with pytest.raises(PlanMismatchError, match=rf"{problem} again for 1 or 2 or 4 ranks"):
        parallelize(model, make_plan(model, 3))
    plan = make_plan(model, comm.size)
    crowded = replace(plan.layers[1], placement=plan.layers[1].placement.clip(max=2))
    with pytest.raises(PlanError, match="leaves rank 3 without experts"):
        parallelize(model, replace(plan, layers=(plan.layers[0], crowded, *plan.layers[2:])))
    parallelize(model, plan)
    with pytest.raises(InputError, match="parallel already"):
        parallelize(model, plan)


CHECKS = {
    check.__name__: check
    for check in (
        loss_and_gradients,
        groups_of_ranks,
        sharded,
        state_dicts,
        state_dicts_with_replicas,
        by_the_name_alone,
        loading_own_experts,
        loading_own_experts_and_replicas,
        rows_sent_as_predicted,
        rows_sent_with_replicas,
        steps_with_replicas,
        steps_with_sharded_replicas,
        batches_of_unequal_number,
        constrained,
        families,
        ranks_that_differ,
        loading_what_differs,
        plans_that_do_not_fit,
        *saving.CHECKS,
    )
}


@pytest.mark.distributed
def test_on_four_processes():
    assert run_checks(CHECKS) == {}


@pytest.mark.parametrize("name", ["dbrx", "jetmoe", "longcat_flash", "llama4_text"])
def test_families_without_a_plan_of_transformers_are_refused(name):
    model = next(family for family in FAMILIES if family.name == name).model()
    with pytest.raises(ModelError, match=f"no expert-parallel plan for {model.config.model_type}"):
        parallelize(model, None)


def test_experts_that_cannot_be_read_in_equal_parts():
    skeleton = skeleton_of(tiny_folder())
    with pytest.raises(PlanError, match="32 experts cannot be read in equal parts by 3 ranks"):
        reading_in_parts(skeleton, experts_of(skeleton), 3)


def test_gradients_of_an_ordinary_model():
    with pytest.raises(InputError, match=r"not parallel; call c2r\.parallelize"):
        reduce_gradients(copy.deepcopy(torch.nn.Linear(1, 1)))
