"""The expert-parallel layer of c2r against transformers' and, where installed, torchtitan's
and DeepSpeed's.

    c2r bench parallel --save-recording w.safetensors  # under torchrun or the emulated cluster
    python benchmarks/emulated_cluster.py --rate 1gbit -- \\
        python benchmarks/expert_parallel_peers.py w.safetensors

One experts module of Qwen2-MoE, forward and backward, on recorded routing; only who moves the
tokens changes. `all_reduce` wants every rank to hold all tokens, and gets them for nothing.
DeepSpeed drops nothing here: its buffers are as long as the fullest expert of any rank needs.
With `--rows-per-second` the experts are checked once and then take the time of an emulated device.
Baseline: transformers' `all_to_all`. Prints a table and a JSON line.
"""

import argparse
import importlib.util
from pathlib import Path

import torch
import torch.distributed as dist
from harness import compare, finish, print_table
from torch.distributed.device_mesh import init_device_mesh
from transformers import Qwen2MoeConfig
from transformers.distributed.expert_parallel import EPImplementationInterface
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts

from c2r.adapters.huggingface.expert_parallel.expert_weights import Homes
from c2r.adapters.huggingface.expert_parallel.spread import LocalExperts, ParallelOptions
from c2r.parallel import ProcessGroupComm
from c2r.plans import contiguous_placement
from c2r.timing import DeviceRate, EmulatedExperts, Recording, interleave

BASELINE = "transformers all_to_all"


class PeerExperts(Qwen2MoeExperts):
    """The experts that every implementation runs; real, or those of an emulated device."""

    device = None

    def forward(self, hidden_states, top_k_index, top_k_weights):
        if self.device is None:
            return super().forward(hidden_states, top_k_index, top_k_weights)
        # An id of E is an expert elsewhere.
        tokens, places = (top_k_index < self.num_experts).nonzero(as_tuple=True)
        counts = top_k_index[tokens, places].bincount(minlength=self.num_experts)
        rows = self.device(hidden_states[tokens], counts)
        weighted = rows * top_k_weights[tokens, places, None]
        return torch.zeros_like(hidden_states).index_add(0, tokens, weighted)


def experts_module(ids, num_experts, args):
    """The experts `ids` in one module, with the same weights wherever they are."""
    config = Qwen2MoeConfig(
        num_experts=num_experts,
        hidden_size=args.hidden_size,
        moe_intermediate_size=args.intermediate_size,
        experts_implementation="grouped_mm",
    )
    config._experts_implementation = "grouped_mm"
    module = PeerExperts(config).to(torch.bfloat16)
    for name, parameter in list(module.named_parameters()):
        parts = []
        for expert in ids:
            drawn = torch.Generator().manual_seed(int(expert))
            parts.append(torch.randn(parameter.shape[1:], generator=drawn) / args.hidden_size**0.5)
        setattr(module, name, torch.nn.Parameter(torch.stack(parts).to(torch.bfloat16)))
    module.num_experts = len(ids)
    module._is_expert_parallel = True
    return module


class Torchtitan:
    """torchtitan's all-to-all dispatcher around an experts module, called as by its MoE layer."""

    def __init__(self, experts, mesh, num_experts, top_k):
        from torchtitan.distributed.utils import set_spmd_backend
        from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher

        config = AllToAllTokenDispatcher.Config(num_experts=num_experts, top_k=top_k)
        self.dispatcher = AllToAllTokenDispatcher(config)
        self.dispatcher.wire_meshes(ep_mesh=mesh)
        set_spmd_backend("default")  # the other, "spmd_types", needs what gloo lacks
        self.experts = experts
        self.num_experts = num_experts

    def __call__(self, hidden, ids, weights):
        counts = ids.flatten().bincount(minlength=self.num_experts)
        rows, counts, metadata = self.dispatcher.dispatch(hidden, weights, ids, counts)
        local = torch.arange(len(counts)).repeat_interleave(counts)[:, None]
        output = self.experts(rows, local, rows.new_ones(local.shape))
        return self.dispatcher.combine(output, metadata, hidden)


class DeepSpeed:
    """DeepSpeed's MoE layer around an experts module, its gate told what to choose."""

    def __init__(self, experts, num_experts):
        import deepspeed
        from deepspeed.moe.sharded_moe import MOELayer

        deepspeed.init_distributed("gloo", verbose=False)
        size = dist.get_world_size()
        self.layer = MOELayer(
            ToldGate(num_experts), CapacityExperts(experts), "ep", size, num_experts // size
        )
        self.layer._set_ep_group(dist.group.WORLD)

    def __call__(self, hidden, ids, weights):
        return self.layer(hidden, (ids, weights))


class ToldGate(torch.nn.Module):
    """Gives DeepSpeed's layer the routing that was recorded, with a slot for every token."""

    def __init__(self, num_experts):
        super().__init__()
        self.num_experts = num_experts

    def _set_ep_group(self, group):
        self.group = group

    def forward(self, hidden, routing, use_tutel, use_sparse=None):
        ids, weights = routing
        flat = ids.flatten()
        counts = flat.bincount(minlength=self.num_experts)
        order = flat.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        slots = torch.empty_like(flat)
        slots[order] = torch.arange(len(flat)) - starts[flat[order]]
        capacity = counts.max()
        dist.all_reduce(capacity, dist.ReduceOp.MAX, self.group)
        slots = slots.view_as(ids)
        return 0.0, capacity, self.num_experts, ids.T, slots.T, weights.T.float(), counts


class CapacityExperts(torch.nn.Module):
    """An experts module on buffers `[ranks, local experts, slots, h]`."""

    def __init__(self, experts):
        super().__init__()
        self.experts = experts

    def forward(self, buffers):
        ids = torch.arange(buffers.shape[1])[None, :, None].expand(buffers.shape[:3]).reshape(-1, 1)
        rows = buffers.flatten(0, 2)
        return self.experts(rows, ids, rows.new_ones(ids.shape)).view_as(buffers)


class Layers:
    """All layers of one implementation on this rank."""

    def __init__(self, calls, modules, routing, tokens, args):
        self.calls, self.modules = calls, modules
        hidden = torch.randn(
            dist.get_world_size() * args.tokens,
            args.hidden_size,
            generator=torch.Generator().manual_seed(0),
        ).to(torch.bfloat16)
        self.grad_output = hidden.flip(0)[tokens]
        self.inputs = [
            (
                hidden[tokens].clone().requires_grad_(),
                torch.from_numpy(ids[tokens].copy()),
                torch.from_numpy(weights[tokens].copy()).bfloat16().requires_grad_(),
            )
            for ids, weights in zip(routing.expert_ids, routing.weights, strict=True)
        ]

    def run(self):
        for index, (call, (hidden, ids, weights)) in enumerate(
            zip(self.calls, self.inputs, strict=True)
        ):
            output = call(hidden, ids, weights)
            output.backward(self.grad_output)
            if index == 0:
                self.results = output.detach(), hidden.grad
            hidden.grad = weights.grad = None
            for module in self.modules:
                module.zero_grad()


class Contenders:
    """Builds the same layers under every implementation."""

    def __init__(self, args):
        self.args = args
        self.recording = Recording.load(args.recording)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.mesh = init_device_mesh("cpu", (self.size, 1), mesh_dim_names=("ep", "tp"))
        self.own = slice(self.rank * args.tokens, (self.rank + 1) * args.tokens)

    def by_name(self, name, tokens, tp_mesh):
        """An implementation that transformers knows; ranks hold contiguous ids."""
        experts = self._module(contiguous_placement(self.recording.num_experts, self.size))
        call = EPImplementationInterface()[name](experts, self.mesh["ep"], tp_mesh)
        return self._layers(call, experts, tokens)

    def torchtitan(self):
        experts = self._module(contiguous_placement(self.recording.num_experts, self.size))
        top_k = self.recording.routings["top_k"].expert_ids.shape[-1]
        call = Torchtitan(experts, self.mesh["ep"], self.recording.num_experts, top_k)
        return self._layers(call, experts, self.own)

    def deepspeed(self):
        experts = self._module(contiguous_placement(self.recording.num_experts, self.size))
        return self._layers(DeepSpeed(experts, self.recording.num_experts), experts, self.own)

    def _layers(self, call, experts, tokens):
        calls = [call] * self.recording.num_layers
        return Layers(calls, [experts], self.recording.routings["top_k"], tokens, self.args)

    def own_layer(self, routing, is_placed, dispatcher="zero_redundancy", num_chunks=1):
        """Our implementation; experts in order, or placed as planned."""
        size, num_experts = self.size, self.recording.num_experts
        placements = [
            placement if is_placed else contiguous_placement(num_experts, size)
            for placement in self.recording.placement
        ]
        modules = [self._module(placement) for placement in placements]
        comm = ProcessGroupComm()
        options = ParallelOptions(dispatcher=dispatcher, num_chunks=num_chunks)
        calls = [
            LocalExperts(experts, "experts", comm, Homes(placement=placement), options, 1)
            for experts, placement in zip(modules, placements, strict=True)
        ]
        return Layers(calls, modules, self.recording.routings[routing], self.own, self.args)

    def all(self):
        everything = slice(0, self.size * self.args.tokens)
        layers = {
            BASELINE: self.by_name("all_to_all", self.own, self.mesh["tp"]),
            "transformers all_reduce": self.by_name("all_reduce", everything, self.mesh["ep"]),
            "c2r": self.by_name("c2r", self.own, self.mesh["tp"]),
        }
        if importlib.util.find_spec("torchtitan"):
            layers["torchtitan all_to_all"] = self.torchtitan()
        if importlib.util.find_spec("deepspeed"):
            layers["DeepSpeed"] = self.deepspeed()
        for routing in self.recording.routings:
            name = "c2r, placed" if routing == "top_k" else f"c2r, placed, {routing}"
            layers[name] = self.own_layer(routing, is_placed=True)
            for count in self.args.chunks:
                layers[f"{name}, {count} chunks"] = self.own_layer(routing, True, num_chunks=count)
        for count in (1, *self.args.chunks):
            name = "c2r k_fold" if count == 1 else f"c2r k_fold, {count} chunks"
            layers[name] = self.own_layer("top_k", False, "k_fold", count)
        return layers

    def emulate(self, rate):
        """From here on the experts of all implementations are those of an emulated device."""
        PeerExperts.device = EmulatedExperts(DeviceRate(rows_per_second=rate))

    def _module(self, placement):
        ids = (placement == self.rank).nonzero()[0]
        return experts_module(ids, self.recording.num_experts, self.args)


def errors(layers, own):
    """Largest deviation from the baseline's output and gradient, where the routing is the same."""
    wanted = layers[BASELINE].results
    same = ("c2r", "c2r, placed", "torchtitan all_to_all", "DeepSpeed")
    found = {name: layers[name].results for name in same if name in layers}
    shared = layers["transformers all_reduce"].results
    found["transformers all_reduce"] = tuple(tensor[own] for tensor in shared)
    return {
        name: max(
            ((ours - theirs).abs().max() / theirs.abs().max()).item()
            for ours, theirs in zip(results, wanted, strict=True)
        )
        for name, results in found.items()
    }


def report(contenders, seconds, deviations):
    recording, args = contenders.recording, contenders.args
    milliseconds = {
        name: [1000 * each / recording.num_layers for each in times]
        for name, times in seconds.items()
    }
    rows = compare(milliseconds, BASELINE, "implementation", "milliseconds_per_layer")
    rows = [row | {"error": deviations.get(row["implementation"])} for row in rows]
    print_table(rows)
    finish(
        "expert_parallel_peers",
        BASELINE,
        rows,
        vars(args) | {"compute": "emulated" if args.rows_per_second else "real"},
        num_ranks=contenders.size,
        losses={name: routing.loss for name, routing in recording.routings.items()},
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "recording", type=Path, help="file of `c2r bench parallel --save-recording`"
    )
    parser.add_argument("--tokens", type=int, default=1024, help="of each rank")
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--intermediate-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, nargs="*", default=[])
    parser.add_argument("--rows-per-second", type=float, help="emulate devices so fast")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    contenders = Contenders(args)
    layers = contenders.all()
    for each in layers.values():
        each.run()
    deviations = errors(layers, contenders.own)
    if args.rows_per_second:
        contenders.emulate(args.rows_per_second)
    runs = {name: each.run for name, each in layers.items()}
    seconds = interleave(runs, ProcessGroupComm(), args.rounds)
    if contenders.rank == 0:
        report(contenders, seconds, deviations)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
