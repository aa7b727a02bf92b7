"""One command at a time in a workdir."""

import errno
import fcntl
import os
import socket
import time

import child_runs
import pytest

from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.workdir import WorkdirLock


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_second_run_in_a_workdir_is_refused(tmp_path):
    slow = {"script": "small_run.py", "SECONDS_A_STEP": "60"}
    first = child_runs.start(tmp_path, "--config.train.steps=100", **slow)
    try:
        # The last file that it writes before its first step, which takes a minute.
        while not any(tmp_path.rglob("events.out.tfevents.*")):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
        time.sleep(5)
        before = contents(tmp_path)
        holder = f"process {first.pid} on {socket.gethostname()}"
        sentence = rf"--workdir={tmp_path} is in use by {holder}: wait for it or end it, or give"
        for mode in ("train", "evaluate", "explain", "all"):
            with pytest.raises(UserError, match=sentence):
                experiment.run(child_runs.config_of(seed=3), tmp_path, mode=mode)
        assert contents(tmp_path) == before
    finally:
        first.kill()
        first.communicate()
    with WorkdirLock() as lock:  # which a kill gives back
        lock.take(tmp_path)


def test_lock_of_groups_and_seeds(tmp_path):
    """Each folder is for one command at a time, whether it is a group's, a run's or a seed's."""
    group, category, seed = tmp_path, tmp_path / "carpet", tmp_path / "carpet" / "seed_1"
    with WorkdirLock() as first, WorkdirLock() as second:
        first.take(group, category)
        first.take(category, seed)
        for folder in (group, category, seed):
            with pytest.raises(UserError, match=f"--workdir={folder} is in use by process"):
                second.take(folder)
        second.take(tmp_path / "grid")
    with WorkdirLock() as third:
        third.take(group, category, seed, tmp_path / "grid")


def test_file_system_without_locks_only_warns(tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    with WorkdirLock() as lock, monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        lock.take(tmp_path)
        assert f"{tmp_path} cannot be locked ([Errno {errno.ENOLCK}] No locks" in caplog.text
    caplog.clear()
    (tmp_path / "other" / ".lock").mkdir(parents=True)  # no file can be written there
    with WorkdirLock() as lock:
        lock.take(tmp_path / "other")
    assert f"{tmp_path}/other cannot be locked" in caplog.text


@pytest.mark.slow
def test_refused_run_of_two_processes_ends_in_both(tmp_path):
    with WorkdirLock() as lock:
        lock.take(tmp_path)
        before = contents(tmp_path)
        outputs = [child_runs.finish(process, 2) for process in child_runs.start_two(tmp_path)]
        assert contents(tmp_path) == before
    assert f"in use by process {os.getpid()} on" in outputs[0]
    assert "another command works in this workdir; see process 0" in outputs[1]
    assert not any("Traceback" in output for output in outputs)
