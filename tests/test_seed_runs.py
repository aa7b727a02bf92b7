"""Whole runs of several seeds: each one's scores, their mean and deviation, the page."""

import json
import statistics

import pytest
import small_models

from vae_attn.config import default_config
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments import scores, validation
from vae_attn.training import seeds


def read(folder):
    return json.loads((folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_whole_run(tmp_path):
    config = small_models.use(default_config(), "shallow")
    config.num_seeds = 2
    config.model.latents = 2
    config.train.batch_size = 16
    config.train.steps = config.train.checkpoint_every = 3
    config.attention.projection_steps = 0
    config.evaluate.styles, config.evaluate.layers = ("contrast",), ("conv1",)
    config.evaluate.max_images = 400
    config.evaluate.faithful_images = 8
    workdir = tmp_path / "run"
    experiment.run(config, workdir, mode="all")
    metrics, (first, second) = read(workdir), [read(workdir / f"seed_{n}") for n in (0, 1)]
    name = "contrast/conv1/pixel_auroc"
    assert first[name] != second[name]
    both = (first[name], second[name])
    mean, deviation = statistics.mean(both), statistics.stdev(both)
    assert metrics[name] == pytest.approx(mean)
    assert metrics[f"{name}_std"] == pytest.approx(deviation)
    table = (workdir / "evaluation" / "table.md").read_text(encoding="utf-8")
    assert f"{mean:.3f} ± {deviation:.3f}" in table
    assert "mean ± standard deviation of seeds 0 to 1" in table
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png;base64,') == 8
    # Five pictures, three curves.
    assert page.count("Seed 0, the first of 2.</figcaption>") == 5 + 3
    assert page.count("2 seeds: the mean, and each of them pale.</figcaption>") == 1
    assert page.count("2 seeds: their mean and one standard deviation each way.</figcaption>") == 2
    for n in (0, 1):
        assert (workdir / f"seed_{n}" / "calibration.npz").stat().st_size > 0

    # A seed's folder is a workdir of that seed alone; the whole workdir is not.
    one = seeds.runs(config, workdir)[1][0]
    experiment.run(one, workdir / "seed_1", mode="train")
    config.num_seeds = 3
    with pytest.raises(UserError, match=r"another config: num_seeds \(there 2, now 3\)"):
        experiment.run(config, workdir, mode="train")


def test_mean_and_deviation_over_seeds():
    found = scores.over_seeds(
        [{"a/b/x": 1.0, "a/b/x_low": 0.5, "a/b/y": 2.0}, {"a/b/x": 4.0, "a/b/x_low": 3.0}]
    )
    assert found == {"a/b/x": 2.5, "a/b/x_std": pytest.approx(statistics.stdev([1, 4]))}
    assert scores.cell(found, "a/b/x") == "2.500 ± 2.121"
    assert scores.cell({"a/b/x": 1.0}, "a/b/x") == "1.000"
    assert scores.cell(found, "a/b/y") == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 0}, "--config.num_seeds=0 must be greater than 0"),
        ({"num_seeds": 3, "seed": 2**31 - 2}, "num_seeds=3 must be so small that all seeds are"),
        ({"data.split_seed": -1}, "data.split_seed=-1 must be 0 or more"),
    ],
)
def test_config_values_that_cannot_be(changes, message):
    config = default_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        validation.validate(config)
