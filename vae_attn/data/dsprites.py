"""dSprites: 737,280 white sprites on black, one for every combination of six factors.

Held as packed bits (378 MB instead of 3 GB) and unpacked inside the training step.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from vae_attn.data import dsprites_files, dsprites_renderer
from vae_attn.data.factor_grid import FactorData, FactorGrid
from vae_attn.errors import UserError

IMAGE_SIZE = 64
SOURCES = ("npz", "tfds", "rendered")


def _linspace(start: float, stop: float, num: int) -> tuple[float, ...]:
    return tuple(np.linspace(start, stop, num).tolist())


# The official order and values; the last factor varies fastest. Orientation holds both ends of
# the turn, so that its classes 0 and 39 look alike.
GRID = FactorGrid(
    names=("color", "shape", "scale", "orientation", "posX", "posY"),
    values=(
        (1.0,),
        (1.0, 2.0, 3.0),
        _linspace(0.5, 1.0, 6),
        _linspace(0.0, 2 * np.pi, 40),
        _linspace(0.0, 1.0, 32),
        _linspace(0.0, 1.0, 32),
    ),
)


def unpack(
    packed: UInt8[jax.Array, "*n 512"] | UInt8[np.ndarray, "*n 512"],
) -> Float32[jax.Array, "*n 64 64 1"]:
    """Packed bits to images of zeros and ones; cheap enough to sit inside a jitted step.

    The first pixel is the highest bit of the first byte, as in `np.unpackbits`.
    """
    shifts = jnp.arange(7, -1, -1, dtype=jnp.uint8)
    bits = (jnp.asarray(packed)[..., None] >> shifts) & jnp.uint8(1)
    return bits.reshape(*packed.shape[:-1], IMAGE_SIZE, IMAGE_SIZE, 1).astype(jnp.float32)


def load_dsprites(
    directory: str | os.PathLike[str] | None = None,
    *,
    source: str = "auto",
    grid: FactorGrid = GRID,
) -> FactorData:
    """Reads dSprites, or draws its equivalent.

    Args:
      directory: folder of the official `.npz` or the tensorflow-datasets folder that holds
        `dsprites/`; None or empty: nothing is read, everything is drawn (about two seconds).
      source: "npz", "tfds", "rendered", or "auto": what the directory holds, drawn without one.
      grid: a smaller grid of the same six factors, for tests and trials.

    Returns:
      The images, stored as packed bits, one bit per pixel, row by row, in `np.packbits` order;
      the name is "dSprites-equivalent" where our renderer drew them.

    Raises:
      UserError: unknown source; a directory without the data; files that do not fit the grid.
    """
    folder = pathlib.Path(directory).expanduser() if directory else None
    chosen = _detect(folder) if source == "auto" else source
    if chosen == "rendered":
        return FactorData("dSprites-equivalent", grid, dsprites_renderer.render(grid), unpack)
    if chosen not in ("npz", "tfds"):
        raise UserError(
            f"dSprites source {chosen!r} is unknown; choose auto, npz, tfds or rendered."
        )
    if folder is None:
        raise UserError(
            f"dSprites source {chosen!r} needs data.dir; set it, or choose the source 'rendered'."
        )
    if chosen == "npz":
        packed = dsprites_files.read_npz(folder / dsprites_files.NPZ_NAME, grid)
    else:
        packed = dsprites_files.read_tfds(folder, grid)
    return FactorData("dSprites", grid, packed, unpack)


def _detect(folder: pathlib.Path | None) -> str:
    if folder is None:
        return "rendered"
    if (folder / dsprites_files.NPZ_NAME).is_file():
        return "npz"
    if (folder / "dsprites").is_dir():
        return "tfds"
    raise UserError(
        f"{folder} holds neither {dsprites_files.NPZ_NAME} nor a tensorflow-datasets folder "
        "dsprites/; put one there, or leave data.dir empty to have the images drawn."
    )
