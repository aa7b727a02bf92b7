"""Keeps compiled programs between runs, in JAX's persistent cache."""

import logging
import pathlib

import filelock
import jax
import ml_collections

from vae_attn.data import cache

_LOG = logging.getLogger("vae_attn")

_FOLDER = "compiled"  # in the cache folder
_MOST_BYTES = 2 * 1024**3  # of which the programs used least recently go first
_LOCK_TIMEOUT = 10  # seconds, JAX's own


def keep(config: ml_collections.ConfigDict) -> None:
    """Has JAX keep what it compiles from now on, on an accelerator that one process uses.

    Not on the CPU. JAX's key of a program does not name the features of the processor, so that
    programs of another machine crash or are refused (jax issue 38445), and loading large programs
    crashes in compiled code. Not with several processes, of which JAX lets the first alone write:
    those of another host miss what the first one finds, and wait for it while they compile.

    A folder that is set already, as by JAX_COMPILATION_CACHE_DIR, stays. One that cannot be used
    only causes a warning.

    Args:
      config: its `parallel.compilation_cache` and `data.cache_dir`.
    """
    if not config.parallel.compilation_cache or jax.config.jax_compilation_cache_dir:
        return
    if jax.default_backend() == "cpu" or jax.process_count() > 1:
        return
    try:
        folder = pathlib.Path(config.data.cache_dir or cache.default_dir()) / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
    except (RuntimeError, NotImplementedError, OSError) as error:  # a timeout is an OSError
        _LOG.warning("compiled programs are not kept (%s): set data.cache_dir", error)
        return
    # With a size JAX locks the folder, so that no two processes write one file.
    jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def is_on() -> bool:
    """Whether what one thread compiles is at hand for another, or for the next run."""
    return bool(jax.config.jax_compilation_cache_dir)


def _remove_unfinished(folder: pathlib.Path) -> None:
    """Removes entries that a killed process, or a full disk, has left half written.

    JAX writes an entry in place and then the time of its last use, into a file beside it. An entry
    without the second would never be replaced, and keep JAX from adding others.
    """
    with filelock.FileLock(folder / ".lockfile", timeout=_LOCK_TIMEOUT):
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
                entry.unlink()
