"""Cheap pseudo-random bits, for the order of the data and for dropout masks."""

from typing import Any

import numpy as np


def mix(h: Any) -> Any:
    """Mix uint32 values, numpy's or JAX's: a bijection in which every bit affects every other.

    The constants are those of Wellons' "lowbias32".
    """
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))
