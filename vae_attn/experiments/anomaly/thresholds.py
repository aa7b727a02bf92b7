"""Thresholds from held-out normal images, with what their number allows to promise.

Scores and maps come in as each image gets them from a calibration by the others (leave-one-out,
`calibration.unseen`), so that no image judges itself. Images are exchangeable and pixels of one
image are not; both thresholds therefore count images.
"""

import dataclasses
import math

import numpy as np
import scipy.stats
from jaxtyping import Float, Float32

from vae_attn.experiments.anomaly import score_histogram

# The share of the pixels of normal images, and of normal images, that may be called abnormal.
FALSE_POSITIVE_RATE = 0.01
IMAGE_FALSE_POSITIVE_RATE = 0.05

# With fewer images the rate of pixels, in simulations, was wrong by half and more.
FEWEST_FOR_PIXELS = 5

_CONFIDENCE = 0.95
_CANDIDATES = 100


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A threshold and the false-alarm rate that it promises, or why there is none.

    Attributes:
      value: what is at least this high counts as abnormal (of an image's score: what exceeds it);
        None where there is no threshold.
      rate: promised at most.
      images: held-out normal images that gave it.
      low: of the 95% interval of the rate that these images leave open.
      high: of the same.
      missing: why there is no threshold, in a sentence without its full stop.
    """

    value: float | None
    rate: float = math.nan
    images: int = 0
    low: float = math.nan
    high: float = math.nan
    missing: str = ""

    def told(self, what: str) -> str:
        """The promise in a sentence without its full stop, such as for a log line.

        Args:
          what: is counted, such as "normal images".
        """
        if self.value is None:
            return self.missing
        return (
            f"{self.value:.3g}, which at most {self.rate:.0%} of {what} are expected to exceed "
            f"(from {self.images} held-out normal images; 95% interval of the rate "
            f"{_percent(self.low)} to {_percent(self.high)})"
        )


def none(missing: str, *, rate: float, images: int) -> Threshold:
    """No threshold, and why."""
    return Threshold(None, rate=rate, images=images, missing=missing)


def fewest_for_images(rate: float = IMAGE_FALSE_POSITIVE_RATE) -> int:
    """How many normal images can carry a rate: 1 / (n + 1) must not be more."""
    return math.ceil(1 / rate - 1 - 1e-9)


def of_images(
    scores: Float[np.ndarray, "n"], *, rate: float = IMAGE_FALSE_POSITIVE_RATE
) -> Threshold:
    """The threshold that the score of a further normal image exceeds with at most this probability.

    It is the ceil((n + 1) (1 - rate))-th lowest of n scores (conformal prediction; with scores
    from leave-one-out the jackknife, Barber et al. 2021).

    Args:
      scores: of held-out normal images, each calibrated by the others.
      rate: of false alarms.

    Returns:
      The threshold. Its interval is that of the rate's Beta(n + 1 - k, k) distribution over sets of
      n images. There is none from fewer than `fewest_for_images`.
    """
    n, fewest = len(scores), fewest_for_images(rate)
    if n < fewest:
        return none(_too_few(n, rate, fewest, "images"), rate=rate, images=n)
    k = math.ceil((n + 1) * (1 - rate) - 1e-9)
    low, high = _interval(float(n + 1 - k), float(k))
    value = float(np.sort(scores)[k - 1])
    return Threshold(value, rate=rate, images=n, low=low, high=high)


def of_pixels(
    maps: Float32[np.ndarray, "n height width"], *, rate: float = FALSE_POSITIVE_RATE
) -> Threshold:
    """The threshold that at most this share of the pixels of a further normal image reaches.

    The pixels of an image go up and down together, so that a quantile of all pixels of few images
    promises too much. Of the quantiles of all pixels it is therefore the lowest for which, chosen
    in the same way on all images but one, the share of the pixels of that one is on average at
    most the rate.

    Args:
      maps: of held-out normal images, each calibrated by the others.
      rate: share of pixels.

    Returns:
      The threshold, on an edge of the bins of `score_histogram`. Its interval is that of a Beta
      distribution whose sample size is as many independent pixels as vary as these images do. There
      is none from fewer than `FEWEST_FOR_PIXELS`, or where even the maximum does not hold the rate.
    """
    n = len(maps)
    if n < FEWEST_FOR_PIXELS:
        return none(_too_few(n, rate, FEWEST_FOR_PIXELS, "pixels"), rate=rate, images=n)
    candidates, shares = _shares_above(maps.reshape(n, -1), rate)
    totals = shares.sum(axis=0)
    of_others = (totals - shares) / (n - 1)  # descending along the candidates
    expected = np.array(
        [
            shares[np.arange(n), np.argmax(of_others <= level + 1e-12, axis=1)].mean()
            for level in totals / n
        ]
    )
    kept = np.flatnonzero((expected <= rate) & (totals / n <= rate))
    if not len(kept):
        missing = (
            f"{n} held-out normal images differ too much to carry a false-alarm rate of "
            f"{rate:.0%} of pixels: more are needed"
        )
        return none(missing, rate=rate, images=n)
    chosen = kept[0]
    value = score_histogram.lower_edge(score_histogram.bin_of(float(candidates[chosen])) + 1)
    variance = float(shares[:, chosen].var(ddof=1)) / n
    pixels = maps[0].size * n
    sample = min(rate * (1 - rate) / variance, pixels) if variance > 0 else pixels
    low, high = _interval(rate * sample, (1 - rate) * sample)
    return Threshold(value, rate=rate, images=n, low=low, high=high)


def _shares_above(
    pixels: Float32[np.ndarray, "n pixels"], rate: float
) -> tuple[Float32[np.ndarray, "candidates"], Float[np.ndarray, "n candidates"]]:
    """Ascending candidates, the last the maximum, and which share of each image exceeds them.

    They reach below the rate's quantile of all pixels: to that of all images but any one.
    """
    n, count = len(pixels), pixels.size
    shares = [np.geomspace(rate / 100, rate, _CANDIDATES), np.linspace(rate, rate + 1 / n, 30)]
    above = np.unique(np.floor(np.concatenate([[0.0], *shares]) * count))
    most = min(int(above[-1]) + 1, count)
    top = np.sort(np.partition(pixels.ravel(), count - most)[count - most :])
    candidates = top[most - 1 - above[::-1].astype(int)]
    image, column = np.nonzero(pixels > candidates[0])
    exceeded = np.searchsorted(candidates, pixels[image, column], side="left")
    bins = len(candidates) + 1
    counts = np.bincount(image * bins + exceeded, minlength=n * bins).reshape(n, bins)
    reached = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1][:, 1:]
    return candidates, reached / pixels.shape[1]


def _interval(a: float, b: float) -> tuple[float, float]:
    low, high = scipy.stats.beta.interval(_CONFIDENCE, a, b)
    return float(low), float(high)


def _too_few(n: int, rate: float, fewest: int, what: str) -> str:
    images = "image" if n == 1 else "images"
    return (
        f"{n} held-out normal {images} cannot carry a false-alarm rate of {rate:.0%} of {what}: at "
        f"least {fewest} are needed, from more normal images or a larger data.validation_fraction"
    )


def _percent(share: float) -> str:
    """In percent, with two digits."""
    return f"{100 * share:.2g}%"
