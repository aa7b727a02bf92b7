"""What the loop trains: how its state begins, what a step sees and does, how it is judged."""

import dataclasses
from collections.abc import Callable
from typing import Any as PyTree
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vae_attn.training.steps import Metrics


@runtime_checkable
class Data(Protocol):
    """What a model learns from.

    Attributes:
      name: for titles and tables.
      train: training images as they are stored, along the first axis.
      validation: held-out images, likewise.
      image_shape: height, width and channels of an image.
    """

    name: str
    train: UInt8[np.ndarray, "n ..."]
    validation: UInt8[np.ndarray, "m ..."]
    image_shape: tuple[int, int, int]

    def pixels(
        self, stored: UInt8[Array, "batch ..."]
    ) -> Float[Array, "batch height width channels"]:
        """Images in [0, 1] from stored ones; may be jitted."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A VAE, or a VAE with its discriminator, as functions.

    Attributes:
      create: `create(seed=...)`, the state before the first step; it has `variables`, the VAE's.
      update: `update(state, images, indices)` on one device, see `steps.make_update_fn`.
      loss: `loss(variables, images)`, the validation loss per image.
      batch_indices: what a step sees, with the arguments of `sampling.batch_indices`; rows are
        places in the batch.
    """

    create: Callable[[], PyTree]
    update: Callable[..., tuple[PyTree, Metrics]]
    loss: Callable[..., Float[Array, "batch"]]
    batch_indices: Callable[..., Int[np.ndarray, "batch ..."]]
