"""A run's folders: taken by a command before it writes, and read back once trained."""

import pathlib

import ml_collections

from vae_attn import config as config_lib
from vae_attn.training import loop, seeds
from vae_attn.workdir_lock import WorkdirLock


def begin(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, mode: str, lock: WorkdirLock
) -> None:
    """Takes a run's folders, one for each of several seeds, and writes or compares its config.

    Args:
      config: the run's.
      workdir: created if missing, unless `mode` needs a run that is there.
      mode: `evaluate` and `explain` need one.
      lock: takes the folders.

    Raises:
      UserError: if there is no run where one is needed, another command works in the folders, or
        they hold a run with another config.
    """
    if mode in ("evaluate", "explain"):
        config_lib.require_run(workdir)  # before the lock, which makes the folder
    of_seeds = seeds.runs(config, workdir)
    lock.take(workdir, *(folder for _, folder in of_seeds))
    config_lib.save_or_compare(config, workdir)
    for one, folder in of_seeds if config.num_seeds > 1 else ():
        config_lib.save_or_compare(one, folder)


def trained(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, mode: str
) -> list[loop.State]:
    """Each seed's state; to explain, the first's alone.

    All processes restore together, and could not while the main one is busy with a seed.

    Raises:
      UserError: if there is no intact checkpoint.
    """
    of_seeds = seeds.runs(config, workdir)
    needed = of_seeds[:1] if mode == "explain" else of_seeds
    which = config_lib.which_checkpoint(config)
    return [loop.restore(*run, which=which) for run in needed]
