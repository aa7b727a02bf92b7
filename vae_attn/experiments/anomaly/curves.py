"""Curves behind the scores, thinned for drawing: ROC of images, PRO of pixels, a histogram."""

import dataclasses
import json
import pathlib

import numpy as np
from jaxtyping import Bool, Float

from vae_attn import whole_files
from vae_attn.experiments.anomaly import localization

_MAX_POINTS = 200
_BINS = 40
_HISTOGRAM_QUANTILE = 0.99  # of the scores: what is above counts in the last bin


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve from left to right, of at most 200 points, and the area under the whole of it."""

    x: list[float]
    y: list[float]
    area: float


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Image scores of one variant: how many fall in each bin, the last one open above.

    Attributes:
      edges: of the bins.
      normal: normal images in each.
      abnormal: the others.
    """

    edges: list[float]
    normal: list[int]
    abnormal: list[int]


@dataclasses.dataclass(frozen=True)
class Curves:
    """What is drawn of one run's scores.

    Attributes:
      num_images: that the image scores are of.
      num_located: images that the scores of places are of.
      roc: true against false positive rate of images, by `style/layer`.
      pro: per-region overlap against false positive rate of pixels, to its limit, the same way.
      histogram: of the run's own variant; None where there is no image.
    """

    num_images: int
    roc: dict[str, Curve]
    pro: dict[str, Curve]
    histogram: Histogram | None
    num_located: int = 0

    def save(self, path: pathlib.Path) -> None:
        """Writes them, whole or not at all, into a folder that is created if missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_files.writing(path) as temporary:
            temporary.write_text(
                json.dumps(dataclasses.asdict(self), allow_nan=False), encoding="utf-8"
            )

    @classmethod
    def load(cls, path: pathlib.Path) -> "Curves | None":
        """The curves in a file; None where there is none, or one that cannot be read."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                num_images=int(fields["num_images"]),
                roc={name: Curve(**curve) for name, curve in fields["roc"].items()},
                pro={name: Curve(**curve) for name, curve in fields["pro"].items()},
                histogram=fields["histogram"] and Histogram(**fields["histogram"]),
                num_located=int(fields["num_located"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def roc(*, scores: Float[np.ndarray, "n"], abnormal: Bool[np.ndarray, "n"]) -> Curve | None:
    """ROC curve of one score per image, higher being abnormal; None for images of one kind only."""
    area = localization.image_auroc(scores=scores, labels=abnormal)
    if area is None:
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of those that tie
    found, false = np.cumsum(abnormal[order])[last], np.cumsum(~abnormal[order])[last]
    return _curve(np.append(0, false / false[-1]), np.append(0, found / found[-1]), area)


def pro(located: localization.LocalizationState) -> Curve | None:
    """PRO curve, up to the limit of AUPRO, which is its area; None without anomalous pixels."""
    if not located.num_regions:
        return None
    x, y = located.pro_curve()
    return _curve(x, y, float(np.trapezoid(y, x) / x[-1]))


def histogram(
    *, scores: Float[np.ndarray, "n"], abnormal: Bool[np.ndarray, "n"]
) -> Histogram | None:
    """Histogram of one score per image; None without images."""
    if not len(scores):
        return None
    low, high = float(scores.min()), float(np.quantile(scores, _HISTOGRAM_QUANTILE))
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    clipped = np.minimum(scores, edges[-1])
    normal, others = (np.histogram(clipped[kind], edges)[0] for kind in (~abnormal, abnormal))
    return Histogram(edges.tolist(), normal.tolist(), others.tolist())


def _curve(x: np.ndarray, y: np.ndarray, area: float) -> Curve:
    """The curve with points evenly spread along it."""
    along = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    wanted = np.linspace(0, along[-1], _MAX_POINTS)
    kept = np.unique(np.append(np.searchsorted(along, wanted).clip(0, len(x) - 1), [0, len(x) - 1]))
    # np.unique may add one point to the 200.
    kept = kept if len(kept) <= _MAX_POINTS else np.delete(kept, 1)
    return Curve(np.round(x[kept], 5).tolist(), np.round(y[kept], 5).tolist(), area)
