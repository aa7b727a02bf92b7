"""Kept checkpoints: which there are, their scores against epochs, and their pictures."""

import json
import math

import numpy as np
import pytest
from event_files import pictures_of, scalars_of
from tiny_run import tiny_config

from vae_attn.data import sources
from vae_attn.errors import UserError
from vae_attn.experiments import checkpoint_scores, validation
from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly import loading
from vae_attn.experiments.checkpoint_scores import Row
from vae_attn.training.checkpoints import digest

pytestmark = pytest.mark.slow

STEPS = [4, 6, 8]  # every fourth, and the two latest


def kept_config():
    config = tiny_config()
    config.train.steps, config.train.checkpoint_every, config.train.keep_every = 8, 2, 4
    config.train.learning_rate = 1e-2
    config.attention.layers = ()
    config.evaluate.batch_size = 64
    config.evaluate.styles, config.evaluate.layers = ("contrast", "paper"), ("conv1",)
    config.evaluate.max_images = 100
    config.evaluate.faithful_images = 0
    config.evaluate.checkpoint = "all"
    config.report.tensorboard_images = 3
    config.report.max_images = 4
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config and workdir of a run whose checkpoints are all scored."""
    config, workdir = kept_config(), tmp_path_factory.mktemp("kept") / "run"
    experiment.run(config, workdir, mode="all")
    return config, workdir


def content_of(workdir):
    return json.loads((workdir / "evaluation" / "checkpoints.json").read_text(encoding="utf-8"))


def test_multiples_are_kept(finished):
    _, workdir = finished
    assert sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*")) == STEPS


def test_the_best_one_is_scored_as_alone(finished):
    config, workdir = finished
    content = content_of(workdir)
    rows = content["checkpoints"]
    assert [row["step"] for row in rows] == STEPS
    best = min(rows, key=lambda row: row["validation_loss"])
    assert content["best_by_validation_loss"] == best["step"]
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert len(best["scores"]) == 12
    for name, value in best["scores"].items():
        metric, _, variant = name.partition("/")
        assert value == metrics[f"{variant}/{metric}"]
    name = "pixel_auroc/contrast/conv1.upper"
    assert len({row["scores"][name] for row in rows}) == len(STEPS)
    would_be = max(rows, key=lambda row: row["scores"][name])["step"]
    assert content["best_by_test_score"][name] == would_be
    num_images = len(sources.load(config).train)
    assert rows[0]["epoch"] == pytest.approx(4 * 16 / num_images, abs=1e-3)
    table = (workdir / "evaluation" / "checkpoints.md").read_text(encoding="utf-8")
    (line,) = (line for line in table.splitlines() if "| best by validation loss |" in line)
    assert line.startswith(f"| {best['step']} |")
    assert f"{name} at step {would_be}" in table
    assert "must not select a checkpoint" in table


def test_the_calibration_stays_that_of_the_best(finished):
    config, workdir = finished
    explainer = loading.load_with(config, workdir)
    assert explainer.calibration.parameters == digest(explainer.variables)


def test_the_page_shows_scores_against_epochs(finished):
    _, workdir = finished
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    assert "How long to train" in page
    assert "Scores of the kept checkpoints" in page
    assert (workdir / "figures" / "checkpoints.png").stat().st_size > 1000


def test_tensorboard_has_the_scores_and_pictures(finished):
    _, workdir = finished
    scalars = scalars_of(workdir / "tensorboard")
    expected = [(row["step"], row["scores"]) for row in content_of(workdir)["checkpoints"]]
    name = "aupro/reconstruction_error/image"
    found = scalars[f"score/{name}"]
    assert [step for step, _ in found] == STEPS
    np.testing.assert_allclose(
        [value for _, value in found], [scores[name] for _, scores in expected], rtol=1e-6
    )
    assert [step for step, _ in scalars["validation_loss"]] == [2, 4, 6, 8]
    (tag,) = pictures = pictures_of(workdir / "tensorboard")
    assert tag == "maps/contrast/conv1"
    assert [step for step, _ in pictures[tag]] == [2, 4, 6, 8]
    first, last = (pictures[tag][n][1] for n in (0, -1))
    side = 28 * 3
    assert first.shape == (3 * side, 3 * side, 3)
    np.testing.assert_array_equal(first[:side], last[:side])  # the same images
    for row in (1, 2):  # other counterparts and maps
        assert (first[row * side : (row + 1) * side] != last[row * side : (row + 1) * side]).any()


def test_means_over_seeds():
    seeds = [
        [Row(2, 0.5, 4.0, {"a": 0.2}), Row(4, 1.0, 2.0, {"a": 0.8}), Row(5, 1.2, None, {"a": 1.0})],
        [Row(4, 1.0, 3.0, {"a": 0.4}), Row(5, 1.2, 1.0, {"a": 0.0})],
    ]
    first, second = checkpoint_scores.over_seeds(seeds)
    assert first[:3] == (4, 1.0, 2.5)
    assert first.scores == pytest.approx({"a": 0.6, "a_std": math.sqrt(0.08)})
    assert first.names == ["a"]
    assert second.validation_loss is None
    assert checkpoint_scores.best([first, second]) == first
    assert checkpoint_scores.best([second]) is None
    rows = checkpoint_scores.table([first, second]).rows
    assert rows[1] == ["4", "1", "2.50", "0.600 ± 0.283", "best by validation loss"]
    assert rows[2] == ["5", "1.2", "", "0.500 ± 0.707", ""]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train.keep_every": 3},
            "train.keep_every=3 must be a multiple of train.checkpoint_every",
        ),
        ({"train.keep_every": -2}, "train.keep_every=-2 must be 0 or more"),
        ({"evaluate.checkpoint": "each"}, "must be best, latest or all"),
        ({"report.tensorboard_images": -1}, "report.tensorboard_images=-1 must be 0 or more"),
    ],
)
def test_config_values_that_cannot_be(changes, message):
    config = kept_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        validation.validate(config)


def test_several_processes_cannot_score_all(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(UserError, match="best or latest with several processes"):
        validation.validate(kept_config())
