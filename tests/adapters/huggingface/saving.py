"""Checks of models whose experts are spread over processes, saved by all of them side by side."""

import errno
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import c2r
from c2r.adapters.huggingface import (
    applied_plan,
    load_model,
    parallelize,
    save_parallel,
    shard,
)
from c2r.assets import tiny_folder
from c2r.errors import CommunicationError, InputError, PlanError
from c2r.parallel import gather_bytes
from tests.adapters.huggingface.families import FAMILIES
from tests.adapters.huggingface.spread_models import make_plan, tiny

LAYOUTS = ("mixtral", "gpt_oss", "granitemoe", "gemma4_text", "minimax_m2", "aria_text")
"""Experts by name and in stacks, transposed ones too, under the family's own names."""


@contextmanager
def folder_of_all(comm):
    """A new folder that all ranks know."""
    with tempfile.TemporaryDirectory() as own:
        yield Path(gather_bytes(own.encode(), comm)[0].decode())
        dist.barrier()


def saving_families(comm):
    """Byte for byte what one process writes, also of what FSDP2 shards."""
    with folder_of_all(comm) as folder:
        _save_families(comm, folder)


def _save_families(comm, folder):
    for family in FAMILIES:
        if family.name not in LAYOUTS:
            continue
        single, model = (family.model(family.experts[-1]) for _ in range(2))
        plan = make_plan(model, 2 if family.name == "gpt_oss" else comm.size, num_replicas=1)
        c2r.apply(model, plan)
        parallelize(model, plan)
        ways = ("one", "four", "sharded")
        one, four, sharded = (folder / f"{family.name}-{way}" for way in ways)
        save_parallel(model, four)
        shard(model)
        save_parallel(model, sharded)
        if comm.rank == 0:
            single.save_pretrained(one)
            expected = (one / "model.safetensors").read_bytes()
            for ours in (four, sharded):
                assert (ours / "model.safetensors").read_bytes() == expected, ours


def saving_what_was_loaded(comm):
    """What was read in parts is written in parts, and read again with its plan."""
    with folder_of_all(comm) as folder:
        _save_what_was_loaded(comm, folder)


def _save_what_was_loaded(comm, folder):
    plan = make_plan(tiny(), comm.size, seed=3)
    model = c2r.load_parallel(tiny_folder(), plan)
    with pytest.raises(PlanError, match="carries no plan"):
        save_parallel(model, folder / "early")
    c2r.apply(model, plan)
    save_parallel(model, folder / "saved", max_shard_size="100KB")
    before, again = load_model(tiny_folder()), load_model(folder / "saved")
    assert applied_plan(again).layers[0].placement.tolist() == plan.layers[0].placement.tolist()
    state = before.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())
    assert [path.name for path in folder.iterdir()] == ["saved"]
    shards = list((folder / "saved").glob("model-*.safetensors"))
    assert len(shards) > 10 and all(path.stat().st_size < 110_000 for path in shards)
    with pytest.raises(InputError, match="saved exists and is not an empty folder"):
        save_parallel(model, folder / "saved")


def saving_on_a_full_disk(comm):
    """The disk is full for one rank, and all say so."""
    with folder_of_all(comm) as folder:
        _save_on_a_full_disk(comm, folder)


def _save_on_a_full_disk(comm, folder):
    model = tiny()
    plan = make_plan(model, 2)
    parallelize(model, plan)
    c2r.apply(model, plan)
    shard(model)
    with pytest.MonkeyPatch.context() as patch:
        if comm.rank == 2:
            patch.setattr(os, "pwrite", no_room)
        with pytest.raises(InputError, match=r"^rank 2: cannot write .*saved: .*No space left"):
            save_parallel(model, folder / "saved")
    dist.barrier()
    assert list(folder.iterdir()) == []
    with pytest.raises(CommunicationError, match="the folder of rank 3 differs"):
        save_parallel(model, folder / ("other" if comm.rank == 3 else "saved"))
    save_parallel(model, folder / "saved")


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


CHECKS = (saving_families, saving_what_was_loaded, saving_on_a_full_disk)
