"""Maps of images that are larger than the model's, from overlapping tiles in bounded memory.

Tiles are taken from the image as it is, without resizing, so the model has to know the same scale:
it was trained on tiles of such images (docs/own-images.md).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from vae_attn.errors import UserError, shown
from vae_attn.experiments.anomaly.calibration import MapStatistics, Statistics

# What calibrates a tile: what normal tiles give at the same place of a tile, or anywhere in it.
PLACE, FREE = "place", "free"
KINDS = (PLACE, FREE)

OVERLAP = 0.25  # of a tile's side, at least

# Maps and scores of a batch of tiles, as an `Explainer` gives them.
Attend = Callable[
    [UInt8[np.ndarray, "n side side channels"]],
    tuple[Float[np.ndarray, "n side side"], Float[np.ndarray, "n"]],
]


class Tiled(NamedTuple):
    """What tiles say of a large image.

    Attributes:
      map: of the image, in its own size: the mean of the tiles that cover a pixel, each weighed
        less towards its edges, so that there are no seams.
      score: the map's maximum.
      corners: of the tiles, top and left.
      scores: of the tiles alone, in their order; what a threshold of single images is for.
    """

    map: Float32[np.ndarray, "height width"]
    score: float
    corners: Int[np.ndarray, "tiles 2"]
    scores: Float32[np.ndarray, "tiles"]


def starts(length: int, side: int, overlap: float = OVERLAP) -> list[int]:
    """Where tiles begin along one axis: spread evenly from edge to edge.

    Args:
      length: of the axis, pixels; at least `side`.
      side: of a tile, pixels.
      overlap: of neighbours, at least this share of a side; 0 or more, less than 1.
    """
    count = 1 + math.ceil((length - side) / max(1, side - math.ceil(overlap * side)))
    return [round(n * (length - side) / max(1, count - 1)) for n in range(count)]


def window(side: int, overlap: float = OVERLAP) -> Float[np.ndarray, "side"]:
    """The weight of a tile's pixels along one axis: rising linearly over the overlap, then 1."""
    ramp = math.ceil(overlap * side) + 1
    from_edge = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1))
    return np.minimum(1.0, from_edge / ramp)


def blend(
    attend: Attend,
    image: UInt8[np.ndarray, "height width channels"],
    *,
    side: int,
    batch_size: int,
    overlap: float = OVERLAP,
) -> Tiled:
    """The map of a large image, a batch of tiles at a time.

    Beside the image and its map, memory holds one batch of tiles.

    Args:
      attend: gives the maps and scores of tiles.
      image: no side smaller than a tile's.
      side: of the square tiles, pixels.
      batch_size: tiles at once.
      overlap: see `starts`.

    Raises:
      UserError: for an image smaller than a tile, or an invalid overlap.
    """
    height, width = image.shape[:2]
    if min(height, width) < side:
        raise UserError(
            f"an image of {height} x {width} pixels is smaller than a tile, whose side is the "
            f"model's {side}: explain it without tiles."
        )
    if not 0 <= overlap < 1:
        raise UserError(f"overlap={shown(repr(overlap))} must be 0 or more, and less than 1.")
    axes = starts(height, side, overlap), starts(width, side, overlap)
    weights = window(side, overlap)
    total = np.zeros((height, width), np.float32)
    scores = []
    for corners in _batches(axes, batch_size):
        tiles = np.stack([image[top : top + side, left : left + side] for top, left in corners])
        maps, of_tiles = attend(tiles)
        scores.append(of_tiles)
        for (top, left), map_ in zip(corners, maps, strict=True):
            total[top : top + side, left : left + side] += weights[:, None] * weights * map_
    rows, columns = (
        _summed(weights, begin, length) for begin, length in zip(axes, (height, width), strict=True)
    )
    total /= rows[:, None].astype(np.float32)
    total /= columns.astype(np.float32)
    return Tiled(total, float(total.max()), np.array(list(_corners(axes))), np.concatenate(scores))


def _corners(axes: tuple[list[int], list[int]]) -> Iterator[tuple[int, int]]:
    return ((top, left) for top in axes[0] for left in axes[1])


def _batches(axes: tuple[list[int], list[int]], size: int) -> Iterator[list[tuple[int, int]]]:
    corners = list(_corners(axes))
    return (corners[start : start + size] for start in range(0, len(corners), size))


def _summed(
    weights: Float[np.ndarray, "side"], begin: list[int], length: int
) -> Float[np.ndarray, "length"]:
    """The weights of all tiles along one axis; those of a grid of tiles are products of two."""
    total = np.zeros(length)
    for start in begin:
        total[start : start + len(weights)] += weights
    return total


def free_of_place(statistics: Statistics) -> Statistics:
    """What normal maps are anywhere in a tile: the statistics of all their pixels together."""
    return {key: _pooled(one) for key, one in statistics.items()}


def _pooled(of: MapStatistics) -> MapStatistics:
    mean = np.float64(np.mean(of.mean, dtype=np.float64))
    squares = np.square(of.std, dtype=np.float64) + np.square(of.mean, dtype=np.float64)
    std = math.sqrt(max(squares.mean() - mean**2, 0.0))
    everywhere = np.ones_like(of.mean)
    return MapStatistics.of(np.float32(mean) * everywhere, np.float32(std) * everywhere)
