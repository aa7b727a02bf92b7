"""Calibration and fusion by their formulas."""

import numpy as np
import pytest

from vae_attn.experiments.anomaly import thresholds
from vae_attn.experiments.anomaly.calibration import (
    KINDS,
    Calibration,
    MapStatistics,
    Variant,
    active_latents,
    normal_thresholds,
    unseen,
)
from vae_attn.experiments.anomaly.thresholds import Threshold

RNG = np.random.default_rng(0)
NORMAL = RNG.gamma(2.0, size=(30, 4, 5)).astype(np.float32) * np.linspace(0, 3, 5, dtype=np.float32)
MAPS = RNG.gamma(2.0, size=(3, 4, 5)).astype(np.float32)


def test_statistics_of_chunks_are_those_of_all():
    found = MapStatistics.measure([NORMAL[:7], NORMAL[7:8], NORMAL[8:]])
    np.testing.assert_allclose(found.mean, NORMAL.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.std, NORMAL.std(axis=0), rtol=1e-4, atol=1e-6)


def test_kinds_by_their_formulas():
    statistics = MapStatistics.measure([NORMAL])
    mean, std = NORMAL.mean(axis=0), NORMAL.std(axis=0)
    scale = mean.mean()
    expected = {
        "none": MAPS / scale,
        "ratio": MAPS / (mean + 0.1 * scale),
        "upper": MAPS / (mean + 2 * std + 0.1 * scale),
        "z": (MAPS - mean) / (std + 0.1 * scale),
    }
    assert expected.keys() == set(KINDS)
    for kind, maps in expected.items():
        np.testing.assert_allclose(statistics.calibrate(MAPS, kind), maps, rtol=1e-4)


def test_all_zero_maps_stay_finite():
    statistics = MapStatistics.measure([np.zeros((2, 4, 5), np.float32)])
    assert np.isfinite(statistics.calibrate(MAPS, "none")).all()


@pytest.mark.parametrize("kind", KINDS)
def test_fusion_does_not_depend_on_a_layers_scale(kind):
    """A layer whose maps are all ten times as large has the same say."""
    raw = {("paper", "a"): MAPS, ("paper", "b"): MAPS[::-1].copy()}
    normal = {("paper", "a"): NORMAL, ("paper", "b"): NORMAL[:, ::-1].copy()}
    variant = Variant("paper", ("a", "b"), kind)

    def fused(factor):
        statistics = {
            key: MapStatistics.measure([maps * (factor if key[1] == "b" else 1)])
            for key, maps in normal.items()
        }
        return variant.maps(raw | {("paper", "b"): raw["paper", "b"] * factor}, statistics)

    np.testing.assert_allclose(fused(np.float32(10)), fused(np.float32(1)), rtol=1e-4, atol=1e-5)


def test_calibration_is_kept_with_what_it_belongs_to(tmp_path):
    kept = Calibration(
        parameters="0123abcd",
        variant=Variant("paper", ("a", "b"), "ratio"),
        projection_steps=7,
        normal_mean=RNG.normal(size=3).astype(np.float32),
        normal_variance=RNG.gamma(2.0, size=3).astype(np.float32),
        statistics={("paper", layer): MapStatistics.measure([NORMAL]) for layer in "ab"},
        pixels=Threshold(1.25, 0.01, 30, 0.005, 0.02),
        images=thresholds.of_images(np.ones(7)),
        active_latents=2,
    )
    path = tmp_path / "calibration.npz"
    assert Calibration.load(path) is None
    kept.save(path)
    found = Calibration.load(path)
    assert found.variant == kept.variant
    assert (found.parameters, found.projection_steps) == ("0123abcd", 7)
    np.testing.assert_array_equal(found.normal_mean, kept.normal_mean)
    np.testing.assert_array_equal(found.normal_variance, kept.normal_variance)
    assert (found.threshold, found.image_threshold) == (1.25, None)
    assert found.pixels == kept.pixels
    assert (found.images.images, found.images.missing) == (7, kept.images.missing)
    assert found.active_latents == 2
    assert found.statistics.keys() == kept.statistics.keys()
    np.testing.assert_array_equal(
        found.statistics["paper", "a"].std, kept.statistics["paper", "a"].std
    )
    path.write_bytes(path.read_bytes()[:100])  # half a file is none
    assert Calibration.load(path) is None


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_judges_itself(kind):
    raw = {("paper", "a"): NORMAL, ("paper", "b"): NORMAL[:, ::-1].copy()}
    variant = Variant("paper", ("a", "b"), kind)
    found = unseen(variant, raw)
    for n in range(len(NORMAL)):
        others = {key: MapStatistics.measure([np.delete(of, n, axis=0)]) for key, of in raw.items()}
        expected = variant.maps({key: of[n : n + 1] for key, of in raw.items()}, others)[0]
        np.testing.assert_allclose(found[n], expected, rtol=1e-4, atol=1e-5)
    pixels, images = normal_thresholds(variant, raw)
    assert images.value == np.sort(found.max((1, 2)))[29]  # the ceil(31 * 0.95)th of 30
    assert np.mean(found >= pixels.value) <= 0.01


def test_maps_that_are_the_same_everywhere_decide_nothing():
    raw = {("paper", "a"): np.full((30, 4, 5), 1e-5, np.float32)}
    for found in normal_thresholds(Variant("paper", ("a",)), raw):
        assert found.value is None
        assert "are the same everywhere" in found.missing


def test_active_latents_have_a_kl():
    mean = np.zeros((10, 4), np.float32)
    mean[:, 1], mean[0, 2] = 1.0, 0.1  # 0.5 nats; 0.0005 on average
    logvar = np.zeros((10, 4), np.float32)
    logvar[:, 3] = -2.0
    assert active_latents(mean, logvar) == 2


def test_names():
    assert Variant("paper", ("conv1",)).name == "paper/conv1"
    assert Variant("contrast", ("a", "b"), "ratio").name == "contrast/fused.ratio"
    assert Variant("contrast", ("a",), "z").name == "contrast/a.z"
