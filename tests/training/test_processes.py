"""Fine-tuning on four gloo processes gives what one process gives."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

import c2r
from c2r.adapters.huggingface import load_parallel
from c2r.assets import tiny_folder
from c2r.errors import InputError
from c2r.training import FinetuneSettings, finetune
from c2r.training.folder import work_folder
from tests.parallel.processes import run_checks
from tests.training.material import examples, plan_of, tiny, with_replicas
from tests.training.test_resuming import Interrupter

SETTINGS = FinetuneSettings(
    num_steps=3,
    batch_size=8,
    learning_rate=1e-3,
    aux_weight=0.01,
    kl_weight=0.1,
    log_every=1,
)
CASES = {
    "ddp": SETTINGS,
    "expert_parallel": replace(SETTINGS, expert_parallel=True),
    "replicas": replace(SETTINGS, expert_parallel=True, async_save=True),
    "groups": replace(SETTINGS, expert_parallel=True, fsdp=True),
    "sharded": replace(
        SETTINGS,
        expert_parallel=True,
        fsdp=True,
        async_save=True,
        accumulation=2,
        aux_weight=0.0,  # the balance is that of a pass
        gradient_checkpointing=True,
    ),
    "fewer": replace(SETTINGS, expert_parallel=True),
}


def tune(out, settings, callbacks=(), name=""):
    model = tiny()
    plan = plan_of(model, num_ranks=2 if name in ("groups", "sharded") else 4)
    plan = with_replicas(plan) if name in ("replicas", "sharded", "fewer") else plan
    if name == "sharded":
        model = load_parallel(tiny_folder(), plan, dtype=torch.float32, fsdp=True)
    return finetune(model, examples(), plan, settings, out, callbacks)


def check(comm, settings, folder):
    """Tunes on all ranks; with spread experts interrupted on one of them, and goes on.

    With replicas also without an interruption, for the same weights. The cases `groups` and `fewer`
    go on elsewhere. Where experts are sharded, no file is a rank's.
    """
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29500")  # accelerate asks for them
    out = folder / "out"
    if settings.expert_parallel:
        with pytest.raises(KeyboardInterrupt):
            tune(out, settings, [Interrupter(1)] if comm.rank == 2 else [], folder.name)
        files = {path.name for path in (work_folder(out) / "checkpoint-2").iterdir()}
        num_ranks = 0 if settings.fsdp else 4
        assert files == {
            "trainer_state.json",
            "shared.safetensors",
            *(f"rank-{rank}.safetensors" for rank in range(num_ranks)),
            *(f"process-{process}.safetensors" for process in range(4)),
        }
        if folder.name in ("groups", "fewer"):
            return
    result = tune(out, settings, name=folder.name)
    if folder.name in ("replicas", "sharded"):
        tune(folder / "whole", settings, name=folder.name)
    if comm.rank == 0:
        (folder / "log.json").write_text(json.dumps(result.log))


def check_one_group(comm, folder):
    """One group goes on from what two have left, once all of it is there; once only."""
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29500")
    part = work_folder(folder / "out") / "checkpoint-2" / "process-3.safetensors"
    hidden = part.with_name("hidden")
    if comm.rank == 0:
        part.rename(hidden)
    comm.barrier()
    with pytest.raises(InputError, match=r"\(checkpoint-2: process-3\.safetensors is missing\)"):
        tune(folder / "out", CASES["groups"], name="groups")
    if comm.rank == 0:
        hidden.rename(part)
    comm.barrier()
    result = tune(folder / "out", CASES["groups"], name="groups")
    tuned = load_file(folder / "out" / "model.safetensors")
    plan = plan_of(tiny(), num_ranks=2)
    for model in (tiny(), load_parallel(tiny_folder(), plan, dtype=torch.float32, fsdp=True)):
        again = finetune(model, examples(), plan, CASES["groups"], folder / "out")
        assert (result.was_finished, again.was_finished) == (False, True)
        assert torch.equal(c2r.parallel.whole(model.model.norm.weight), tuned["model.norm.weight"])
    if comm.rank == 0:
        (folder / "log.json").write_text(json.dumps(result.log))


def check_fewer_ranks(comm, folder):
    """Two processes go on with the experts of the four ranks of the plan."""
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29500")
    result = tune(folder / "out", CASES["fewer"], name="fewer")
    if comm.rank == 0:
        (folder / "log.json").write_text(json.dumps(result.log))


@pytest.mark.distributed
def test_four_processes_train_as_one_does(tmp_path):
    checks = {}
    for name, settings in CASES.items():
        (tmp_path / name).mkdir()
        checks[name] = partial(check, settings=settings, folder=tmp_path / name)
    assert run_checks(checks) == {}
    on_two = {
        "groups": partial(check_one_group, folder=tmp_path / "groups"),
        "fewer": partial(check_fewer_ranks, folder=tmp_path / "fewer"),
    }
    assert run_checks(on_two, 2) == {}
    for name, settings in CASES.items():
        plan, aux = "groups" if settings.fsdp else "expert_parallel", settings.aux_weight
        settings = replace(
            settings, expert_parallel=False, fsdp=False, gradient_checkpointing=False
        )
        one_folder = tmp_path / f"{plan}-{aux}-alone"  # trained once for each pair
        alone = tune(one_folder, settings, name=plan)
        log = json.loads((tmp_path / name / "log.json").read_text())
        for ours, theirs in zip(alone.log[:3], log[:3], strict=True):
            parts = ("loss", "lm_loss", "kl", "grad_norm", *(["aux_loss"] if aux else []))
            for part in parts:
                assert theirs[part] == pytest.approx(ours[part], rel=2e-3), (name, part)
        assert log[0]["lm_loss"] == pytest.approx(alone.log[0]["lm_loss"], rel=1e-5)
        one = load_file(one_folder / "model.safetensors")
        four = load_file(tmp_path / name / "out" / "model.safetensors")
        assert one.keys() == four.keys()
        start = tiny().state_dict()
        for key, value in four.items():
            moved = (one[key] - start[key]).norm() if key in start else torch.tensor(1.0)
            assert (value - one[key]).norm() <= 0.05 * moved, (name, key)
        assert c2r.from_pretrained(tmp_path / name / "out")
    for name in ("replicas", "sharded"):
        whole, resumed = (
            load_file(tmp_path / name / way / "model.safetensors") for way in ("whole", "out")
        )
        assert all(torch.equal(whole[key], value) for key, value in resumed.items()), name
