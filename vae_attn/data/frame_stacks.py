"""Stacks of a video's frames: each frame with its differences to those before it.

In a single frame a cyclist differs little from a walker; the difference to the frame before shows
what moves, and how fast.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

Place = tuple[str, int]  # of a frame: its clip, and its number there


def stacks(
    frames: UInt8[np.ndarray, "n height width 1"], places: Sequence[Place], count: int
) -> UInt8[np.ndarray, "n height width count"]:
    """The frames in the first channel, and in the others |frame - frame j before| for j = 1, 2, ...

    Where the frame j before is not there, as at a clip's start, the one j after stands in for it;
    where neither is, the difference is 0.

    Args:
      frames: of any clips.
      places: of each.
      count: channels of a stack; 1 leaves the frames as they are.
    """
    if count == 1:
        return frames
    index = {place: n for n, place in enumerate(places)}
    stacked = np.zeros((*frames.shape[:3], count), np.uint8)
    for n, (clip, number) in enumerate(places):
        stacked[n, :, :, 0] = frame = frames[n, :, :, 0]
        for lag in range(1, count):
            other = index.get((clip, number - lag), index.get((clip, number + lag), n))
            difference = frame.astype(np.int16) - frames[other, :, :, 0]
            stacked[n, :, :, lag] = np.abs(difference)
    return stacked
