"""Drawn stand-ins for UCSD Ped1 and MVTec-AD, in the official layouts.

The same seed gives the same bytes. Scores on these pictures say nothing about the real data sets.
"""

import pathlib

from synthetic import clips, surfaces


def write_ucsd_ped1(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Draws walkway clips, people walking and carts or cyclists intruding, as `UCSDped1`."""
    clips.write(folder / "UCSDped1", seed=seed)


def write_mvtec_ad(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Draws the categories carpet, hazelnut and grid, with holes, scratches and stains."""
    surfaces.write(folder, seed=seed)
