"""Commands that are killed at a random moment and run again to the end: what may differ is time."""

import contextlib
import json
import shutil
import signal
import time

import numpy as np

from tests.hostile.children import Child

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
WORDS = {signal.SIGTERM: "c2r: terminated", signal.SIGINT: "c2r: interrupted"}
_LIMIT = 240  # seconds, of any command
_CUT = ["--tokens", "4096", "--seq-len", "256"]
_TUNE = ["finetune", "tiny", "--plan", "plan.safetensors", "--data", "data.txt"]
_TUNE += ["--steps", "3", "--batch-size", "2", "--seq-len", "128"]
_TUNE += ["--save-every", "1", "--log-every", "1", "--out", "out"]
_SCALE = ["estimate", "--scale", "--experts", "64", "--cluster", "h100-8"]
COMMANDS = {
    "profile": ["profile", "tiny", *_CUT, "--batch-size", "1", "--out", "out"],
    "sweep": ["sweep", "tiny", "--ranks", "2", "--policy", "priced", *_CUT, "--out", "out.json"],
    "plan": ["plan", "profile.safetensors", "--ranks", "4", "--replicas", "1", "--out", "out"],
    "export": ["export", "--plan", "plan.safetensors", "--format", "sglang", "--out", "out.json"],
    "estimate": [*_SCALE, "--max-ranks", "64", "--figure", "out.png"],
    "finetune full": [*_TUNE, "--mode", "full"],
    "finetune router": [*_TUNE, "--mode", "router"],
    "finetune lora": [*_TUNE, "--mode", "lora", "--lora-rank", "2"],
    "permute": ["permute", "tiny", "--plan", "plan.safetensors", "--out", "out"],
    "apply": ["apply", "tiny", "--plan", "plan.safetensors", "--out", "out"],
    "import": ["import", "traces", "--format", "npz", "--num-experts", "8", "--out", "out"],
    "evaluate": ["evaluate", "--compare", "result.json", "result.json", "--out", "out.json"],
    "report": ["report", "profile.safetensors", "plan.safetensors", "--out", "out.html"],
    "optimize": ["optimize", "tiny", "--cluster", "h100-8x2", "--tokens", "4096", "--out", "out"],
}  # fmt: skip
_FINISHED = ("exists; choose another",)
_TIMES = {
    "seconds",
    "train_loss",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
}


def inputs(folder, num_ranks=4):
    """Writes what the commands read, with a plan for so many ranks."""
    from tests.hostile.mutations import originals

    folder.mkdir()
    made = folder.with_name("made")
    made.mkdir()
    originals(made)
    shutil.copy(made / "result.json", folder)
    (folder / "data.txt").write_text("The rank that holds an expert computes it. " * 200)
    (folder / "traces").mkdir()
    ids = np.argsort(np.random.default_rng(0).random((50_000, 8)), axis=1)[:, :2]
    for index in range(4):
        np.savez(folder / "traces" / f"{index}.npz", layer_0=ids)
    profile = ["profile", "tiny", *_CUT, "--out", "profile.safetensors"]
    plan = f"plan profile.safetensors --ranks {num_ranks} --out plan.safetensors".split()
    for command in (profile, plan):
        assert _run(command, folder)[0] == 0, _run(command, folder)[1]


def undisturbed(name, folder, work):
    """How long the command takes, and what it leaves."""
    shutil.copytree(folder, work)
    started = time.monotonic()
    status, said = _run(COMMANDS[name], work)
    assert status == 0, said
    return time.monotonic() - started, contents(work)


def trial(name, folder, work, number, moment, whole):
    """What went wrong when a command was sent a signal after `moment` seconds; None: nothing."""
    shutil.copytree(folder, work)
    child = _start(COMMANDS[name], work)
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):
        child.send(number)
    status = child.wait(_LIMIT)
    found = _wrong_end(child, number, status)
    left = _await_end(child)
    child.end()
    if found or left:
        return found or f"{len(left)} processes go on"
    status, said = _run(COMMANDS[name], work)
    if status != 0 and not (status == 2 and any(words in said for words in _FINISHED)):
        return f"run again: status {status}: {said[-300:]}"
    return differences(contents(work), whole)


def _wrong_end(child, number, status):
    if status is None:
        return "does not end"
    if status not in (0, STATUS[number], -number):
        return f"status {status}: {child.said[-300:]}"
    if status == STATUS[number] and number in WORDS:
        lines = child.said.splitlines()
        if not lines or lines[-1] != WORDS[number] or "Traceback" in child.said:
            return f"said {child.said[-300:]}"
    return None


def _await_end(child, seconds=30):
    end = time.monotonic() + seconds
    while (left := child.session()) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def _start(command, work):
    return Child.start(command, work.with_suffix(".log"), work)


def _run(command, work):
    child = _start(command, work)
    status = child.wait(_LIMIT)
    child.end()
    return status, child.said


def contents(work):
    """What stands in a folder: the bytes of each file, without the times in it."""
    found = {}
    for path in sorted(work.rglob("*")):
        name = str(path.relative_to(work))
        if path.is_file() and "tensorboard" not in name:
            found[name] = (
                _timeless(json.loads(path.read_bytes()))
                if name.endswith(".json")
                else path.read_bytes()
            )
        elif path.is_dir():
            found[name] = None
    return found


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in _TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def differences(found, whole):
    """How two folders differ, in words; None where they do not."""
    if found.keys() != whole.keys():
        return f"left {sorted(found.keys() ^ whole.keys())}"
    differing = [name for name in whole if found[name] != whole[name]]
    return f"differs: {differing}" if differing else None
