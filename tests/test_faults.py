"""What really happens to long runs: kills in a save, damaged files, full disks, second runs."""

import contextlib
import json
import resource
import shutil
import signal
import subprocess
import time

import child_runs
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from vae_attn import workdir as workdir_lib
from vae_attn import workdir_scores
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly.calibration import Calibration, Variant
from vae_attn.experiments.anomaly.thresholds import Threshold
from vae_attn.reporting import page, tables
from vae_attn.reporting.explorer import files as explorer_files
from vae_attn.training import loop
from vae_attn.training.checkpoints import Checkpoints
from vae_attn.training.telemetry import Telemetry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Environment of child runs that compile only once."""
    return child_runs.compiling_once(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """A run on one device that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    child_runs.finish(child_runs.start(workdir, **cache))
    return workdir


@pytest.fixture
def small(monkeypatch):
    """Training alone, here too."""
    monkeypatch.setattr(experiment, "_evaluate_and_explain", lambda *arguments: None)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_killed_in_saves_and_out_of_space_it_ends_as_the_uninterrupted_one(
    small, whole, cache, tmp_path
):
    workdir = tmp_path / "run"
    steps = workdir / "checkpoints"
    for fault, code, left in (
        # Arrays are half written; then all is, but for the name; then an old one is half removed.
        ("leaf:4:7", -signal.SIGKILL, ["2", "4.orbax-checkpoint-tmp"]),
        ("commit:6", -signal.SIGKILL, ["2", "4", "6.orbax-checkpoint-tmp"]),
        ("delete:8:5", -signal.SIGKILL, ["4", "6", "8"]),
        ("disk:10:20000", 2, ["4", "6", "8"]),
    ):
        output = child_runs.finish(child_runs.start(workdir, FAULT=fault, **cache), code)
        assert names(steps) == left, output
    assert "Traceback" not in output
    sentence = output.splitlines()[-1]
    assert sentence.startswith(f"vae_attn: cannot save a checkpoint in {steps} (File too large)")
    assert "free some space and run the same command again" in sentence
    for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)
    (steps / "7.orbax-checkpoint-tmp" / "state").mkdir(parents=True)  # of a stop, and a kill then
    assert "resuming from step 8" in child_runs.finish(child_runs.start(workdir, **cache))
    assert names(steps) == names(whole / "checkpoints") == ["10", "8"]
    child_runs.assert_equal(child_runs.latest(workdir), child_runs.latest(whole))
    assert (workdir / "metrics.jsonl").read_text(encoding="utf-8") == (
        whole / "metrics.jsonl"
    ).read_text(encoding="utf-8")


def test_one_device_to_eight(small, whole, tmp_path):
    """What one device saved goes on on eight, as it does on one."""
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "10")
    experiment.run(child_runs.config_of(), workdir, mode="train")
    expected = child_runs.latest(whole)
    found = child_runs.latest(workdir)
    assert found[".step"] == 10
    for name in expected:
        if ".params" in name:  # Adam's moments of what is 0 but for rounding are not comparable
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-2, atol=1e-4)


def delete(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes() or b"x")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [delete, truncate, flip_a_bit])
def test_any_damaged_file_of_a_checkpoint(damage, tmp_path, caplog, capfd):
    """It is passed over and named, unless all that was saved is read nevertheless."""
    rng = np.random.default_rng(0)
    states = {
        step: {"a": jnp.asarray(rng.random((30, 10), np.float32)), "b": {"step": jnp.int32(step)}}
        for step in (1, 2)
    }
    checkpoints = Checkpoints(tmp_path / "run")
    for step, state in states.items():
        checkpoints.save(state, step=step, validation_loss=float(step))
    checkpoints.close()
    newest = tmp_path / "run" / "checkpoints" / "2"
    passed_over = set()
    for file in [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]:
        copy = shutil.copytree(tmp_path / "run", tmp_path / "copy")
        damage(copy / "checkpoints" / "2" / file)
        checkpoints = Checkpoints(copy)
        caplog.clear()
        found, step = checkpoints.restore(states[1])
        checkpoints.close()
        child_runs.assert_equal(child_runs.leaves(found), child_runs.leaves(states[step]))
        if step == 1:
            assert f"{copy}/checkpoints/2 is broken and passed over: " in caplog.text
            assert len(caplog.text.splitlines()) == 1
            passed_over.add(file.parts[0] if file.parts[0] != "state" else file.parts[1])
        shutil.rmtree(copy)
    assert passed_over >= {"checksums", "manifest.ocdbt", "d", "ocdbt.process_0"}
    assert "Traceback" not in capfd.readouterr().err


def test_checkpoint_of_another_architecture(small, whole, tmp_path, caplog):
    """With its config.json lost; an intact one is no broken one."""
    workdir = shutil.copytree(whole, tmp_path / "run")
    (workdir / "config.json").unlink()
    for mode in ("train", "evaluate"):
        with pytest.raises(UserError) as caught:
            experiment.run(child_runs.config_of(model__latents=8), workdir, mode=mode)
        message = str(caught.value)
        assert message.startswith(f"checkpoint {workdir}/checkpoints/")
        assert "params.logvar.kernel (there float32[196, 32], now float32[196, 8])" in message
        assert " more: give another --workdir, or the config" in message
        assert len(message) < 600
    assert "passed over" not in caplog.text
    assert names(workdir / "checkpoints") == ["10", "8"]
    # One that is damaged too is a broken one.
    for step in ("8", "10"):
        flip_a_bit(
            max(
                (workdir / "checkpoints" / step / "state" / "ocdbt.process_0" / "d").iterdir(),
                key=lambda path: path.stat().st_size,
            )
        )
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact \(steps 10, 8; the warn"):
        loop.restore(child_runs.config_of(model__latents=8), workdir, which="latest")


@contextlib.contextmanager
def files_up_to(size):
    """A disk that is full when a file has that many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_scores(folder, n):
    workdir_scores.write_metrics({"contrast/conv1/iou": 1 / (n + 2)}, folder)


def write_table(folder, n):
    table = tables.Table("Scores", [["a", "b"], ["c", str(n)]], "note")
    tables.write_markdown([table], folder / "table.md", title="title")


def write_page(folder, n):
    drawn = {"drawn": (Figure(figsize=(1 + n, 1)), "heading", "caption")}
    shown = {"title": "title", "summary": str(n), "drawn": drawn, "tables": ()}
    page.write(child_runs.config_of(), folder, **shown)


def write_calibration(folder, n):
    of = {"parameters": str(n), "variant": Variant("paper", ("conv1",)), "projection_steps": n}
    normal = {"normal_mean": np.ones(3), "normal_variance": np.ones(3), "statistics": {}}
    calibration = Calibration(**of, **normal, pixels=Threshold(0.5), images=Threshold(0.5))
    calibration.save(folder / "calibration.npz")


def write_config(folder, n):
    workdir_lib.keep_or_compare(child_runs.config_of(seed=n), folder)


def write_thumbnail(folder, n):
    image = np.full((8, 8, 1), 9 * n, np.uint8)
    explorer_files.save_thumbnail(image, np.zeros((8, 8, 3), np.float32), folder / "thumbnail")


def write_script(folder, n):
    explorer_files.save_script("image", {"n": 1000 + n}, folder)


@pytest.mark.parametrize("write", [
    write_scores, write_table, write_page, write_calibration, write_config, write_thumbnail,
    write_script,
])  # fmt: skip
@pytest.mark.parametrize("size", [0, 20])
def test_full_disk_leaves_files_as_they_were(write, size, tmp_path):
    def contents():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    write(tmp_path, 0)
    before = contents()
    with files_up_to(size), pytest.raises((OSError, UserError), match="File too large"):
        write(tmp_path, 1)
    assert contents() == before
    write(tmp_path, 1)
    assert contents().keys() == before.keys()
    assert contents() != before


@pytest.mark.parametrize(("start", "lines"), [(0, 2), (50, 51)])
def test_full_disk_leaves_whole_lines_and_events(start, lines, tmp_path):
    """Of a new run the events are the larger file, and full first; of an older one the lines."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(f'{{"step": {step + 1}, "loss": 1.0}}\n' for step in range(start)), encoding="utf-8"
    )
    telemetry = Telemetry(tmp_path, start_step=start, total_steps=99)
    telemetry.write(start + 1, {"loss": 1.0})
    (events,) = (tmp_path / "tensorboard").iterdir()
    before = events.read_bytes()
    size = max(len(before), path.stat().st_size)
    with files_up_to(size + 5), pytest.raises(OSError, match="File too large"):
        telemetry.write(start + 2, {"loss": 0.5})
    assert (
        len([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]) == lines
    )
    assert events.read_bytes() == before
    telemetry.write(start + 3, {"loss": 0.5})
    assert events.read_bytes()[: len(before)] == before < events.read_bytes()


def test_full_disk_of_its_own(tmp_path):
    """A real one, where this user may mount it."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        checkpoints = Checkpoints(tmp_path)
        state = {"x": jnp.asarray(np.random.default_rng(0).random(30_000, np.float32))}
        checkpoints.save(state, step=1, validation_loss=1.0)
        (tmp_path / "other").write_bytes(bytes(200_000))
        with pytest.raises(UserError, match=r"\(No space left on device\): free some space"):
            checkpoints.save(state, step=2, validation_loss=1.0)
        assert checkpoints.restore(state)[1] == 1
        (tmp_path / "other").unlink()
        checkpoints.save(state, step=2, validation_loss=1.0)
        assert checkpoints.restore(state)[1] == 2
        checkpoints.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def wait_for_steps(process, workdir):
    path = workdir / "metrics.jsonl"
    while not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_processes_end_when_one_is_killed(tmp_path):
    """The second, which the first one misses after a while; the first, to which all are bound."""
    started, left = [], []
    try:
        for victim in (1, 0):  # the other run starts while the first process still waits
            workdir = tmp_path / str(victim)
            flags = ("--config.train.steps=100000", "--config.train.log_every=20")
            processes = child_runs.start_two(workdir, *flags, script="small_run.py")
            started += processes
            wait_for_steps(processes[victim], workdir)
            processes[victim].kill()
            left.append((processes[1 - victim], time.monotonic() + 60))
        for process, ends in left:
            process.communicate(timeout=max(0, ends - time.monotonic()))
            assert process.returncode not in (0, None)
    finally:
        for process in started:
            process.kill()
            process.communicate()
