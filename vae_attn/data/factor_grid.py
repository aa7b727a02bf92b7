"""Images of ground-truth factors: every combination of factor values once, in a fixed order.

Another data set is one file beside `dsprites.py` whose `load` returns a `FactorData`.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vae_attn.data.dataset import to_unit

VALIDATION_IMAGES = 2048
_AT_ONCE = 1024  # images turned to floating point together


@dataclasses.dataclass(frozen=True)
class FactorGrid:
    """Factors of variation and the order in which their combinations are stored.

    Image `i` of a data set belongs to the i-th combination, the last factor varying fastest.
    Nothing here knows of dSprites, so any other grid (3D Shapes, Cars3D, your own) works too.

    Attributes:
      names: one name per factor.
      values: the values each factor takes, in the order of its classes 0, 1, ...
    """

    names: tuple[str, ...]
    values: tuple[tuple[float | int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes of each factor."""
        return tuple(len(values) for values in self.values)

    @property
    def num_images(self) -> int:
        """Number of combinations."""
        return math.prod(self.sizes)

    @property
    def varying(self) -> tuple[int, ...]:
        """Positions of the factors with more than one value; a score must not count the others."""
        return tuple(k for k, size in enumerate(self.sizes) if size > 1)

    def classes(self, indices: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n factors"]:
        """Factor classes of images; raises ValueError for an index outside the grid."""
        return np.stack(np.unravel_index(indices, self.sizes), axis=-1)

    def indices(self, classes: Int[np.ndarray, "*n factors"]) -> Int[np.ndarray, "*n"]:
        """Images that have these factor classes; raises ValueError for a class outside the grid."""
        return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(classes, -1, 0)), self.sizes))

    def factor_values(
        self, classes: Int[np.ndarray, "*n factors"]
    ) -> Float[np.ndarray, "*n factors"]:
        """Values that belong to factor classes."""
        columns = [np.asarray(values)[classes[..., k]] for k, values in enumerate(self.values)]
        return np.stack(columns, axis=-1).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class FactorData:
    """The images of a factor grid, in its order; all of them are trained on.

    Attributes:
      name: for titles and tables.
      grid: the factors; image i has the factor classes `grid.classes(i)`.
      stored: the images as they are kept in memory, one row each: uint8 pixels, or anything
        smaller that `pixels` expands.
      pixels: `pixels(stored)` gives rows of `stored` as images in [0, 1] of shape
        (rows, height, width, channels). It runs inside the compiled training step.
    """

    name: str
    grid: FactorGrid
    stored: UInt8[np.ndarray, "n ..."]
    pixels: Callable[
        [UInt8[Array | np.ndarray, "rows ..."]], Float[Array, "rows height width channels"]
    ] = to_unit

    def __post_init__(self) -> None:
        """Raises ValueError unless there is one image for each combination of the grid."""
        if len(self.stored) != self.grid.num_images:
            raise ValueError(
                f"{self.name}: {len(self.stored)} images for a grid of {self.grid.num_images} "
                "combinations; store one image per combination, the last factor varying fastest"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.stored)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return jax.eval_shape(self.pixels, self.stored[:1]).shape[1:]

    @property
    def train(self) -> UInt8[np.ndarray, "n ..."]:
        """All images: as in the literature, none is held out."""
        return self.stored

    @property
    def validation(self) -> UInt8[np.ndarray, "m ..."]:
        """Some of the training images, always the same, to follow the loss on."""
        return self.sample(VALIDATION_IMAGES)

    def sample(self, num: int, *, seed: int = 0) -> UInt8[np.ndarray, "m ..."]:
        """At most `num` different images, drawn at random, as they are stored."""
        return self.stored[np.random.default_rng(seed).permutation(len(self))[:num]]

    def as_uint8(
        self, stored: UInt8[np.ndarray, "rows ..."]
    ) -> UInt8[np.ndarray, "rows height width channels"]:
        """Images as an `Explainer` takes them and figures show them, 0 to 255."""
        parts = [
            np.rint(255 * np.asarray(self.pixels(stored[start : start + _AT_ONCE])))
            for start in range(0, max(len(stored), 1), _AT_ONCE)
        ]
        return np.concatenate([part.astype(np.uint8) for part in parts])
