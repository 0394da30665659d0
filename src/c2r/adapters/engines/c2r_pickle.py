"""Reading of the C2R authors' collaboration matrices, without running what a pickle asks for.

They are published as pickles of one numpy array. An unpickler that resolves nothing but numpy's own
array reconstruction reads them; anything else in the file is refused before it can act.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from c2r.errors import InputError
from c2r.profiling import CollaborationProfile, LayerProfile

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),  # protocol 5
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise InputError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)

    def persistent_load(self, pid: Any) -> Any:
        raise InputError("it asks for an outside object")


def read_c2r_pickle(path: Path, top_k: int) -> CollaborationProfile:
    """The profile in the authors' `topt_*_collaboration.pkl`: pair counts `[layers, E, E]`.

    Loads follow from the pairs (each token of an expert is counted with its k - 1 others). The
    authors' diagonal (0 or -1) is dropped.

    Raises:
        InputError: the file cannot be read, holds anything but a numpy array of integers, or the
            counts are not symmetric.
    """
    counts = _read_array(path)
    if counts.ndim != 3 or counts.shape[1] != counts.shape[2] or min(counts.shape) < 1:
        raise InputError(
            f"{path} holds an array of shape {list(counts.shape)}; expected [layers, E, E]"
        )
    num_experts = counts.shape[1]
    if not 2 <= top_k <= num_experts:
        raise InputError(f"top_k={top_k} does not fit {num_experts} experts; choose 2 to E")
    counts = counts.astype(np.int64)
    counts[:, np.arange(num_experts), np.arange(num_experts)] = 0
    if (counts < 0).any() or (counts != counts.transpose(0, 2, 1)).any():
        raise InputError(f"{path} holds counts that are negative or not symmetric")
    return CollaborationProfile(
        layers=tuple(_layer_from_pairs(pairs, top_k) for pairs in counts),
        provenance={"source": path.name, "format": "c2r-pickle", "complete": True},
    )


def _layer_from_pairs(pairs: npt.NDArray[np.int64], top_k: int) -> LayerProfile:
    load = pairs.sum(1) // (top_k - 1)
    return LayerProfile(
        name="",
        num_experts=len(pairs),
        top_k=top_k,
        num_tokens=int(load.sum()) // top_k,
        coactivation=pairs,
        load=load,
    )


def _read_array(path: Path) -> npt.NDArray[Any]:
    try:
        with path.open("rb") as file:
            value = _ArrayUnpickler(file).load()
    except InputError as error:
        raise InputError(
            f"{path} is refused: {error}; only pickles of one numpy array are read"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError,
        KeyError, ImportError, MemoryError, OverflowError, NotImplementedError,
    ) as error:  # fmt: skip
        raise InputError(f"{path} is truncated or not a pickle ({error})") from None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        raise InputError(f"{path} does not hold a numpy array of integers; nothing else is read")
    return value
