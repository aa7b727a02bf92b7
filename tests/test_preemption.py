"""Trainings that are really sent SIGTERM and SIGINT."""

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import small_models

from vae_attn.training import loop, preemption
from vae_attn.training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 40
FLAGS = [
    "--config=configs/digits.py",
    "--mode=train",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=8",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=1000",
    *small_models.flags("digits"),
]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config():
    """Of the runs below."""
    config = small_models.use(load(ROOT / "configs" / "digits.py").get_config(), "digits")
    config.train.steps, config.train.batch_size = STEPS, 8
    return config


def start(arguments, *, seconds_a_step=0.0):
    environment = {"XLA_FLAGS": "", "SECONDS_A_STEP": str(seconds_a_step), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    return output


def wait_for_steps(process, workdir):
    """Until the run has made a few steps."""
    path = workdir / "metrics.jsonl"
    while not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) < 3:
        assert process.poll() is None, finish(process)
        time.sleep(0.02)


def stopped_step(output, workdir, folders=(".",)):
    (step,) = re.findall(rf"stopped at step (\d+) of {STEPS}, and saved in (?:\S+):", output)
    for folder in folders:
        checkpoints = Checkpoints(workdir / folder)
        assert checkpoints.steps() == [int(step)]
        checkpoints.close()
    assert "the same command resumes" in output
    return int(step)


def leaves(config, workdir):
    state = loop.restore(config, workdir, which="latest")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    process = start(["tests/small_run.py", *FLAGS, f"--workdir={workdir}"])
    output = finish(process)
    assert process.returncode == 0, output
    return workdir


def test_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(config, whole, tmp_path):
    command = ["tests/small_run.py", *FLAGS, f"--workdir={tmp_path}"]
    process = start(command, seconds_a_step=0.1)
    wait_for_steps(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert process.returncode == 0, output
    assert "SIGTERM: saving a checkpoint after this step" in output
    step = stopped_step(output, tmp_path)
    assert step < STEPS

    process = start(command)
    output = finish(process)
    assert process.returncode == 0, output
    assert f"resuming from step {step}" in output
    for found, expected in zip(leaves(config, tmp_path), leaves(config, whole), strict=True):
        np.testing.assert_array_equal(found, expected)


def child_processes(pid):
    return [
        int(x)
        for x in pathlib.Path(f"/proc/{pid}/task/{pid}/children")
        .read_text(encoding="utf-8")
        .split()
    ]


@pytest.mark.parametrize("to_all", [True, False])
def test_signal_stops_two_processes_at_one_step(config, whole, tmp_path, to_all):
    """SIGINT to the launcher, which sends it on, with two seeds; SIGTERM to the second alone."""
    code = (
        "import sys; sys.path.insert(0, 'launch'); import local;"
        "sys.exit(local.run(sys.argv[1:], processes=2, devices=2))"
    )
    program = ["tests/small_run.py", *FLAGS, f"--workdir={tmp_path}"]
    folders = ("seed_0", "seed_1") if to_all else (".",)
    program.append(f"--config.num_seeds={len(folders)}")
    process = start(["-c", code, sys.executable, *program], seconds_a_step=0.1)
    wait_for_steps(process, tmp_path)
    if to_all:
        process.send_signal(signal.SIGINT)
    else:
        os.kill(child_processes(process.pid)[1], signal.SIGTERM)
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("saving a checkpoint after this step") == (2 if to_all else 1)
    step = stopped_step(output, tmp_path, folders)
    assert step < STEPS
    if to_all:
        return
    # One process resumes where two stopped.
    output = finish(start(program))
    assert f"resuming from step {step}" in output
    for found, expected in zip(leaves(config, tmp_path), leaves(config, whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_exits_at_once(number):
    """Even within what lets no Python run for minutes, as XLA does when it compiles."""
    code = (
        "import os; from vae_attn.training import preemption\n"
        "with preemption.Watch() as watch:\n"
        "    assert not watch.stopping()\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    assert watch.stopping()\n"
        "    print('first', flush=True)\n"
        "    sum(range(10**11))\n"
    )
    process = start(["-c", code])
    try:
        while process.stdout.readline() != "first\n":  # after the line that reports the signal
            assert process.poll() is None
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(timeout=20) == -number
    finally:
        process.kill()
        process.communicate()


def test_exit_code_for_launchers(tmp_path):
    command = ["tests/small_run.py", *FLAGS, f"--workdir={tmp_path}", "--stopped_exit_code=75"]
    process = start(command, seconds_a_step=0.1)
    wait_for_steps(process, tmp_path)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert process.returncode == 75, output
    assert stopped_step(output, tmp_path) < STEPS


def test_handlers_are_those_of_before():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with preemption.Watch() as watch:
        assert signal.getsignal(signal.SIGTERM) not in before
        assert not watch.stopping(now=True)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_watch_of_another_thread_leaves_the_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def use():
        with preemption.Watch() as watch:
            seen.append((signal.getsignal(signal.SIGTERM), watch.stopping()))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
