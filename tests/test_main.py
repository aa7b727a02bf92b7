"""The program as a user meets it: its errors, and runs that are killed."""

import importlib.util
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import command_lines
import jax
import numpy as np
import pytest

from vae_attn.errors import UserError
from vae_attn.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"XLA_FLAGS": ""}


def command(*arguments):
    return [sys.executable, "-m", "vae_attn.main", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


DIGITS = "--config=configs/digits.py"
MNIST = "--config=configs/mnist.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DIGITS, "--config.train.stepz=3"], "Did you mean 'train.steps'?"),
        ([DIGITS, "--config.attention.layer=conv9"], "attention.layer='conv9' must be one of"),
        ([DIGITS, "--config.train.learning_rate=-1"], "must be greater than 0"),
        ([DIGITS, "--workdir=/proc/nowhere"], "--workdir=/proc/nowhere cannot be written"),
        ([MNIST, "--config.data.dir=/no/such"], "/no/such"),
        (["--config=tests/data/broken_config.py"], "name 'undefined' is not defined"),
        ([DIGITS, "--mode=evaluate", "--workdir=/tmp/no_such_run"], "holds no run: train it first"),
        ([DIGITS, "--mode=export", "--workdir=/tmp/no_such_run"], "holds no run: train it first"),
        ([DIGITS, "--mode=explain", "--images=no/*.png"], "--images=no/*.png matches no image"),
    ],
)
def test_one_clear_sentence(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("vae_attn: ")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing: give one"),
        ([DIGITS, "--config.train.steps=many"], "--config.train.steps=many"),
        ([DIGITS + ":x"], "the config's variant 'x' is unknown: give one of :0, :1"),
        (["--config=configs/none.py"], "configs/none.py"),
        ([DIGITS, "--config.zzzz=1"], "--config.zzzz=1: the config has no key 'zzzz'"),
        ([DIGITS, "--config.train.steps=\\x"], "--config.train.steps"),
        ([DIGITS, "--config.train={'steps': 3}"], "--config.train is a section, which cannot be"),
        (["--config.seed=3"], "--config is missing: give one"),
        (["--workdir=/tmp/no_such_run"], "--workdir=/tmp/no_such_run holds no run with one"),
        ([DIGITS, "--images=a.png"], "--images is for --mode=explain, and not for --mode=all."),
        ([DIGITS, "stray"], "unexpected argument 'stray'"),
    ],
)
def test_one_clear_sentence_of_the_command_line(monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as found:
        command_lines.parsed(monkeypatch, arguments)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.slow
def test_letters_beyond_ascii_in_an_ascii_locale(tmp_path):
    """Where Python takes paths for ASCII, orbax would refuse the workdir."""
    workdir = tmp_path / "größe"
    options = ["--mode=train", "--config.train.steps=2", "--config.train.batch_size=8"]
    result = subprocess.run(
        [sys.executable, "tests/small_run.py", DIGITS, *options, f"--workdir={workdir}"],
        cwd=ROOT,
        env=ENVIRONMENT | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"in {workdir}" in result.stderr
    assert (workdir / "calibration.npz").exists()


def test_corrupt_file_is_named(tmp_path):
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"no idx file")
    result = run(MNIST, f"--config.data.dir={tmp_path}", f"--workdir={tmp_path}/run")
    assert result.returncode == 2
    assert f"{tmp_path}/t" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def final_state(workdir):
    state = loop.restore(config_of_digits(), workdir, which="latest")
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def config_of_digits():
    spec = importlib.util.spec_from_file_location("digits", ROOT / "configs" / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.slow
def test_killed_run_ends_as_the_uninterrupted_one(tmp_path):
    """kill -9 at a random moment behind the first checkpoint, then the same command again."""
    options = [DIGITS, "--mode=train", "--config.train.steps=12", "--config.train.batch_size=8"]
    options += ["--config.train.checkpoint_every=3", "--config.train.log_every=1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*options, f"--workdir={whole}").returncode == 0

    process = subprocess.Popen(
        command(*options, f"--workdir={killed}"),
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    while not (killed / "checkpoints" / "3").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(random.uniform(0, 1))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"

    result = run(*options, f"--workdir={killed}")
    assert result.returncode == 0, result.stderr
    assert "resuming from step" in result.stderr
    expected = final_state(whole)
    found = final_state(killed)
    assert found.keys() == expected.keys()
    assert found[".step"] == 12
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_importing_needs_neither_tensorflow_nor_torch():
    code = (
        "import sys, vae_attn.main, vae_attn.experiments.run, vae_attn.config, vae_attn.attention;"
        "assert not {'tensorflow', 'torch', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)
