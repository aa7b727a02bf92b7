"""A model whose latents carry nothing says so, and decides nothing."""

import json

import pytest
from tiny_run import tiny_config

from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly.calibration import Calibration

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory):
    """The folder of a run under a KL term that no latent survives."""
    config = tiny_config()
    config.train.beta, config.train.steps = 1000.0, 150
    config.train.checkpoint_every = 150
    config.train.learning_rate = 1e-2
    config.evaluate.styles, config.evaluate.layers = ("contrast",), ("conv1", "conv2")
    config.evaluate.max_images = config.report.max_images = 4
    config.report.tensorboard_images = 0
    workdir = tmp_path_factory.mktemp("runs") / "collapsed"
    experiment.run(config, workdir, mode="train")
    return config, workdir


def test_a_collapsed_model_warns_and_decides_nothing(collapsed, caplog):
    config, workdir = collapsed
    (workdir / "calibration.npz").unlink()
    caplog.set_level("INFO", "vae_attn")
    experiment.run(config, workdir, mode="all")
    assert "active latents: 0 of 3" in caplog.text
    assert "none of 3 latents are active: the model has collapsed" in caplog.text
    found = Calibration.load(workdir / "calibration.npz")
    assert (found.active_latents, found.threshold, found.image_threshold) == (0, None, None)
    assert "no latent is active" in found.images.missing
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["active_latents/image/count"] == 0
    table = (workdir / "evaluation" / "table.md").read_text(encoding="utf-8")
    assert "Active latents: 0 of 3" in table
    assert "the model has collapsed" in table
    assert "active_latents" not in table
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    assert "0 of 3" in page
    assert "No image is called abnormal or not: no latent is active" in page
    assert '"flagged": true' not in page
    experiment.run(config, workdir, mode="export")
    card = json.loads((workdir / "export" / "card.json").read_text(encoding="utf-8"))
    assert card["output"]["scores"]["threshold"] is None
    assert "no latent is active" in card["output"]["scores"]["threshold_meaning"]
    assert card["model"]["active_latents"] == 0
