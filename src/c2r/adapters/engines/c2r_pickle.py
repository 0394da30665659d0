"""Reading of the C2R authors' collaboration matrices, without running what a pickle asks for.

They are published as pickles of one numpy array. What such a pickle calls is answered by stand-ins
that only write down what they are given: the file never reaches a callable of numpy, whose dtypes
take flags from a pickle that make any address an object. The array is then made here, of bytes
whose number fits its shape. Anything else in the file is refused before it can act.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from c2r.errors import InputError
from c2r.profiling import CollaborationProfile, LayerProfile

_MEMO_CODES = ("PUT", "BINPUT", "LONG_BINPUT")
_INTEGERS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_BYTE_ORDERS = ("<", ">", "|", "=")
_MOST_TOKENS = 1 << 53  # beyond, sums of counts are not exact in the floats of metrics


class _StandIn:
    """Has no attribute that a pickle could set, and takes no state unless its class says how."""

    __slots__ = ()

    def __setstate__(self, _state: Any) -> None:
        raise ValueError("it gives a state to what has none")


class _Bytes(_StandIn):
    """What `_codecs.encode(text, "latin1")` stands for; encoded once, when it is needed."""

    __slots__ = ("text",)

    def __init__(self, text: str, encoding: str) -> None:
        if type(text) is not str or encoding != "latin1":
            raise ValueError(f"it encodes a {type(text).__name__} otherwise than as latin1")
        self.text = text


class _DType(_StandIn):
    __slots__ = ("byte_order", "code")

    def __init__(self, code: Any, *_flags: Any) -> None:
        self.code: Any = code
        self.byte_order: Any = "="

    def __setstate__(self, state: Any) -> None:
        self.byte_order = state[1]


class _Array(_StandIn):
    """The arguments of one numpy array, as `ndarray.__setstate__` or `_frombuffer` gets them."""

    __slots__ = ("dtype", "is_fortran", "raw", "shape")

    def __init__(self) -> None:
        self.shape: Any = ()
        self.dtype: Any = None
        self.is_fortran: Any = False
        self.raw: Any = None

    def __setstate__(self, state: Any) -> None:
        self.shape, self.dtype, self.is_fortran, self.raw = state[-4:]

    def build(self) -> npt.NDArray[Any]:
        """The array. Raises `ValueError` unless it is of integers and its bytes fit its shape."""
        raw = self.raw.text.encode("latin1") if type(self.raw) is _Bytes else self.raw
        if type(self.dtype) is not _DType or type(raw) not in (bytes, bytearray):
            raise ValueError("it is not of numbers")
        if self.dtype.code not in _INTEGERS or self.dtype.byte_order not in _BYTE_ORDERS:
            raise ValueError("it is not of integers")
        dtype = np.dtype(self.dtype.byte_order + self.dtype.code)
        if not all(type(size) is int and size >= 0 for size in self.shape):
            raise ValueError("its shape is not of numbers")
        if math.prod(self.shape) * dtype.itemsize != len(raw):
            raise ValueError(f"{len(raw)} bytes do not fill its shape")
        flat: npt.NDArray[Any] = np.frombuffer(raw, dtype)
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


class _Name(_StandIn):
    """A name of numpy's: only an argument of calls, or answered by `call`."""

    __slots__ = ("call",)

    def __init__(self, call: Any = None) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        if self.call is None:
            raise ValueError("it calls what is no function")
        return self.call(*arguments)


def _empty_array(_type: Any, _shape: Any, _code: Any) -> _Array:
    return _Array()


def _filled_array(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((shape, dtype, order == "F", raw))
    return array


_STAND_INS = {
    "numpy.core.multiarray._reconstruct": _Name(_empty_array),
    "numpy.core.numeric._frombuffer": _Name(_filled_array),  # protocol 5
    "numpy.ndarray": _Name(),
    "numpy.dtype": _Name(_DType),
    "_codecs.encode": _Name(_Bytes),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _STAND_INS.get(f"{module.replace('numpy._core', 'numpy.core')}.{name}")
        if found is None:
            raise InputError(f"it asks for {module}.{name}")
        return found

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
    if counts.sum(dtype=np.float64) >= _MOST_TOKENS:
        raise InputError(f"{path} holds counts beyond 2**53; no text is so long")
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
        content = path.read_bytes()
        _check_sizes(content)
        value = _ArrayUnpickler(io.BytesIO(content)).load()
    except InputError as error:
        raise InputError(
            f"{path} is refused: {error}; only pickles of one numpy array are read"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError,
        KeyError, ImportError, MemoryError, OverflowError, NotImplementedError, RecursionError,
    ) as error:  # fmt: skip
        raise InputError(f"{path} is truncated or not a pickle ({error})") from None
    if type(value) is not _Array:
        raise InputError(f"{path} does not hold a numpy array of integers; nothing else is read")
    try:
        return value.build()
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} does not hold a numpy array of integers ({error}); nothing else is read"
        ) from None


def _check_sizes(content: bytes) -> None:
    """Raises `ValueError` if the pickle asks for more than its own length.

    The unpickler makes room for the largest number in its memo, and for bytes before it has them.
    """
    for code, argument, _ in pickletools.genops(content):
        if code.name in _MEMO_CODES and int(argument or 0) > len(content):
            raise ValueError(f"it numbers {argument:,} objects in {len(content):,} bytes")
