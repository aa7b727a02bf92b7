"""Confidence intervals of localisation scores: images, not pixels, are drawn again.

Pixels of one image depend on each other, so a resample draws whole images with replacement.
Intervals are the percentiles of the resampled scores. Resample r is row r of
`np.random.default_rng(seed).integers(n, size=(num_resamples, n))`, n images.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Float64, Int64

from vae_attn.errors import UserError
from vae_attn.experiments.anomaly import localization, score_histogram
from vae_attn.experiments.scores import Interval

ImageScore = Callable[..., float | None]

# Together they bound the memory of one block of resamples to about 100 MB.
_MAX_BINS = 16_384
_RESAMPLES_AT_ONCE = 200


def bootstrap_pixel_scores(
    state: localization.LocalizationState,
    *,
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Confidence intervals of `pixel_auroc`, `average_precision`, `best_f1_test` and the others.

    Those of `LocalizationState.compute`, except for the threshold.

    Resamples are scored from the images' coarse histograms, and then shifted by what the
    coarse bins change in the score of the images as they are (exact minus coarse). A
    resample with only one kind of pixel is left out.

    Args:
      state: the test images.
      num_resamples: how many times the images are drawn.
      confidence: share of the resampled scores between the ends.
      seed: equal seeds give equal intervals.

    Raises:
      UserError: an argument is out of range, the state has only one kind of pixel, or so
        has every resample.
    """
    _check_arguments(num_resamples, confidence)
    exact = state.compute()
    n = len(state.images)
    counts = _counts(n, num_resamples, seed).astype(np.float64)
    # The images as they are, scored from the same coarse bins: a resample of one each.
    coarse, *replicates = _coarse_scores(state, np.vstack([np.ones((1, n)), counts]))
    replicates = [scores for scores in replicates if scores is not None]
    shifts = {key: exact[key] - coarse[key] for key in coarse}
    return {
        key: _interval([scores[key] + shift for scores in replicates], confidence)
        for key, shift in shifts.items()
    }


def bootstrap_image_score(
    score: ImageScore = localization.image_auroc,
    *,
    scores: Float[np.ndarray, "n"],
    labels: Bool[np.ndarray, "n"],
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Confidence interval of a score of one number per image; None where that is None.

    A resample with only one kind of image is left out.

    Args:
      score: `image_auroc`, `image_average_precision` or `image_best_f1` of `localization`.
      scores: higher is more anomalous.
      labels: True for an anomalous image.
      num_resamples: as in `bootstrap_pixel_scores`, like the others.
      confidence: likewise.
      seed: likewise.

    Raises:
      UserError: an argument is out of range, a score is NaN or infinite, or every resample
        has only one kind of image.
    """
    _check_arguments(num_resamples, confidence)
    if score(scores=scores, labels=labels) is None:
        return None
    order = np.argsort(-scores, kind="stable")  # once for all resamples
    scores, labels = scores[order], labels[order]
    replicates = [
        score(scores=scores, labels=labels, counts=counts[order])
        for counts in _counts(len(scores), num_resamples, seed)
    ]
    return _interval([one for one in replicates if one is not None], confidence)


def _check_arguments(num_resamples: int, confidence: float) -> None:
    if num_resamples < 1:
        raise UserError(f"num_resamples is {num_resamples}; give at least 1, such as 200")
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence}; give a number between 0 and 1, such as 0.95")


@functools.lru_cache(maxsize=2)  # for images and for located ones, of all variants and scores
def _counts(n: int, num_resamples: int, seed: int) -> Int64[np.ndarray, "num_resamples n"]:
    """How often each image is in each resample."""
    draws = np.random.default_rng(seed).integers(n, size=(num_resamples, n))
    counts = np.array([np.bincount(drawn, minlength=n) for drawn in draws])
    counts.flags.writeable = False
    return counts


def _interval(replicates: list[float], confidence: float) -> Interval:
    if not replicates:
        raise UserError(
            "no resample has both normal and anomalous examples; raise num_resamples or add images"
        )
    # A score may leave [0, 1] by the shift alone.
    ends = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2]).clip(0.0, 1.0)
    return Interval(low=float(ends[0]), high=float(ends[1]))


def _coarse_scores(
    state: localization.LocalizationState, counts: Float64[np.ndarray, "resamples n"]
) -> Iterator[dict[str, float] | None]:
    """Scores of each resample by coarse bins common to all images; None where undefined."""
    images = state.images
    columns, num_columns = _common_columns(images)
    starts = np.cumsum([0] + [len(image.bins) for image in images])

    def matrix(values: list[np.ndarray]) -> scipy.sparse.csr_array:
        # Several bins of an image may share a column; products add them up. Few bins hold anomalous
        # pixels: without the others a product takes a fraction of the time.
        data = np.concatenate(values).astype(np.float64)
        shape = (len(images), num_columns)
        built = scipy.sparse.csr_array((data, columns, starts), shape, copy=True)
        built.eliminate_zeros()
        return built

    negatives = matrix([image.negatives for image in images])
    positives = matrix([image.positives for image in images])
    region_overlap = matrix([image.region_overlap for image in images])
    num_regions = counts @ np.array([image.num_regions for image in images], np.float64)
    for start in range(0, len(counts), _RESAMPLES_AT_ONCE):
        block = counts[start : start + _RESAMPLES_AT_ONCE]
        rows = zip(block @ negatives, block @ positives, block @ region_overlap, strict=True)
        for index, (negative, positive, overlap) in enumerate(rows, start):
            if not (negative.any() and positive.any()):
                yield None
                continue
            yield score_histogram.scores_of_histogram(
                negatives=negative,
                positives=positive,
                region_overlap=overlap,
                num_regions=int(num_regions[index]),
            )[0]


def _common_columns(
    images: tuple[score_histogram.ImageHistogram, ...],
) -> tuple[np.ndarray, int]:
    """Column of every bin of every image, all images' bins as wide as the widest."""
    shift = max(image.shift for image in images)
    bins = np.concatenate([image.bins >> (shift - image.shift) for image in images])
    while len(occupied := np.unique(bins)) > _MAX_BINS:
        bins >>= 1
    return np.searchsorted(occupied, bins), len(occupied)
