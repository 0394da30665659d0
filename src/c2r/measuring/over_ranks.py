"""The loss of a model whose experts are spread over ranks, and what its layers sent."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from c2r.adapters.huggingface import counting_rows, evaluating, is_parallel, read_batch
from c2r.errors import InputError
from c2r.measuring.forward import Batch, forward
from c2r.parallel import gather_bytes, join_world
from c2r.types import Int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What all ranks together made of a text.

    Attributes:
        loss: mean next-token loss in nats over `num_predicted` tokens.
        num_predicted: tokens that have a predecessor in their sequence.
        num_tokens: tokens that went through the layers, padding included.
        seconds: of the slowest rank, loading excluded.
        rows_sent: by layer `[ranks, ranks]` rows that each rank (row) sent to each (column), its
            own included, added up over the groups where there are several; empty for a model in
            one process.
    """

    loss: float
    num_predicted: int
    num_tokens: int
    seconds: float
    rows_sent: Mapping[str, Int]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data, with rows per token by layer."""
        return {
            "loss": self.loss,
            "num_predicted": self.num_predicted,
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.num_tokens / self.seconds,
            "layers": [
                {
                    "layer": name,
                    "copies": float(rows.sum()) / self.num_tokens,
                    "remote_copies": float(rows.sum() - np.trace(rows)) / self.num_tokens,
                    "rows_sent": rows.tolist(),
                }
                for name, rows in self.rows_sent.items()
            ],
        }


def run(
    model: Any,
    batches: Sequence[Batch],
    on_batch: Callable[[int], None] | None = None,
) -> RunResult:
    """The held-out loss of a model, batches dealt out to the ranks in turn; the same on all.

    Args:
        model: a causal language model, parallel or in one process; its mode is put back.
        batches: all of them, on every rank: dicts of `input_ids` and `attention_mask`.
        on_batch: called with the tokens of each batch of this rank, for progress.

    Raises:
        InputError: there are fewer batches than ranks, or nothing to predict.
        RoutingError, CommunicationError: as the model.
    """
    world = join_world() if is_parallel(model) else None
    rank, size = (world.rank, world.size) if world else (0, 1)
    if len(batches) < size:
        raise InputError(
            f"the text gives {len(batches)} batches for {size} ranks; give more text, or shorter "
            "or fewer sequences per batch"
        )
    own = [read_batch(model, batch) for batch in batches[rank::size]]
    total, num_predicted = 0.0, 0
    start = time.perf_counter()
    with evaluating(model):
        with counting_rows(model) as rows:
            for batch in own:
                losses = forward(model, batch).losses
                total += losses.double().sum().item()
                num_predicted += len(losses)
                if on_batch:
                    on_batch(batch["input_ids"].numel())
        if len(own) < -(-len(batches) // size):  # the others need this rank's experts once more
            forward(model, own[0])
    mine = {
        "total": total,
        "num_predicted": num_predicted,
        "num_tokens": sum(batch["input_ids"].numel() for batch in own),
        "seconds": time.perf_counter() - start,
        "rows": {name: sent.tolist() for name, sent in rows.items()},
    }
    data = json.dumps(mine).encode()
    return _merge([json.loads(part) for part in (gather_bytes(data, world) if world else [data])])


def _merge(parts: Sequence[dict[str, Any]]) -> RunResult:
    num_predicted = sum(part["num_predicted"] for part in parts)
    if not num_predicted:
        raise InputError("the text holds no token to predict; give more text")
    return RunResult(
        loss=sum(part["total"] for part in parts) / num_predicted,
        num_predicted=num_predicted,
        num_tokens=sum(part["num_tokens"] for part in parts),
        seconds=max(part["seconds"] for part in parts),
        rows_sent={
            name: _of_groups([part["rows"][name] for part in parts]) for name in parts[0]["rows"]
        },
    )


def _of_groups(rows: Sequence[Sequence[int]]) -> Int:
    """`[ranks, ranks]` rows of all groups together, from those of each process `[ranks]`."""
    num_ranks = len(rows[0])
    summed: Int = np.array(rows, dtype=np.int64).reshape(-1, num_ranks, num_ranks).sum(0)
    return summed
