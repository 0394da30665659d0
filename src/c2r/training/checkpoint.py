"""Checkpoints of a training as safetensors with JSON headers: no pickle, and whole or not there.

checkpoint-40/
  trainer_state.json        transformers' own: the step, and the log so far
  shared.safetensors        trained weights and their optimizer state, which all processes share
  rank-0.safetensors        the same of the experts of rank 0, where experts are spread over ranks
  process-0.safetensors     random state of process 0, and its part of the unfinished log entry

A rank's file says which experts are in its rows. So the same experts are found on other ranks, as
many as there are, wherever these are to have them.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from c2r.adapters.huggingface import ExpertRows
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
            read_facts(path)
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return f"{path.name} is damaged"
    return None


def forget_older(out: Path) -> None:
    """Removes all checkpoints but the newest two."""
    for folder in checkpoints(out)[:-_NUM_KEPT]:
        shutil.rmtree(folder)


def pack_weights(
    model: nn.Module, optimizer: Any, rows: Mapping[nn.Parameter, ExpertRows]
) -> tuple[Part, Part]:
    """Trained parameters and their optimizer state: of what all processes share, and of experts.

    Of experts those of the rank's own; their ids are in the part's data.
    """
    shared: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    experts: dict[str, Sequence[int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state.get(parameter, {})
            tensors = {f"optimizer/{key}/{name}": value for key, value in state.items()}
            tensors[f"weights/{name}"] = parameter
            if parameter in rows:
                ids, num_own = rows[parameter]
                experts[name] = ids[:num_own]
                own |= {key: t[:num_own] if t.ndim else t for key, t in tensors.items()}
            else:
                shared |= tensors
    return Part(tensors=shared), Part(tensors=own, facts={"experts": experts})


def unpack_weights(
    model: nn.Module,
    optimizer: Any,
    folder: Path,
    num_ranks: int,
    rows: Mapping[nn.Parameter, ExpertRows],
) -> None:
    """Puts back what `pack_weights` gave, from a checkpoint that so many ranks wrote.

    One tensor is read at a time, of experts those in `rows` only, whichever rank wrote them.
    Raises `OSError` or `SafetensorError`.
    """
    with ExitStack() as opened:

        def opening(name: str) -> Any:
            return opened.enter_context(safe_open(folder / name, framework="pt"))

        shared = opening(SHARED)
        parts = [opening(rank_file(rank)) for rank in range(num_ranks)]
        experts = [json.loads(part.metadata()["c2r"])["experts"] for part in parts]
        names = [set(part.keys()) for part in (shared, *parts)]
        keys = {name.split("/", 2)[1] for name in set().union(*names) if "optimizer/" in name}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            read = shared.get_tensor
            if parameter in rows:
                where = _places([written[name] for written in experts])
                read = partial(_read_rows, parts, [where[i] for i in rows[parameter].ids])
            parameter.data.copy_(read(f"weights/{name}"))
            saved = {key: f"optimizer/{key}/{name}" for key in keys}
            state = {k: read(v) for k, v in saved.items() if any(v in each for each in names)}
            if state:
                optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in state.items()}


Place = tuple[int, int]
"""A file, and a row of the tensors in it."""


def _places(written: Sequence[Sequence[int]]) -> dict[int, Place]:
    """Where each expert is, of those that each file has in its rows."""
    return {
        expert: (part, row)
        for part, experts in enumerate(written)
        for row, expert in enumerate(experts)
    }


def _read_rows(parts: Sequence[Any], places: Sequence[Place], name: str) -> Tensor:
    """Rows of a tensor that several files have a part of; where it is one number, the number."""
    shape = parts[0].get_slice(name).get_shape()
    if not shape:
        number: Tensor = parts[0].get_tensor(name)
        return number
    # Rows that are neighbours here and there are read at once.
    stretches = [
        [place for _, place in stretch]
        for _, stretch in groupby(
            enumerate(places), lambda entry: (entry[1][0], entry[1][1] - entry[0])
        )
    ]
    return torch.cat(
        [
            parts[stretch[0][0]].get_slice(name)[stretch[0][1] : stretch[-1][1] + 1]
            for stretch in stretches
        ]
    )


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
