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
ALLOWED = 1  # of 144 pixels; two are more than 1%


def maps_of(rng, count, spread):
    """Maps of images whose scales have this deviation of their logarithms."""
    whole = rng.lognormal(0.0, spread, size=(count, 1, 1))
    return (whole * rng.gamma(2.0, size=(count, SIDE, SIDE)) * PLACES).astype(np.float32)


def alarms(kind, count, repetitions, spread):
    """Whether a new image is called abnormal, by its score and by its pixels."""
    rng = np.random.default_rng(count)
    variant = Variant(*KEY[:1], KEY[1:], kind)
    flagged, by_pixels = [], []
    for _ in range(repetitions):
        normal = {KEY: maps_of(rng, count, spread)}
        pixels, images = normal_thresholds(variant, normal)
        statistics = {KEY: MapStatistics.measure([normal[KEY]])}
        new = variant.maps({KEY: maps_of(rng, 1, spread)}, statistics)  # one each: independent
        if images.value is not None:
            flagged.append(image_score(new)[0] > images.value)
        if pixels.value is not None:
            by_pixels.append((new >= pixels.value).sum() > ALLOWED)
    return flagged, by_pixels


@pytest.mark.parametrize(
    ("kind", "spread"), [("none", 1.5), ("upper", 1.5), ("z", 1.5), ("upper", 0.3)]
)
@pytest.mark.parametrize("count", [3, 5, 8, 12, 20, 40, 200])
def test_promised_rates_hold_on_new_images(kind, count, spread):
    repetitions = 60 if count == 200 else 250 if count >= 19 else 3
    found = alarms(kind, count, repetitions, spread)
    if count < 19:
        assert found == ([], [])
        return
    # In the binomial interval of the promised rate, which n images meet to 1 / (n + 1).
    expected = (count + 1 - np.ceil((count + 1) * 0.95 - 1e-9)) / (count + 1)
    low, high = scipy.stats.binom.interval(0.999, repetitions, expected)
    for raised in found:
        assert len(raised) == repetitions
        assert low <= sum(raised) <= high


@pytest.mark.parametrize("spread", [0.3, 1.5])
@pytest.mark.parametrize("count", [20, 40, 200])
def test_intervals_cover_the_rate_of_pixels(count, spread):
    """Each set of images has a rate of its own, which its interval holds 95 times of 100."""
    rng = np.random.default_rng(count)
    levels = np.sort(maps_of(rng, 4000, spread).reshape(4000, -1), axis=1)[:, -1 - ALLOWED]
    repetitions, covered = 100, 0
    for _ in range(repetitions):
        found = thresholds.of_pixels(maps_of(rng, count, spread))
        covered += found.low <= (levels >= found.value).mean() <= found.high
    assert covered >= scipy.stats.binom.interval(0.999, repetitions, 0.95)[0]


@pytest.mark.parametrize(("count", "low", "high"), [(19, 0.0013, 0.1765), (37, 0.0007, 0.0949)])
def test_interval_of_the_rate_of_images(count, low, high):
    """Of the highest of n scores, 1 - rate has the distribution of the highest of n uniforms."""
    found = thresholds.of_images(np.arange(count, dtype=np.float32))
    assert found.value == count - 1
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert found.low == pytest.approx(1 - 0.975 ** (1 / count))
    assert found.high == pytest.approx(1 - 0.025 ** (1 / count))
    text = found.described()
    assert f"from {count} held-out normal images" in text
    assert "at most 5% of normal images" in text


def test_order_statistic_of_many_images():
    scores = np.random.default_rng(0).permutation(200).astype(np.float32)
    found = thresholds.of_images(scores)
    assert found.value == 190  # the 191st: ceil(201 * 0.95)
    assert (found.low, found.high) == pytest.approx(scipy.stats.beta.interval(0.95, 10, 191))


@pytest.mark.parametrize("count", [0, 1, 12, 18])
def test_too_few_images_say_how_many_are_needed(count):
    found = thresholds.of_images(np.ones(count, np.float32))
    of_pixels = thresholds.of_pixels(np.ones((count, 3, 3), np.float32))
    assert found.value is of_pixels.value is None
    images = "image" if count == 1 else "images"
    assert found.missing == (
        f"{count} held-out normal {images} cannot carry a false-alarm rate of 5% of images: at "
        "least 19 are needed, from more normal images or a larger data.validation_fraction"
    )
    assert found.described() == found.missing == of_pixels.missing


def test_threshold_of_pixels_from_its_definition():
    """The lowest that 19 of 20 images reach on at most one pixel in a hundred."""
    maps = np.random.default_rng(1).lognormal(0, 2, (20, 20, 30)).astype(np.float32)
    found = thresholds.of_pixels(maps)

    def held(threshold):
        return sum((one >= threshold).mean() <= 0.01 for one in maps)

    # All 20, as ceil(21 * 0.95) are; a threshold below, by more than a bin of the scores, is
    # exceeded by one.
    assert held(found.value) == 20
    assert held(found.value * 0.996) < 20
    assert (found.share, found.rate, found.images) == (0.01, 0.05, 20)
    of_images = thresholds.of_images(maps.max(axis=(1, 2)))
    assert (found.low, found.high) == (of_images.low, of_images.high)
    assert (
        "at most 5% of normal images are expected to exceed on more than 1% of" in found.described()
    )


def test_pixels_of_maps_that_are_all_the_same():
    found = thresholds.of_pixels(np.full((19, 4, 4), 2.0, np.float32))
    assert 2.0 < found.value < 2.02


def test_a_caveat_is_told():
    raw = {KEY: maps_of(np.random.default_rng(0), 20, 0.3)}
    for found in normal_thresholds(Variant(*KEY[:1], KEY[1:]), raw, caveat="frames of 7 clips"):
        assert found.described().endswith("; frames of 7 clips)")
