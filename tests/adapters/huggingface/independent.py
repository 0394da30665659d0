"""What a model routes and loses, counted by hooks that know nothing of c2r."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


@contextmanager
def counting(model: Any, num_experts: int, top_k: int, router: str = "gate") -> Iterator[Any]:
    """Gives the experts' loads `[layers, E]` of all forward passes inside the block.

    Of each router's first output, its logits, the `top_k` largest of every row count.
    """
    loads: dict[str, Any] = {}
    handles = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == router:
            loads[name] = np.zeros(num_experts, dtype=np.int64)
            handles.append(module.register_forward_hook(_adding(loads[name], top_k)))
    try:
        yield loads
    finally:
        for handle in handles:
            handle.remove()


def _adding(load: Any, top_k: int) -> Any:
    def add(_: Any, __: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        chosen = logits.detach().float().reshape(-1, len(load)).topk(top_k).indices
        load[:] += np.bincount(chosen.flatten().cpu().numpy(), minlength=len(load))

    return add


def loss_of_rows(model: Any, rows: list[list[int]]) -> float:
    """The mean next-token loss, each row run alone, without padding."""
    total, number = 0.0, 0
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        total += float(F.cross_entropy(logits.float(), ids[0, 1:], reduction="sum"))
        number += len(row) - 1
    return total / number


def loads_of_rows(model: Any, rows: list[list[int]], router: str = "gate") -> Any:
    """The loads `[layers, E]` of 8 experts, of which 3 a token; each row run alone."""
    with counting(model, 8, 3, router) as loads, torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row]), use_cache=False)
    return np.array(list(loads.values()))
