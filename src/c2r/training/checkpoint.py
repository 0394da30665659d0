"""Checkpoints of a training as safetensors with JSON headers: no pickle, and whole or not there.

checkpoint-40/
  trainer_state.json        transformers' own: the step, and the log so far
  shared.safetensors        trained weights and their optimizer state, which all processes share
  rank-0.safetensors        the same of the experts of rank 0, where experts are spread over ranks
  process-0.safetensors     random state of process 0, and its part of the unfinished log entry

Groups of ranks hold the same experts, and one of them writes; so another number of groups goes on
from the files of the same ranks.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from c2r.errors import InputError

_FOLDER = re.compile(r"checkpoint-(\d+)")
_NUM_KEPT = 2  # one to fall back on, should the newest be damaged
SHARED = "shared.safetensors"
STATE_FILE = "trainer_state.json"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """What one file holds: tensors by name, and JSON data."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Writes the file through to the disk. Raises `OSError` or `SafetensorError`."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, path, metadata={"c2r": json.dumps(dict(self.facts))})
        # A rename may reach the disk before the data: after a power cut the file would be empty.
        with path.open("rb") as written:
            os.fsync(written.fileno())

    @classmethod
    def read(cls, path: Path) -> "Part":
        """Reads what `write` wrote. Raises `OSError` or `SafetensorError`."""
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(tensors=tensors, facts=json.loads(file.metadata()["c2r"]))


def read_facts(path: Path) -> Mapping[str, Any]:
    """The JSON data of a part alone. Raises `OSError` or `SafetensorError`."""
    with safe_open(path, framework="pt") as file:
        facts: Mapping[str, Any] = json.loads(file.metadata()["c2r"])
        return facts


def process_file(index: int) -> str:
    """Name of the file of one process."""
    return f"process-{index}.safetensors"


def rank_file(index: int) -> str:
    """Name of the file with the experts of one rank."""
    return f"rank-{index}.safetensors"


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [(_FOLDER.fullmatch(path.name), path) for path in out.glob("checkpoint-*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def newest_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint whose files are whole; None where there is none.

    Raises:
        InputError: there are some, but none is whole.
    """
    problems = []
    for path in reversed(checkpoints(out)):
        problem = _problem(path)
        if problem is None:
            return path
        problems.append(f"{path.name}: {problem}")
    if problems:
        raise InputError(
            f"no checkpoint in {out} is whole ({problems[0]}); put back what is missing, or remove "
            "the folder to begin again"
        )
    return None


def check_whole(folder: Path) -> None:
    """Raises `InputError` if a file of the checkpoint is missing or damaged."""
    problem = _problem(folder)
    if problem is not None:
        raise InputError(f"{folder} is not whole here: {problem}; all processes must see it")


def _problem(folder: Path) -> str | None:
    """Which file is missing or damaged; None where all are whole."""
    path = folder / STATE_FILE
    try:
        json.loads(path.read_text(encoding="utf-8"))
        path = folder / SHARED
        facts = read_facts(path)
        names = [process_file(index) for index in range(facts["num_processes"])]
        names += [rank_file(index) for index in range(facts["num_ranks"])]
        for path in (folder / name for name in names):
            with safe_open(path, framework="pt"):
                pass
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return f"{path.name} is damaged"
    return None


def forget_older(out: Path) -> None:
    """Removes all checkpoints but the newest two."""
    for folder in checkpoints(out)[:-_NUM_KEPT]:
        shutil.rmtree(folder)


def pack_weights(model: nn.Module, optimizer: Any) -> dict[nn.Parameter, dict[str, Tensor]]:
    """The trained parameters, each with its tensors by name: itself, and its optimizer state."""
    packed = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state.get(parameter, {})
            entries = {f"optimizer/{key}/{name}": value for key, value in state.items()}
            packed[parameter] = {f"weights/{name}": parameter, **entries}
    return packed


def unpack_weights(model: nn.Module, optimizer: Any, path: Path) -> None:
    """Puts back what `pack_weights` gave, of the parameters that the part at `path` has.

    One tensor is read at a time. Raises `OSError` or `SafetensorError`.
    """
    with safe_open(path, framework="pt") as part:
        names = set(part.keys())
        keys = {name.split("/", 2)[1] for name in names if name.startswith("optimizer/")}
        for name, parameter in model.named_parameters():
            if f"weights/{name}" in names:
                parameter.data.copy_(part.get_tensor(f"weights/{name}"))
                saved = {key: f"optimizer/{key}/{name}" for key in keys}
                state = {k: part.get_tensor(v) for k, v in saved.items() if v in names}
                if state:
                    on_device = {k: v.to(parameter.device) for k, v in state.items()}
                    optimizer.state[parameter] = on_device


def pack_random_state() -> Part:
    """The state of Python's, numpy's and torch's generators."""
    tensors = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    algorithm, keys, *rest = np.random.get_state()
    return Part(
        tensors=tensors,
        facts={"python": random.getstate(), "numpy": [algorithm, np.asarray(keys).tolist(), *rest]},
    )


def unpack_random_state(part: Part) -> None:
    """Puts back what `pack_random_state` gave."""
    version, internal, gauss = part.facts["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, *rest = part.facts["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(part.tensors["random/cpu"])
    if "random/cuda" in part.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(part.tensors["random/cuda"])
