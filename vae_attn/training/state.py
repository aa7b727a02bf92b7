"""What a run is at one step: everything a checkpoint holds."""

from typing import Any as PyTree

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from vae_attn.models.model import Model


@flax.struct.dataclass
class TrainState:
    """Parameters and what the next step needs.

    Attributes:
      seed: of the run, a scalar; with `step` it determines the next step's noise and augmentation.
      step: number of updates made, a scalar.
      params: of the model.
      batch_stats: running statistics of batch normalisation; empty for models without.
      opt_state: of the optimiser.
    """

    # Not typed by shape: transformations of a tree put other things than arrays into its leaves.
    seed: PyTree
    step: PyTree
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create(
    *, model: Model, tx: optax.GradientTransformation, seed: int | Int[Array, ""]
) -> TrainState:
    """The state before the first step; a function of the seed alone."""

    @jax.jit
    def initialize(seed: Int[Array, ""]) -> TrainState:
        images = jnp.zeros((1, *model.image_shape), jnp.float32)
        noise = jnp.zeros((1, model.latents), jnp.float32)
        variables = model.init(jax.random.key(seed), images, noise, train=True)
        params = variables["params"]
        return TrainState(
            seed=seed,
            step=jnp.int32(0),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(params),
        )

    return initialize(jnp.int32(seed))
