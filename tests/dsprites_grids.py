"""Small grids of dSprites' factors, and their images."""

import numpy as np

from vae_attn.data import dsprites, dsprites_renderer
from vae_attn.data.factor_grid import FactorGrid


def small_grid(**chosen):
    """The dSprites grid with the chosen values of some factors, the first two of the others."""
    official = zip(dsprites.GRID.names, dsprites.GRID.values, strict=True)
    return FactorGrid(
        dsprites.GRID.names,
        tuple(tuple(chosen.get(name, values[:2])) for name, values in official),
    )


def render(grid):
    packed = dsprites_renderer.render(grid)
    return np.unpackbits(packed, axis=1).reshape(-1, 64, 64)
