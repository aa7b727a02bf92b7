"""Where a training begins: at its newest checkpoint, another run's weights, or new ones."""

import logging
import pathlib
from typing import Any as PyTree

import jax
import ml_collections

from vae_attn.errors import UserError
from vae_attn.training import checkpoints as checkpoints_lib
from vae_attn.training import seeds, trunk
from vae_attn.training.task import Task

_LOG = logging.getLogger("vae_attn")


def begin(
    config: ml_collections.ConfigDict, task: Task, checkpoints: checkpoints_lib.SeedCheckpoints
) -> tuple[PyTree, int]:
    """The state to train on from, of all seeds, and its step.

    Args:
      config: the run's.
      task: of all seeds.
      checkpoints: the run's.

    Returns:
      The newest checkpoint's state. Without one, the state before the first step, in which the
      weights are those of `train.init_from` or, in the trunk alone, of `model.pretrained`.

    Raises:
      UserError: if the weights cannot be had, or are those of another model.
    """
    train_state = task.create(seed=config.seed)
    if (restored := checkpoints.restore(train_state)) is not None:
        _LOG.info("resuming from step %d", restored[1])
        return restored
    states = seeds.split(train_state, config.num_seeds)
    if config.train.init_from:
        which = checkpoints_lib.which_checkpoint(config)
        weights = _weights(pathlib.Path(config.train.init_from), states[0], which=which)
        return seeds.join([_with_weights(one, weights) for one in states]), 0
    if config.model.pretrained:
        weights = trunk.load_pretrained(config)
        train_state = seeds.join([trunk.put(one, weights) for one in states])
    return train_state, 0


def _weights(folder: pathlib.Path, state: PyTree, *, which: str) -> dict[str, PyTree]:
    """Parameters and batch statistics of another run's VAE, which must be of the same shapes."""
    source = checkpoints_lib.Checkpoints(folder)
    restored = source.restore_any(which=which)
    source.close()
    if restored is None:
        raise UserError(
            f"--config.train.init_from={folder} holds no checkpoint: give a run that was trained."
        )
    found, step = restored
    vae = found.get("vae", found)  # beside a discriminator
    weights = {"params": vae["params"], "batch_stats": vae.get("batch_stats") or {}}
    if differing := checkpoints_lib.differing_leaves(weights, state.variables):
        raise UserError(
            f"--config.train.init_from={folder} is a run of another model, which differs in "
            f"{checkpoints_lib.listed(differing)}: give the model.* and data.* of that run."
        )
    _LOG.info("starting from the weights of %s at step %d", folder, step)
    return weights


def _with_weights(state: PyTree, weights: dict[str, PyTree]) -> PyTree:
    """The state before the first step with other weights; what the optimiser knows stays new."""
    if hasattr(state, "vae"):
        return state.replace(vae=_with_weights(state.vae, weights))
    return state.replace(**jax.device_put(weights))
