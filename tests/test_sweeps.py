"""launch/sweep.py: its commands, its exit codes, its signals, and a whole small sweep."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SWEEP = ROOT / "launch" / "sweep.py"


def sweep(*arguments):
    return subprocess.run(
        [sys.executable, SWEEP, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def start(programs):
    """Programs of some lines, by name, through `Sweep.run`."""
    commands = {name: [sys.executable, "-c", code] for name, code in programs.items()}
    code = (
        f"import sys; sys.path.insert(0, {str(SWEEP.parent)!r}); import sweep;"
        f"sys.exit(sweep.Sweep().run({commands!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_dry_run_prints_the_cross_product():
    options = ["--config=configs/mnist.py:3", "--set", "model.latents=16,32", "--seeds=0,1"]
    options += ["--set", "train.beta=0.5", "--workdir=runs/x", "--dry_run", "--", "--mode=train"]
    lines = [shlex.split(line)[3:] for line in sweep(*options).stdout.splitlines()]
    assert lines == [
        [
            "--config=configs/mnist.py:3",
            f"--workdir=runs/x/mnist_3-latents={latents}-beta=0.5-seed={seed}",
            "--stopped_exit_code=75",
            f"--config.model.latents={latents}",
            "--config.train.beta=0.5",
            f"--config.seed={seed}",
            "--mode=train",
        ]
        for latents in (16, 32)
        for seed in (0, 1)
    ]


def test_names_tell_keys_and_values_apart():
    options = [
        "--config=configs/digits.py",
        "--set",
        "evaluate.layers=('conv1',),('conv1','conv2')",
    ]
    options += ["--set", "attention.layers=()", "--dry_run"]
    lines = [shlex.split(line) for line in sweep(*options).stdout.splitlines()]
    assert [line[-2] for line in lines] == [
        "--config.evaluate.layers=('conv1',)",
        "--config.evaluate.layers=('conv1','conv2')",
    ]
    names = [pathlib.Path(line[4]).name for line in lines]
    assert names[0] == "digits-evaluate.layers=_conv1_-attention.layers=_"
    assert names[1] == "digits-evaluate.layers=_conv1_conv2_-attention.layers=_"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "train.beta"], "'train.beta' must be KEY=VALUE[,VALUE ...]"),
        (["--set", "train.beta=1,1"], "two runs would have the name digits-beta=1"),
        (["--set", "train.beta=1", "--set", "train.beta=2"], "train.beta is given twice"),
        (["--set", "seed=1", "--seeds=2"], "seed is given twice"),
    ],
)
def test_what_makes_no_sweep(options, message):
    result = sweep("--config=configs/digits.py", *options, "--dry_run")
    assert result.returncode == 2
    assert message in result.stderr
    assert not result.stdout


def test_a_failed_run_does_not_stop_the_others():
    process = start({"a": "raise SystemExit(3)", "b": "print('b ran')", "c": "raise SystemExit(2)"})
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "b ran" in output
    assert output.endswith("2 of 3 runs failed:\n  a (exit code 3)\n  c (exit code 2)\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_run_and_end_the_sweep(number):
    waiting = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(print('saved')))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    process = start({"a": waiting, "b": "print('b ran')"})
    for line in process.stdout:
        if line.strip() == "ready":
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert output == "saved\nstopped; the same command resumes it.\n"
    assert process.returncode == 128 + number


@pytest.mark.slow
def test_a_whole_sweep_and_its_resumption(tmp_path):
    """One value cannot be: the other's run is trained; again, it has nothing left to do."""
    options = ["--config=configs/digits.py", "--set", "train.learning_rate=-1,0.001"]
    options += [f"--workdir={tmp_path}", "--", "--mode=train", "--config.train.steps=2"]
    options += ["--config.train.batch_size=8", "--config.attention.projection_steps=0"]
    options += ["--config.report.tensorboard_images=0"]
    result = sweep(*options)
    assert result.returncode == 1
    assert "1 of 2 runs failed:\n  digits-learning_rate=-1 (exit code 2)" in result.stdout
    (folder,) = tmp_path.iterdir()
    assert folder.name == "digits-learning_rate=0.001"
    kept = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert kept["train"]["learning_rate"] == 0.001
    assert (folder / "checkpoints" / "2").exists()
    again = sweep(*options)
    assert re.search("resuming from step 2", again.stderr)
