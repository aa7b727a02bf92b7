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
import scipy.ndimage
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt32

from vae_attn.errors import UserError

BIN_BITS = 18
NUM_BINS = 1 << BIN_BITS
MAX_COARSE_BINS = 256
AUPRO_MAX_FPR = 0.3

_DROPPED_BITS = np.uint32(32 - BIN_BITS)
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
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.uint32)
    # Negative floats sort backwards by their bits, so all of them flip; the others only
    # move above them.
    flips = (bits.view(np.int32) >> 31).view(np.uint32) | _SIGN
    return (bits ^ flips) >> _DROPPED_BITS


def bin_of(score: float) -> int:
    """Bin of one score, rounded to float32; infinities lie beyond every finite score."""
    with np.errstate(over="ignore"):
        rounded = np.array([score], np.float64).astype(np.float32)
    return int(bins_of(rounded)[0])


def lower_edge(bin_index: int) -> float:
    """Lowest float32 of a bin: as a threshold it splits the scores just below that bin."""
    ordered = np.array([bin_index], np.uint32) << _DROPPED_BITS
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
        """The same image by the narrowest bins of which at most MAX_COARSE_BINS are occupied."""
        shift, bins = self.shift, self.bins
        while np.count_nonzero(np.diff(bins)) >= MAX_COARSE_BINS:
            shift, bins = shift + 1, bins >> 1
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        return ImageHistogram(
            shift=shift,
            bins=bins[starts],
            negatives=np.add.reduceat(self.negatives, starts, dtype=np.int32),
            positives=np.add.reduceat(self.positives, starts, dtype=np.int32),
            region_overlap=np.add.reduceat(self.region_overlap, starts),
            num_regions=self.num_regions,
        )


def image_histogram(
    *, scores: Float32[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]
) -> ImageHistogram:
    """Counts one image in the fine bins.

    Raises:
      UserError: a score is NaN or infinite.
    """
    refuse_non_finite(scores, "scores")
    bins = bins_of(scores)
    # One sort of bin and mask packed together is far cheaper than a dense histogram an image.
    packed, counts = np.unique((bins << np.uint32(1)) | mask, return_counts=True)
    starts = np.flatnonzero(np.diff(packed >> np.uint32(1), prepend=np.uint32(NUM_BINS)))
    occupied = (packed[starts] >> np.uint32(1)).astype(np.int32)
    anomalous = (packed & np.uint32(1)).astype(bool)
    regions, num_regions = scipy.ndimage.label(mask, structure=np.ones((3, 3), bool))
    inside = regions[mask]
    weights = 1.0 / np.bincount(inside, minlength=num_regions + 1).clip(1)[inside]
    return ImageHistogram(
        shift=0,
        bins=occupied,
        negatives=np.add.reduceat(np.where(anomalous, 0, counts), starts).astype(np.int32),
        positives=np.add.reduceat(np.where(anomalous, counts, 0), starts).astype(np.int32),
        region_overlap=np.bincount(
            np.searchsorted(occupied, bins[mask].astype(np.int32)), weights, len(occupied)
        ).astype(np.float64),
        num_regions=int(num_regions),
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
