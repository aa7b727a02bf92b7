"""What TensorBoard is shown: read back as it reads it."""

import logging
import sys
import time

import jax
import numpy as np
import optax
import pytest
from event_files import pictures_of, scalars_of
from tiny_run import tiny_config

from vae_attn.data import sources
from vae_attn.experiments.anomaly.calibration import variant_of
from vae_attn.experiments.anomaly.explainer import calibrate
from vae_attn.experiments.anomaly.snapshots import MapSnapshots, _both_kinds
from vae_attn.training import events, loop, objectives, state
from vae_attn.training.telemetry import Telemetry, read_metrics, write_scores


def picture(shade):
    return np.full((4, 6, 3), shade, np.uint8)


def test_a_resumed_run_has_nothing_twice(tmp_path):
    """Also the steps after the checkpoint from which it resumes."""
    for start, steps, shade in ((0, (2, 4, 6), 10), (4, (6, 8), 200)):
        telemetry = Telemetry(tmp_path, start_step=start, total_steps=8)
        for step in steps:
            telemetry.write(step, {"loss": float(shade + step)}, {"maps/x": picture(shade + step)})
        telemetry.close()
    folder = tmp_path / "tensorboard"
    assert scalars_of(folder) == {"loss": [(2, 12), (4, 14), (6, 206), (8, 208)]}
    (found,) = pictures_of(folder).values()
    assert [step for step, _ in found] == [2, 4, 6, 8]
    for (_, shown), shade in zip(found, (12, 14, 206, 208), strict=True):
        np.testing.assert_array_equal(shown, picture(shade))


def test_without_tensorboard_a_sentence_says_what_to_install(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "vae_attn")
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    events._tensorboard.cache_clear()
    try:
        telemetry = Telemetry(tmp_path, start_step=0, total_steps=8)
        assert not telemetry.shows_pictures
        telemetry.write(8, {"loss": 1.0}, {"maps/x": picture(3)})
        telemetry.close()
        write_scores(tmp_path, {8: {"a/b": 0.5}})
    finally:
        events._tensorboard.cache_clear()
    assert caplog.text.count("not written: pip install 'vae_attn[tensorboard]'") == 1
    assert not (tmp_path / "tensorboard").exists()
    assert read_metrics(tmp_path) == {"loss": ([8], [1.0])}


def test_what_compiles_is_said_before_the_first_step(tmp_path, caplog):
    caplog.set_level(logging.INFO, "vae_attn")
    for start, said in ((0, True), (8, False)):
        caplog.clear()
        Telemetry(tmp_path, start_step=start, total_steps=8).close()
        assert ("compiling the training step" in caplog.text) == said


def test_the_rate_is_that_of_training_alone(tmp_path, caplog, monkeypatch):
    """The first line has the compilation in it; those after it have not."""
    caplog.set_level(logging.INFO, "vae_attn")
    now = iter([0.0, 100.0, 105.0, 110.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    telemetry = Telemetry(tmp_path, start_step=0, total_steps=40)
    for step in (10, 20, 30):
        telemetry.write(step, {"loss": 1.0})
    rates = [record.message.partition("(")[2] for record in caplog.records[1:]]
    expected = ["0.10 steps/s, 300 s to go)", "2.00 steps/s, 10 s to go)"]
    assert rates == [*expected, "2.00 steps/s, 5 s to go)"]


def test_scores_of_an_earlier_evaluation_are_replaced(tmp_path):
    telemetry = Telemetry(tmp_path, start_step=0, total_steps=8)
    telemetry.write(8, {"loss": 1.0})
    telemetry.close()
    write_scores(tmp_path, {4: {"a/b": 0.25}, 8: {"a/b": 0.5}})
    write_scores(tmp_path, {8: {"a/b": 0.75}})
    scalars = scalars_of(tmp_path / "tensorboard")
    assert scalars == {"loss": [(8, 1.0)], "score/a/b": [(8, 0.75)]}


@pytest.fixture(scope="module")
def small():
    """A config, its data and an untrained model's variables."""
    config = tiny_config()
    config.evaluate.batch_size = 8
    first = state.create(model=objectives.build_model(config), tx=optax.sgd(1.0), seed=0)
    return config, sources.load(config), jax.device_get(first.variables)


@pytest.mark.parametrize("style", ["contrast", "normal_difference"])
def test_maps_are_those_of_the_explainer(small, style):
    """Of the same normal images: then it is the same map, up to the colour scale."""
    config, data, variables = small
    config = config.copy_and_resolve_references()
    config.attention.style, config.attention.layers = style, ()
    config.report.tensorboard_images = 2
    snapshots = MapSnapshots(config, data)
    ((name, shown),) = snapshots(variables).items()
    assert name == f"maps/{style}/conv1"
    spread = np.linspace(0, len(data.train) - 1, 8).astype(int)
    explainer = calibrate(
        objectives.build_model(config),
        variables,
        data.train[spread],
        data.validation,
        variant=variant_of(config.attention),
        projection_steps=1 if style == "contrast" else 0,
    )
    images = _both_kinds(data.test, 2, config.seed)
    maps = explainer.maps(images, styles=(style,), layers=("conv1",))[style, "conv1"]
    tiles = shown.reshape(3, 84, 2, 84, 3)[:, ::3, :, ::3].swapaxes(1, 2)
    np.testing.assert_array_equal(tiles[0], np.broadcast_to(images, tiles[0].shape))
    expected = np.rint(255 * np.clip(explainer.counterparts(images), 0, 1))
    np.testing.assert_allclose(tiles[1][..., :1], expected, atol=1)
    # Red rises with the map in the dark places of a digit's image, whatever the scale.
    dark = images[..., 0] == 0
    order = np.corrcoef(maps[dark] ** 0.7, tiles[2][dark][:, 0].astype(float))[0, 1]
    assert order > 0.8


def test_images_of_both_kinds_the_same_each_time(small):
    _, data, _ = small
    chosen = _both_kinds(data.test, 4, 0)
    np.testing.assert_array_equal(chosen, _both_kinds(data.test, 4, 0))
    labels = [
        data.test.labels[(data.test.images == image).all(axis=(1, 2, 3))][0] > 0 for image in chosen
    ]
    assert labels == [True, True, False, False] or labels == [True, False, True, False]
    normal = data.test.take(data.test.labels == 0)
    assert len(_both_kinds(normal, 4, 0)) == 4


def test_a_picture_that_fails_ends_no_training(small, tmp_path, caplog):
    config, data, _ = small
    caplog.set_level(logging.WARNING, "vae_attn")

    def draw(variables):
        raise MemoryError("too large")

    loop.train(config, tmp_path, data, draw=draw)
    assert "no pictures for TensorBoard at this checkpoint: too large" in caplog.text
    assert scalars_of(tmp_path / "tensorboard")["validation_loss"][0][0] == 3
