"""Bootstrap intervals against resamples that are put together and scored one by one."""

import numpy as np
import pytest
from sklearn import metrics

from vae_attn.errors import UserError
from vae_attn.experiments.anomaly import bootstrap, localization
from vae_attn.experiments.anomaly.localization import LocalizationState

KEYS = ("pixel_auroc", "average_precision", "best_f1_test", "best_iou_test", "aupro")


def _state(scores, masks):
    return LocalizationState.empty().add(scores=scores, masks=masks)


def _images(n=12, side=10, levels=4):
    rng = np.random.default_rng(11)
    masks = np.zeros((n, side, side), bool)
    for mask in masks[: n - 3]:
        top, left = rng.integers(0, side - 4, 2)
        mask[top : top + 3, left : left + rng.integers(1, 4)] = True
    scores = rng.normal(masks * rng.uniform(0, 2, (n, 1, 1)))
    return (np.round(scores * levels) / levels).astype(np.float32), masks


def _draws(n, num_resamples, seed):
    return np.random.default_rng(seed).integers(n, size=(num_resamples, n))


def test_intervals_agree_with_resamples_scored_one_by_one():
    scores, masks = _images()
    intervals = bootstrap.bootstrap_pixel_scores(
        _state(scores, masks), num_resamples=40, confidence=0.8, seed=3
    )
    drawn = _draws(len(scores), 40, 3)
    one_by_one = [_state(scores[rows], masks[rows]).compute() for rows in drawn]
    assert set(intervals) == set(KEYS)
    for key in KEYS:
        expected = np.quantile([result[key] for result in one_by_one], [0.1, 0.9])
        np.testing.assert_allclose(intervals[key], expected, atol=1e-12)
    aurocs = [metrics.roc_auc_score(masks[rows].ravel(), scores[rows].ravel()) for rows in drawn]
    np.testing.assert_allclose(intervals["pixel_auroc"], np.quantile(aurocs, [0.1, 0.9]))


def test_images_with_bins_of_different_widths_share_one_scale():
    rng = np.random.default_rng(0)
    scores, masks = _images(n=10, side=64, levels=2)
    # These spread over so many octaves that their bins must be widened; the rest keep theirs.
    scores[::3] *= (10.0 ** rng.uniform(-6, 6, (4, 64, 64))).astype(np.float32)
    state = _state(scores, masks)
    shifts = {image.shift for image in state.images}
    assert 0 in shifts
    assert max(shifts) > 0
    intervals = bootstrap.bootstrap_pixel_scores(state, num_resamples=30, confidence=0.8)
    drawn = _draws(10, 30, 0)
    one_by_one = [_state(scores[rows], masks[rows]).compute() for rows in drawn]
    for key in KEYS:
        expected = np.quantile([result[key] for result in one_by_one], [0.1, 0.9])
        np.testing.assert_allclose(intervals[key], expected, atol=5e-3)


def test_coarse_replicates_are_shifted_onto_the_exact_score(monkeypatch):
    scores, masks = _images(n=4, side=64, levels=4096)
    masks[:] = masks[0]
    scores[:] = scores[0]
    # Resamples of equal images all score the same; coarse bins of eight make that visibly wrong.
    monkeypatch.setattr("vae_attn.experiments.anomaly.score_histogram.MAX_COARSE_BINS", 8)
    state = _state(scores, masks)
    exact = state.compute()
    for key, interval in bootstrap.bootstrap_pixel_scores(state, num_resamples=5).items():
        np.testing.assert_allclose(interval, [exact[key]] * 2, atol=1e-12)


def test_the_shift_leaves_no_interval_beyond_one(monkeypatch):
    scores, masks = _images(n=8, side=32, levels=4096)
    scores = np.abs(scores) + np.where(masks, 8, 0).astype(np.float32)
    scores[~masks] *= 8 / scores[~masks].max() * 0.999
    monkeypatch.setattr("vae_attn.experiments.anomaly.score_histogram.MAX_COARSE_BINS", 2)
    state = _state(scores, masks)
    assert state.compute()["best_iou_test"] == 1
    for interval in bootstrap.bootstrap_pixel_scores(state).values():
        assert interval.low <= interval.high <= 1


def test_too_many_common_bins_are_widened(monkeypatch):
    scores, masks = _images(levels=64)
    state = _state(scores, masks)
    fine = bootstrap.bootstrap_pixel_scores(state)
    monkeypatch.setattr(bootstrap, "_MAX_BINS", 100)
    monkeypatch.setattr(bootstrap, "_RESAMPLES_AT_ONCE", 7)
    wide = bootstrap.bootstrap_pixel_scores(state)
    for key in KEYS:
        np.testing.assert_allclose(wide[key], fine[key], atol=0.02)
        assert wide[key] != fine[key]


def test_intervals_hold_the_score_and_narrow_with_less_confidence():
    scores, masks = _images(n=30)
    state = _state(scores, masks)
    exact = state.compute()
    wide = bootstrap.bootstrap_pixel_scores(state, confidence=0.95)
    narrow = bootstrap.bootstrap_pixel_scores(state, confidence=0.5)
    for key in KEYS:
        assert 0 <= wide[key].low < exact[key] < wide[key].high <= 1
        assert wide[key].low < narrow[key].low < narrow[key].high < wide[key].high


def test_equal_seeds_give_equal_intervals():
    scores, masks = _images()
    state = _state(scores, masks)
    first = bootstrap.bootstrap_pixel_scores(state, num_resamples=20, seed=1)
    assert bootstrap.bootstrap_pixel_scores(state, num_resamples=20, seed=1) == first
    assert bootstrap.bootstrap_pixel_scores(state, num_resamples=20, seed=2) != first


def test_resamples_with_one_kind_of_pixel_are_left_out():
    scores, masks = _images(n=2, levels=2)
    masks[0], masks[1] = True, False
    state = _state(scores, masks)
    # Half the draws of two take one image twice; of those that stay, each is the state itself.
    intervals = bootstrap.bootstrap_pixel_scores(state, num_resamples=20)
    for key, value in state.compute().items():
        if key in KEYS:
            np.testing.assert_allclose(intervals[key], [value, value], atol=1e-12)
    seed = next(seed for seed in range(99) if len(set(_draws(2, 1, seed)[0])) == 1)
    with pytest.raises(UserError, match="no resample has both"):
        bootstrap.bootstrap_pixel_scores(state, num_resamples=1, seed=seed)
    with pytest.raises(UserError, match="no resample has both"):
        bootstrap.bootstrap_image_score(
            scores=np.array([0.1, 0.2]), labels=np.array([True, False]), num_resamples=1, seed=seed
        )


def test_image_auroc_interval_agrees_with_scikit_learn():
    rng = np.random.default_rng(8)
    labels = rng.random(25) < 0.5
    scores = np.round(rng.normal(labels * 1.0), 1)
    interval = bootstrap.bootstrap_image_score(
        scores=scores, labels=labels, num_resamples=50, confidence=0.9, seed=6
    )
    aurocs = [metrics.roc_auc_score(labels[rows], scores[rows]) for rows in _draws(25, 50, 6)]
    np.testing.assert_allclose(interval, np.quantile(aurocs, [0.05, 0.95]))
    assert interval.low < localization.image_auroc(scores=scores, labels=labels) < interval.high


def test_image_precision_interval_agrees_with_scikit_learn():
    rng = np.random.default_rng(8)
    labels = rng.random(25) < 0.5
    scores = np.round(rng.normal(labels * 1.0), 1)
    interval = bootstrap.bootstrap_image_score(
        localization.image_average_precision,
        scores=scores,
        labels=labels,
        num_resamples=50,
        confidence=0.9,
        seed=6,
    )
    draws = _draws(25, 50, 6)
    each = [metrics.average_precision_score(labels[rows], scores[rows]) for rows in draws]
    np.testing.assert_allclose(interval, np.quantile(each, [0.05, 0.95]))


def test_image_auroc_interval_is_none_where_the_score_is():
    scores = np.arange(4.0)
    for labels in (np.ones(4, bool), np.zeros(4, bool)):
        assert bootstrap.bootstrap_image_score(scores=scores, labels=labels) is None


def test_bad_input_is_refused():
    scores, masks = _images()
    state = _state(scores, masks)
    for confidence in (0.0, 1.0, 95.0):
        with pytest.raises(UserError, match="confidence is"):
            bootstrap.bootstrap_pixel_scores(state, confidence=confidence)
    with pytest.raises(UserError, match="num_resamples is 0"):
        bootstrap.bootstrap_pixel_scores(state, num_resamples=0)
    with pytest.raises(UserError, match="num_resamples is 0"):
        bootstrap.bootstrap_image_score(
            scores=np.arange(2.0), labels=np.array([True, False]), num_resamples=0
        )
    with pytest.raises(UserError, match="none of the 0 images"):
        bootstrap.bootstrap_pixel_scores(LocalizationState.empty())
