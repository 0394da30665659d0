"""The arrays that rooms hand to each other, by what they hold."""

from typing import Any

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Counts = Int | Float
"""Tokens, or any non-negative weights, of each of several things."""
Arrays = dict[str, npt.NDArray[Any]]
"""Arrays by name, as a file holds them."""
