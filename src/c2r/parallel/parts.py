"""Batches of one run, shared out over the ranks that are there, also after some were lost.

Each rank keeps what it made of its batches in a file of its own, a part. Started again, on as many
ranks or others, the ranks tell each other which parts they see, and share out the batches that no
part holds.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from c2r.parallel.comm import Comm
from c2r.parallel.world import gather_bytes

T = TypeVar("T")

Spans = tuple[tuple[int, int], ...]
"""Numbers from each first to before each second, ascending."""


@dataclass(frozen=True, slots=True)
class Share:
    """Every `size`-th batch of those that are not `done`, from the `rank`-th on."""

    rank: int
    size: int
    done: Spans = ()

    def numbers(self) -> Iterator[int]:
        """The numbers of its batches, without end."""
        ends = [0, *(stop for _, stop in self.done)]
        starts = [start for start, _ in self.done]
        gaps = (range(end, start) for end, start in zip(ends, starts, strict=False))
        return islice(chain(*gaps, count(ends[-1])), self.rank, None, self.size)

    def of(self, batches: Iterable[T]) -> Iterator[T]:
        """Its batches of all."""
        numbers = self.numbers()
        wanted = next(numbers)
        for number, batch in enumerate(batches):
            if number == wanted:
                yield batch
                wanted = next(numbers)

    def to_json(self) -> dict[str, Any]:
        """JSON data for `from_json`."""
        return {"rank": self.rank, "size": self.size, "done": [list(span) for span in self.done]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Share":
        """What `to_json` gave. Raises `KeyError`, `TypeError` or `ValueError` if damaged."""
        done = tuple((int(start), int(stop)) for start, stop in document["done"])
        return cls(int(document["rank"]), int(document["size"]), done)


class Part(NamedTuple):
    """A file of what a rank made of the first `num_batches` of its share."""

    share: Share
    num_batches: int

    @property
    def numbers(self) -> set[int]:
        """Of its batches."""
        return set(islice(self.share.numbers(), self.num_batches))


class Sharing(NamedTuple):
    """What one rank does, and brings to the result.

    Attributes:
        share: the batches that it takes.
        path: where it keeps what it makes of them; there may be some already.
        taken: parts of others, of which it brings what they hold.
    """

    share: Share
    path: Path
    taken: tuple[Path, ...]


def parts_beside(out: Path) -> list[Path]:
    """Files that ranks have kept for the result at `out`."""
    return sorted(out.parent.glob(f"{_escaped(out.name)}.rank*of*"))


def share_out(out: Path, parts: Mapping[Path, Part], comm: Comm | None) -> Sharing:
    """What each rank does of a run whose result goes to `out`; all ranks call it.

    Args:
        out: where the result goes.
        parts: those of `parts_beside` that are of this run, as this rank can read them.
        comm: the ranks; None where there is one process.
    """
    rank, size = (0, 1) if comm is None else (comm.rank, comm.size)
    seen, whose = _tell(parts, comm)
    chosen, covered = _disjoint(seen)
    done = _spans(covered)
    for candidate in sorted({seen[name].share.done for name in chosen}):
        same = [name for name in chosen if seen[name].share.done == candidate]
        others = set[int]().union(*(seen[n].numbers for n in chosen if n not in same))
        if _spans(others) == candidate and all(
            seen[name].share.size == size and seen[name].share.rank in whose[name] for name in same
        ):
            done, chosen = candidate, [name for name in chosen if name not in same]
            break
    share = Share(rank, size, done)
    turns = [(name, whose[name][turn % len(whose[name])]) for turn, name in enumerate(chosen)]
    taken = tuple(out.with_name(name) for name, whom in turns if whom == rank)
    return Sharing(share, _path(out, share), taken)


def _tell(
    parts: Mapping[Path, Part], comm: Comm | None
) -> tuple[dict[str, Part], dict[str, list[int]]]:
    """The parts that any rank sees, by name, and who sees each."""
    own = {path.name: (part.share.to_json(), part.num_batches) for path, part in parts.items()}
    seen: dict[str, Part] = {}
    whose: dict[str, list[int]] = {}
    data = json.dumps(own).encode()
    told = [data] if comm is None else gather_bytes(data, comm, "the sharing of the text")
    for rank, data in enumerate(told):
        for name, (share, num_batches) in json.loads(data).items():
            seen[name] = Part(Share.from_json(share), num_batches)
            whose.setdefault(name, []).append(rank)
    return seen, whose


def _disjoint(seen: Mapping[str, Part]) -> tuple[list[str], set[int]]:
    """Parts that share no batch, the largest first, and all their batches."""
    chosen, covered = [], set[int]()
    for name in sorted(seen, key=lambda name: (-seen[name].num_batches, name)):
        numbers = seen[name].numbers
        if numbers and not numbers & covered:
            chosen.append(name)
            covered |= numbers
    return chosen, covered


def _spans(numbers: Iterable[int]) -> Spans:
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number:
            spans[-1][1] += 1
        else:
            spans.append([number, number + 1])
    return tuple((start, stop) for start, stop in spans)


def _path(out: Path, share: Share) -> Path:
    """Another name for each `done`, so that a part is never taken for another."""
    name = f"{out.name}.rank{share.rank}of{share.size}"
    if share.done:
        name += "." + hashlib.sha256(json.dumps(share.done).encode()).hexdigest()[:8]
    return out.with_name(name)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def remove_parts(paths: Sequence[Path]) -> None:
    """Removes parts whose result is on disk; another rank may have done so."""
    for path in paths:
        path.unlink(missing_ok=True)
