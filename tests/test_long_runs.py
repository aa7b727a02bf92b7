"""What long runs need: memory that stays flat, and run directories that go on wherever they lie."""

import pathlib
import shutil
import struct
import time

import child_runs
import jax.numpy as jnp
import pytest
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from vae_attn.experiments import run as experiment
from vae_attn.training.checkpoints import Checkpoints
from vae_attn.training.telemetry import Telemetry, read_metrics


@pytest.fixture
def small(monkeypatch):
    """Training alone."""
    monkeypatch.setattr(experiment, "_evaluate_and_explain", lambda *arguments: None)


def last_step(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").count("\n") if path.exists() else 0
    return 20 * lines


def resident_megabytes(pid):
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="no /proc here")
def test_memory_is_flat_over_2000_steps(tmp_path):
    """Of the process itself, from step 500 to 2,000, with four checkpoints and 75 rows of metrics.

    TensorStore loses some 40 kB a checkpoint; keeping every step's metrics costs 24 MB.
    """
    flags = [f"--config.train.{key}" for key in ("steps=2100", "log_every=20")]
    # glibc returns what is freed, of which it would keep 12 MB in some runs and 4 in others.
    returning = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "100000"}
    flags.append("--config.train.checkpoint_every=400")
    process = child_runs.start(tmp_path, *flags, **returning)
    found = {}
    for step in (500, 2000):
        while last_step(tmp_path) < step:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        found[step] = resident_megabytes(process.pid)
    child_runs.finish(process)
    assert found[500] > 100
    assert found[2000] - found[500] < 8


@pytest.mark.slow
def test_copied_run_goes_on_elsewhere(small, tmp_path, monkeypatch):
    """Bit for bit, from a relative path to another, the original being gone."""
    run = pathlib.Path("run")
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    experiment.run(child_runs.config_of(), run, mode="train")
    whole = child_runs.latest(run)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8")
    shutil.copytree(run, tmp_path / "other" / run)
    monkeypatch.chdir(tmp_path / "other")
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(run / "checkpoints" / "10")  # as if it had been copied before
    experiment.run(child_runs.config_of(), run, mode="train")
    child_runs.assert_equal(child_runs.latest(run), whole)
    assert (run / "metrics.jsonl").read_text(encoding="utf-8") == lines
    assert read_metrics(run)["validation_loss"][0] == [2, 4, 6, 8, 10]
    assert not (tmp_path / "one").exists()


def test_checkpoints_do_not_pile_up_over_restarts(tmp_path):
    """The two latest and the best are kept, also of those that an earlier process has saved."""
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 2.0, 6: 0.5, 7: 6.0, 8: 7.0}
    kept = []
    for step, loss in losses.items():
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save({"x": jnp.full(3, step)}, step=step, validation_loss=loss)
        checkpoints.close()
        kept.append(sorted(path.name for path in (tmp_path / "checkpoints").iterdir()))
    expected = ["1", "12", "23", "234", "245", "56", "67", "678"]
    assert kept == [list(steps) for steps in expected]


def events_of(folder):
    """The events of a folder's files, read as TensorBoard does."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            record = content[12 : 12 + length]
            checksums = struct.unpack("<II", content[8:12] + content[12 + length : 16 + length])
            assert checksums == (masked_crc32c(content[:8]), masked_crc32c(record))
            yield event_pb2.Event.FromString(record)
            content = content[16 + length :]


def test_events_of_a_run_that_goes_on(tmp_path):
    for start, metrics in ((0, {"loss": 2.0}), (4, {"loss": 1.5, "loss/seed_0": 1.0})):
        telemetry = Telemetry(tmp_path, start_step=start, total_steps=9)
        telemetry.write(start + 2, metrics)
        telemetry.close()
    events = list(events_of(tmp_path / "tensorboard"))
    assert events[0].file_version == "brain.Event:2"
    begun = event_pb2.SessionLog.START
    assert [event.step for event in events if event.session_log.status == begun] == [1, 5]
    assert [
        (event.step, value.tag, value.simple_value)
        for event in events
        for value in event.summary.value
    ] == [(2, "loss", 2.0), (6, "loss", 1.5), (6, "loss/seed_0", 1.0)]
    assert all(abs(event.wall_time - time.time()) < 600 for event in events)
