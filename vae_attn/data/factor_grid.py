"""A grid of ground-truth factors: every combination of factor values once, in a fixed order."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class FactorGrid:
    """Factors of variation and the order in which their combinations are stored.

    Image `i` of a data set belongs to the i-th combination, the last factor varying fastest.
    Nothing here knows of dSprites, so that any other grid (3D Shapes, Cars3D, one's own) can
    be scored by `vae_attn.experiments.disentanglement.disentanglement`.

    Attributes:
      names: one name a factor.
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
