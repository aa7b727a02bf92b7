"""Plain pictures, such as TensorBoard shows."""

import numpy as np
from jaxtyping import Float, UInt8

from vae_attn.reporting import figures

_SIDE = 96  # pixels; smaller images are enlarged, by a whole factor


def tiled(rows: list[Float[np.ndarray, "n height width _"]]) -> UInt8[np.ndarray, "_h _w 3"]:
    """Rows of images in [0, 1], grey or RGB, as one picture."""
    shape = (*rows[0].shape[:3], 3)
    grid = np.stack([np.broadcast_to(row, shape) for row in rows])
    factor = max(1, _SIDE // min(shape[1:3]))
    grid = grid.repeat(factor, axis=2).repeat(factor, axis=3)
    return np.asarray(figures.tiled(np.rint(255 * np.clip(grid, 0, 1)).astype(np.uint8)))
