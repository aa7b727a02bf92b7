"""Histograms of scores over bins that need no range, and the scores read off them.

A float32 whose sign is folded into its bits sorts as an unsigned integer does. The upper
`BIN_BITS` bits of that integer are the bin: 1 of sign, 8 of exponent, 9 of mantissa. Bins
are therefore ordered, cover every finite float32, and are at most 1/512 of the score wide.
What is counted in bins is exact to the bin: scores that share a bin count as ties. A large
constant offset wastes the resolution (all of 1000 to 1001 is one bin): subtract it from the
scores before they are added.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt32

from vae_attn.errors import UserError

BIN_BITS = 18
NUM_BINS = 1 << BIN_BITS
MAX_COARSE_BINS = 256
AUPRO_MAX_FPR = 0.3

DROPPED_BITS = np.uint32(32 - BIN_BITS)
_SIGN = np.uint32(1 << 31)


def refuse_non_finite(scores: np.ndarray, name: str) -> None:
    """Raises UserError, calling the array `name`, where a score is NaN or infinite."""
    if not np.isfinite(scores).all():
        count = int(np.count_nonzero(~np.isfinite(scores)))
        raise UserError(
            f"{name}: {count} of {scores.size} values are NaN or infinite, so they have no "
            "order; look for a diverged model or a division by zero where the maps are made"
        )


def bins_of(scores: Float32[np.ndarray, "*shape"]) -> UInt32[np.ndarray, "*shape"]:
    """Bin of each score, 0 to NUM_BINS - 1, monotone in the score; -0.0 is binned as 0.0."""
    return order_of(scores) >> DROPPED_BITS


def order_of(scores: Float32[np.ndarray, "*shape"]) -> UInt32[np.ndarray, "*shape"]:
    """Integers that sort and tie as the scores do; -0.0 is that of 0.0."""
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.uint32)
    # Negative floats sort backwards by their bits, so all of them flip; the others only
    # move above them.
    flips = (bits.view(np.int32) >> 31).view(np.uint32) | _SIGN
    return bits ^ flips


def bin_of(score: float) -> int:
    """Bin of one score, rounded to float32; infinities lie beyond every finite score."""
    with np.errstate(over="ignore"):
        rounded = np.array([score], np.float64).astype(np.float32)
    return int(bins_of(rounded)[0])


def lower_edge(bin_index: int) -> float:
    """Lowest float32 of a bin: as a threshold it splits the scores just below that bin."""
    ordered = np.array([bin_index], np.uint32) << DROPPED_BITS
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)
    return float(bits.view(np.float32)[0])


@dataclasses.dataclass(frozen=True, eq=False)
class ImageHistogram:
    """One image's scores, by occupied bins of `2 ** shift` fine bins each.

    Attributes:
      shift: a bin here is a fine bin shifted right by this much.
      bins: the occupied bins, ascending.
      negatives: normal pixels in each bin.
      positives: anomalous pixels in each bin.
      region_overlap: anomalous pixels in each bin, each weighted 1 / size of its region.
      num_regions: connected regions of the mask (8-connectivity).
    """

    shift: int
    bins: Int32[np.ndarray, "occupied"]
    negatives: Int32[np.ndarray, "occupied"]
    positives: Int32[np.ndarray, "occupied"]
    region_overlap: Float64[np.ndarray, "occupied"]
    num_regions: int

    def coarse(self) -> "ImageHistogram":
        """The image by the narrowest bins of which at most MAX_COARSE_BINS are occupied."""
        rows, regions = np.zeros(len(self.bins), np.int64), np.array([self.num_regions])
        counts = self.negatives, self.positives, self.region_overlap
        return coarse_histograms(self.bins, rows, *counts, regions)[0]


def coarse_histograms(
    bins: Int32[np.ndarray, "occupied"],
    rows: Int64[np.ndarray, "occupied"],
    negatives: Int32[np.ndarray, "occupied"] | Int64[np.ndarray, "occupied"],
    positives: Int32[np.ndarray, "occupied"] | Int64[np.ndarray, "occupied"],
    overlap: Float64[np.ndarray, "occupied"],
    num_regions: Int64[np.ndarray, "n"],
) -> tuple[ImageHistogram, ...]:
    """Each image by the narrowest bins of which at most MAX_COARSE_BINS are occupied.

    Args:
      bins: occupied ones, ascending within each image, image after image.
      rows: which image each of them is of.
      negatives: normal pixels in each bin.
      positives: anomalous pixels in each bin.
      overlap: `ImageHistogram.region_overlap` of each bin.
      num_regions: of each image.
    """
    n = len(num_regions)
    # Two neighbours fall together when all bits in which they differ are shifted out.
    _, apart = np.frexp((bins ^ np.roll(bins, 1)).astype(np.float64))
    apart[np.searchsorted(rows, np.arange(n))] = BIN_BITS + 1  # an image's first bin stays
    by_shift = np.bincount(rows * (BIN_BITS + 2) + apart, minlength=n * (BIN_BITS + 2))
    by_shift = by_shift.reshape(n, BIN_BITS + 2)
    occupied = by_shift.sum(axis=1, keepdims=True) - by_shift.cumsum(axis=1)  # by shift
    shifts = (occupied > MAX_COARSE_BINS).sum(axis=1)
    starts = np.flatnonzero(apart > shifts[rows])
    bins = (bins[starts] >> shifts[rows[starts]]).astype(np.int32)
    negatives = np.add.reduceat(negatives, starts).astype(np.int32)
    positives = np.add.reduceat(positives, starts).astype(np.int32)
    overlap = np.add.reduceat(overlap, starts)
    ends = np.searchsorted(rows[starts], np.arange(n + 1))
    return tuple(
        ImageHistogram(
            shift=int(shifts[image]),
            bins=bins[part],
            negatives=negatives[part],
            positives=positives[part],
            region_overlap=overlap[part],
            num_regions=int(num_regions[image]),
        )
        for image, part in enumerate(map(slice, ends[:-1], ends[1:]))
    )


def scores_of_histogram(
    *,
    negatives: Int64[np.ndarray, "bins"] | Float64[np.ndarray, "bins"],
    positives: Int64[np.ndarray, "bins"] | Float64[np.ndarray, "bins"],
    region_overlap: Float64[np.ndarray, "bins"],
    num_regions: int,
) -> tuple[dict[str, float], int]:
    """Pixel scores of ascending bins, and the index of the bin where the IoU is best.

    Both kinds of pixel must be present. The keys are `pixel_auroc`, `average_precision`,
    `best_f1_test`, `best_iou_test` and `aupro`; `LocalizationState.compute` describes them.
    """
    true_positives = np.cumsum(positives[::-1], dtype=np.float64)
    false_positives = np.cumsum(negatives[::-1], dtype=np.float64)
    num_positives, num_negatives = true_positives[-1], false_positives[-1]
    higher = true_positives - 0.5 * positives[::-1]
    iou = true_positives / (false_positives + num_positives)
    best = int(np.argmax(iou))
    # Empty bins on top would divide 0 by 0; they add nothing.
    precision = true_positives / np.maximum(true_positives + false_positives, 1.0)
    fpr, overlap = pro_curve(
        negatives=negatives, region_overlap=region_overlap, num_regions=num_regions
    )
    scores = {
        "pixel_auroc": float(negatives[::-1] @ higher / (num_negatives * num_positives)),
        "average_precision": float(positives[::-1] @ precision / num_positives),
        "best_f1_test": float(2 * iou[best] / (1 + iou[best])),
        "best_iou_test": float(iou[best]),
        "aupro": float(np.trapezoid(overlap, fpr) / AUPRO_MAX_FPR),
    }
    return scores, len(iou) - 1 - best


def pro_curve(
    *,
    negatives: Int64[np.ndarray, "bins"] | Float64[np.ndarray, "bins"],
    region_overlap: Float64[np.ndarray, "bins"],
    num_regions: int,
) -> tuple[Float64[np.ndarray, "points"], Float64[np.ndarray, "points"]]:
    """Per-region overlap (second) against the false positive rate, from 0 to AUPRO_MAX_FPR.

    Args:
      negatives: normal pixels in ascending bins; not all of them empty.
      region_overlap: anomalous pixels in the bins, each weighted 1 / size of its region.
      num_regions: how many there are.
    """
    false_positives = np.cumsum(negatives[::-1], dtype=np.float64)
    fpr = np.append(0.0, false_positives / false_positives[-1])
    pro = np.append(0.0, np.cumsum(region_overlap[::-1]) / num_regions)
    # The first point beyond the limit; there is one, since the last FPR is 1.
    end = int(np.searchsorted(fpr, AUPRO_MAX_FPR, side="right"))
    share = (AUPRO_MAX_FPR - fpr[end - 1]) / (fpr[end] - fpr[end - 1])
    last = pro[end - 1] + share * (pro[end] - pro[end - 1])
    return np.append(fpr[:end], AUPRO_MAX_FPR), np.append(pro[:end], last)
