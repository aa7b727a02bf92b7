"""The threshold of pixels once more, straight from its definition."""

import bisect
import math

import numpy as np


def by_hand(maps, rate=0.05, share=0.01):
    """The lowest value that all but the allowed images exceed on at most a share of their pixels.

    Of n images, and a further one that is like them, n + 1 in all, the rate is allowed.
    """
    allowed = math.floor((len(maps) + 1) * rate + 1e-9) - 1
    values = np.sort(maps, axis=None)

    def holds(value):
        return sum((one > value).mean() > share for one in maps) <= allowed

    return values[bisect.bisect_left(values, True, key=holds)]
