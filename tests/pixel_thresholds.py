"""The threshold of pixels once more, straight from its definition."""

import numpy as np


def by_hand(maps, rate=0.01):
    """The lowest that holds the rate on all pixels, and on each image when chosen without it.

    None if there is none.
    """
    pixels = maps.reshape(len(maps), -1)
    count = pixels.shape[1]
    descending = np.sort(pixels, axis=1)[:, ::-1]
    others = [np.sort(np.delete(pixels, n, axis=0).ravel())[::-1] for n in range(len(pixels))]
    every = np.sort(pixels.ravel())[::-1]

    def expected(above):
        """Mean share of an image over the same quantile of the others."""
        of_others = [of[int(above / len(every) * len(of) + 1e-9)] for of in others]
        found = [(one > level).sum() for one, level in zip(descending, of_others, strict=True)]
        return np.mean(found) / count

    for above in range(int(rate * len(every)), -1, -1):
        if expected(above) <= rate:
            return every[above]
    return None
