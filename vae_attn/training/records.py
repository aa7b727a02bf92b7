"""What a run records at its log lines and checkpoints: metrics, pictures, the state itself."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any as PyTree

import jax
import ml_collections
import numpy as np
from jaxtyping import Array, Float, UInt8

from vae_attn.batching import map_batches
from vae_attn.errors import UserError
from vae_attn.training import parallel, seeds
from vae_attn.training.checkpoints import SeedCheckpoints
from vae_attn.training.task import Task
from vae_attn.training.telemetry import Telemetry

_LOG = logging.getLogger("vae_attn")

SeedMetrics = dict[str, Float[np.ndarray, "seeds"]]
Probe = Callable[..., dict[str, float]]
Draw = Callable[[PyTree], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Records a training, in the order of its steps.

    Attributes:
      config: the run's.
      task: of all seeds.
      validation: held-out images, as they are stored.
      probe: see `loop.train`.
      draw: see `loop.train`.
      telemetry: gets the metrics and pictures.
      checkpoints: get the states.
    """

    config: ml_collections.ConfigDict
    task: Task
    validation: UInt8[np.ndarray, "m ..."]
    probe: Probe | None
    draw: Draw | None
    telemetry: Telemetry
    checkpoints: SeedCheckpoints

    def compile(self, state: PyTree) -> None:
        """Compiles what a checkpoint needs, by using it on a state whose results nobody sees."""
        variables = parallel.as_local(state.variables)
        # Whatever fails fails again at the first checkpoint, which reports it.
        with contextlib.suppress(Exception):
            self._losses(variables, self.validation[: self.config.evaluate.batch_size])
            if self.probe is not None:
                self._probed(self.probe, variables)
            if self.draw is not None and self.telemetry.shows_pictures:
                self.draw(self._of_seeds(variables)[0])

    def record(
        self,
        pending: Sequence[dict[str, Array]],
        state: PyTree | None,
        *,
        step: int,
        at_checkpoint: bool,
        at: float,
    ) -> None:
        """Records what is known at a step.

        Args:
          pending: metrics of the calls since the last record, each a number per step and seed.
          state: to save; None to save nothing.
          step: up to which the training has come.
          at_checkpoint: whether the model is also validated, probed and drawn.
          at: see `Telemetry.write`.

        Raises:
          UserError: if a loss is not finite, in which case nothing is saved; or the disk is full.
        """
        means = self._finite_means(pending, last_step=step)
        drawn = {}
        if at_checkpoint:
            variables = parallel.as_local(state.variables)
            means["validation_loss"] = self._losses(variables, self.validation)
            self._check_finite(means["validation_loss"], step=step)
            if self.probe is not None:
                means |= self._probed(self.probe, variables)
            drawn = self._drawn(variables)
        # Before the save: a resumed run drops what comes after its checkpoint, and would never
        # write what a kill kept it from writing before it.
        self.telemetry.write(step, self._flat(means), drawn, at=at)
        if state is not None:
            # Where the run happened to be stopped is never its best checkpoint.
            losses = means.get("validation_loss", np.full(self.config.num_seeds, math.inf))
            self.checkpoints.save(state, step=step, validation_losses=losses)

    def _finite_means(self, pending: Sequence[dict[str, Array]], *, last_step: int) -> SeedMetrics:
        """Means over the steps of all calls; stops the run where a loss is not finite."""
        rows = jax.device_get(list(pending))
        # The axis of steps is missing from calls of a single one, that of seeds where there is one.
        shape = (-1, self.config.num_seeds)
        each = {
            name: np.concatenate([np.reshape(row[name], shape) for row in rows]) for name in rows[0]
        }
        first_step = last_step - len(each["loss"]) + 1
        for step, losses in enumerate(each["loss"], first_step):
            self._check_finite(losses, step=step)
        return {name: values.mean(axis=0) for name, values in each.items()}

    def _losses(self, variables: PyTree, images: np.ndarray) -> Float[np.ndarray, "seeds"]:
        """The validation loss of every seed."""
        losses = map_batches(
            lambda x: self.task.loss(variables, x), images, self.config.evaluate.batch_size
        )
        return np.atleast_1d(losses.mean(axis=0, dtype=np.float64))

    def _probed(self, probe: Probe, variables: PyTree) -> SeedMetrics:
        found = [
            probe(one, seed=self.config.seed + n) for n, one in enumerate(self._of_seeds(variables))
        ]
        return {name: np.array([metrics[name] for metrics in found]) for name in found[0]}

    def _drawn(self, variables: PyTree) -> dict[str, np.ndarray]:
        """Pictures of the first seed's model: an extra, whose failure does not end a training."""
        if self.draw is None or not self.telemetry.shows_pictures:
            return {}
        try:
            return self.draw(self._of_seeds(variables)[0])
        except Exception as error:  # such as too little memory
            _LOG.warning("no pictures for TensorBoard at this checkpoint: %s", error)
            return {}

    def _of_seeds(self, variables: PyTree) -> list[PyTree]:
        return seeds.split(jax.device_get(variables), self.config.num_seeds)

    def _check_finite(self, losses: Float[np.ndarray, "seeds"], *, step: int) -> None:
        for n, loss in enumerate(losses):
            if not np.isfinite(loss):
                several = self.config.num_seeds > 1
                whose = f" of seed {self.config.seed + n}" if several else ""
                raise UserError(
                    f"the loss{whose} is {loss} at step {step}: lower train.learning_rate (or fix "
                    "the data) in a new --workdir; the checkpoints before that step are kept."
                )

    def _flat(self, metrics: SeedMetrics) -> dict[str, float]:
        """The means over the seeds and, where there are several, each seed's `name/seed_<seed>`."""
        flat = {name: float(values.mean()) for name, values in metrics.items()}
        if self.config.num_seeds > 1:
            for name, values in metrics.items():
                flat |= {
                    f"{name}/seed_{self.config.seed + n}": float(v) for n, v in enumerate(values)
                }
        return flat
