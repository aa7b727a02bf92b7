"""Counts the pixels of many maps by score, all images at once.

The maps of all variants are counted against the same masks, whose regions are found once.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float32, Float64, Int, Int32, Int64, Shaped, UInt32

from vae_attn.experiments.anomaly import score_histogram
from vae_attn.experiments.anomaly.score_histogram import BIN_BITS, DROPPED_BITS, ImageHistogram

_PIXELS_AT_ONCE = 2**17  # whose counting stays in the processor's cache


@dataclasses.dataclass(frozen=True, eq=False)
class Regions:
    """The connected anomalous regions (8-connectivity) of several masks, found once for all maps.

    Attributes:
      weights: of the anomalous pixels, image after image, row after row: 1 / size of their region.
      counts: regions of each image.
    """

    weights: Float64[np.ndarray, "anomalous"]
    counts: Int64[np.ndarray, "n"]

    @classmethod
    def of(cls, masks: Bool[np.ndarray, "n height width"]) -> "Regions":
        """The regions of masks."""
        weights, counts = [np.zeros(0)], np.zeros(len(masks), np.int64)
        for n, mask in enumerate(masks):
            regions, counts[n] = scipy.ndimage.label(mask, structure=np.ones((3, 3), bool))
            inside = regions[mask]
            weights.append(1.0 / np.bincount(inside, minlength=counts[n] + 1).clip(1)[inside])
        return cls(np.concatenate(weights), counts)


class Counted(NamedTuple):
    """What the maps of several images leave behind, their pixels being sorted once.

    Attributes:
      bins: occupied fine bins, ascending within each image, image after image.
      negatives: normal pixels in each of them.
      positives: anomalous pixels in each of them.
      region_overlap: anomalous pixels in each of them, each weighted 1 / size of its region.
      images: each image's own histogram, by the narrowest bins of which at most
        score_histogram.MAX_COARSE_BINS are occupied.
      aurocs: of each image's own pixels, exact, ties counting half; NaN without both kinds.
    """

    bins: Int32[np.ndarray, "occupied"]
    negatives: Int[np.ndarray, "occupied"]
    positives: Int[np.ndarray, "occupied"]
    region_overlap: Float64[np.ndarray, "occupied"]
    images: tuple[ImageHistogram, ...]
    aurocs: Float64[np.ndarray, "n"]

    @classmethod
    def of(cls, histograms: Sequence[ImageHistogram], aurocs: Sequence[float]) -> "Counted":
        """Images that were counted one by one, in the fine bins."""
        alone = [
            cls(one.bins, one.negatives, one.positives, one.region_overlap, (one.coarse(),), auroc)
            for one, auroc in zip(histograms, np.array(aurocs, np.float64)[:, None], strict=True)
        ]
        return cls.joined(alone)

    @classmethod
    def joined(cls, parts: Sequence["Counted"]) -> "Counted":
        """The images of all parts."""

        def column(name: str, dtype: type) -> np.ndarray:
            found = [np.zeros(0, dtype), *(getattr(one, name) for one in parts)]
            return np.concatenate(found).astype(dtype, copy=False)

        return cls(
            bins=column("bins", np.int32),
            negatives=column("negatives", np.int64),
            positives=column("positives", np.int64),
            region_overlap=column("region_overlap", np.float64),
            images=tuple(image for one in parts for image in one.images),
            aurocs=column("aurocs", np.float64),
        )


def count(
    *,
    scores: Float32[np.ndarray, "n height width"],
    masks: Bool[np.ndarray, "n height width"],
    regions: Regions | None = None,
) -> Counted:
    """Counts the pixels of images by score, all images at once.

    Args:
      scores: anomaly maps.
      masks: True on anomalous pixels.
      regions: of the masks, where they are at hand.

    Raises:
      UserError: a score is NaN or infinite.
    """
    score_histogram.refuse_non_finite(scores, "scores")
    regions = Regions.of(masks) if regions is None else regions
    step = max(1, _PIXELS_AT_ONCE // max(scores[:1].size, 1))
    ends = np.concatenate([[0], masks.sum(axis=(1, 2)).cumsum()])  # of each image's weights
    parts = []
    for start in range(0, len(scores), step):
        stop = min(start + step, len(scores))
        weights = regions.weights[ends[start] : ends[stop]]
        part = slice(start, stop)
        parts.append(_count(scores[part], masks[part], weights, regions.counts[part]))
    return Counted.joined(parts)


def _count(
    scores: Float32[np.ndarray, "n height width"],
    masks: Bool[np.ndarray, "n height width"],
    weights: Float64[np.ndarray, "anomalous"],
    num_regions: Int64[np.ndarray, "n"],
) -> Counted:
    n, pixels = len(scores), scores[0].size
    masks = masks.reshape(n, pixels)
    order = score_histogram.order_of(scores).reshape(n, pixels)
    own = np.nonzero(masks)
    own_bins = order[own] >> DROPPED_BITS
    # One sort of score and mask packed together serves every count.
    packed = (order.astype(np.uint64) << np.uint64(1)) | masks
    packed.sort(axis=1)
    anomalous = (packed & np.uint64(1)).astype(np.int64)
    order = (packed >> np.uint64(1)).astype(np.uint32)
    aurocs = _aurocs(order, anomalous)
    order >>= DROPPED_BITS
    starts = np.flatnonzero(_changes(order))
    bins = order.ravel()[starts].astype(np.int32)
    rows = starts // pixels
    positives = np.add.reduceat(anomalous.ravel(), starts)
    negatives = np.diff(starts, append=n * pixels) - positives
    # The image's number in the high bits keeps bins of different images apart.
    keys = (rows << BIN_BITS) + bins
    found = np.searchsorted(keys, (own[0] << BIN_BITS) + own_bins)
    overlap = np.bincount(found, weights, len(keys))
    overlap = overlap.astype(np.float64)  # of no pixel they are integers
    images = score_histogram.coarse_histograms(
        bins, rows, negatives, positives, overlap, num_regions
    )
    return Counted(bins, negatives, positives, overlap, images, aurocs)


def _changes(rows: Shaped[np.ndarray, "n sorted"]) -> Bool[np.ndarray, "n sorted"]:
    """Where a value differs from the one before it; a row always begins with a change."""
    changes = np.ones(rows.shape, bool)
    np.not_equal(rows[:, 1:], rows[:, :-1], out=changes[:, 1:])
    return changes


def _aurocs(
    order: UInt32[np.ndarray, "n sorted"], anomalous: Int64[np.ndarray, "n sorted"]
) -> Float64[np.ndarray, "n"]:
    """Share of (positive, negative) pairs in the right order, ties half."""
    n, pixels = order.shape
    num_positives = anomalous.sum(axis=1)
    pairs = num_positives * (pixels - num_positives)
    starts = np.flatnonzero(_changes(order))
    rows = starts // pixels
    positives = np.add.reduceat(anomalous.ravel(), starts)
    before = np.cumsum(1 - anomalous, axis=1) - (1 - anomalous)  # normal pixels further down
    negatives = np.diff(starts, append=n * pixels) - positives
    twice = positives * (2 * before.ravel()[starts] + negatives)
    firsts = np.searchsorted(rows, np.arange(n))
    with np.errstate(invalid="ignore"):
        return np.add.reduceat(twice, firsts) / (2 * pairs)
