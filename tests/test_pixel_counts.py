"""Pixels counted for many images at once are those counted one image, one bin after another."""

import collections

import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics

from vae_attn.experiments.anomaly import pixel_counts
from vae_attn.experiments.anomaly.score_histogram import MAX_COARSE_BINS, bin_of

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def images():
    """Smooth, constant and tied maps of both signs; masks of no, some and all pixels."""
    scores = RNG.normal(size=(7, 20, 22)) * 10.0 ** RNG.integers(-3, 3, (7, 20, 22))
    scores[1] = 0.25
    scores[2] = np.round(scores[2])
    scores[2, :5] = -0.0
    masks = np.zeros(scores.shape, bool)
    masks[1:, 3:7, 4:9] = True
    masks[3:, 12:14, 2:4] = masks[3:, 14, 4] = True  # joined at a corner
    masks[4] = True
    return scores.astype(np.float32), masks


def one_by_one(scores, masks, shift=0):
    """Negatives, positives and overlap by image and bin, in dictionaries."""
    found = [collections.Counter() for _ in range(3)]
    for n, (image, mask) in enumerate(zip(scores, masks, strict=True)):
        regions, _ = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
        for place in np.ndindex(image.shape):
            key = (n, bin_of(float(image[place])) >> shift)
            if mask[place]:
                found[1][key] += 1
                found[2][key] += 1 / (regions == regions[place]).sum()
            else:
                found[0][key] += 1
    return found


def test_every_pixel_is_counted_in_its_bin(images):
    scores, masks = images
    counted = pixel_counts.count(scores=scores, masks=masks)
    negatives, positives, overlap = one_by_one(scores, masks)
    keys = sorted({*negatives, *positives})
    assert counted.bins.tolist() == [key[1] for key in keys]
    assert counted.negatives.tolist() == [negatives[key] for key in keys]
    assert counted.positives.tolist() == [positives[key] for key in keys]
    np.testing.assert_allclose(counted.region_overlap, [overlap[key] for key in keys], rtol=1e-12)


def test_each_image_has_the_narrowest_bins_that_are_few_enough(images):
    scores, masks = images
    counted = pixel_counts.count(scores=scores, masks=masks)
    assert [one.num_regions for one in counted.images] == [0, 1, 1, 2, 1, 2, 2]
    assert counted.images[0].shift > 0 == counted.images[1].shift
    for n, image in enumerate(counted.images):
        for shift in range(image.shift + 1):
            found = one_by_one(scores[n : n + 1], masks[n : n + 1], shift)
            occupied = sorted(key[1] for key in {*found[0], *found[1]})
            assert (len(occupied) <= MAX_COARSE_BINS) == (shift == image.shift)
        assert image.bins.tolist() == occupied
        for name, of in zip(("negatives", "positives", "region_overlap"), found, strict=True):
            expected = [of[0, one] for one in occupied]
            np.testing.assert_allclose(getattr(image, name), expected, rtol=1e-12)


def test_aurocs_are_scikit_learns(images):
    scores, masks = images
    aurocs = pixel_counts.count(scores=scores, masks=masks).aurocs
    assert np.isnan(aurocs).tolist() == [True, False, False, False, True, False, False]
    assert aurocs[1] == 0.5
    for n in (2, 3, 5, 6):
        expected = sklearn.metrics.roc_auc_score(masks[n].ravel(), scores[n].ravel())
        assert aurocs[n] == pytest.approx(expected, abs=1e-12)


def test_regions_serve_the_maps_of_all_variants(images):
    scores, masks = images
    regions = pixel_counts.Regions.of(masks)
    for maps in (scores, -scores):
        alone, shared = (
            pixel_counts.count(scores=maps, masks=masks, regions=one) for one in (None, regions)
        )
        np.testing.assert_array_equal(alone.region_overlap, shared.region_overlap)
        assert shared.region_overlap.sum() == pytest.approx(regions.counts.sum())


def test_no_image_counts_nothing():
    none = np.zeros((0, 4, 4))
    counted = pixel_counts.count(scores=none.astype(np.float32), masks=none.astype(bool))
    assert not len(counted.bins)
    assert counted.images == ()
