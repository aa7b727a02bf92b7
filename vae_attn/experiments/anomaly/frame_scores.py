"""Scores of a video's frames, smoothed over time: an anomaly lasts longer than a frame."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def smoothed(
    scores: Float[np.ndarray, "n"], names: Sequence[str], sigma: float
) -> Float[np.ndarray, "n"]:
    """Each frame's score as a mean over its clip, weighted by a Gaussian of the time between.

    Args:
      scores: one per frame; of clips of which frames are missing, those that are there count.
      names: of the frames: clip, slash, number.
      sigma: of the Gaussian, in frames.
    """
    clips = np.array([name.rpartition("/")[0] for name in names])
    times = np.array([int(name.rpartition("/")[2]) for name in names], np.float64)
    found = np.empty_like(scores)
    for clip in dict.fromkeys(clips.tolist()):
        own = np.flatnonzero(clips == clip)
        apart = (times[own, None] - times[own]) / sigma
        weights = np.exp(-(apart**2) / 2)
        found[own] = weights @ scores[own] / weights.sum(axis=1)
    return found
