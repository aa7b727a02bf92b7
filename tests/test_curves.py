"""Curves against scikit-learn, and thinned without harm."""

import numpy as np
import pytest
import sklearn.metrics

from vae_attn.experiments.anomaly import curves
from vae_attn.experiments.anomaly.localization import LocalizationState

RNG = np.random.default_rng(0)
SCORES = np.round(RNG.normal(size=900) + np.arange(900) % 2, 2)
ABNORMAL = np.arange(900) % 2 == 1


def located():
    masks = np.zeros((6, 40, 40), bool)
    masks[:, 5:15, 8:20] = masks[::2, 30:33, 2:5] = True
    scores = (RNG.normal(size=masks.shape) + 1.5 * masks).astype(np.float32)
    return LocalizationState.empty().add(scores=scores, masks=masks)


def test_roc_against_scikit_learn():
    curve = curves.roc(scores=SCORES, abnormal=ABNORMAL)
    assert curve.area == pytest.approx(sklearn.metrics.roc_auc_score(ABNORMAL, SCORES))
    fpr, tpr, _ = sklearn.metrics.roc_curve(ABNORMAL, SCORES, drop_intermediate=False)
    points = set(zip(np.round(fpr, 5), np.round(tpr, 5), strict=True))
    assert set(zip(curve.x, curve.y, strict=True)) <= points
    assert 100 < len(curve.x) <= 200
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(curve.area, abs=2e-3)


def test_pro_ends_at_the_limit_and_its_area_is_aupro():
    state = located()
    curve = curves.pro(state)
    assert curve.area == pytest.approx(state.compute()["aupro"])
    assert len(curve.x) <= 200
    assert (curve.x[0], curve.y[0], curve.x[-1]) == (0, 0, pytest.approx(0.3))
    assert np.trapezoid(curve.y, curve.x) / 0.3 == pytest.approx(curve.area, abs=2e-3)
    assert np.all(np.diff(curve.x) >= 0)


def test_images_of_one_kind_have_no_curve():
    assert curves.roc(scores=SCORES, abnormal=np.ones(900, bool)) is None
    assert curves.pro(LocalizationState.empty()) is None
    assert curves.histogram(scores=SCORES[:0], abnormal=ABNORMAL[:0]) is None


def test_histogram_counts_every_image_once():
    scores = np.append(SCORES, 1e6)
    counted = curves.histogram(scores=scores, abnormal=np.append(ABNORMAL, True))
    assert sum(counted.normal) == 450
    assert sum(counted.abnormal) == 451
    assert counted.edges[-1] == pytest.approx(np.quantile(scores, 0.99))
    edges = np.array(counted.edges)
    third = (scores >= edges[2]) & (scores < edges[3])
    assert counted.normal[2] == np.sum(third[:-1] & ~ABNORMAL)
    assert curves.histogram(scores=np.ones(3), abnormal=np.zeros(3, bool)).normal[0] == 3


def test_saved_curves_come_back(tmp_path):
    made = curves.Curves(
        num_images=900,
        roc={"contrast/fused": curves.roc(scores=SCORES, abnormal=ABNORMAL)},
        pro={"contrast/fused": curves.pro(located())},
        histogram=curves.histogram(scores=SCORES, abnormal=ABNORMAL),
    )
    path = tmp_path / "curves.json"
    made.save(path)
    assert curves.Curves.load(path) == made
    assert [file.name for file in tmp_path.iterdir()] == ["curves.json"]
    assert curves.Curves.load(tmp_path / "none.json") is None
    path.write_text('{"num_images": 3}', encoding="utf-8")
    assert curves.Curves.load(path) is None
