"""Thresholds keep their promise on new images, or say that too few images cannot."""

import numpy as np
import pytest
import scipy.stats

from vae_attn.experiments.anomaly import thresholds
from vae_attn.experiments.anomaly.calibration import (
    MapStatistics,
    Variant,
    image_score,
    normal_thresholds,
)

SIDE = 12
KEY = ("paper", "conv1")
# Places differ, and so do images as a whole: their pixels are no independent ones.
PLACES = np.linspace(0.2, 3.0, SIDE * SIDE).reshape(SIDE, SIDE)
NEW = 4  # further images for each calibration


def maps_of(rng, count):
    whole = rng.gamma(10.0, 0.1, size=(count, 1, 1))
    return (whole * rng.gamma(2.0, size=(count, SIDE, SIDE)) * PLACES).astype(np.float32)


def rates(kind, count, repetitions):
    """Of new images, the share called abnormal, and of their pixels; None where undecided."""
    rng = np.random.default_rng(count)
    variant = Variant(*KEY[:1], KEY[1:], kind)
    flagged, of_pixels, intervals = [], [], []
    for _ in range(repetitions):
        normal = {KEY: maps_of(rng, count)}
        pixels, images = normal_thresholds(variant, normal)
        maps = variant.maps({KEY: maps_of(rng, NEW)}, {KEY: MapStatistics.measure([normal[KEY]])})
        if images.value is not None:
            flagged.append(image_score(maps)[0] > images.value)  # one each: independent
        if pixels.value is not None:
            of_pixels.append(np.mean(maps >= pixels.value))
            intervals.append((pixels.low, pixels.high))
    return flagged, of_pixels, intervals


@pytest.mark.parametrize("kind", ["none", "upper", "z"])
@pytest.mark.parametrize("count", [3, 5, 8, 12, 20, 40, 200])
def test_promised_rates_hold_on_new_images(kind, count):
    repetitions = 80 if count == 200 else 300
    flagged, of_pixels, intervals = rates(kind, count, repetitions)
    if count < 19:
        assert not flagged
    else:
        # In the binomial interval of the promised rate, which n images meet to 1 / (n + 1).
        expected = (count + 1 - np.ceil((count + 1) * 0.95 - 1e-9)) / (count + 1)
        low, high = scipy.stats.binom.interval(0.999, len(flagged), expected)
        assert low <= sum(flagged) <= high
        assert len(flagged) == repetitions
    if count < 5:
        assert not of_pixels
        return
    # Where the images at hand differ too much, there is none either.
    assert len(of_pixels) >= (0.9 if count < 20 else 1) * repetitions
    error = np.std(of_pixels) / np.sqrt(repetitions)
    # With statistics of few images each, the threshold is rather too high than too low.
    assert 0.005 <= np.mean(of_pixels) <= 0.01 + 3.3 * error
    if kind == "none":
        assert np.mean(of_pixels) == pytest.approx(0.01, abs=3.3 * error + 5e-4)
    low, high = np.mean(intervals, axis=0)
    assert low <= np.mean(of_pixels) <= high


@pytest.mark.parametrize(("count", "low", "high"), [(19, 0.0013, 0.1765), (37, 0.0007, 0.0949)])
def test_interval_of_the_rate_of_images(count, low, high):
    """Of the highest of n scores, 1 - rate has the distribution of the highest of n uniforms."""
    found = thresholds.of_images(np.arange(count, dtype=np.float32))
    assert found.value == count - 1
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert found.low == pytest.approx(1 - 0.975 ** (1 / count))
    assert found.high == pytest.approx(1 - 0.025 ** (1 / count))
    told = found.told("normal images")
    assert f"from {count} held-out normal images" in told
    assert "at most 5% of normal images" in told


def test_order_statistic_of_many_images():
    scores = np.random.default_rng(0).permutation(200).astype(np.float32)
    found = thresholds.of_images(scores)
    assert found.value == 190  # the 191st: ceil(201 * 0.95)
    assert (found.low, found.high) == pytest.approx(scipy.stats.beta.interval(0.95, 10, 191))


@pytest.mark.parametrize("count", [0, 1, 12, 18])
def test_too_few_images_say_how_many_are_needed(count):
    found = thresholds.of_images(np.ones(count, np.float32))
    assert found.value is None
    images = "image" if count == 1 else "images"
    assert found.missing == (
        f"{count} held-out normal {images} cannot carry a false-alarm rate of 5% of images: at "
        "least 19 are needed, from more normal images or a larger data.validation_fraction"
    )
    assert found.told("normal images") == found.missing


def test_images_that_share_nothing_give_no_threshold_of_pixels():
    """Each image is far brighter than those before it: no threshold of the others holds."""
    maps = np.float32(10.0) ** np.arange(6, dtype=np.float32)[:, None, None] * np.ones(
        (6, 4, 4), np.float32
    )
    found = thresholds.of_pixels(maps)
    assert found.value is None
    assert "differ too much" in found.missing
