"""Checkpoints: exact after a kill, kept on errors, refused for another request."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import c2r
from c2r.errors import InputError, TrainingError
from c2r.training import FinetuneSettings, finetune
from c2r.training.checkpoint import Part, checkpoints, newest_checkpoint
from c2r.training.folder import work_folder
from tests.training.killed import tune
from tests.training.material import examples, plan_of, tiny

SETTINGS = FinetuneSettings(num_steps=4, batch_size=4, learning_rate=1e-3, save_every=1)


def start(out, step):
    """The exit status of a run that is killed before its optimizer takes step `step`."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    script = root / "tests/training/killed.py"
    command = [sys.executable, "-W", "error", script, out, str(step)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return done.returncode, done.stderr.decode()


def assert_same_model(one, other):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_killed_at_a_random_step_it_ends_in_the_same_weights(tmp_path):
    tune(tmp_path / "whole", 0)
    assert start(tmp_path / "killed", random.randint(1, 10))[0] == -signal.SIGKILL
    status, message = start(tmp_path / "killed", 0)
    assert status == 0, message
    assert_same_model(tmp_path / "killed", tmp_path / "whole")
    logs = [json.loads((tmp_path / name / "log.json").read_text()) for name in ("whole", "killed")]
    assert logs[0][:-1] == logs[1][:-1]  # the last entry tells this run's time
    assert c2r.from_pretrained(tmp_path / "killed")


class Interrupter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def run(out, settings=SETTINGS, callbacks=(), data=None, plan=None, model=None):
    model = model or tiny()
    return finetune(model, data or examples(8), plan or plan_of(model), settings, out, callbacks)


@pytest.mark.parametrize("mode", ["full", "router", "lora"])
def test_ctrl_c_ends_the_step_and_leaves_a_checkpoint(tmp_path, mode):
    out = tmp_path / "out"
    settings = replace(SETTINGS, save_every=None, mode=mode)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(out, settings, [Interrupter(2)])
    assert [path.name for path in checkpoints(work_folder(out))] == ["checkpoint-3"]
    assert signal.getsignal(signal.SIGINT) is handler
    run(out, settings)
    run(tmp_path / "whole", settings)
    assert_same_model(out, tmp_path / "whole")


class Failing(TrainerCallback):
    """Makes the weights NaN, so that the loss of the next step is."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step == self.step:
            model.model.norm.weight.data[0] = torch.nan


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=r"not finite at step 3; .*checkpoint-2; lower"):
        run(out, callbacks=[Failing(2)])
    assert newest_checkpoint(work_folder(out)).name == "checkpoint-2"
    shared = Part.read(work_folder(out) / "checkpoint-2" / "shared.safetensors")
    assert all(tensor.isfinite().all() for tensor in shared.tensors.values())
    run(out)
    run(tmp_path / "whole")
    assert_same_model(out, tmp_path / "whole")


def test_scores_that_are_not_finite_name_step_and_router():
    model = tiny()
    model.model.layers[1].mlp.gate.weight.data[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"layers\.1\.mlp\.gate gave NaN.* at step 1; there is"):
        run(None, replace(SETTINGS, save_every=None), model=model)


@pytest.mark.parametrize("async_save", [False, True])
def test_no_space_left_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, async_save):
    out, write = tmp_path / "out", Part.write
    settings = replace(SETTINGS, async_save=async_save)

    def limited(part, path):
        if path.parent.name == ".checkpoint-3":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(part, path)

    monkeypatch.setattr(Part, "write", limited)
    with pytest.raises(InputError, match=r"after step 3 .*No space left.*checkpoint-2; make room"):
        run(out, settings)
    names = sorted(path.name for path in work_folder(out).iterdir())
    assert names == ["checkpoint-1", "checkpoint-2", "finetune.json"]
    monkeypatch.undo()
    run(out)
    run(tmp_path / "whole")
    assert_same_model(out, tmp_path / "whole")


class Releaser(TrainerCallback):
    """Lets go of a held writing at the end of a step; notes what is there then."""

    def __init__(self, step, out):
        self.step, self.out = step, out
        self.event = threading.Event()

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.left = sorted(path.name for path in work_folder(self.out).iterdir())
            self.event.set()


def test_written_beside_the_training_it_is_whole_or_not_there(tmp_path, monkeypatch):
    """The writing after step 2 is held until step 4 is through, where Ctrl-C ends the training."""
    out, write = tmp_path / "out", Part.write
    releaser = Releaser(4, out)

    def held(part, path):
        assert releaser.event.wait(60)
        write(part, path)

    settings = replace(SETTINGS, num_steps=6, save_every=2, async_save=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Part, "write", held)
        run(out, settings, [Interrupter(3), releaser])
    assert releaser.left == [".checkpoint-2", "finetune.json"]
    kept = checkpoints(work_folder(out))
    assert [path.name for path in kept] == ["checkpoint-2", "checkpoint-4"]
    two, four = (Part.read(path / "shared.safetensors").tensors for path in kept)
    assert not torch.equal(*(part["weights/model.norm.weight"] for part in (two, four)))
    run(out, settings)
    run(tmp_path / "whole", replace(settings, async_save=False))
    assert_same_model(out, tmp_path / "whole")


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, callbacks=[Interrupter(2)])
    damaged = work_folder(out) / "checkpoint-3" / "shared.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert newest_checkpoint(work_folder(out)).name == "checkpoint-2"
    run(out)
    run(tmp_path / "whole")
    assert_same_model(out, tmp_path / "whole")


def test_another_request_is_refused_and_told_apart(tmp_path):
    out, model = tmp_path / "out", tiny()
    with pytest.raises(KeyboardInterrupt):
        run(out, callbacks=[Interrupter(0)])
    with pytest.raises(InputError, match="begun with another plan; run it as"):
        run(out, plan=plan_of(model, strength=0.2))
    with pytest.raises(InputError, match="begun with other data; run"):
        run(out, data=examples(9))
    with pytest.raises(InputError, match=r"learning_rate = 0\.001 instead of 0\.002"):
        run(out, replace(SETTINGS, learning_rate=2e-3))
    other = tiny()
    other.model.layers[0].mlp.gate.weight.data[0] += 1
    with pytest.raises(InputError, match="another model"):
        run(out, model=other)
    run(out, replace(SETTINGS, save_every=2, log_every=1))
    for wrong in ({"data": examples(9)}, {"settings": replace(SETTINGS, seed=1)}):
        with pytest.raises(InputError, match="holds a model already"):
            run(out, **wrong)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_run_that_has_finished_ends_again_as_it_did(tmp_path, mode):
    settings = replace(SETTINGS, mode=mode, save_every=None)
    first, second = tiny(), tiny()
    made = run(tmp_path / "out", settings, model=first)
    again = run(tmp_path / "out", settings, model=second)
    assert (made.was_finished, again.was_finished) == (False, True)
    assert again.num_steps == 4 and again.log == made.log
    assert again.num_trainable == made.num_trainable
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        run(tmp_path)


def test_no_pickle_is_written(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, callbacks=[Interrupter(1)])
    suffixes = {path.suffix for path in work_folder(out).rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_beside_the_rename_the_folder_is_whole_or_not_there(tmp_path, monkeypatch, moment):
    out, replace_path = tmp_path / "out", Path.replace

    def killed(path, target):
        if target != out or moment == "after":
            replace_path(path, target)
        if target == out:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        run(out)
    assert out.exists() == (moment == "after")
    assert run(out).was_finished == (moment == "after")
    run(tmp_path / "whole")
    assert_same_model(out, tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
