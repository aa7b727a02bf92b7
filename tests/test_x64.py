"""Everything computes in float32, also where the environment makes 64 bits JAX's default."""

import os
import pathlib
import subprocess
import sys

import child_runs
import numpy as np
import pytest

from vae_attn.training.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*command, devices=1, **environment):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags} | environment
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_updates_of_every_model(tmp_path):
    """Plain, with batch normalisation, and with a discriminator."""
    found = {}
    for x64 in "01":
        run("tests/few_steps.py", tmp_path / f"{x64}.npz", JAX_ENABLE_X64=x64)
        with np.load(tmp_path / f"{x64}.npz") as file:
            found[x64] = dict(file)
    assert found["0"].keys() == found["1"].keys()
    for name, expected in found["0"].items():
        assert found["1"][name].dtype == expected.dtype, name
        np.testing.assert_allclose(found["1"][name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    options = [f"--config.{name}={value}" for name, value in child_runs.VALUES.items()]
    options += ["--config.train.steps=2", "--config.attention.projection_steps=1"]
    options += ["--config.evaluate.max_images=4", "--config.report.max_images=2"]
    program = ("tests/small_run.py", "--config=configs/digits.py", *options)
    run(*program, f"--workdir={tmp_path}/x64", JAX_ENABLE_X64="1")
    run(*program, f"--workdir={tmp_path}/x32", "--mode=train")
    kept, expected = (
        child_runs.leaves(Checkpoints(tmp_path / name).restore_any()[0]) for name in ("x64", "x32")
    )
    for name, leaf in expected.items():
        assert kept[name].dtype == leaf.dtype
        np.testing.assert_allclose(kept[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
    assert (tmp_path / "x64" / "report" / "index.html").exists()
