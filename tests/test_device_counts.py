"""Counting on a device gives the counts that numpy gives on the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from vae_attn import backend
from vae_attn.errors import UserError
from vae_attn.experiments.anomaly import calibration, collected, device_counts, localization
from vae_attn.experiments.anomaly.calibration import Variant
from vae_attn.experiments.anomaly.collected import Collected, Masks
from vae_attn.experiments.anomaly.device_counts import DeviceCounts
from vae_attn.experiments.anomaly.pixel_counts import Regions
from vae_attn.experiments.anomaly.scores import Located
from vae_attn.experiments.anomaly.thresholds import Threshold

RNG = np.random.default_rng(7)


@pytest.fixture(scope="module")
def images():
    """Smooth, constant and tied maps of both signs; masks of no, some and all pixels."""
    maps = RNG.normal(size=(9, 20, 22)) * 10.0 ** RNG.integers(-3, 3, (9, 20, 22))
    maps[1] = 0.25
    maps[2] = np.round(maps[2])
    maps[2, :5] = -0.0
    maps[3] = -np.abs(maps[3])
    masks = np.zeros(maps.shape, bool)
    masks[1:, 3:7, 4:9] = True
    masks[3:, 12:14, 2:4] = masks[3:, 14, 4] = True  # joined at a corner
    masks[4] = True
    return maps.astype(np.float32), masks


def on_device(maps, masks, parts):
    counts = DeviceCounts()
    for part in parts:
        counts.add(jnp.asarray(maps[part]), masks[part], Regions.of(masks[part]))
    return Located(threshold=0.5).add_counted(*counts.fetch())


def assert_same(found, expected):
    """Integers are the same; sums of regions' weights are, up to rounding."""
    for one, other in (
        (found.pixels, expected.pixels),
        *zip(found.pixels.images, expected.pixels.images, strict=True),
    ):
        for name, value in vars(other).items():
            if name == "images":
                continue
            exact = name != "region_overlap"
            compare = (
                np.testing.assert_array_equal
                if exact
                else functools.partial(np.testing.assert_allclose, rtol=1e-12)
            )
            compare(getattr(one, name), value, err_msg=name)
    np.testing.assert_array_equal(found.hits, expected.hits)
    np.testing.assert_array_equal(found.aurocs, expected.aurocs)


@pytest.mark.parametrize("parts", [[slice(0, 9)], [slice(0, 4), slice(4, 4), slice(4, 9)]])
def test_counts_are_those_of_numpy(images, parts):
    maps, masks = images
    assert_same(on_device(maps, masks, parts), Located(threshold=0.5).add(maps, masks))


def test_an_images_bins_are_widened_as_on_the_host(images):
    maps, masks = images
    shifts = [one.shift for one in on_device(maps, masks, [slice(0, 9)]).pixels.images]
    assert shifts[0] > 0 == shifts[1]


def test_aurocs_are_those_of_scikit_learn(images):
    maps, masks = images
    found = on_device(maps, masks, [slice(0, 9)]).aurocs
    for n in (1, 2, 3, 5, 8):
        expected = sklearn.metrics.roc_auc_score(masks[n].ravel(), maps[n].ravel())
        assert found[n] == pytest.approx(expected, abs=1e-12)
    assert np.isnan([found[0], found[4]]).all()


def test_pairs_of_large_images_do_not_overflow():
    """Half of 400 x 400 pixels anomalous: 1.3e10 pairs, more than 32 bits hold."""
    maps = RNG.permutation(400 * 400).reshape(1, 400, 400).astype(np.float32)
    masks = maps >= 80_000
    assert on_device(maps, masks, [slice(0, 1)]).aurocs == (1.0,)
    maps = np.minimum(maps, 80_000)  # all anomalous ones tie
    assert_same(on_device(maps, masks, [slice(0, 1)]), Located(threshold=0.5).add(maps, masks))


def test_pooled_counts_are_fetched_before_they_overflow(images, monkeypatch):
    maps, masks = images
    monkeypatch.setattr(device_counts, "_POOLED_PIXELS", 4 * maps[0].size)
    parts = [slice(n, n + 2) for n in range(0, 9, 2)]
    assert_same(on_device(maps, masks, parts), Located(threshold=0.5).add(maps, masks))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_without_an_order_are_refused(images, bad):
    maps, masks = images[0].copy(), images[1]
    maps[2, 3, 4] = bad
    with pytest.raises(UserError, match="scores: 1 of 3960 values are NaN or infinite"):
        on_device(maps, masks, [slice(0, 9)])


def test_minus_zero_ties_with_zero_at_the_top():
    maps = np.full((1, 2, 2), -0.0, np.float32)
    maps[0, 0, 0] = 0.0
    masks = np.array([[[True, False], [False, False]]])
    assert on_device(maps, masks, [slice(0, 1)]).hits == (0.25,)


@pytest.mark.parametrize("add", [Collected.add_test, Collected.add_located])
def test_variants_are_counted_on_the_device_where_that_pays(images, monkeypatch, add):
    """All scores of two variants, images without a mask among them, with either way to count."""
    maps, masks = images
    known = np.ones(len(maps), bool)
    known[[0, 6]] = False
    raw = {("paper", "conv1"): maps, ("paper", "conv2"): maps[::-1].copy()}
    statistics = calibration.measure({key: np.abs(found) for key, found in raw.items()})
    variants = [Variant("paper", ("conv1",), "ratio"), Variant("paper", ("conv1", "conv2"))]
    threshold = Threshold(value=0.1, rate=0.01, images=9)
    scores = {}
    for device in (False, True):
        monkeypatch.setattr(backend, "counts_on_device", lambda device=device: device)
        found = {one: Collected(pixels=threshold, images=threshold) for one in variants}
        collected.add_to_each(found, add, raw, statistics, Masks(known, masks[known]))
        collected.add_to_each(found, add, raw, statistics, Masks(np.zeros(9, bool), None))
        for one in found.values():
            assert one.located.hits == () if device else len(one.located.hits) == 7
            one.finish()
            assert len(one.located.hits) == 7
        abnormal = np.arange(18) % 2 == 0 if add == Collected.add_test else np.zeros(0, bool)
        scores[device] = [one.scores(abnormal) for one in found.values()]
    for one, other in zip(scores[True], scores[False], strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key] == pytest.approx(other[key], rel=1e-5, nan_ok=True), key


def test_numpy_counts_on_the_cpu():
    assert jax.default_backend() == "cpu"
    assert not backend.counts_on_device()


def test_states_may_be_mixed(images):
    """Some images counted on a device, others (whose masks are larger) on the host."""
    maps, masks = images
    counts = DeviceCounts()
    counts.add(jnp.asarray(maps[:4]), masks[:4], Regions.of(masks[:4]))
    mixed = Located(threshold=None).add(maps[4:], masks[4:]).add_counted(*counts.fetch())
    whole = Located(threshold=None).add(maps, masks).pixels.compute()
    assert mixed.pixels.compute() == pytest.approx(whole, rel=1e-12)
    assert localization.share_missed(np.array(mixed.hits)) == pytest.approx(
        localization.share_missed(localization.pointing_game(scores=maps, masks=masks))
    )
