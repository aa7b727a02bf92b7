"""Compiled programs that are kept on disk, and what kills and other processes do to them."""

import os
import pathlib
import signal
import subprocess
import sys

import filelock
import jax
import pytest

from vae_attn import compilation_cache
from vae_attn.config import default_config

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Compiles one program and prints its result's bits and how many programs the cache had.
CHILD = """
import resource, signal, sys, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp
from vae_attn import compilation_cache
from vae_attn.config import default_config

folder, kill = sys.argv[1:]
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
)
if folder != "none":
    config = default_config()
    config.data.cache_dir = folder
    with_accelerator, jax.default_backend = jax.default_backend, lambda: "gpu"
    compilation_cache.keep(config)
    jax.default_backend = with_accelerator
if kill == "kill":  # as soon as a file has a hundred bytes
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
x = jnp.linspace(0, 1, 300, dtype=jnp.float32).reshape(3, 100)
print(jax.jit(lambda x: jnp.tanh(x @ x.T).sum())(x).tobytes().hex(), len(hits))
"""


def run(folder, kill="live", code=0):
    process = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), kill],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == code, process.stderr
    return process.stdout.split()


def test_killed_in_a_write_the_next_run_compiles_and_the_one_after_does_not(tmp_path):
    """And all results are those without a cache, bit for bit."""
    expected, none = run("none")
    assert none == "0"
    run(tmp_path, kill="kill", code=-signal.SIGXFSZ)
    (entry,) = (tmp_path / "compiled").glob("*-cache")
    assert entry.stat().st_size == 100
    assert run(tmp_path) == [expected, "0"]
    found, hits = run(tmp_path)
    assert found == expected
    assert int(hits) > 0


@pytest.fixture
def settings(monkeypatch):
    """What is set of JAX's cache, in place of setting it."""
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    return found


def config_of(folder):
    config = default_config()
    config.data.cache_dir = str(folder)
    return config


def test_off_on_the_cpu(tmp_path, settings):
    compilation_cache.keep(config_of(tmp_path))
    assert not settings
    assert not list(tmp_path.iterdir())


def test_on_elsewhere_unless_the_key_says_no(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    config = config_of(tmp_path)
    config.parallel.compilation_cache = False
    compilation_cache.keep(config)
    assert not settings
    config.parallel.compilation_cache = True
    compilation_cache.keep(config)
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "compiled")
    assert settings["jax_compilation_cache_max_size"] > 0  # what makes JAX lock it


def test_off_for_several_processes(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    compilation_cache.keep(config_of(tmp_path))
    assert not settings


@pytest.mark.parametrize("trouble", ["a file", "a lock"])
def test_a_folder_that_cannot_be_used_is_told(trouble, tmp_path, settings, monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compilation_cache, "_LOCK_TIMEOUT", 0.1)
    held = filelock.FileLock(tmp_path / ".lockfile")
    if trouble == "a file":
        (tmp_path / "compiled").write_text("", encoding="utf-8")
    else:
        (tmp_path / "compiled").mkdir()
        held = filelock.FileLock(tmp_path / "compiled" / ".lockfile")
    with held:
        compilation_cache.keep(config_of(tmp_path))
    assert not settings
    assert "compiled programs are not kept" in caplog.text
