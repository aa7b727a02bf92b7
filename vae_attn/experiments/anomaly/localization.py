"""How well anomaly maps find the anomalous pixels, and image scores the anomalous images.

Pixel scores stream: a `LocalizationState` holds histograms over all images, 6 MB whatever
their number, and a histogram of some 5 kB per image for the bootstrap. They
are exact to the bin; see `score_histogram` for the bins and for what to do about a large
constant offset.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from vae_attn.errors import UserError
from vae_attn.experiments.anomaly import pixel_counts, score_histogram


@dataclasses.dataclass(frozen=True, eq=False)
class LocalizationState:
    """Counts of pixels by score, from which every pixel score is computed.

    `empty` and `add` make states, so that images may come in any order and in any batches.

    Attributes:
      negatives: normal pixels of all images in each fine bin.
      positives: anomalous pixels of all images in each fine bin.
      region_overlap: anomalous pixels in each fine bin, each weighted 1 / size of its region.
      num_regions: connected anomalous regions (8-connectivity) of all images.
      images: each image's own histogram, of at most 256 bins (some 5 kB), which are
        widened until they suffice; for `bootstrap.bootstrap_pixel_scores`.
    """

    negatives: Int64[np.ndarray, "bins"]
    positives: Int64[np.ndarray, "bins"]
    region_overlap: Float64[np.ndarray, "bins"]
    num_regions: int
    images: tuple[score_histogram.ImageHistogram, ...]

    # The class name as a string: typing.Self breaks under the jaxtyping + beartype hook.
    @classmethod
    def empty(cls) -> "LocalizationState":
        """The state of no image."""
        return cls(
            negatives=np.zeros(score_histogram.NUM_BINS, np.int64),
            positives=np.zeros(score_histogram.NUM_BINS, np.int64),
            region_overlap=np.zeros(score_histogram.NUM_BINS, np.float64),
            num_regions=0,
            images=(),
        )

    def add(
        self,
        *,
        scores: Float32[np.ndarray, "n height width"],
        masks: Bool[np.ndarray, "n height width"],
    ) -> "LocalizationState":
        """The state with these images added.

        Each call copies the three histograms, 6 MB, so give it some ten images or more.

        Args:
          scores: anomaly maps, higher is more anomalous; any sign, any range.
          masks: True on anomalous pixels; all False for a normal image. An image without
            pixel truth must be left out: counted as normal, it would falsify the scores.

        Raises:
          UserError: a score is NaN or infinite.
        """
        return self.add_counted(pixel_counts.count(scores=scores, masks=masks))

    def add_counted(self, counted: pixel_counts.Counted) -> "LocalizationState":
        """The state with these images added, which were counted together; see `add`."""
        found = LocalizationState(
            negatives=self.negatives.copy(),
            positives=self.positives.copy(),
            region_overlap=self.region_overlap.copy(),
            num_regions=self.num_regions + sum(image.num_regions for image in counted.images),
            images=(*self.images, *counted.images),
        )
        np.add.at(found.negatives, counted.bins, counted.negatives)
        np.add.at(found.positives, counted.bins, counted.positives)
        np.add.at(found.region_overlap, counted.bins, counted.region_overlap)
        return found

    def compute(self) -> dict[str, float]:
        """Scores of all pixels of all images, pooled.

        Returns:
          `pixel_auroc`: area under the ROC curve; ties count half, as in scikit-learn.
          `average_precision`: as `sklearn.metrics.average_precision_score`.
          `best_f1_test`: the highest F1 of any threshold, picked on the test set as for
            `best_iou_test`, from which it follows: 2 IoU / (1 + IoU).
          `best_iou_test`: the highest IoU of any threshold. The threshold is picked on the
            test set, as in Liu et al. 2020, so it flatters; `iou` takes one picked before.
          `best_threshold_test`: that threshold; pixels `score >= threshold` are predicted.
          `aupro`: area under the per-region overlap up to a false positive rate of 0.3,
            divided by 0.3 (Bergmann et al. 2021, as in the official MVTec-AD evaluation:
            regions by 8-connectivity, the rate over all normal pixels of all images).

        Raises:
          UserError: there is no anomalous pixel, or no normal one.
        """
        self._require_anomalous()
        if not self.negatives.any():
            raise UserError(
                "masks: no pixel is normal, so the pixel scores are undefined; add images "
                "with normal pixels, and check that the masks are not inverted"
            )
        occupied = np.flatnonzero(self.negatives + self.positives)
        scores, best = score_histogram.scores_of_histogram(
            negatives=self.negatives[occupied],
            positives=self.positives[occupied],
            region_overlap=self.region_overlap[occupied],
            num_regions=self.num_regions,
        )
        return scores | {"best_threshold_test": score_histogram.lower_edge(int(occupied[best]))}

    def iou(self, *, threshold: float) -> float:
        """Intersection over union of the pixels `score >= threshold`, exact to the bin.

        Args:
          threshold: picked without the test set, as by `thresholds.of_pixels`.

        Raises:
          UserError: the threshold is NaN, or there is no anomalous pixel.
        """
        if np.isnan(threshold):
            raise UserError("threshold is NaN; give a number, as from thresholds.of_pixels")
        self._require_anomalous()
        first = score_histogram.bin_of(threshold)
        true_positives = int(self.positives[first:].sum())
        union = int(self.negatives[first:].sum() + self.positives.sum())
        return true_positives / union

    def pro_curve(self) -> tuple[Float64[np.ndarray, "points"], Float64[np.ndarray, "points"]]:
        """False positive rates up to AUPRO's limit, and the per-region overlap at each.

        Raises:
          UserError: there is no anomalous pixel.
        """
        self._require_anomalous()
        occupied = np.flatnonzero(self.negatives + self.positives)
        return score_histogram.pro_curve(
            negatives=self.negatives[occupied],
            region_overlap=self.region_overlap[occupied],
            num_regions=self.num_regions,
        )

    def _require_anomalous(self) -> None:
        if not self.num_regions:
            raise UserError(
                f"masks: none of the {len(self.images)} images added has an anomalous pixel, "
                "so the pixel scores are undefined; add images with anomalous masks"
            )


def share_below_chance(aurocs: Float[np.ndarray, "n"]) -> float:
    """Share of images whose AUROC is below 0.5; NaNs are left out, NaN where all are NaN."""
    defined = aurocs[~np.isnan(aurocs)]
    return float(np.mean(defined < 0.5)) if len(defined) else float("nan")


def pointing_game(
    *, scores: Float[np.ndarray, "n height width"], masks: Bool[np.ndarray, "n height width"]
) -> Float64[np.ndarray, "n"]:
    """Whether each map's highest pixel is anomalous (Zhang et al. 2018, without a margin).

    Returns:
      1 where it is, 0 where it is not, NaN where the mask is empty. Pixels that tie for the
      highest share the point: a constant map gets the share of its anomalous pixels.

    Raises:
      UserError: a score is NaN or infinite.
    """
    score_histogram.refuse_non_finite(scores, "scores")
    at_top = scores == scores.max(axis=(1, 2), keepdims=True, initial=-np.inf)
    hits = (at_top & masks).sum(axis=(1, 2)) / at_top.sum(axis=(1, 2))
    return np.where(masks.any(axis=(1, 2)), hits, np.nan)


def share_missed(hits: Float[np.ndarray, "n"]) -> float:
    """Share of maps that miss the defect: 1 - pointing game, the peak lying outside of it.

    Args:
      hits: of `pointing_game`; NaNs are left out, NaN where all are NaN.
    """
    defined = hits[~np.isnan(hits)]
    return float(1 - defined.mean()) if len(defined) else float("nan")


def image_auroc(
    *,
    scores: Float[np.ndarray, "n"],
    labels: Bool[np.ndarray, "n"],
    counts: Int64[np.ndarray, "n"] | None = None,
) -> float | None:
    """Area under the ROC curve of one score per image; None if only one kind of image is there.

    Our own, as is average precision, because a bootstrap takes hundreds of samples of each score:
    for 83 images they are 28 times as fast as scikit-learn's, which tests hold them to
    (`python -m benchmarks.run score_images`, two CPU cores).

    Args:
      scores: higher is more anomalous.
      labels: True for an anomalous image.
      counts: how many times each image is there; None for once.

    Raises:
      UserError: a score is NaN or infinite.
    """
    counted = _above(scores, labels, counts)
    if counted is None:
        return None
    found, called = counted
    false = called - found
    # Of each score's anomalous images: pairs with the normal ones below, and those that tie half.
    twice = np.diff(found, prepend=0) * (2 * (false[-1] - false) + np.diff(false, prepend=0))
    return float(twice.sum() / (2 * found[-1] * false[-1]))


def image_average_precision(
    *,
    scores: Float[np.ndarray, "n"],
    labels: Bool[np.ndarray, "n"],
    counts: Int64[np.ndarray, "n"] | None = None,
) -> float | None:
    """Average precision of one score per image, as in scikit-learn; None as `image_auroc`.

    Images of one score count together. The arguments are those of `image_auroc`.

    Raises:
      UserError: a score is NaN or infinite.
    """
    counted = _above(scores, labels, counts)
    if counted is None:
        return None
    found, called = counted
    return float(np.diff(found, prepend=0) @ (found / called) / found[-1])


def image_best_f1(
    *,
    scores: Float[np.ndarray, "n"],
    labels: Bool[np.ndarray, "n"],
    counts: Int64[np.ndarray, "n"] | None = None,
) -> float | None:
    """The highest F1 of any threshold of one score per image; None as `image_auroc`.

    The threshold is picked on these very images, so that it flatters. The arguments are those of
    `image_auroc`.

    Raises:
      UserError: a score is NaN or infinite.
    """
    counted = _above(scores, labels, counts)
    if counted is None:
        return None
    found, called = counted
    return float((2 * found / (called + found[-1])).max())


def _above(
    scores: Float[np.ndarray, "n"],
    labels: Bool[np.ndarray, "n"],
    counts: Int64[np.ndarray, "n"] | None,
) -> tuple[Int64[np.ndarray, "thresholds"], Int64[np.ndarray, "thresholds"]] | None:
    """Anomalous images, and all images, that reach each score, from the highest down."""
    score_histogram.refuse_non_finite(scores, "scores")
    if counts is not None:
        there = counts > 0
        scores, labels, counts = scores[there], labels[there], counts[there]
    if labels.all() or not labels.any():
        return None
    order = np.argsort(-scores, kind="stable")  # fast where they are in order already
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of those that tie
    if counts is None:
        return np.cumsum(labels[order], dtype=np.int64)[last], last + 1
    counts = counts[order]
    return np.cumsum(counts * labels[order])[last], np.cumsum(counts)[last]
