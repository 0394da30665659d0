"""Experts of transformers models spread over ranks, through the door that transformers opens.

Ranks of a plan need not hold contiguous ids: a layer's experts are the plan's, in ascending order,
and the dispatcher knows where each went, so that routers and the names in state dicts stay as they
are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from c2r.adapters.huggingface.expert_parallel.expert_weights import Homes, replace_experts
from c2r.adapters.huggingface.expert_parallel.loading import check_transformers
from c2r.adapters.huggingface.expert_parallel.replica_weights import ReplicaWeights
from c2r.adapters.huggingface.models import model_type
from c2r.adapters.huggingface.parallel_models import Spread, is_parallel, set_spread, spread_of
from c2r.adapters.huggingface.routers.discovery import find_sites
from c2r.adapters.huggingface.routers.model_identity import check_plan, fingerprint
from c2r.errors import InputError, ModelError, PlanError
from c2r.parallel import (
    Handle,
    Mesh,
    ProcessGroupComm,
    agree,
    check_multiple,
    fastest_chunks,
    is_sharded,
    make_dispatcher,
    make_mesh,
    parallel_moe,
)
from c2r.plans import LayerPlan, Plan, contiguous_placement
from c2r.types import Int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelOptions:
    """How tokens travel.

    Attributes:
        dispatcher: one of `c2r.parallel.DISPATCHERS`.
        num_chunks: parts of a batch that overlap; "auto": each layer tries several on its first
            batch and keeps the fastest, the same on all ranks.
        dispatch_dtype: type of the rows on the way; their own where absent.
        timeout: seconds after which a rank that does not answer is an error.
    """

    dispatcher: str = "zero_redundancy"
    num_chunks: int | Literal["auto"] = 1
    dispatch_dtype: torch.dtype | None = None
    timeout: float = 60.0


DEFAULT_OPTIONS = ParallelOptions()


class LocalExperts:
    """Runs a module's experts where they are, in place of its own forward.

    Args:
        module: the experts; its parameters are those of this rank already.
        name: path of the module in the model.
        comm: the ranks.
        homes: where all experts live.
        options: how tokens travel.
        num_nodes: machines that the ranks are on.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        comm: ProcessGroupComm,
        homes: Homes,
        options: ParallelOptions,
        num_nodes: int,
    ) -> None:
        self.module = module
        self.forward = module.forward
        self.name = name
        self.comm = comm
        self.homes = homes
        self.replicas = (
            ReplicaWeights(comm, homes.placement, list(homes.replicas))
            if homes.replicas.size
            else None
        )
        self.has_stale_replicas = False
        """Whether the owners' weights may differ from the replicas', as after a step; the same on
        all ranks."""
        self.num_chunks = options.num_chunks
        self.dispatcher = make_dispatcher(
            options.dispatcher,
            comm=comm,
            placement=homes.placement,
            replicas=homes.replicas,
            num_nodes=num_nodes,
            dispatch_dtype=options.dispatch_dtype,
            layer=name,
        )

    def __call__(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """The weighted sums `[tokens, h]` of this rank's tokens, as the module itself would."""
        if self.has_stale_replicas:
            self.refresh_replicas()
        given = hidden, expert_ids, weights, self.run, self.dispatcher
        if self.num_chunks == "auto":
            self.num_chunks = fastest_chunks(*given)
        output: Tensor = parallel_moe(*given, self.num_chunks)
        return output.to(hidden.dtype)

    def share_out(self, mesh: Mesh) -> None:
        """Expects the experts sharded over the groups of `mesh`, so that these exchange replicas.

        They do so before weights are gathered: what is gathered is freed again.
        """
        if self.replicas is not None:
            shared = self.homes.by_process(mesh.ranks.size, mesh.num_groups)
            self.replicas = ReplicaWeights(mesh.world, *shared)
            self.module.register_forward_pre_hook(self._refresh_first, prepend=True)

    def _refresh_first(self, *_: Any) -> None:
        if self.has_stale_replicas:
            self.refresh_replicas()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def refresh_replicas(self) -> None:
        """Copies the weights of experts to their replicas, on all ranks at once."""
        if self.replicas is not None:
            self.replicas.refresh(self.module)
        self.has_stale_replicas = False

    def reduce_gradients(self) -> None:
        """Brings the gradients of replicas to their experts, on all ranks at once.

        Replicas are stale from then on: a step of the optimizer is to come. The next forward
        refreshes them.
        """
        if self.replicas is not None:
            self.replicas.reduce_gradients(self.module)
            self.has_stale_replicas = True

    def run(self, rows: Tensor, counts: Tensor) -> Tensor:
        """The module's own forward on rows of local experts `[rows, h]`, unweighted."""
        ids = torch.arange(len(counts), device=rows.device)
        ids = ids.repeat_interleave(counts, output_size=len(rows))[:, None]
        if not len(rows):  # One row of zeros keeps the experts in the graph of backward.
            rows, ids = rows.sum(0, keepdim=True), ids.new_zeros(1, 1)
            return self._run(rows, ids)[:0]
        return self._run(rows, ids)

    def _run(self, rows: Tensor, ids: Tensor) -> Tensor:
        # Weights of 1: they are applied where rows are summed, in the dispatcher.
        output: Tensor = self.forward(rows, ids, rows.new_ones(ids.shape))
        return output


def parallelize(
    model: PreTrainedModel,
    plan: Plan,
    group: Any = None,
    options: ParallelOptions = DEFAULT_OPTIONS,
) -> None:
    """Spreads the experts of `model` over ranks as `plan` places them, in place.

    Every rank calls this with the same model and runs its own batches from then on, as many
    forward and backward passes as the others. Each keeps its own experts only. The model computes
    what it did before; a policy is applied apart, by `c2r.apply`. Gradients are completed by
    `reduce_gradients`.

    More processes than the plan has ranks R are groups of R, each of which holds every expert:
    process g * R + r is rank r of group g. Tokens stay within their group.

    Args:
        model: a transformers model, whole on every rank.
        plan: for this model; the processes are a multiple of its ranks.
        group: process group or one-dimensional device mesh; the default group where absent.
        options: how tokens travel.

    Raises:
        ModelError: the family has no expert-parallel plan in transformers, or is not supported.
        InputError: the model is parallel already.
        PlanMismatchError: the plan is for another model, or the processes are no multiple of its
            ranks.
        PlanError: the plan leaves a rank without experts of its own, or does not fit the model.
        CommunicationError: ranks differ in model, plan, type or options.
    """
    names = experts_of(model)
    if is_parallel(model):
        raise InputError("the model is parallel already; load it again to spread it differently")
    world = ProcessGroupComm(_process_group(group), options.timeout)
    agree_on(model, plan, options, world)
    mesh = make_mesh(world, plan.topology.num_ranks)
    for name, homes in homes_by(model, plan).items():
        module = model.get_submodule(name)
        replace_experts(module, _own_experts(homes, mesh.ranks.rank))
        install(model, name, homes, mesh.ranks, options, plan.topology.num_nodes)
    set_spread(model, Spread(names=names, mesh=mesh, plan=plan))


def local_experts(model: nn.Module) -> Iterator[tuple[str, nn.Module, LocalExperts]]:
    """The expert modules of a parallel model, in its order, with their paths."""
    for name in spread_of(model).names if is_parallel(model) else ():
        module = model.get_submodule(name)
        yield name, module, _experts(module)


@contextmanager
def counting_rows(model: nn.Module) -> Iterator[dict[str, Int]]:
    """Counts the rows that this rank sends to each, itself included, `[ranks]` by layer."""
    counts = {}
    for name, _, experts in local_experts(model):
        counts[name] = np.zeros(experts.comm.size, dtype=np.int64)
        experts.dispatcher.observer = partial(_add_rows, counts[name])
    try:
        yield counts
    finally:
        for _, _, experts in local_experts(model):
            experts.dispatcher.observer = None


def _add_rows(total: Int, handle: Handle) -> None:
    total += np.asarray(handle.num_rows_sent)


def experts_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Paths of the modules that transformers' plan lets us run the experts of."""
    check_transformers()
    rules = model._expand_parallel_plan(dict(getattr(model, "ep_plan", None) or {}))
    names = tuple(name for name, style in rules.items() if style == "ep_dispatch_experts")
    if not names:
        raise ModelError(
            f"transformers has no expert-parallel plan for {model_type(model)}, so that its "
            "experts cannot be spread; run it in one process"
        )
    return names


def _experts(module: nn.Module) -> LocalExperts:
    experts: Any = module.forward
    assert isinstance(experts, LocalExperts)
    return experts


def _own_experts(homes: Homes, rank: int) -> Callable[[Tensor], Tensor]:
    held = torch.from_numpy(homes.on(rank))
    return lambda parameter: parameter[held.to(parameter.device)]


def _process_group(group: Any) -> Any:
    return group.get_group() if hasattr(group, "get_group") else group


def agree_on(
    model: PreTrainedModel, plan: Plan, options: ParallelOptions, comm: ProcessGroupComm
) -> None:
    """Checks that the plan is for the model, and that all ranks have the same of both.

    Raises:
        ModelError, PlanMismatchError, CommunicationError: as `parallelize`.
    """
    sites = find_sites(model)
    facts = {
        "the dtype": str(model.dtype),
        "k": [site.top_k for site in sites],
        "the plan": plan.fingerprint,
        "the model": fingerprint(model, sites),
        "the dispatcher": [options.dispatcher, options.num_chunks, str(options.dispatch_dtype)],
    }
    agree(facts, comm)
    check_multiple(comm.size, plan.topology.num_ranks)
    check_plan(plan, model, sites, strict=False)


def homes_by(model: PreTrainedModel, plan: Plan) -> dict[str, Homes]:
    """Where the experts of each module live, by its path. Raises `PlanError`."""
    names = experts_of(model)
    # Router and experts are neighbours: what is before the last dot of their paths is the same.
    by_block = {layer.name.rpartition(".")[0]: layer for layer in plan.layers}
    if not any(by_block) and len(names) == plan.num_layers:  # layers without names, in order
        blocks = (name.rpartition(".")[0] for name in names)
        by_block = dict(zip(blocks, plan.layers, strict=True))
    homes = {}
    for name in names:
        layer = by_block.get(name.rpartition(".")[0])
        homes[name] = _homes(model.get_submodule(name), layer, plan.topology.num_ranks)
    return homes


def _homes(module: Any, layer: LayerPlan | None, num_ranks: int) -> Homes:
    """Where the experts of a module live; contiguous where the plan does not know the layer."""
    num_experts = int(module.num_experts)
    if layer is None or layer.num_experts < num_experts:  # which is no plan for this model
        return Homes(placement=contiguous_placement(num_experts, num_ranks))
    # Ids beyond the module's, such as zaya's that skips the layer, never reach it.
    placement = layer.placement[:num_experts]
    if (layer.replicas >= num_experts).any():
        raise PlanError(
            f"layer {layer.name} has replicas of expert {layer.replicas.max()}, which skips the "
            f"layer and has no weights (only 0 to {num_experts - 1} have); plan without replicas"
        )
    counts = np.bincount(placement, minlength=num_ranks)
    if not counts.all():
        raise PlanError(
            f"layer {layer.name} leaves rank {int(counts.argmin())} without experts "
            f"({', '.join(map(str, counts))} on the ranks); plan with at least one on each"
        )
    return Homes(placement=placement, replicas=layer.replicas)


def install(
    model: PreTrainedModel,
    name: str,
    homes: Homes,
    comm: ProcessGroupComm,
    options: ParallelOptions,
    num_nodes: int,
) -> None:
    """Makes a module, whose parameters are this rank's already, run its experts by dispatch."""
    module = model.get_submodule(name)
    module.num_experts = len(homes.on(comm.rank))
    experts = LocalExperts(module, name, comm, homes, options, num_nodes)
    module.forward = experts
    module.register_load_state_dict_pre_hook(_select_own)


def _select_own(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Takes this rank's experts out of a state dict of the whole model."""
    experts = _experts(module)
    homes, rank = experts.homes, experts.comm.rank
    held = torch.from_numpy(homes.on(rank))
    experts.has_stale_replicas = experts.replicas is not None  # a rank's own state may be stale
    for name, _parameter in module.named_parameters(recurse=False):
        value = state.get(prefix + name)
        if value is None or is_sharded(value):
            continue
        if len(value) == len(homes.placement):
            state[prefix + name] = value[held]
