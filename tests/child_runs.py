"""Short trainings of a small model in processes of their own, and their states here."""

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import small_models

from vae_attn.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[1]
VALUES = small_models.values("digits") | {
    "train.steps": 10,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
}


def config_of(**values):
    """The config of digits with VALUES and others, dots in their names written `__`."""
    spec = importlib.util.spec_from_file_location("digits", ROOT / "configs" / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    changed = VALUES | {name.replace("__", "."): value for name, value in values.items()}
    config.update_from_flattened_dict(changed)
    return config


def start(workdir, *flags, script="faulty_run.py", devices=1, **environment):
    """A training in `workdir`, of the config of `config_of()` unless the flags change it."""
    set_all = [f"--config.{name}={value}" for name, value in VALUES.items()]
    command = [f"tests/{script}", "--config=configs/digits.py", "--mode=train", *set_all]
    count = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *command, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": count, "PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0, seconds=300):
    """Waits for its end; the output."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    return output


def leaves(state):
    """Its arrays by name."""
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    }


def latest(workdir):
    """The arrays of the newest checkpoint."""
    return leaves(loop.restore(config_of(), workdir, which="latest"))


def assert_equal(found, expected):
    """That all arrays are the same to the bit."""
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def compiling_once(folder):
    """Environment of trainings in one process, of which those after the first compile nothing."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start_two(workdir, *flags, **options):
    """Two processes without a launcher that ends the other."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    flags = (*flags, f"--coordinator_address={address}", "--num_processes=2")
    return [start(workdir, *flags, f"--process_id={n}", **options) for n in (0, 1)]
