"""Codes of images by their index: the one thing the disentanglement scores ask of a model.

A model becomes `codes_of(indices) -> (n, latents)`, for instance, with an encoder's mean:

    codes_of = lambda indices: mean(variables, data.pixels(data.stored[indices]))
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from vae_attn.data.factor_grid import FactorGrid
from vae_attn.errors import UserError

# Images encoded at once. What it brings on a CPU: `python -m benchmarks.run score_batches`; not
# measured elsewhere.
BATCH_SIZE = 128

# Image indices (n,) to codes (n, latents), numpy or jax; deterministic, usually the mean.
CodesOf = Callable[[Int[np.ndarray, "n"]], Float[np.ndarray, "n latents"]]


def codes_in_batches(
    codes_of: CodesOf, indices: Int[np.ndarray, "n"], *, batch_size: int = BATCH_SIZE
) -> Float[np.ndarray, "n latents"]:
    """Codes of any number of images, asked for in batches of one fixed size.

    The last batch is filled up with its last index, so that a jitted function compiles once.

    Raises:
      UserError: the function returns another shape, or a code that is not finite.
    """
    padded = np.pad(indices, (0, -len(indices) % batch_size), mode="edge")
    batches = [_floating(codes_of(batch)) for batch in padded.reshape(-1, batch_size)]
    for batch in batches:
        if batch.ndim != 2 or len(batch) != batch_size:
            raise UserError(
                f"codes of {batch_size} images have shape {batch.shape}; "
                f"return one row of latents per image, ({batch_size}, latents)."
            )
        if not np.isfinite(batch).all():
            raise UserError("codes hold NaN or infinity; the model has diverged, train it again.")
    return np.concatenate(batches)[: len(indices)]


def _floating(codes: ArrayLike) -> np.ndarray:
    """Leaves float32 alone; whole numbers and bfloat16, which numpy cannot average, widen."""
    codes = np.asarray(codes)
    return codes if np.issubdtype(codes.dtype, np.floating) else codes.astype(np.float64)


def encode_grid(
    codes_of: CodesOf, grid: FactorGrid, *, batch_size: int = BATCH_SIZE
) -> Float[np.ndarray, "images latents"]:
    """Codes of every image of the grid: 94 MB for dSprites and 32 latents in float32.

    Its `__getitem__` is a `codes_of` again, of a model that has already answered.
    """
    return codes_in_batches(codes_of, np.arange(grid.num_images), batch_size=batch_size)


def sample_codes(
    codes_of: CodesOf,
    grid: FactorGrid,
    rng: np.random.Generator,
    *,
    num_samples: int,
    batch_size: int = BATCH_SIZE,
) -> tuple[Float[np.ndarray, "n latents"], Int[np.ndarray, "n factors"]]:
    """Codes of images drawn uniformly from the grid, with the classes of its varying factors."""
    indices = rng.integers(grid.num_images, size=num_samples)
    codes = codes_in_batches(codes_of, indices, batch_size=batch_size)
    return codes, grid.classes(indices)[:, grid.varying]


def sample_with_fixed_factor(
    grid: FactorGrid, rng: np.random.Generator, *, num_groups: int, group_size: int
) -> tuple[Int[np.ndarray, "groups size"], Int[np.ndarray, "groups"]]:
    """Groups of images that share the class of one factor, all else drawn freely.

    Returns:
      The images of each group, and which factor it shares, as a position in `grid.varying`.
    """
    varying = np.array(grid.varying)
    classes = rng.integers(grid.sizes, size=(num_groups, group_size, len(grid.sizes)))
    shared = rng.integers(len(varying), size=num_groups)
    group, column = np.arange(num_groups), varying[shared]
    classes[group, :, column] = classes[group, :1, column]
    return grid.indices(classes), shared
