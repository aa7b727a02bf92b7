"""Places are scored at the masks' own size, where small and thin defects are what they were."""

import dataclasses
import functools
import weakref

import numpy as np
import pytest
import sklearn.metrics
from PIL import Image
from tiny_run import tiny_config

from vae_attn.data import sources
from vae_attn.data.dataset import to_unit
from vae_attn.errors import UserError
from vae_attn.experiments.anomaly import collected, evaluation, localization, own_size
from vae_attn.experiments.anomaly.calibration import Variant
from vae_attn.experiments.anomaly.explainer import calibrate
from vae_attn.experiments.anomaly.localization import LocalizationState
from vae_attn.experiments.anomaly.own_size import Truth, enlarged
from vae_attn.experiments.anomaly.pixel_counts import Counted
from vae_attn.experiments.validation import validate
from vae_attn.training import objectives

RNG = np.random.default_rng(0)
MAP = RNG.gamma(2.0, size=(12, 10)).astype(np.float32)


def at(height, width):
    return np.concatenate(list(enlarged(MAP, height, width)))


@pytest.mark.parametrize("strip", [1, 300, 2**20])
@pytest.mark.parametrize(("height", "width"), [(12, 10), (30, 40), (37, 113)])
def test_maps_are_enlarged_as_pillow_does(monkeypatch, strip, height, width):
    monkeypatch.setattr(own_size, "_STRIP_PIXELS", strip)
    expected = Image.fromarray(MAP).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(at(height, width), np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize("strip", [500, 2**20])
def test_scores_are_those_of_the_whole_enlarged_map(monkeypatch, strip):
    monkeypatch.setattr(own_size, "_STRIP_PIXELS", strip)
    masks = RNG.random((3, 60, 50)) < 0.02
    masks[1] = False
    masks[2, 10:30, 20:40] = True
    state, whole = LocalizationState.empty(), at(60, 50)
    for mask in masks:
        scored = own_size.score(MAP, Truth.of(mask))
        state = state.add_counted(Counted.of([scored.histogram], [scored.auroc]))
        hit = localization.pointing_game(scores=whole[None], masks=mask[None])[0]
        np.testing.assert_allclose(scored.hit, hit)
        if mask.any():
            expected = sklearn.metrics.roc_auc_score(mask.ravel(), whole.ravel())
            assert scored.auroc == pytest.approx(expected, abs=1e-3)
        else:
            assert np.isnan(scored.auroc)
    expected = LocalizationState.empty().add(scores=np.stack([whole] * 3), masks=masks)
    assert state.compute() == pytest.approx(expected.compute(), abs=1e-4)
    assert state.num_regions == expected.num_regions
    np.testing.assert_allclose(state.negatives, expected.negatives, atol=2)  # an edge of a bin


def test_scores_without_an_order_are_refused():
    broken = MAP.copy()
    broken[3, 4] = np.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        own_size.score(broken, Truth.of(np.eye(20, dtype=bool)))


@pytest.fixture(scope="module")
def scored():
    """Digits with a scratch of one pixel's width in masks of 84 x 112: both ways to score."""
    config = tiny_config()
    data = sources.load(config)
    test = data.test.take(np.arange(6))
    full = np.zeros((6, 84, 112), bool)
    for n, mask in enumerate(full[:4]):
        steps = np.arange(60)
        mask[10 + steps + n, 20 + steps] = True
    small = [Image.fromarray(m).resize((28, 28), Image.Resampling.NEAREST) for m in full]
    test = dataclasses.replace(
        test,
        masks=np.stack([np.asarray(m) for m in small]),
        has_mask=np.ones(6, bool),
        read_full_mask=tuple((lambda mask=mask: mask) for mask in full),
    )
    data = dataclasses.replace(data, test=test, draws_defects=False)
    variables = objectives.make_task(config, to_unit).create(seed=0).variables
    variant = Variant("contrast", ("conv1",))
    explainer = calibrate(
        objectives.build_model(config), variables, data.train, data.validation, variant=variant
    )
    options = {"styles": ("contrast",), "layers": ("conv1",), "fused": ("conv1",)}
    found = {
        size: evaluation.evaluate(explainer, data, **options, mask_size=size)[0]
        for size in collected.MASK_SIZES
    }
    return found, explainer, data, full


def test_own_masks_are_scored_at_their_size(scored):
    found, explainer, data, full = scored
    maps = explainer(data.test.images)[0]
    whole = np.stack([np.concatenate(list(enlarged(one, 84, 112))) for one in maps])
    expected = sklearn.metrics.roc_auc_score(full.ravel(), whole.ravel())
    name = "contrast/conv1/pixel_auroc"
    assert found["own"][name] == pytest.approx(expected, abs=1e-3)
    expected = sklearn.metrics.roc_auc_score(data.test.masks.ravel(), maps.ravel())
    assert found["model"][name] == pytest.approx(expected, abs=1e-3)
    assert found["own"][name] != found["model"][name]
    state = LocalizationState.empty().add(scores=whole, masks=full)
    assert state.num_regions == 4
    shrunk = LocalizationState.empty().add(scores=maps, masks=data.test.masks)
    assert shrunk.num_regions > 4  # the scratches are torn
    assert found["own"]["contrast/conv1/aupro"] == pytest.approx(state.compute()["aupro"], abs=1e-3)
    # Which images are abnormal does not depend on masks.
    for key in found["own"].keys() & found["model"].keys():
        if "image_auroc" in key:
            assert found["own"][key] == found["model"][key]


@pytest.mark.parametrize(("limit", "alive"), [(1, 1), (2 * 84 * 112, 2), (2**24, 6)])
def test_few_large_masks_are_in_memory_at_once(scored, monkeypatch, limit, alive):
    """However many images the model takes at once; the scores stay the same."""
    found, explainer, data, full = scored
    monkeypatch.setattr(collected, "_MASK_PIXELS", limit)
    kept, most = weakref.WeakSet(), [0]

    class Mask(np.ndarray):
        """An array that can be referred to weakly."""

        __hash__ = object.__hash__

    def read(n):
        mask = full[n].copy().view(Mask)
        kept.add(mask)
        most[0] = max(most[0], len(kept))
        return mask

    reading = tuple(functools.partial(read, n) for n in range(len(full)))
    test = dataclasses.replace(data.test, read_full_mask=reading)
    options = {"styles": ("contrast",), "layers": ("conv1",), "fused": ("conv1",)}
    again, _ = evaluation.evaluate(explainer, dataclasses.replace(data, test=test), **options)
    assert again == found["own"]
    # The part before is forgotten when the first mask of the next one is there.
    assert most[0] <= 2 * alive
    assert most[0] >= alive


def test_simple_baselines_stand_beside(scored):
    found, _, data, _ = scored
    median = np.median(data.train, axis=0)
    maps = np.abs(data.test.images - median).mean(axis=3).astype(np.float32)
    expected = sklearn.metrics.roc_auc_score(data.test.masks.ravel(), maps.ravel())
    name = "median_difference/image/pixel_auroc"
    assert found["model"][name] == pytest.approx(expected, abs=2e-3)
    place = np.abs(data.validation - median).mean(axis=(0, 3))
    expected = sklearn.metrics.roc_auc_score(
        data.test.masks.ravel(), np.broadcast_to(place, data.test.masks.shape).ravel()
    )
    assert found["model"]["place/image/pixel_auroc"] == pytest.approx(expected, abs=2e-3)
    assert "median_difference_smooth/image/aupro" in found["model"]
    assert not [key for key in found["own"] if key.startswith("place/image.")]


def test_an_unknown_size_is_refused():
    config = tiny_config()
    config.evaluate.mask_size = "small"
    with pytest.raises(UserError, match=r"evaluate.mask_size='small' must be one of own, model"):
        validate(config)
