"""What is recorded beside a training: it goes on meanwhile, in order, and its errors arrive."""

import threading

import jax
import numpy as np
import pytest
import small_models
from small_data import small_data

from vae_attn.config import default_config
from vae_attn.data import sampling
from vae_attn.training import background, loop
from vae_attn.training.checkpoints import SeedCheckpoints
from vae_attn.training.telemetry import read_metrics

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)


can_run_beside = background.can_run_beside


@pytest.fixture(autouse=True)
def _beside(monkeypatch):
    """On simulated devices too, which have threads enough for the few steps of these tests."""
    monkeypatch.setattr(background, "can_run_beside", lambda: True)


@pytest.fixture
def config():
    config = small_models.use(default_config(), "plain")
    config.model.latents = 3
    config.train.update({"batch_size": 8, "steps": 4, "log_every": 2, "checkpoint_every": 2})
    return config


def test_steps_are_made_while_a_checkpoint_is_written(config, tmp_path, monkeypatch):
    """The save of step 4 waits for a batch of a later step, several log lines ahead."""
    config.train.update({"steps": 8, "log_every": 1, "checkpoint_every": 4})
    later = threading.Event()
    save, batch_indices = SeedCheckpoints.save, sampling.batch_indices

    def waiting(self, state, *, step, **options):
        assert later.wait(60)
        save(self, state, step=step, **options)

    def drawn(*, step, **options):
        if step == 7:
            later.set()
        return batch_indices(step=step, **options)

    monkeypatch.setattr(SeedCheckpoints, "save", waiting)
    monkeypatch.setattr(sampling, "batch_indices", drawn)
    loop.train(config, tmp_path, small_data(IMAGES))
    assert [int(state.step) for _, _, state in loop.restore_each(config, tmp_path)] == [4, 8]
    assert read_metrics(tmp_path)["loss"][0] == list(range(1, 9))


def test_what_a_checkpoint_needs_is_compiled_before_the_first(config, tmp_path):
    """On the state before the first step; what that gives, an error too, is not recorded."""
    seen = []

    def probe(variables, *, seed):
        assert seed == 0
        seen.append(jax.tree.leaves(variables)[0].sum())
        if len(seen) == 1:
            raise ValueError("of an untrained model")
        return {"probed": float(len(seen))}

    loop.train(config, tmp_path, small_data(IMAGES), probe=probe)
    assert len(seen) == 3
    assert read_metrics(tmp_path)["probed"] == ([2, 4], [2.0, 3.0])
    # A run that has nothing left to train needs none.
    loop.train(config, tmp_path, small_data(IMAGES), probe=probe)
    assert len(seen) == 3


def test_an_error_ends_the_training_with_the_next_record(config, tmp_path, monkeypatch):
    def refused(self, state, **options):
        raise OSError("no space")

    monkeypatch.setattr(SeedCheckpoints, "save", refused)
    with pytest.raises(OSError, match="no space"):
        loop.train(config, tmp_path, small_data(IMAGES))
    assert read_metrics(tmp_path)["loss"][0] == [2]  # nothing is recorded after it


def test_jobs_in_order_and_one_at_a_time():
    done, running = [], threading.Lock()

    def job(n):
        assert running.acquire(blocking=False)
        done.append(n)
        running.release()

    with background.Background() as jobs:
        for n in range(20):
            jobs.run(lambda n=n: job(n))
        jobs.keep({})
        assert done == list(range(20))  # before a second copy of a state is made


def test_after_an_error_no_job_is_begun():
    done, go_on = [], threading.Event()

    def fail():
        assert go_on.wait(60)
        raise ValueError("of a job")

    def give(jobs):
        jobs.run(fail)
        jobs.run(lambda: done.append(1))
        go_on.set()
        jobs.keep({})

    with pytest.raises(ValueError, match="of a job"), background.Background() as jobs:
        give(jobs)
    assert not done


def test_error_of_the_last_job_and_of_the_caller():
    def fail():
        raise ValueError("of a job")

    with pytest.raises(ValueError, match="of a job"), background.Background() as jobs:
        jobs.run(fail)
    with pytest.raises(KeyError, match="caller"), background.Background() as jobs:
        jobs.run(fail) or {}["caller"]


@pytest.mark.parametrize(
    ("processes", "devices", "expected"), [(1, 1, True), (2, 1, False), (1, 8, False)]
)
def test_where_jobs_run(monkeypatch, processes, devices, expected):
    monkeypatch.setattr(background, "can_run_beside", can_run_beside)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    seen = []
    with background.Background() as jobs:
        assert jobs.is_beside is expected
        jobs.run(lambda: seen.append(threading.current_thread()))
        jobs.wait()
    assert (seen != [threading.main_thread()]) is expected
