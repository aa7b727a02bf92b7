"""Thresholds from held-out normal images, with what their number allows to promise.

Scores and maps come in as each image gets them from a calibration by the others (leave-one-out,
`calibration.unseen`), so that no image judges itself. Images are exchangeable and pixels of one
image are not; both thresholds therefore count images.
"""

import dataclasses
import math

import numpy as np
import scipy.special  # and not scipy.stats, which takes a second to import
from jaxtyping import Float, Float32

from vae_attn.experiments.anomaly import score_histogram

# The share of normal images that may be called abnormal: by their score, or by more of their pixels
# than this share.
FALSE_ALARM_RATE = 0.05
PIXEL_SHARE = 0.01

_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A threshold and the false-alarm rate that it promises, or why there is none.

    Attributes:
      value: what is at least this high counts as abnormal (of an image's score: what exceeds it);
        None where there is no threshold.
      rate: promised at most: the share of normal images that it calls abnormal.
      images: held-out normal images that gave it.
      low: of the 95% interval of the rate that these images leave open.
      high: of the same.
      share: of a threshold of pixels, which share of an image's may reach it; more of them are a
        false alarm. 0 for the threshold of scores.
      missing: why there is no threshold, in a sentence without its full stop.
      caveat: what makes the promise doubtful, in the same form; "" for nothing.
    """

    value: float | None
    rate: float = math.nan
    images: int = 0
    low: float = math.nan
    high: float = math.nan
    share: float = 0.0
    missing: str = ""
    caveat: str = ""

    @property
    def promise(self) -> str:
        """What is expected of further normal images."""
        where = f" on more than {self.share:.0%} of their pixels" if self.share else ""
        return f"which at most {self.rate:.0%} of normal images are expected to exceed{where}"

    def described(self) -> str:
        """The promise in a sentence without its full stop, such as for a log line."""
        if self.value is None:
            return self.missing
        doubt = f"; {self.caveat}" if self.caveat else ""
        return (
            f"{self.value:.3g}, {self.promise} (from {self.images} held-out normal images; 95% "
            f"interval of the rate {_percent(self.low)} to {_percent(self.high)}{doubt})"
        )


def none(missing: str, *, images: int, share: float = 0.0) -> Threshold:
    """No threshold, and why."""
    return Threshold(None, FALSE_ALARM_RATE, images, share=share, missing=missing)


def fewest(rate: float = FALSE_ALARM_RATE) -> int:
    """How many normal images can carry a rate: 1 / (n + 1) must not be more."""
    return math.ceil(1 / rate - 1 - 1e-9)


def of_images(scores: Float[np.ndarray, "n"], *, rate: float = FALSE_ALARM_RATE) -> Threshold:
    """The threshold that the score of a further normal image exceeds with at most this probability.

    It is the ceil((n + 1) (1 - rate))-th lowest of n scores (conformal prediction; with scores
    from leave-one-out the jackknife, Barber et al. 2021), however the scores are distributed.

    Args:
      scores: of held-out normal images, each calibrated by the others.
      rate: of false alarms.

    Returns:
      The threshold. Its interval is that of the rate's Beta(n + 1 - k, k) distribution over sets of
      n images. There is none from fewer than `fewest`.
    """
    n = len(scores)
    if n < fewest(rate):
        return Threshold(None, rate, n, missing=_too_few(n, rate))
    k = math.ceil((n + 1) * (1 - rate) - 1e-9)
    low, high = _interval(float(n + 1 - k), float(k))
    return Threshold(float(np.sort(scores)[k - 1]), rate=rate, images=n, low=low, high=high)


def of_pixels(
    maps: Float32[np.ndarray, "n height width"],
    *,
    share: float = PIXEL_SHARE,
    rate: float = FALSE_ALARM_RATE,
) -> Threshold:
    """The threshold that more than a share of a further normal image's pixels seldom reaches.

    The pixels of an image go up and down together, so that a quantile of all pixels of few images
    promises too much. Here an image is one observation: of each it is the level that its share of
    pixels exceeds, and of those levels the threshold of `of_images`.

    Args:
      maps: of held-out normal images, each calibrated by the others.
      share: of an image's pixels that may reach the threshold.
      rate: of normal images of which more do.

    Returns:
      The threshold, on an edge of the bins of `score_histogram`, with the interval of `of_images`
      and on the same condition.
    """
    pixels = maps.reshape(len(maps), maps.shape[1] * maps.shape[2])
    place = pixels.shape[1] - 1 - math.floor(share * pixels.shape[1] + 1e-9)
    # A threshold just above this pixel is reached by the share, and one at it by more.
    found = of_images(np.partition(pixels, place, axis=1)[:, place], rate=rate)
    if found.value is None:
        return dataclasses.replace(found, share=share)
    above = score_histogram.lower_edge(score_histogram.bin_of(found.value) + 1)
    return dataclasses.replace(found, value=above, share=share)


def _interval(a: float, b: float) -> tuple[float, float]:
    """The middle of a beta distribution."""
    tail = (1 - _CONFIDENCE) / 2
    low, high = scipy.special.betaincinv(a, b, [tail, 1 - tail])
    return float(low), float(high)


def _too_few(n: int, rate: float) -> str:
    images = "image" if n == 1 else "images"
    return (
        f"{n} held-out normal {images} cannot carry a false-alarm rate of {rate:.0%} of images: at "
        f"least {fewest(rate)} are needed, from more normal images or a larger "
        "data.validation_fraction"
    )


def _percent(share: float) -> str:
    """In percent, with two digits."""
    return f"{100 * share:.2g}%"
