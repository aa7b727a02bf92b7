"""Several steps in one call of the device are those steps, and end where the loop has to look."""

import threading

import jax
import numpy as np
import pytest
import small_models
from small_data import small_data

from vae_attn import compilation_cache
from vae_attn.config import default_config
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.training import background, feed, loop, parallel
from vae_attn.training.telemetry import read_metrics

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1)).astype(np.uint8)
TEST = LabelledImages(IMAGES[:1], np.zeros(1, int), ("normal",), ("0",), None, np.zeros(1, bool))
DATA = AnomalyData("noise", IMAGES[:32], IMAGES[32:], TEST)


def config_of(at_once, steps=11, **options):
    config = small_models.use(default_config(), "digits")
    config.model.latents = 3
    config.train.update({"batch_size": 8, "steps": steps, "log_every": 4, "checkpoint_every": 8})
    config.train.steps_at_once = at_once
    config.update(options)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [2])
def test_the_same_run_up_to_rounding(tmp_path, num_seeds):
    one = loop.train(config_of(1, num_seeds=num_seeds), tmp_path / "one", DATA)
    # Stopped at a step that is no multiple of four, so that the first and last calls are short.
    loop.train(config_of(4, steps=6, num_seeds=num_seeds), tmp_path / "many", DATA)
    many = loop.train(config_of(4, num_seeds=num_seeds), tmp_path / "many", DATA)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    expected, found = (read_metrics(tmp_path / name)["loss"] for name in ("one", "many"))
    assert expected[0] == [4, 8, 11]
    assert found[0] == [4, 6, 8, 11]
    assert found[1][0] == pytest.approx(expected[1][0], rel=1e-4)
    assert found[1][3] == pytest.approx(expected[1][2], rel=1e-4)


def test_groups_end_at_multiples_wherever_they_begin():
    batches = [("images", np.full((2, 3), step)) for step in range(3, 10)]
    groups = list(feed.grouped(iter(batches), at_once=4, start=3))
    assert [made for *_, made in groups] == [1, 4, 2]
    assert groups[1][1].shape == (2, 4, 3)  # steps lie behind the batch
    np.testing.assert_array_equal(groups[1][1][0, :, 0], [4, 5, 6, 7])
    single = list(feed.grouped(iter(batches[:2]), at_once=1, start=3))
    assert [indices.shape for _, indices, _ in single] == [(2, 3), (2, 3)]


def test_as_many_as_divide_what_the_loop_looks_at(monkeypatch):
    config = config_of(10)
    config.train.update({"log_every": 50, "checkpoint_every": 80})
    assert feed.steps_at_once(config, resident=True) == 10
    config.train.steps_at_once = 7
    assert feed.steps_at_once(config, resident=True) == 5
    assert feed.steps_at_once(config, resident=False) == 1
    config.train.steps_at_once = 0
    assert feed.steps_at_once(config, resident=True) == 1  # on the CPU
    config.train.steps_at_once = 10**9
    assert feed.steps_at_once(config, resident=True) == 10
    config.train.steps_at_once = 0
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config.train.checkpoint_every = 1000
    assert feed.steps_at_once(config, resident=True) == 50


@pytest.mark.slow
def test_the_last_and_shorter_call_is_compiled_beside_the_first_steps(tmp_path, monkeypatch):
    """It is the very program of the last call, so that JAX's cache has it by then."""
    monkeypatch.setattr(background, "can_run_beside", lambda: True)
    monkeypatch.setattr(compilation_cache, "is_on", lambda: True)
    compiled, called = [], []
    parallelize = parallel.parallelize

    def recorded(*arguments, **options):
        update = parallelize(*arguments, **options)

        def run(state, images, indices):
            called.append((indices.shape[1], update.lower(state, images, indices).as_text()))
            return update(state, images, indices)

        def lower(state, images, indices):
            assert threading.current_thread() is not threading.main_thread()
            lowered = update.lower(state, images, indices)
            compiled.append((indices.shape[1], lowered.as_text()))
            return lowered

        run.lower = lower
        return run

    monkeypatch.setattr(parallel, "parallelize", recorded)
    config = small_models.use(config_of(4, steps=11), "plain")
    loop.train(config, tmp_path, small_data(IMAGES[:, :8, :8]))
    assert [steps for steps, _ in called] == [4, 4, 3]
    assert compiled == [called[-1]]
    # Resumed where the first call is shorter too; one that cannot be compiled is left to the call.
    called.clear(), compiled.clear()
    config.train.steps = 23
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    loop.train(config, tmp_path, small_data(IMAGES[:, :8, :8]))
    assert [steps for steps, _ in called] == [1, 4, 4, 3]
    assert compiled == [called[-1]]
