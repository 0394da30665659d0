"""Many profiles merged, those in files without holding them: layer by layer, each as a tree.

In a tree every count is added to one of about its size. Added one after the other, each small part
would be merged with all before it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from c2r.artifacts import damaged_file, read_arrays, read_header
from c2r.errors import ArtifactError
from c2r.profiling.checks import check_layer
from c2r.profiling.profile import (
    CollaborationProfile,
    LayerProfile,
    check_same_model,
    read_layer,
)

_NAMED = 3  # damaged files, in an error


def merge_files(
    paths: Sequence[str | Path],
    seed: int = 0,
    on_layer: Callable[[int], None] = lambda total: None,
) -> CollaborationProfile:
    """The profile of the tokens of all files; provenance is the first one's, complete if all are.

    Memory: the merged profile, and of one layer as many profiles as log2 of the number of files.

    Args:
        paths: files that `CollaborationProfile.save` wrote; at least one.
        seed: of the sample of routing sets, where they are too many to be kept.
        on_layer: called after each layer of each file is read, with their number.

    Raises:
        ArtifactError: files are damaged or of another kind.
        InputError: the profiles are of models with different layers or weights.
    """
    headers = _headers(paths)
    origins = [header["provenance"] for header in headers]
    shapes = [_shapes(header) for header in headers]
    for path, origin, shape in zip(paths, origins, shapes, strict=True):
        check_same_model((shapes[0], origins[0]), (shape, origin), f"{paths[0]} and {path}")
    total = len(paths) * len(shapes[0])

    def read(file: int, index: int) -> LayerProfile:
        path, entry = paths[file], headers[file]["layers"][index]
        arrays = read_arrays(path, f"layers.{index}.")
        with damaged_file(path):
            layer = read_layer(index, entry, arrays)
            check_layer(layer)
        on_layer(total)
        return layer

    return _merge(origins, len(shapes[0]), read, seed)


def merge_all(profiles: Sequence[CollaborationProfile], seed: int = 0) -> CollaborationProfile:
    """What `merge_files` gives of the files of `profiles`, at least one.

    Raises:
        InputError: the profiles are of models with different layers or weights.
    """
    for other in profiles[1:]:
        check_same_model(profiles[0].model, other.model, "profiles")
    return _merge(
        [profile.provenance for profile in profiles],
        profiles[0].num_layers,
        lambda number, index: profiles[number].layers[index],
        seed,
    )


_Read = Callable[[int, int], LayerProfile]
"""Gives of a profile, by its number, the layer of an index."""


def _merge(
    origins: Sequence[Mapping[str, Any]], num_layers: int, read: _Read, seed: int
) -> CollaborationProfile:
    numbers = range(len(origins))
    rngs = (np.random.default_rng([seed, index, len(origins)]) for index in range(num_layers))
    layers = tuple(_merged(numbers, index, read, rng) for index, rng in enumerate(rngs))
    complete = all(origin.get("complete", True) for origin in origins)
    return CollaborationProfile(layers=layers, provenance={**origins[0], "complete": complete})


def _merged(numbers: range, index: int, read: _Read, rng: np.random.Generator) -> LayerProfile:
    if len(numbers) == 1:
        return read(numbers[0], index)
    half = len(numbers) // 2
    first = _merged(numbers[:half], index, read, rng)
    return first.merge(_merged(numbers[half:], index, read, rng), rng)


def _headers(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Of all files. Raises one `ArtifactError` that names those that cannot be read."""
    headers, damaged = [], []
    for path in paths:
        try:
            headers.append(_header(path))
        except ArtifactError as error:
            damaged.append(error)
    if len(damaged) > 1:
        shown = "; ".join(str(error) for error in damaged[:_NAMED])
        more = f"; and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        raise ArtifactError(f"{len(damaged)} of {len(paths)} profiles are damaged: {shown}{more}")
    if damaged:
        raise damaged[0]
    return headers


def _header(path: str | Path) -> dict[str, Any]:
    header = read_header(path, "profile")
    read_arrays(path, "layers.0.load")  # which holds the file's size against its header
    with damaged_file(path):
        if not isinstance(header["provenance"], dict) or not _shapes(header):
            raise ValueError("no layers, or no provenance")
    return header


def _shapes(header: dict[str, Any]) -> list[tuple[int, int]]:
    return [(int(entry["num_experts"]), int(entry["top_k"])) for entry in header["layers"]]
