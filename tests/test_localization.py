"""Localisation scores against scikit-learn and against their definitions, pixel by pixel."""

import itertools

import numpy as np
import pytest
from sklearn import metrics

from vae_attn.errors import UserError
from vae_attn.experiments.anomaly import localization, pixel_counts, score_histogram
from vae_attn.experiments.anomaly.localization import LocalizationState

SHAPE = (5, 12, 14)


def _masks(rng, shape=SHAPE):
    """Blocks and diagonal steps (one region only by 8-connectivity), one normal image."""
    masks = np.zeros(shape, bool)
    for mask in masks[1:]:
        top, left = rng.integers(0, 5, 2)
        mask[top : top + rng.integers(1, 5), left : left + rng.integers(1, 5)] = True
        mask[[8, 9, 10], [9, 10, 11]] = True
    return masks


def _ties(rng, masks):
    # No two multiples of 1/4 up to 16 share a bin, so nothing is lost.
    return (np.round(rng.normal(masks * 1.5, 2.0) * 4) / 4).clip(-8, 8).astype(np.float32)


SCORES = {
    "ties": _ties,
    "negative": lambda rng, masks: _ties(rng, masks) - np.float32(8),
    "constant": lambda rng, masks: np.full(masks.shape, -0.75, np.float32),
    "continuous": lambda rng, masks: rng.normal(masks * 1.0).astype(np.float32),
    "tiny_and_huge": lambda rng, masks: (
        np.float32(10) ** rng.uniform(-30, 30, masks.shape).astype(np.float32)
    ),
}


@pytest.fixture(params=SCORES)
def batch(request):
    rng = np.random.default_rng(7)
    masks = _masks(rng)
    return SCORES[request.param](rng, masks), masks


def _to_the_bin(scores):
    """Scores cut to 9 bits of mantissa, by arithmetic instead of by bits."""
    mantissa, exponent = np.frexp(scores.astype(np.float64))
    return np.ldexp(np.trunc(mantissa * 1024) / 1024, exponent)


def _state(scores, masks):
    return LocalizationState.empty().add(scores=scores, masks=masks)


def _regions(mask):
    """8-connected regions by flood fill, each a list of pixels."""
    todo, regions = set(zip(*np.nonzero(mask), strict=True)), []
    while todo:
        region, border = [], [todo.pop()]
        while border:
            row, column = border.pop()
            region.append((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & todo
            todo -= near
            border.extend(near)
        regions.append(region)
    return regions


def _aupro(scores, masks, limit=0.3):
    """Definition: at every threshold the mean share of each region found, over the FPR."""
    regions = [
        np.array([image[pixel] for pixel in region])
        for image, mask in zip(scores, masks, strict=True)
        for region in _regions(mask)
    ]
    points = [(0.0, 0.0)]
    for threshold in np.unique(scores)[::-1]:
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        points.append((np.mean(scores[~masks] >= threshold), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            at_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + at_end) / 2
    return area / limit


def _best_iou(scores, masks):
    return max(
        (metrics.jaccard_score(masks.ravel(), (scores >= threshold).ravel()), threshold)
        for threshold in np.unique(scores)
    )


def test_pixel_scores_agree_with_scikit_learn_to_the_bin(batch):
    scores, masks = batch
    result = _state(scores, masks).compute()
    binned = _to_the_bin(scores)
    flat = masks.ravel(), binned.ravel()
    assert result["pixel_auroc"] == pytest.approx(metrics.roc_auc_score(*flat), abs=1e-12)
    assert result["average_precision"] == pytest.approx(
        metrics.average_precision_score(*flat), abs=1e-12
    )
    assert result["aupro"] == pytest.approx(_aupro(binned, masks), abs=1e-12)
    iou, threshold = _best_iou(binned, masks)
    assert result["best_iou_test"] == pytest.approx(iou, abs=1e-12)
    f1 = metrics.f1_score(masks.ravel(), (binned >= threshold).ravel())
    assert result["best_f1_test"] == pytest.approx(f1, abs=1e-12)
    np.testing.assert_array_equal(scores >= result["best_threshold_test"], binned >= threshold)


def test_bins_cost_little_on_continuous_scores():
    rng = np.random.default_rng(3)
    masks = _masks(rng)
    scores = SCORES["continuous"](rng, masks)
    result = _state(scores, masks).compute()
    exact = metrics.roc_auc_score(masks.ravel(), scores.ravel())
    assert result["pixel_auroc"] == pytest.approx(exact, abs=1e-3)
    assert result["aupro"] == pytest.approx(_aupro(scores, masks), abs=1e-2)


def test_aupro_weighs_a_small_region_as_a_large_one():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, :4, :4] = True
    masks[0, 7, 7] = True
    scores = np.zeros((1, 8, 8), np.float32)
    scores[0, :4, :4] = 1
    # The large region is found at FPR 0, the small one only with everything else.
    assert _state(scores, masks).compute()["aupro"] == pytest.approx(0.5 + 0.5 * 0.3 / 2)


def test_diagonal_neighbours_are_one_region():
    masks = np.eye(6, dtype=bool)[None]
    assert _state(np.zeros((1, 6, 6), np.float32), masks).num_regions == 1


def test_bins_are_monotone_and_span_every_finite_float():
    largest, smallest = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000) * 10.0 ** rng.integers(-37, 37, 1000)
    values = np.concatenate([[-largest, -1, -smallest, 0, smallest, 1, largest], values])
    ordered = np.sort(values.astype(np.float32))
    bins = score_histogram.bins_of(ordered).astype(np.int64)
    assert (np.diff(bins) >= 0).all()
    assert bins[0] >= 0
    assert bins[-1] < score_histogram.NUM_BINS
    for value, index in zip(ordered, bins, strict=True):
        edge = np.float32(score_histogram.lower_edge(int(index)))
        assert edge <= value
        assert score_histogram.bin_of(float(edge)) == index
        if edge > -largest:
            below = np.nextafter(edge, -largest)
            assert score_histogram.bin_of(float(below)) == index - 1
        assert abs(value - edge) <= abs(value) / 512 + 1e-38


def test_minus_zero_is_zero():
    zeros = np.array([0.0, -0.0], np.float32)
    assert len(set(score_histogram.bins_of(zeros))) == 1


def test_iou_of_a_given_threshold(batch):
    scores, masks = batch
    state = _state(scores, masks)
    result = state.compute()
    assert state.iou(threshold=result["best_threshold_test"]) == result["best_iou_test"]
    for index in score_histogram.bins_of(np.unique(scores))[::40]:
        threshold = score_histogram.lower_edge(int(index))
        expected = metrics.jaccard_score(masks.ravel(), (scores >= threshold).ravel())
        assert state.iou(threshold=threshold) == pytest.approx(expected, abs=1e-12)
    assert state.iou(threshold=np.inf) == 0
    assert state.iou(threshold=-1e300) == pytest.approx(masks.mean())


def _same(one, other):
    np.testing.assert_array_equal(one.negatives, other.negatives)
    np.testing.assert_array_equal(one.positives, other.positives)
    np.testing.assert_allclose(one.region_overlap, other.region_overlap, rtol=1e-12)
    assert one.num_regions == other.num_regions
    assert one.compute() == pytest.approx(other.compute(), abs=1e-12)


def test_order_and_batches_of_images_do_not_matter(batch):
    scores, masks = batch
    order = [3, 0, 4, 2, 1]
    _same(_state(scores, masks), _state(scores[order], masks[order]))
    one_by_one = LocalizationState.empty()
    for i in order:
        one_by_one = one_by_one.add(scores=scores[i : i + 1], masks=masks[i : i + 1])
    _same(_state(scores, masks), one_by_one)


def test_add_leaves_the_old_state_as_it_was():
    masks = np.eye(4, dtype=bool)[None]
    scores = np.ones((1, 4, 4), np.float32)
    old = _state(scores, masks)
    old.add(scores=scores, masks=~masks)
    _same(old, _state(scores, masks))
    assert not LocalizationState.empty().negatives.any()


def test_images_of_several_sizes_in_one_state():
    rng = np.random.default_rng(1)
    parts = [(_ties(rng, m), m) for m in (_masks(rng, (3, 12, 14)), _masks(rng, (2, 16, 15)))]
    state = LocalizationState.empty()
    for scores, masks in parts:
        state = state.add(scores=scores, masks=masks)
    scores, masks = (np.concatenate([part[i].ravel() for part in parts]) for i in (0, 1))
    assert state.compute()["pixel_auroc"] == pytest.approx(metrics.roc_auc_score(masks, scores))


def test_an_image_keeps_at_most_256_bins_and_5_kilobytes():
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(1, 256, 256)) * 10.0 ** rng.integers(-30, 30, (1, 256, 256))
    masks = np.zeros(scores.shape, bool)
    masks[0, 20:90, 30:60] = True
    state = _state(scores.astype(np.float32), masks)
    (image,) = state.images
    assert 128 < len(image.bins) <= 256
    arrays = (image.bins, image.negatives, image.positives, image.region_overlap)
    assert sum(array.nbytes for array in arrays) <= 5_120
    assert image.shift > 0
    # Widening loses no pixel, and puts each in the bin that holds its fine bins.
    assert (image.negatives.sum(), image.positives.sum()) == ((~masks).sum(), masks.sum())
    assert image.region_overlap.sum() == pytest.approx(1)
    wide, counts = np.unique(
        score_histogram.bins_of(scores.astype(np.float32)[masks]) >> image.shift,
        return_counts=True,
    )
    np.testing.assert_array_equal(image.bins[image.positives > 0], wide)
    np.testing.assert_array_equal(image.positives[image.positives > 0], counts)


@pytest.mark.parametrize(("distinct", "widened"), [(256, False), (257, True)])
def test_bins_are_widened_only_where_they_must_be(distinct, widened):
    scores = np.resize(1 + np.arange(distinct) / 512, (1, 50, 50)).astype(np.float32)
    (image,) = _state(scores, np.zeros(scores.shape, bool)).images
    assert (image.shift > 0) == widened


def test_few_scores_keep_their_fine_bins():
    masks = np.eye(4, dtype=bool)[None]
    state = _state(np.where(masks, 1.0, -1.0).astype(np.float32), masks)
    (image,) = state.images
    assert image.shift == 0
    assert image.bins.tolist() == [score_histogram.bin_of(-1.0), score_histogram.bin_of(1.0)]


def test_per_image_auroc_is_exact_and_nan_where_undefined(batch):
    scores, masks = batch
    masks = masks.copy()
    masks[4] = True
    aurocs = pixel_counts.count(scores=scores, masks=masks).aurocs
    assert np.isnan(aurocs).tolist() == [True, False, False, False, True]
    for i in (1, 2, 3):
        expected = metrics.roc_auc_score(masks[i].ravel(), scores[i].ravel())
        assert aurocs[i] == pytest.approx(expected, abs=1e-12)


def test_share_below_chance_leaves_nans_out():
    assert localization.share_below_chance(np.array([0.2, np.nan, 0.5, 0.7])) == pytest.approx(
        1 / 3
    )
    assert np.isnan(localization.share_below_chance(np.array([np.nan])))


def test_pointing_game():
    masks = np.zeros((5, 2, 2), bool)
    masks[:4, 0, 0] = True
    scores = np.array(
        [[3, 1, 1, 2], [1, 1, 1, 2], [2, 2, 1, 2], [-1, -1, -1, -1], [1, 0, 0, 0]], np.float32
    ).reshape(5, 2, 2)
    hits = localization.pointing_game(scores=scores, masks=masks)
    np.testing.assert_allclose(hits, [1, 0, 1 / 3, 1 / 4, np.nan])


def test_image_auroc_agrees_with_scikit_learn():
    rng = np.random.default_rng(4)
    scores, labels = rng.integers(-3, 3, 60).astype(np.float64), rng.random(60) < 0.4
    assert localization.image_auroc(scores=scores, labels=labels) == pytest.approx(
        metrics.roc_auc_score(labels, scores)
    )
    assert localization.image_auroc(scores=scores, labels=np.ones(60, bool)) is None
    assert localization.image_auroc(scores=scores, labels=np.zeros(60, bool)) is None


def test_image_precision_and_f1_agree_with_scikit_learn():
    rng = np.random.default_rng(4)
    scores, labels = rng.integers(-3, 3, 60).astype(np.float64), rng.random(60) < 0.4
    found = localization.image_average_precision(scores=scores, labels=labels)
    assert found == pytest.approx(metrics.average_precision_score(labels, scores))
    best = max(metrics.f1_score(labels, scores >= threshold) for threshold in np.unique(scores))
    assert localization.image_best_f1(scores=scores, labels=labels) == pytest.approx(best)
    for function in (localization.image_average_precision, localization.image_best_f1):
        assert function(scores=scores, labels=np.ones(60, bool)) is None
        assert function(scores=scores, labels=np.zeros(60, bool)) is None
        with pytest.raises(UserError, match="NaN or infinite"):
            function(scores=np.full(60, np.nan), labels=labels)


def test_images_count_as_often_as_they_are_there():
    """By scikit-learn's sample weights, and as if they were repeated."""
    rng = np.random.default_rng(5)
    scores, labels = rng.integers(-3, 3, 60).astype(np.float32), rng.random(60) < 0.4
    counts = rng.poisson(1.0, 60)
    assert (counts == 0).any()
    weighted = {
        localization.image_auroc: metrics.roc_auc_score,
        localization.image_average_precision: metrics.average_precision_score,
    }
    for function in (*weighted, localization.image_best_f1):
        found = function(scores=scores, labels=labels, counts=counts)
        repeated = {"scores": np.repeat(scores, counts), "labels": np.repeat(labels, counts)}
        assert found == function(**repeated)
        if function in weighted:
            expected = weighted[function](labels, scores, sample_weight=counts)
            assert found == pytest.approx(expected, abs=1e-12)
        assert function(scores=scores, labels=labels, counts=counts * labels) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_without_an_order_are_refused(bad):
    masks = np.eye(4, dtype=bool)[None]
    scores = np.ones((1, 4, 4), np.float32)
    scores[0, 1, 2] = bad
    with pytest.raises(UserError, match="scores: 1 of 16 values are NaN or infinite"):
        LocalizationState.empty().add(scores=scores, masks=masks)
    for function in (pixel_counts.count, localization.pointing_game):
        with pytest.raises(UserError, match="NaN or infinite"):
            function(scores=scores, masks=masks)
    with pytest.raises(UserError, match="NaN or infinite"):
        localization.image_auroc(scores=scores[0, 1], labels=masks[0, 1])


def test_undefined_scores_are_refused():
    scores, masks = np.ones((2, 4, 4), np.float32), np.zeros((2, 4, 4), bool)
    normal = _state(scores, masks)
    with pytest.raises(UserError, match="none of the 2 images added has an anomalous pixel"):
        normal.compute()
    with pytest.raises(UserError, match="none of the 0 images"):
        LocalizationState.empty().compute()
    with pytest.raises(UserError, match="none of the 2 images"):
        normal.iou(threshold=0.5)
    with pytest.raises(UserError, match="no pixel is normal"):
        _state(scores, ~masks).compute()
    with pytest.raises(UserError, match="threshold is NaN"):
        _state(scores, ~masks).iou(threshold=float("nan"))
