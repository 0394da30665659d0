"""Ranks find out before the first exchange whether they run the same thing."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from c2r.errors import CommunicationError
from c2r.parallel.comm import Comm
from c2r.parallel.world import gather_bytes


def agree(facts: Mapping[str, Any], comm: Comm) -> None:
    """Compares `facts`, JSON data by name, over all ranks.

    Raises:
        CommunicationError: on every rank, telling what differs, where, and both values; or a rank
            does not answer.
    """
    own = json.dumps(facts).encode()
    table = [json.loads(data) for data in gather_bytes(own, comm, "the first agreement")]
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
