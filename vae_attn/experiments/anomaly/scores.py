"""The rows of scores of anomaly maps: add one here, and every run, table and page has it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vae_attn.experiments.anomaly import (
    bootstrap,
    localization,
    own_size,
    pixel_counts,
    published,
)
from vae_attn.experiments.anomaly.localization import LocalizationState
from vae_attn.experiments.anomaly.own_size import Truth
from vae_attn.experiments.anomaly.pixel_counts import Counted, Regions
from vae_attn.experiments.anomaly.thresholds import FALSE_ALARM_RATE, PIXEL_SHARE
from vae_attn.experiments.scores import Interval, Score

# Needs that few runs meet; columns of their scores stand in tables only where there are any.
CLIPS, SELECTION = OPTIONAL = ("clips", "selection")


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """One score per test image, by each of two ways, and the truth.

    The need `labels`; of frames, smoothed over time, the need `clips`.

    Attributes:
      mass: the map's mean.
      peak: its maximum.
      abnormal: which images are.
      threshold: of the peak, from normal images; None where they can give none.
    """

    mass: Float[np.ndarray, "n"]
    peak: Float[np.ndarray, "n"]
    abnormal: Bool[np.ndarray, "n"]
    threshold: float | None = None

    @property
    def false_alarms(self) -> tuple[int, int] | None:
        """How many normal images are called abnormal, and of how many; None where unknown."""
        normal = int((~self.abnormal).sum())
        if self.threshold is None or not normal:
            return None
        return int((self.peak[~self.abnormal] > self.threshold).sum()), normal


@dataclasses.dataclass(frozen=True, eq=False)
class Located:
    """Maps of images whose anomalous pixels are known, summed up. The need `masks`.

    Attributes:
      threshold: of pixels, from normal images; None where they can give none.
      pixels: counts of all pixels by score.
      hits: of the pointing game, per image.
      aurocs: of each image's own pixels.
    """

    threshold: float | None
    pixels: LocalizationState = dataclasses.field(default_factory=LocalizationState.empty)
    hits: tuple[float, ...] = ()
    aurocs: tuple[float, ...] = ()

    def add(
        self,
        maps: Float[np.ndarray, "n height width"],
        masks: Bool[np.ndarray, "n height width"],
        regions: Regions | None = None,
    ) -> "Located":
        """The same with these images added; with the masks' regions, where they are at hand."""
        counted = pixel_counts.count(scores=maps, masks=masks, regions=regions)
        return self._added(counted, localization.pointing_game(scores=maps, masks=masks).tolist())

    def add_enlarged(
        self, maps: Float[np.ndarray, "n height width"], truths: Sequence[Truth]
    ) -> "Located":
        """The same with these images added, their maps enlarged to the masks' own sizes."""
        scored = [own_size.score(one, truth) for one, truth in zip(maps, truths, strict=True)]
        counted = Counted.of([one.histogram for one in scored], [one.auroc for one in scored])
        return self._added(counted, [one.hit for one in scored])

    def _added(self, counted: Counted, hits: Sequence[float]) -> "Located":
        return Located(
            threshold=self.threshold,
            pixels=self.pixels.add_counted(counted),
            hits=(*self.hits, *hits),
            aurocs=(*self.aurocs, *counted.aurocs.tolist()),
        )

    @functools.cached_property
    def pooled(self) -> dict[str, float]:
        """`LocalizationState.compute` of the pixels."""
        return self.pixels.compute()

    @functools.cached_property
    def intervals(self) -> dict[str, Interval]:
        """95% bootstrap intervals over images."""
        return bootstrap.bootstrap_pixel_scores(self.pixels)


def _pooled(
    name: str, heading: str = "", note: str = "", *, interval: bool = True, **options: Any
) -> Score:
    """A score of all pixels of all images, pooled."""
    return Score(
        name,
        "masks",
        lambda found: found.pooled[name],
        heading,
        note,
        interval=(lambda found: found.intervals[name]) if interval else None,
        **options,
    )


def _of_images(
    name: str,
    score: bootstrap.ImageScore,
    way: str,
    heading: str = "",
    note: str = "",
    *,
    needs: str = "labels",
) -> Score:
    """A score of one number per image."""

    def function(found: ImageScores) -> float | None:
        return score(scores=getattr(found, way), labels=found.abnormal)

    def interval(found: ImageScores) -> Interval | None:
        return bootstrap.bootstrap_image_score(
            score, scores=getattr(found, way), labels=found.abnormal
        )

    return Score(name, needs, function, heading, note, interval=interval)


def _iou(found: Located) -> float | None:
    return None if found.threshold is None else found.pixels.iou(threshold=found.threshold)


def _false_alarm_rate(found: ImageScores) -> float | None:
    return None if found.false_alarms is None else found.false_alarms[0] / found.false_alarms[1]


def _false_alarm_interval(found: ImageScores) -> Interval | None:
    """Clopper and Pearson's exact interval of a share."""
    if found.false_alarms is None:
        return None
    from scipy import stats  # takes a second, which training saves

    ends = stats.binomtest(*found.false_alarms).proportion_ci(0.95, method="exact")
    return Interval(float(ends.low), float(ends.high))


# Of scores that an image has without a map, such as its likelihood.
IMAGE_SCORES = (
    _of_images("image_auroc", localization.image_auroc, "mass", "image AUROC (mass)"),
    _of_images("image_average_precision", localization.image_average_precision, "mass"),
    _of_images("image_best_f1_test", localization.image_best_f1, "mass"),
)

# Of maps; those with a heading are columns of the table of scores, in this order.
MAP_SCORES = (
    _pooled("pixel_auroc", "pixel AUROC", references=published.PIXEL_AUROC),
    _pooled(
        "best_iou_test",
        "best IoU*",
        "* at the threshold that is best on the test set, as in the paper; IoU takes the one that "
        f"at most {FALSE_ALARM_RATE:.0%} of normal images are expected to exceed on more than "
        f"{PIXEL_SHARE:.0%} of their pixels.",
        references=published.BEST_IOU,
    ),
    _pooled("best_f1_test", "best F1*"),
    Score("iou", "masks", _iou, heading="IoU"),
    _pooled("aupro", "AUPRO"),
    _pooled("average_precision", "pixel AP"),
    _pooled("best_threshold_test", interval=False),
    Score("pointing_game", "masks", lambda found: np.nanmean(found.hits)),
    Score(
        "share_missed",
        "masks",
        lambda found: localization.share_missed(np.array(found.hits)),
        "defect missed",
        "Defect missed: share of maps whose peak lies outside of the defect.",
        references=published.SHARE_MISSED,
    ),
    Score(
        "share_below_chance",
        "masks",
        lambda found: localization.share_below_chance(np.array(found.aurocs)),
        "maps < 0.5",
        "Maps < 0.5: share of maps whose own pixel AUROC is below chance.",
    ),
    *IMAGE_SCORES,
    _of_images(
        "image_auroc_max",
        localization.image_auroc,
        "peak",
        "image AUROC (max)",
        "Image AUROC: normal against abnormal, by the map's mean or its maximum "
        "(reconstruction_error: by the likelihood). In brackets: 95% bootstrap interval over "
        "images.",
    ),
    _of_images(
        "image_average_precision_max",
        localization.image_average_precision,
        "peak",
        "image AP (max)",
        "AP: average precision, which falls with the share of what is abnormal.",
    ),
    _of_images(
        "image_best_f1_max_test", localization.image_best_f1, "peak", "image best F1* (max)"
    ),
    Score(
        "false_alarm_rate",
        "labels",
        _false_alarm_rate,
        "false alarms",
        f"False alarms: share of normal test images over the threshold that at most "
        f"{FALSE_ALARM_RATE:.0%} of normal images are expected to exceed.",
        interval=_false_alarm_interval,
    ),
    _of_images(
        "frame_auroc_smoothed",
        localization.image_auroc,
        "peak",
        "frame AUROC (max, smoothed)",
        "Smoothed: scores of frames over time (evaluate.smooth_frames).",
        needs=CLIPS,
    ),
    _of_images(
        "frame_average_precision_smoothed",
        localization.image_average_precision,
        "peak",
        "frame AP (max, smoothed)",
        needs=CLIPS,
    ),
    # No record meets this need: the experiment adds the value, which `evaluate.select` measured
    # before the test set was opened, and the row gives it a column.
    Score(
        "drawn_average_precision",
        SELECTION,
        lambda found: found,
        heading="AP, drawn",
        note="AP, drawn: of pixels of anomalies drawn on held-out normal images.",
    ),
)
