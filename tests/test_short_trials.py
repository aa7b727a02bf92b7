"""A short trial is short: one projection per image, few images of every kind, no silence."""

import hashlib
import json

import numpy as np
import pytest
from tiny_run import tiny_config

from vae_attn.data import sources
from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly import evaluation
from vae_attn.experiments.anomaly.calibration import Calibration
from vae_attn.experiments.anomaly.experiment import AnomalyExperiment
from vae_attn.experiments.counterpart_cache import CounterpartCache
from vae_attn.experiments.protocol import Trained

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)


class Counted:
    """Halves images, and counts them."""

    def __init__(self):
        self.images = 0

    def __call__(self, images):
        self.images += len(images)
        return images / np.float32(2)


def test_counterparts_are_computed_once():
    cache, compute = CounterpartCache(), Counted()
    for chosen in ([0, 1, 2], [2, 1], [5, 0, 3], [3, 3]):
        found = cache.get(IMAGES[chosen], compute)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, IMAGES[chosen] / 2)
    assert compute.images == 5


def test_memory_is_bounded():
    size = IMAGES[0].size * 4
    cache, compute = CounterpartCache(2 * size), Counted()
    for _ in range(3):
        np.testing.assert_array_equal(cache.get(IMAGES, compute), IMAGES / 2)
    assert compute.images == 6 + 2 * 4


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """A whole run; which images it projected, and its folder."""
    config = tiny_config()
    config.evaluate.styles, config.evaluate.layers = ("paper", "contrast"), ("conv1", "conv2")
    config.evaluate.max_images = config.report.max_images = 8
    config.report.tensorboard_images = 0
    workdir, projected = tmp_path_factory.mktemp("runs") / "trial", []
    get = CounterpartCache.get

    def recorded(self, images, compute):
        def counted(images):
            projected.extend(hashlib.sha1(image.tobytes()).hexdigest() for image in images)
            return compute(images)

        return get(self, images, counted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CounterpartCache, "get", recorded)
        experiment.run(config, workdir, mode="all")
    return config, workdir, projected


@pytest.mark.slow
def test_each_image_is_projected_once(trial):
    _, _, projected = trial
    assert projected
    assert len(projected) == len(set(projected))
    assert len(projected) < 100  # of some 1,800 digits


def test_the_first_of_several_models_keeps_its_counterparts(monkeypatch, tmp_path):
    """It is needed again at the end, for the page; the others one after the other."""
    config = tiny_config()
    config.report.tensorboard_images = 0
    made, seen = AnomalyExperiment(config, sources.load(config)), []

    def known(self, trained, step):
        seen.append((step, trained.variables, self._counterpart_cache(trained.variables)))
        return {}

    monkeypatch.setattr(AnomalyExperiment, "prepare", lambda *of: known(*of, "prepare"))
    monkeypatch.setattr(AnomalyExperiment, "evaluate", lambda *of: known(*of, "evaluate"))
    monkeypatch.setattr(experiment, "_write_scores", lambda *_: None)
    monkeypatch.setattr(experiment, "_report", lambda *of: known(of[0], of[3][0], "report"))
    names = ("first", "second", "third")
    models = [Trained(config, tmp_path, name, 1) for name in names]
    experiment._evaluate_and_explain(made, config, tmp_path, models, "all")
    steps = [(step, name) for name in names for step in ("prepare", "evaluate")]
    assert [one[:2] for one in seen] == [*steps, ("report", "first")]
    caches = {name: {id(cache) for _, of, cache in seen if of == name} for _, name in steps}
    assert {len(of) for of in caches.values()} == {1}
    assert made._counterpart_cache("second") is not seen[2][2]  # no more than two are kept


@pytest.mark.slow
def test_all_image_sets_are_bounded(trial):
    config, workdir, _ = trial
    data = sources.load(config)
    assert len(data.validation) > 8
    held_out = evaluation.sample_validation(data, 8)
    assert len(held_out) == 8
    np.testing.assert_array_equal(held_out, evaluation.sample_validation(data, 8))
    kept = Calibration.load(workdir / "calibration.npz")
    assert kept.images.images == 8
    assert kept.image_threshold is None
    assert kept.threshold is not None or kept.pixels.missing
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    assert f"Scores are of 8 of {len(data.test)} test images (evaluate.max_images), fewer" in page
    assert "8 held-out normal images cannot carry a false-alarm rate of 5%" in page
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert "median_difference_smooth/image/pixel_auroc" in metrics


@pytest.mark.slow
def test_nothing_is_silent(trial, tmp_path, caplog):
    config, workdir, _ = trial
    caplog.set_level("INFO", "vae_attn")
    (workdir / "calibration.npz").unlink()
    experiment.run(config, workdir, mode="all")
    for line in (
        "maps of normal images: 8 images",
        "scoring test images: 8 images",
        "scoring drawn defects: 8 images",
        "measuring the colour scale: 8 images",
        "writing the explorer: ",
        "drawing: ",
    ):
        assert line in caplog.text
    # To calibrate, to score and for the page.
    assert caplog.text.count("maps of normal images: 8 images") == 3
