"""Those that share out the text of a sweep: one process, or ranks that each have the model."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from c2r.artifacts import damaged_file, decode_artifact, encode_artifact, read_json, write_text
from c2r.errors import C2RError
from c2r.measuring import Tally, gather_tallies
from c2r.parallel import (
    Comm,
    Part,
    Share,
    from_first,
    merge_profiles,
    parts_beside,
    remove_parts,
    share_out,
)
from c2r.plans import Plan
from c2r.profiling import CollaborationProfile
from c2r.sweeps.running import RunningSweep
from c2r.text import Batch

Document = dict[str, Any]
Keep = Callable[[list[Document]], None]
"""Keeps tallies that all have as many batches."""


class Stage(NamedTuple):
    """One text under measurement: the request of the sweep, the text's name, and the plans."""

    request: Document
    key: str
    plans: tuple[str, ...]


class Crew:
    """The ranks of a sweep, seen from one.

    Args:
        comm: the ranks, all with the same model; None for one process.
        out: the document of the sweep; the parts of ranks go beside it. None keeps nothing.
    """

    def __init__(self, comm: Comm | None, out: Path | None) -> None:
        self.comm, self.out = comm, out
        self.rank, self.size = (0, 1) if comm is None else (comm.rank, comm.size)

    def deal(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """This rank's of all batches."""
        return islice(batches, self.rank, None, self.size)

    def agree(self, make: Callable[[], Document | None]) -> Document | None:
        """What the first rank makes, JSON data, on all."""
        data = from_first(lambda: json.dumps(make()).encode(), self.comm, "the state of the sweep")
        found: Document | None = json.loads(data)
        return found

    def plan(self, make: Callable[[], Plan]) -> Plan:
        """The plan that the first rank makes, on all."""
        if self.comm is None:
            return make()
        data = from_first(
            lambda: encode_artifact(make().to_artifact()), self.comm, "the plan of the sweep"
        )
        return Plan.from_artifact(decode_artifact(data, "plan"))

    def profile(self, own: CollaborationProfile | None) -> CollaborationProfile:
        """The profile of what all ranks have profiled, on all."""
        merged = merge_profiles(own, self.comm, everywhere=True)
        assert merged is not None, "some rank has profiled"
        return merged

    def gather(self, tallies: list[Tally]) -> list[Tally]:
        """The tallies of all ranks' batches, on all."""
        return gather_tallies(tallies, self.comm)

    def parts(self, stage: Stage) -> dict[Path, Document]:
        """What ranks, lost ones too, have kept of a stage."""
        found = {}
        for path in () if self.out is None else parts_beside(self.out):
            document = _read(path)
            if document is not None and document["stage"] == json.loads(json.dumps(stage)):
                found[path] = document
        return found

    def measure(
        self,
        stage: Stage,
        running: RunningSweep,
        run: Callable[[RunningSweep, Share, Keep], None],
    ) -> None:
        """Measures all batches of a stage: this rank its share, and what lost ranks had kept.

        Args:
            stage: what is measured.
            running: what one process had measured before, perhaps; all of the stage afterwards.
            run: measures the batches that are left of a share, and calls what it is given to keep
                what was measured.
        """
        kept = self.parts(stage)
        parts = {path: _part(document) for path, document in kept.items()}
        before = running.to_json()
        if running.num_batches and self.out is not None:
            parts[self.out] = Part(Share(0, 1), running.num_batches)
        out = self.out or Path("sweep")
        sharing = share_out(out, parts, self.comm)
        running.clear()
        if sharing.path in kept:
            with damaged_file(sharing.path):
                running.restore(kept[sharing.path]["tallies"])

        def keep(tallies: list[Document]) -> None:
            if self.out is not None:
                document = {
                    "stage": stage,
                    "share": sharing.share.to_json(),
                    "num_batches": tallies[0]["num_batches"],
                    "tallies": tallies,
                }
                write_text(sharing.path, json.dumps(document, allow_nan=False))

        run(running, sharing.share, keep)
        keep(running.to_json())
        for path in sharing.taken:
            with damaged_file(path):
                running.add(before if path == self.out else kept[path]["tallies"])
        running.tallies = tuple(self.gather(list(running.tallies)))
        self._stale = [*kept, sharing.path]

    def clear(self) -> None:
        """Removes the parts of a stage that is on disk."""
        if self.comm is not None:
            self.comm.meet("the writing of the sweep")
        remove_parts(self._stale)


def _read(path: Path) -> Document | None:
    """The document of a part; None where it is none of ours."""
    try:
        document = read_json(path)
        _part(document)
        return {**document, "stage": document["stage"], "tallies": document["tallies"]}
    except (C2RError, KeyError, TypeError, ValueError):
        return None


def _part(document: Document) -> Part:
    return Part(Share.from_json(document["share"]), int(document["num_batches"]))
