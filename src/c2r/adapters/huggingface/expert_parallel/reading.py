"""Loads a model in parts: each rank reads what it is to hold, and no more."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from c2r.adapters.huggingface.expert_parallel.expert_weights import (
    Homes,
    move_experts,
    replace_experts,
)
from c2r.adapters.huggingface.expert_parallel.loading import (
    forget_distribution,
    freeing_at_once,
    reading_in_parts,
)
from c2r.adapters.huggingface.expert_parallel.sharding import shard
from c2r.adapters.huggingface.expert_parallel.spread import (
    DEFAULT_OPTIONS,
    ParallelOptions,
    agree_on,
    experts_of,
    homes_by,
    install,
    local_experts,
    parallelize,
)
from c2r.adapters.huggingface.folders import constrain, load_model, load_weights, skeleton_of
from c2r.adapters.huggingface.parallel_models import Spread, set_spread, spread_of
from c2r.adapters.huggingface.routers.discovery import find_sites
from c2r.adapters.huggingface.sources import Source, find_source
from c2r.parallel import (
    Mesh,
    ProcessGroupComm,
    agree,
    as_part,
    check_multiple,
    free_gathered,
    join_world,
    make_mesh,
    own_part,
    rows_of,
)
from c2r.plans import ClusterTopology, LayerPlan, Plan, contiguous_placement
from c2r.types import Int


@freeing_at_once()
def load_parallel(
    source: str | Path | Source,
    plan: Plan | None = None,
    dtype: torch.dtype | str | None = None,
    options: ParallelOptions = DEFAULT_OPTIONS,
    fsdp: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """Loads a model of which each rank keeps only its own experts, and reads no more than these.

    All else is whole on every rank. Run under torchrun; see `parallelize` for what comes out. A
    plan in the folder constrains the model, as in `c2r.load_model`.

    With `fsdp` all weights are sharded over the processes by FSDP2: a rank's experts over the
    groups, all else over all. Each process reads its rows alone, but of weights that transformers
    makes of several tensors, and of quantised models.

    Args:
        source: a model folder, a name on the Hugging Face hub, or what `find_source` found.
        plan: for this model; torchrun started a multiple of its ranks. None spreads the experts in
            the order of their ids over all processes.
        dtype: of the weights; None keeps that of the checkpoint.
        options: how tokens travel.
        fsdp: whether what is not expert is sharded, too.
        kwargs: passed on to `c2r.load_model`.

    Raises:
        InputError, ArtifactError: as `c2r.load_model`.
        ModelError, PlanError, PlanMismatchError, CommunicationError: as `parallelize`; or not all
            processes come within `options.timeout`.
    """
    comm = join_world(options.timeout)
    if comm.size == 1:
        model = load_model(source, dtype, **kwargs)
        parallelize(model, plan or _in_order(model, 1), options=options)
        if fsdp:
            shard(model)
        return model
    found = find_source(source, **kwargs)
    skeleton = skeleton_of(found.location, **found.options)
    names = experts_of(skeleton)
    facts = {"the model's config": skeleton.config.to_json_string(), "the dtype": str(dtype)}
    agree({**facts, "the plan": plan.fingerprint if plan else None, "fsdp": fsdp}, comm)
    placing = plan or Plan(layers=(), topology=ClusterTopology(num_ranks=comm.size))
    check_multiple(comm.size, placing.topology.num_ranks)
    homes = homes_by(skeleton, placing)
    config = reading_in_parts(skeleton, names, comm.size, all_else=fsdp)
    model = load_weights(found.location, dtype, distributed_config=config, **found.options)
    # The tiny batch by which routers are found is none to choose chunks by.
    _spread(model, homes, placing, comm, replace(options, num_chunks=1), fsdp)
    constrain(model, found.plan)
    if plan is None:
        plan = _in_order(model, comm.size)
        set_spread(model, replace(spread_of(model), plan=plan))
    agree_on(model, plan, options, comm)
    for _, _, experts in local_experts(model):
        experts.num_chunks = options.num_chunks
    free_gathered(model)
    return model.eval()


def _spread(
    model: PreTrainedModel,
    homes: Mapping[str, Homes],
    plan: Plan,
    comm: ProcessGroupComm,
    options: ParallelOptions,
    fsdp: bool,
) -> None:
    """Makes a model that the ranks have read in parts run with its experts in their homes."""
    forget_distribution(model)
    mesh = make_mesh(comm, plan.topology.num_ranks)
    for name, home in homes.items():
        _take_own(model.get_submodule(name), home, mesh, is_sharded_out=fsdp)
        install(model, name, home, mesh.ranks, options, plan.topology.num_nodes)
    set_spread(model, Spread(names=tuple(homes), mesh=mesh, plan=plan))
    if fsdp:
        shard(model)


def _take_own(module: nn.Module, homes: Homes, mesh: Mesh, is_sharded_out: bool) -> None:
    """Brings this process its experts, of which all processes have read equal parts by id.

    Where they are to be sharded, groups share them out.
    """
    replace_experts(module, own_part)
    world, num_groups = mesh.world, mesh.num_groups if is_sharded_out else 1
    num_read = len(homes.placement) // world.size
    read = Homes(placement=np.arange(world.size).repeat(num_read))

    def wanted(process: int) -> Int:
        group, rank = divmod(process, mesh.ranks.size)
        held = homes.on(rank)
        rows = rows_of(len(held), group % num_groups, num_groups)
        return held[rows.start : rows.stop]

    move_experts(module, world, read, [wanted(process) for process in range(world.size)])
    if num_groups > 1:
        num_held = len(homes.on(mesh.ranks.rank))
        replace_experts(module, lambda rows: as_part(rows, num_held, mesh.peers))


def _in_order(model: PreTrainedModel, num_ranks: int) -> Plan:
    """A plan that places the experts in the order of their ids, without a policy."""
    layers = tuple(
        LayerPlan(
            name=site.name,
            num_experts=site.num_experts,
            top_k=site.top_k,
            placement=contiguous_placement(site.num_experts, num_ranks),
        )
        for site in find_sites(model)
    )
    return Plan(layers=layers, topology=ClusterTopology(num_ranks=num_ranks))
