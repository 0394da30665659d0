"""Ranks find out before the first exchange whether they run the same thing."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from c2r.errors import CommunicationError
from c2r.parallel.comm import Comm, SplitSizes


def agree(facts: Mapping[str, Any], comm: Comm) -> None:
    """Compares `facts`, JSON data by name, over all ranks.

    Raises:
        CommunicationError: on every rank, telling what differs, where, and both values; or a rank
            does not answer.
    """
    table = [json.loads(data) for data in _gather(json.dumps(facts).encode(), comm)]
    for name in facts:
        values = [json.dumps(row.get(name)) for row in table]
        common, _ = Counter(values).most_common(1)[0]
        differing = [rank for rank, value in enumerate(values) if value != common]
        if differing:
            ranks = ", ".join(map(str, differing))
            raise CommunicationError(
                f"{name} of rank {ranks} differs: {values[differing[0]]} there, {common} on the "
                "others; start all ranks with the same arguments"
            )


def _gather(data: bytes, comm: Comm) -> list[bytes]:
    """The data of every rank, by exchanges of `comm`, whose errors tell which rank is missing."""
    each, what = (1,) * comm.size, "the first agreement"
    lengths = torch.full((comm.size,), len(data), device=comm.device)
    counts = comm.exchange(lengths, SplitSizes(send=each, receive=each, what=what)).wait().tolist()
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(comm.device)
    sizes = SplitSizes(send=(len(data),) * comm.size, receive=counts, what=what)
    received = comm.exchange(own.repeat(comm.size), sizes).wait()
    return [bytes(part.tolist()) for part in torch.split(received, counts)]
