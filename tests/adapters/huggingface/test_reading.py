"""Models that each rank reads its part of, sharded by FSDP2 before they are whole anywhere."""

import gc
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from c2r.adapters.huggingface import find_sites, load_model, load_parallel, reduce_gradients, shard
from c2r.adapters.huggingface.expert_parallel import loading, reading
from c2r.adapters.huggingface.expert_parallel.loading import reading_in_parts
from c2r.adapters.huggingface.expert_parallel.spread import experts_of
from c2r.assets import tiny_folder
from c2r.errors import PlanMismatchError
from c2r.parallel import is_sharded, own_part
from tests.adapters.huggingface.families import FAMILIES, IS_OLD
from tests.adapters.huggingface.saving import folder_of_all
from tests.adapters.huggingface.spread_models import make_plan, summed_loss, tokens
from tests.parallel.processes import run_checks

pytestmark = pytest.mark.skipif(IS_OLD, reason="transformers spreads experts from 5.23 on")

BY_NAME = {family.name: family for family in FAMILIES}
TIED = replace(BY_NAME["mixtral"], name="tied", options={"tie_word_embeddings": True})
LAYOUTS = (
    BY_NAME["mixtral"],  # each expert by its name
    BY_NAME["gpt_oss"],  # experts in stacks, with biases
    BY_NAME["deepseek_v3"],
    TIED,
)


def assert_same(ours, theirs):
    """Bitwise, in names, shapes and buffers too."""
    assert [name for name, _ in ours.named_parameters()] == [
        name for name, _ in theirs.named_parameters()
    ]
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert is_sharded(mine) == is_sharded(other), name
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype), name
        assert mine.requires_grad == other.requires_grad, name
        assert torch.equal(own_part(mine), own_part(other)), name
    for (name, mine), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert torch.equal(mine, other), name


def read_as_if_whole(comm, num_ranks):
    """What is read in parts is what is read whole and then sharded, and runs as that does."""
    ids = tokens(comm.size)[comm.rank : comm.rank + 1] % 90
    with folder_of_all(comm) as folder:
        for family in LAYOUTS:
            single = family.model(family.experts[-1])
            plan = make_plan(single, num_ranks, num_replicas=int(num_ranks > 1))
            if family.name == "mixtral" and num_ranks == 2:  # one of the groups has none of these
                lonely = np.arange(8).clip(max=1)
                layer = replace(plan.layers[0], placement=lonely, replicas=np.zeros((2, 0), int))
                plan = replace(plan, layers=(layer, *plan.layers[1:]))
            if comm.rank == 0:
                single.to(torch.bfloat16).save_pretrained(folder / family.name)
            dist.barrier()
            where = {"source": folder / family.name, "plan": plan, "dtype": torch.float32}
            parts, whole = load_parallel(**where, fsdp=True), load_parallel(**where)
            shard(whole)
            assert_same(parts, whole)
            for model in (parts, whole):
                summed_loss(model, ids).backward()
                reduce_gradients(model, average=True)
            for (name, mine), other in zip(
                parts.named_parameters(), whole.parameters(), strict=True
            ):
                if other.grad is None:
                    assert mine.grad is None, name
                else:
                    assert torch.equal(own_part(mine.grad), own_part(other.grad)), name


def in_one_group(comm):
    read_as_if_whole(comm, comm.size)


def in_two_groups(comm):
    read_as_if_whole(comm, comm.size // 2)


def without_a_plan(comm):
    """Also where some of the weights cannot be read by rows."""
    whole = load_parallel(tiny_folder(), dtype=torch.float32)
    shard(whole)
    assert_same(load_parallel(tiny_folder(), dtype=torch.float32, fsdp=True), whole)
    by_rows = loading._read_by_rows

    def fewer(*given):
        return {name for name in by_rows(*given) if "q_proj" not in name and "lm_head" not in name}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_read_by_rows", fewer)
        assert_same(load_parallel(tiny_folder(), dtype=torch.float32, fsdp=True), whole)


def under_a_plan_without_names(comm):
    """As an engine's placement has it: its layers are those of the model, in order."""
    plan = make_plan(load_model(tiny_folder()), comm.size)
    unnamed = replace(plan, layers=tuple(replace(layer, name="") for layer in plan.layers))
    ours, theirs = (load_parallel(tiny_folder(), each, fsdp=True) for each in (unnamed, plan))
    assert_same(ours, theirs)
    fewer = replace(unnamed, layers=unnamed.layers[1:])
    with pytest.raises(PlanMismatchError, match="the plan is for 3 layers"):
        load_parallel(tiny_folder(), fewer)


def weights_that_stop_training(comm):
    """Gathered before or not, what does not train gets no gradient."""
    model = load_parallel(tiny_folder(), dtype=torch.float32, fsdp=True)
    ids = tokens(comm.size)[comm.rank : comm.rank + 1]
    with torch.no_grad():
        model(input_ids=ids)
    shard(model)  # which takes back what is gathered
    frozen = [site.module.weight for site in find_sites(model)] + [model.model.norm.weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    summed_loss(model, ids).backward()
    trained = {p for p in model.parameters() if p.grad is not None}
    assert not trained & set(frozen) and len(trained) == len([*model.parameters()]) - len(frozen)


def held_while_reading(comm):
    """A share, of a model that is large outside of its experts, too; until it runs no layer."""
    with folder_of_all(comm) as folder, pytest.MonkeyPatch.context() as patch:
        if comm.rank == 0:
            write_dense_model(folder)
        dist.barrier()
        load_parallel(tiny_folder(), fsdp=True)  # imports and starts what loading needs
        gc.collect()
        held = []
        patch.setattr(reading, "constrain", lambda *_: held.append(peak.bytes))
        with Peak() as peak:
            model = load_parallel(folder, dtype=torch.float32, fsdp=True)
        share = sum(own_part(parameter).nbytes for parameter in model.parameters())
        assert sum(parameter.nbytes for parameter in model.parameters()) > 3.9 * share
        assert held[0] <= 1.15 * share, (held[0], share)


def write_dense_model(folder):
    config = Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=64,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
    )
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


class Peak:
    """The most memory of the process's own beyond the start, while the block runs."""

    def __enter__(self):
        self.start, self.bytes = anonymous(), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, anonymous() - self.start)


def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


CHECKS = {
    check.__name__: check
    for check in (
        in_one_group,
        in_two_groups,
        without_a_plan,
        under_a_plan_without_names,
        weights_that_stop_training,
        held_while_reading,
    )
}


@pytest.mark.distributed
def test_on_four_processes():
    assert run_checks(CHECKS) == {}


@pytest.mark.distributed
def test_on_two_processes():
    both = {check.__name__: check for check in (in_one_group, in_two_groups)}
    assert run_checks(both, 2) == {}


def test_what_is_put_together_is_read_whole():
    """Rows of what transformers makes of several tensors are not rows of the files."""
    from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard

    model = BY_NAME["glm5_next_text"].model()
    how = reading_in_parts(model, experts_of(model), 4, all_else=True).tp_plan
    by_rows = {name for name, style in how.items() if style == "embedding_rowwise"}
    names = {replace_layer_number_by_wildcard(name) for name, _ in model.named_parameters()}
    assert not [name for name in by_rows if ".experts." in name]
    whole = [name for name in names - by_rows if ".experts." not in name]
    assert whole == ["layers.*.self_attn.conv1d.weight"]
