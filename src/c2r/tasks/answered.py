"""Items of tasks shared out over ranks, and answers kept for the case that a rank is lost."""

import glob
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from c2r.artifacts import damaged_file, read_json, write_text
from c2r.errors import C2RError
from c2r.measuring import RoutingTally
from c2r.parallel import Comm, Part, Share, gather_bytes, parts_beside, remove_parts, share_out

Row = dict[str, Any]
_SECONDS_BETWEEN_SAVES = 30.0


class Answered:
    """What this rank answers of all items, which are numbered from 0.

    Args:
        out: the result; what each rank has answered is kept beside it. None keeps nothing.
        asked: JSON data that tells these items, and who answers them, from others.
        num_items: of all ranks.
        comm: the ranks; None for one process.
    """

    def __init__(
        self, out: Path | None, asked: Mapping[str, Any], num_items: int, comm: Comm | None
    ) -> None:
        self._asked = json.dumps([asked, num_items])
        digest = hashlib.sha256(self._asked.encode()).hexdigest()[:8]
        place = Path("answers") if out is None else out.with_name(f"{out.name}.{digest}")
        found = {} if out is None else {path: self._read(path) for path in parts_beside(place)}
        kept = {path: document for path, document in found.items() if document is not None}
        sharing = share_out(place, {path: _part(each) for path, each in kept.items()}, comm)
        self._is_kept = out is not None
        self._comm, self._share, self._path = comm, sharing.share, sharing.path
        self._taken = [(path, kept[path]) for path in sharing.taken]
        self._rows: dict[int, Row] = {}
        self._tally: RoutingTally | None = None
        if sharing.path in kept:
            self._bring(sharing.path, kept[sharing.path])
        own = takewhile(lambda number: number < num_items, self._share.numbers())
        self._left = list(islice(own, len(self._rows), None))
        self._saved = time.monotonic()

    def left(self, size: int) -> Iterator[list[int]]:
        """The numbers of the items that this rank has still to answer, at most `size` at once."""
        return (self._left[at : at + size] for at in range(0, len(self._left), size))

    def add(self, numbers: Sequence[int], rows: Sequence[Row], tally: RoutingTally) -> None:
        """Takes the answers to some items, and the routing of their tokens."""
        self._rows.update(zip(numbers, rows, strict=True))
        self._count(tally)
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Keeps what was answered beside the result."""
        if self._is_kept and self._rows:
            write_text(self._path, json.dumps({"asked": self._asked, **self._to_json()}))
            self._saved = time.monotonic()

    def gather(self) -> tuple[list[Row], RoutingTally]:
        """The rows of all ranks, in the order of the items, and the sum of their routing; on all.

        Raises:
            ArtifactError: what a rank had kept is damaged.
        """
        self.save()
        for path, document in self._taken:
            self._bring(path, document)
        if self._comm is not None:
            data = json.dumps(self._to_json()).encode()
            told = gather_bytes(data, self._comm, "the gathering of answers")
            self._tally = None
            for document in map(json.loads, told):
                self._add(document)
        assert self._tally is not None, "some rank has answered"
        return [row for _, row in sorted(self._rows.items())], self._tally

    def _read(self, path: Path) -> dict[str, Any] | None:
        """The document of a part; None where it is of other items, or none of ours."""
        try:
            document = dict(read_json(path))
            _part(document)
            return document if document["asked"] == self._asked else None
        except (C2RError, KeyError, TypeError, ValueError):
            return None

    def _bring(self, path: Path, document: Mapping[str, Any]) -> None:
        with damaged_file(path):
            self._add(document)

    def _add(self, document: Mapping[str, Any]) -> None:
        self._rows.update({int(number): row for number, row in document["rows"].items()})
        if document["tally"] is not None:
            self._count(RoutingTally.from_json(document["tally"]))

    def _count(self, tally: RoutingTally) -> None:
        if self._tally is None:
            self._tally = tally
        else:
            self._tally.add(tally)

    def _to_json(self) -> dict[str, Any]:
        tally = None if self._tally is None else self._tally.to_json()
        return {"share": self._share.to_json(), "rows": self._rows, "tally": tally}


def forget_answers(out: Path) -> None:
    """Removes what ranks had kept beside a result that is on disk."""
    remove_parts(list(out.parent.glob(f"{glob.escape(out.name)}.????????.rank*of*")))


def _part(document: Mapping[str, Any]) -> Part:
    return Part(Share.from_json(document["share"]), len(document["rows"]))
