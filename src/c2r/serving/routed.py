"""What requests returned of their routing, with their token ids: a text that can be replayed."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from c2r.adapters.engines.arrays import read_arrays
from c2r.adapters.layers import ModelLayers
from c2r.errors import InputError, one_line
from c2r.serving.check import Answer

_TOKENS, _EXPERTS = "token_ids", "routed_experts"


def read_routed(path: Path, layers: ModelLayers) -> tuple[list[Tensor], Answer]:
    """The sequences in a .npz and the experts that an engine chose for them.

    Args:
        path: holds for each request N `N.token_ids` `[tokens]`, and `N.routed_experts`
            `[rows, layers, k]`. An engine routes all tokens but the last that it made: rows are
            one fewer than the tokens, which then end one earlier.
        layers: of the model. The second axis counts its MoE layers, or all of its layers.

    Raises:
        InputError: the file cannot be read, or is not of this model.
    """
    arrays = read_arrays(path)
    requests = sorted(
        name.removesuffix(f".{_TOKENS}") for name in arrays if name.endswith(f".{_TOKENS}")
    )
    if missing := [request for request in requests if f"{request}.{_EXPERTS}" not in arrays]:
        raise InputError(f"{path} has no array {one_line(missing[0])}.{_EXPERTS}; record it too")
    pairs = [
        (arrays[f"{request}.{_TOKENS}"], arrays[f"{request}.{_EXPERTS}"]) for request in requests
    ]
    if not pairs:
        raise InputError(f"{path} holds no request: no array is named N.{_TOKENS}")
    numbers = sorted(layers.routers)
    sequences, experts = [], []
    for request, (ids, routed) in zip(map(one_line, requests), pairs, strict=True):
        kinds = {ids.dtype.kind, routed.dtype.kind}
        is_wrong = (ids.ndim, routed.ndim) != (1, 3) or not kinds <= set("iu")
        if is_wrong or not len(routed) or len(routed) not in (len(ids), len(ids) - 1):
            raise InputError(
                f"{path}: request {request} has {list(ids.shape)} {ids.dtype} token ids and "
                f"{list(routed.shape)} {routed.dtype} experts, not [tokens] and "
                "[tokens - 1, layers, k] integers"
            )
        if routed.shape[1] not in (len(numbers), layers.num_layers):
            raise InputError(
                f"{path}: request {request} counts {routed.shape[1]} layers, the model has "
                f"{layers.num_layers}, {len(numbers)} of them with experts; give its own trace"
            )
        sequences.append(torch.from_numpy(ids[: len(routed)].astype(np.int64)))
        experts.append(routed if routed.shape[1] == len(numbers) else routed[:, numbers])
    if len({routed.shape[2] for routed in experts}) > 1:
        raise InputError(f"{path}: its requests have other numbers of experts a token; split it")
    whole = np.concatenate(experts)
    return sequences, Answer(
        expert_ids={number: whole[:, place] for place, number in enumerate(numbers)}
    )
