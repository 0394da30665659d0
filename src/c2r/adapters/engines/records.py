"""Traces of engines as a stream of records, each the ids of one layer's tokens."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from c2r.errors import InputError

Ids = npt.NDArray[Any]


class Record(NamedTuple):
    """The experts that some tokens chose in one layer.

    Attributes:
        where: file and place, for messages.
        layer: number of the layer as the source counts: `num_layers` of them.
        ids: `[tokens, k]` integers, -1 for padding.
        slots: `[slots]` the expert in each slot where `ids` are slots; None where they are experts.
        num_layers: how many layers the source numbers; None where it does not say.
    """

    where: str
    layer: int
    ids: Ids
    slots: npt.NDArray[np.int64] | None = None
    num_layers: int | None = None


@dataclass(slots=True)
class BadRecords:
    """What happens to records that cannot be used: an error, or skipped and counted."""

    is_skipping: bool = False
    count: int = 0
    first: str = ""

    def report(self, where: str, reason: str) -> None:
        """Counts a bad record. Raises `InputError` where bad records are not skipped."""
        if not self.is_skipping:
            raise InputError(f"{where}: {reason}; is_skipping_bad=True leaves such records out")
        self.first = self.first or f"{where}: {reason}"
        self.count += 1


def expert_ids(record: Record) -> Ids:
    """The experts `[tokens, k]` of a record: padding dropped, slots turned into experts.

    Tokens of nothing but -1 are dropped, and columns that are -1 for all others; so are tokens of
    one number k times, which is what an engine's buffer held at first. Where all are such, the
    source has a row for every layer, and this one is dense.

    Raises:
        ValueError: tokens have different numbers of experts, or a slot is out of range.
    """
    ids = record.ids
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids of shape {list(ids.shape)} and type {ids.dtype}, not [tokens, k]")
    ids = ids.astype(np.int64) if ids.dtype == np.uint64 else ids
    if ids.size and ids.min() < 0:
        ids = _without_padding(ids)
    if record.num_layers is not None and ids.shape[1] > 1:
        ids = ids[(ids != ids[:, :1]).any(1)]
    if record.slots is None or not ids.size:
        return ids
    if ids.max() >= len(record.slots):
        raise ValueError(
            f"slot {ids.max()} in layer {record.layer}, but its map has {len(record.slots)} slots"
        )
    return record.slots[ids]


def _without_padding(ids: Ids) -> Ids:
    counts = (ids >= 0).sum(1)
    ids, counts = ids[counts > 0], counts[counts > 0]
    if len(ids) == 0:
        return ids
    if counts.min() != counts.max():
        raise ValueError(f"tokens with {counts.min()} and with {counts.max()} experts")
    ahead = np.argsort(ids < 0, axis=1, kind="stable")[:, : counts[0]]
    return np.take_along_axis(ids, ahead, axis=1)
