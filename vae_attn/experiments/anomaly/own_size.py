"""Scores a map at the size of its image's own mask, as published figures do.

A mask that is shrunk to the model's size loses small defects and tears thin ones into many regions.
Here the map is enlarged instead, a strip of rows at a time, so that memory is bounded. Bins are
counted densely: for large masks that is five times as fast as the sort of `image_histogram`.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float32, Float64

from vae_attn.experiments.anomaly import score_histogram
from vae_attn.experiments.anomaly.score_histogram import ImageHistogram

_STRIP_PIXELS = 2**17


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """An image's mask at its own size, and its regions.

    Attributes:
      mask: True on anomalous pixels.
      weights: of the anomalous pixels, in the mask's order: 1 / size of their region.
      num_regions: connected regions (8-connectivity).
    """

    mask: Bool[np.ndarray, "height width"]
    weights: Float64[np.ndarray, "anomalous"]
    num_regions: int

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "height width"]) -> "Truth":
        """The truth of a mask."""
        regions, count = scipy.ndimage.label(mask, structure=np.ones((3, 3), bool))
        inside = regions[mask]
        sizes = np.bincount(inside, minlength=count + 1).clip(1)
        return cls(mask, (1.0 / sizes[inside]).astype(np.float64), int(count))


class Scored(NamedTuple):
    """What a map leaves behind.

    Attributes:
      histogram: of its scores.
      auroc: of the image's own pixels, exact to the bin; NaN where all are of one kind.
      hit: of the pointing game; NaN where no pixel is anomalous.
    """

    histogram: ImageHistogram
    auroc: float
    hit: float


def enlarged(
    map_: Float32[np.ndarray, "h w"], height: int, width: int
) -> Iterator[Float32[np.ndarray, "_rows width"]]:
    """A map by bilinear interpolation in another size, some rows at a time.

    Pixels are squares, and beyond the outermost centres the map is constant, as in Pillow and
    `jax.image.resize`.
    """
    left, right, share = _places(map_.shape[1], width)
    wide = map_[:, left] + share * (map_[:, right] - map_[:, left])
    above, below, share = _places(map_.shape[0], height)
    step = max(1, _STRIP_PIXELS // width)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        part = wide[below[rows]]
        top = wide[above[rows]]
        part -= top
        part *= share[rows, None]
        part += top
        yield part


def score(map_: Float32[np.ndarray, "h w"], truth: Truth) -> Scored:
    """Scores a map, enlarged, against the truth.

    Raises:
      UserError: a score is NaN or infinite.
    """
    score_histogram.refuse_non_finite(map_, "scores")
    # Only the bins from the lowest to the highest score, and one more for what rounding adds: they
    # fit into the processor's cache.
    first, last = score_histogram.bins_of(np.array([map_.min(), map_.max()], np.float32)).tolist()
    first = max(first - 1, 0)
    size = last + 2 - first
    counts, positives = np.zeros(size, np.int64), np.zeros(size, np.int64)
    overlap = np.zeros(size, np.float64)
    highest, share_hit = -np.inf, (0, 0)
    row = seen = 0
    for part in enlarged(map_, *truth.mask.shape):
        mask = truth.mask[row : row + len(part)]
        row += len(part)
        bins = score_histogram.bins_of(part).astype(np.int64) - first
        counts += np.bincount(bins.ravel(), minlength=size)
        inside = bins[mask]
        if len(inside):
            weights = truth.weights[seen : seen + len(inside)]
            seen += len(inside)
            positives += np.bincount(inside, minlength=size)
            overlap += np.bincount(inside, weights, minlength=size)
        if truth.num_regions and (top := part.max()) >= highest:
            at_top = part == top
            found = int(mask[at_top].sum()), int(at_top.sum())
            tied = share_hit if top == highest else (0, 0)
            highest, share_hit = top, (found[0] + tied[0], found[1] + tied[1])
    occupied = np.flatnonzero(counts)
    histogram = ImageHistogram(
        shift=0,
        bins=(occupied + first).astype(np.int32),
        negatives=(counts - positives)[occupied].astype(np.int32),
        positives=positives[occupied].astype(np.int32),
        region_overlap=overlap[occupied],
        num_regions=truth.num_regions,
    )
    hit = share_hit[0] / share_hit[1] if truth.num_regions else float("nan")
    return Scored(histogram, _auroc(histogram), hit)


def _auroc(histogram: ImageHistogram) -> float:
    """Share of pairs in the right order; pixels that share a bin tie, and count half."""
    negatives = histogram.negatives.astype(np.float64)
    positives = histogram.positives.astype(np.float64)
    pairs = negatives.sum() * positives.sum()
    below = np.cumsum(negatives) - negatives / 2
    return float(positives @ below / pairs) if pairs else float("nan")


def _places(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `wanted` places the two of `size` beside it, and how far it is to the second."""
    place = ((np.arange(wanted) + 0.5) * size / wanted - 0.5).clip(0, size - 1)
    first = np.floor(place).astype(int).clip(0, max(size - 2, 0))
    return first, np.minimum(first + 1, size - 1), (place - first).astype(np.float32)
