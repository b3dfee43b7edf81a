"""Arrays that torch takes."""

import numpy as np
from numpy.typing import DTypeLike


def for_torch(array: np.ndarray, dtype: DTypeLike | None = None) -> np.ndarray:
    """The array, copied only where it must be: torch takes none whose strides are negative, and
    warns of one that is read-only."""
    return np.require(array, dtype, ["C", "W"])
