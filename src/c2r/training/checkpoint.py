"""Checkpoints of a training as safetensors with JSON headers: no pickle, and whole or not there.

checkpoint-40/
  trainer_state.json        transformers' own: the step, and the log so far
  shared.safetensors        trained weights and their optimizer state, which all processes share
  rank-0.safetensors        the same of the experts of rank 0, where experts are spread over ranks
  process-0.safetensors     random state of process 0, its part of the unfinished log entry, and its
                            rows of the weights that FSDP2 shards, experts too where it shards them

Where a file has a part of a tensor, it says which rows. So another number of processes finds them,
wherever they are to be.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from c2r.adapters.huggingface import HeldRows
from c2r.errors import InputError
from c2r.parallel import is_sharded, own_part

_FOLDER = re.compile(r"checkpoint-(\d+)")
_NUM_KEPT = 2  # one to fall back on, should the newest be damaged
SHARED = "shared.safetensors"
STATE_FILE = "trainer_state.json"
_ROWS = "rows"


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

    def copied(self) -> "Part":
        """The same, in memory that no training changes."""
        copies = {k: t.detach().to("cpu", copy=True) for k, t in self.tensors.items()}
        return Part(tensors=copies, facts=self.facts)

    @classmethod
    def read(cls, path: Path, beginning: str = "") -> "Part":
        """Reads what `write` wrote, of tensors those whose names begin so.

        Raises `OSError` or `SafetensorError`.
        """
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(beginning)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
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


def part_files(facts: Mapping[str, Any]) -> list[str]:
    """Names of all files with tensors, as the data of the shared one tell."""
    ranks = map(rank_file, range(facts["num_ranks"]))
    return [SHARED, *ranks, *map(process_file, range(facts["num_processes"]))]


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
        for name in part_files(read_facts(path)):
            path = folder / name
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
    model: nn.Module, optimizer: Any, held: Mapping[nn.Parameter, HeldRows]
) -> tuple[Part, Part, Part]:
    """Trained parameters and their optimizer state.

    Returns:
        What all processes share; of experts those of the rank's own; of what FSDP2 shards this
        process's rows. The data of the last two say which rows there are.
    """
    tensors: tuple[dict[str, Tensor], ...] = ({}, {}, {})
    rows: tuple[dict[str, Any], ...] = ({}, {}, {})
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = optimizer.state.get(parameter, {})
        found = {f"optimizer/{key}/{name}": value for key, value in state.items()}
        found[f"weights/{name}"] = parameter
        kind = 0
        if parameter in held:
            kind = 2 if is_sharded(parameter) else 1
            numbers, num_own = held[parameter]
            rows[kind][name] = _spans(numbers[:num_own])
            found = {k: own_part(t)[:num_own] if t.ndim else t for k, t in found.items()}
        tensors[kind].update(found)
    shared, experts, sharded = (
        Part(tensors=each, facts={_ROWS: of} if of else {})
        for each, of in zip(tensors, rows, strict=True)
    )
    return shared, experts, sharded


def unpack_weights(
    model: nn.Module, optimizer: Any, folder: Path, held: Mapping[nn.Parameter, HeldRows]
) -> None:
    """Puts back what `pack_weights` gave, whichever processes have written it.

    One tensor is read at a time, and no rows but those in `held`. Raises `OSError` or
    `SafetensorError`.
    """
    with ExitStack() as opened:
        files = [
            opened.enter_context(safe_open(folder / name, framework="pt"))
            for name in part_files(read_facts(folder / SHARED))
        ]
        having: dict[str, list[Any]] = {}
        for file in files:
            for key in file.keys():  # noqa: SIM118 - it is no dict
                having.setdefault(key, []).append(file)
        keys = {key.split("/", 2)[1] for key in having if key.startswith("optimizer/")}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            wanted = held[parameter].numbers if parameter in held else None
            weights = f"weights/{name}"
            own_part(parameter.data).copy_(_read(having[weights], weights, name, wanted))
            saved = {key: f"optimizer/{key}/{name}" for key in keys}
            state = {
                key: _like(parameter, _read(having[path], path, name, wanted))
                for key, path in saved.items()
                if path in having
            }
            if state:
                optimizer.state[parameter] = state


def _like(parameter: Tensor, values: Tensor) -> Tensor:
    """A state of a parameter with these values: sharded as it is, unless it is one number."""
    if not values.ndim or not is_sharded(parameter):
        return values.to(parameter.device)
    state = torch.zeros_like(parameter, dtype=values.dtype, requires_grad=False)
    own_part(state).copy_(values)
    return state


def _read(files: Sequence[Any], key: str, name: str, wanted: Sequence[int] | None) -> Tensor:
    """Rows of a tensor of the parameter `name` that several files have a part of.

    All of it where no rows are named; where it is one number, the number.
    """
    first: Tensor
    if wanted is None or not files[0].get_slice(key).get_shape():
        first = files[0].get_tensor(key)
        return first
    places = {
        number: (index, row)
        for index, file in enumerate(files)
        for row, number in enumerate(_numbers(json.loads(file.metadata()["c2r"])[_ROWS][name]))
    }
    found = enumerate(places[number] for number in wanted)
    # Rows that are neighbours here and there are read at once.
    stretches = [
        [place for _, place in stretch]
        for _, stretch in groupby(found, lambda entry: (entry[1][0], entry[1][1] - entry[0]))
    ]
    read = [
        files[stretch[0][0]].get_slice(key)[stretch[0][1] : stretch[-1][1] + 1]
        for stretch in stretches
    ]
    return torch.cat(read) if read else files[0].get_slice(key)[:0]


def _spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers, each span from its first to before its last."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1] = (spans[-1][0], number + 1)
        else:
            spans.append((number, number + 1))
    return spans


def _numbers(spans: Sequence[Sequence[int]]) -> Iterator[int]:
    return chain.from_iterable(range(start, stop) for start, stop in spans)


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
