"""Trains a VAE from config and data, resuming where the workdir stands."""

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any as PyTree

import jax
import ml_collections
from jaxtyping import Array

from vae_attn import compilation_cache
from vae_attn.config import require, require_each
from vae_attn.data.dataset import to_unit
from vae_attn.errors import UserError
from vae_attn.training import (
    beginning,
    distributed,
    factor,
    feed,
    objectives,
    parallel,
    preemption,
    records,
    seeds,
    state,
    steps,
)
from vae_attn.training.background import Background
from vae_attn.training.checkpoints import Checkpoints, SeedCheckpoints, which_checkpoint
from vae_attn.training.task import Data
from vae_attn.training.telemetry import Telemetry

State = state.TrainState | factor.FactorState


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what a training reads of a config: `train`, `factor`, `parallel`, seeds, checkpoints.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    positive = ("train.batch_size", "train.log_every", "train.checkpoint_every", "num_seeds")
    require_each(config, (*positive, "train.learning_rate"), lambda v: v > 0, "greater than 0")
    numbers = ("train.epochs", "train.steps", "train.keep_every", "train.beta", "seed")
    require_each(config, numbers, lambda v: v >= 0, "0 or more")
    require_each(config, ("train.learning_rate", "train.beta"), math.isfinite, "finite")
    if not config.train.steps:
        require(config, "train.epochs", lambda v: v > 0, "greater than 0 where train.steps is 0")
    require(config, "seed", lambda v: v < 2**31, "less than 2**31")
    last = config.seed + config.num_seeds - 1
    require(config, "num_seeds", lambda _: last < 2**31, "so small that all seeds are below 2**31")
    require(config, "parallel.mode", lambda v: v in parallel.MODES, "pmap or shard_map")
    feed.validate(config)
    objectives.validate(config)
    _validate_checkpoints(config)


def _validate_checkpoints(config: ml_collections.ConfigDict) -> None:
    every = config.train.checkpoint_every
    known = f"a multiple of train.checkpoint_every={every}, as no others are saved; 0 is none"
    require(config, "train.keep_every", lambda v: v % every == 0, known)
    known = "best, latest or all"
    require(config, "evaluate.checkpoint", lambda v: v in ("best", "latest", "all"), known)
    if jax.process_count() > 1:
        known = "best or latest with several processes: score all with one, in --mode=evaluate"
        require(config, "evaluate.checkpoint", lambda v: v != "all", known)


def total_steps(config: ml_collections.ConfigDict, num_examples: int) -> int:
    """`train.steps`, or as many as `train.epochs` take.

    An epoch sees every training image once; or `data.images_per_epoch` of them, each augmented
    anew, where that is given.
    """
    images = config.train.epochs * (config.data.images_per_epoch or num_examples)
    return config.train.steps or -(-images // config.train.batch_size)


def restore(config: ml_collections.ConfigDict, workdir: pathlib.Path, *, which: str) -> State:
    """The state of a trained workdir.

    Args:
      config: the run's.
      workdir: the run's; of one of several seeds, config and folder are those of `seeds.runs`.
      which: `best` or `latest`.

    Returns:
      The state.

    Raises:
      UserError: if there is no intact checkpoint.
    """
    checkpoints = Checkpoints(workdir)
    restored = checkpoints.restore(_template(config), which=which)
    checkpoints.close()
    if restored is None:
        raise UserError(f"{workdir} holds no checkpoint: train it first (--mode=train).")
    return restored[0]


def restore_seeds(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, mode: str
) -> list[State]:
    """The state of each seed of a trained run that `mode` needs; to explain, the first's alone.

    All processes restore together, and could not while the main one is busy with a seed.

    Raises:
      UserError: if there is no intact checkpoint.
    """
    of_seeds = seeds.runs(config, workdir)
    needed = of_seeds[:1] if mode == "explain" else of_seeds
    return [restore(*run, which=which_checkpoint(config)) for run in needed]


def restore_each(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> Iterator[tuple[int, float | None, State]]:
    """Step, validation loss and state of every checkpoint of a trained workdir, ascending."""
    checkpoints = Checkpoints(workdir)
    yield from checkpoints.each(_template(config))
    checkpoints.close()


def _template(config: ml_collections.ConfigDict) -> State:
    return jax.eval_shape(
        functools.partial(objectives.make_task(config, to_unit).create, seed=config.seed)
    )


def train(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    data: Data,
    *,
    probe: records.Probe | None = None,
    draw: records.Draw | None = None,
) -> State:
    """Trains up to the config's number of steps, from the newest checkpoint if there is one.

    Args:
      config: see `vae_attn.config.default_config`.
      workdir: gets metrics.jsonl, TensorBoard events and checkpoints, those of several seeds in
        the folders of `seeds.runs`.
      data: its `train` and `validation` images are used, with its `pixels`.
      probe: `probe(variables, seed=...)`, from the VAE's variables to further metrics, taken at
        every checkpoint. Both it and `draw` are called in another thread, and once before the
        first step, so that they are compiled.
      draw: `draw(variables)`, from the VAE's variables (of several seeds the first's) to RGB
        pictures for TensorBoard, taken at every checkpoint.

    Returns:
      The state after the last step; of several seeds with a leading axis of seeds.

    Raises:
      UserError: if the loss is no longer finite; the checkpoints up to then are kept. Before the
        first step, if the pretrained weights cannot be had.
      preemption.Stopped: after SIGTERM or SIGINT, with a checkpoint saved.
    """
    with preemption.Watch() as watch:
        return _train(config, workdir, data, probe, draw, watch)


def _train(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    data: Data,
    probe: records.Probe | None,
    draw: records.Draw | None,
    watch: preemption.Watch,
) -> State:
    task = seeds.together(objectives.make_task(config, data.pixels), config.num_seeds)
    _require_same_run(config, workdir, data)
    resident = feed.is_resident(config, data.train)
    at_once = feed.steps_at_once(config, resident=resident)
    update = parallel.parallelize(
        task.update if at_once == 1 else steps.repeated(task.update),
        mode=config.parallel.mode,
        batch_size=config.train.batch_size,
        split_images=not resident,
    )
    folders = [folder for _, folder in seeds.runs(config, workdir)]
    checkpoints = SeedCheckpoints(folders, keep_every=config.train.keep_every)
    train_state, start = beginning.begin(config, task, checkpoints)
    distributed.require_same({"the state that they begin with": train_state})
    train_state = parallel.replicate(train_state)
    total = total_steps(config, len(data.train))
    telemetry = Telemetry(workdir, start_step=start, total_steps=total)
    recorder = records.Recorder(
        config, task, data.validation, probe, draw, telemetry=telemetry, checkpoints=checkpoints
    )
    indices_of = functools.partial(
        task.batch_indices,
        seed=config.seed,
        batch_size=config.train.batch_size,
        num_examples=len(data.train),
    )
    batches = feed.batches(data.train, indices_of, resident=resident, start=start, stop=total)
    pending: list[dict[str, Array]] = []
    before: dict[str, Array] = {}  # metrics of the last step before the latest log line
    stopping, done = False, start
    shorter = total % at_once  # steps of the last call, which is a program of its own
    with Background() as background:
        if background.is_beside and start < total:
            background.run(functools.partial(recorder.compile, background.keep(train_state)))
        for images, indices, made in feed.grouped(batches, at_once=at_once, start=start):
            train_state, metrics = update(train_state, images, indices)
            pending.append(metrics)
            done += made
            # In time for the last call only if there is another one before it.
            early = shorter and made == at_once and total - done > shorter
            if early and background.is_beside and compilation_cache.is_on():
                of_last = parallel.shapes(train_state), images, indices[:, :shorter]
                background.run(functools.partial(_compile, update, *of_last))
                shorter = 0
            at_checkpoint = done % config.train.checkpoint_every == 0 or done == total
            stopping = watch.stopping()
            if not (at_checkpoint or stopping) and done % config.train.log_every:
                continue
            # No more than the steps of two log lines are given to the devices ahead.
            jax.block_until_ready(before)
            at, before = time.monotonic(), metrics
            saved = None
            if at_checkpoint or stopping:
                train_state = parallel.as_global(train_state)
                saved = background.keep(train_state)
            background.run(
                functools.partial(
                    recorder.record, pending, saved, step=done, at_checkpoint=at_checkpoint, at=at
                )
            )
            pending = []
            if stopping:
                break
    telemetry.close()
    checkpoints.close()
    if stopping or watch.stopping(now=True):
        raise preemption.Stopped(
            f"stopped at step {done} of {total}, and saved in {workdir}: the same command resumes."
        )
    return train_state


def _compile(update: parallel.GlobalUpdateFn, *arguments: PyTree) -> None:
    """Compiles a call for JAX's cache; one that fails fails again when it is made."""
    with contextlib.suppress(Exception):
        update.lower(*arguments).compile()


def _require_same_run(config, workdir: pathlib.Path, data) -> None:
    """Stops processes that were not started alike; see `distributed.require_same`."""
    distributed.require_same(
        {
            "the config": config.to_json(),
            "the training images": data.train,
            "whether they see the workdir's config.json": distributed.sees(workdir / "config.json"),
        }
    )
