"""Our own renderer of the dSprites factor grid, for machines where nothing can be downloaded."""

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64

from vae_attn.data import dsprites_geometry
from vae_attn.data.factor_grid import FactorGrid

IMAGE_SIZE = 64


def render(grid: FactorGrid) -> UInt8[np.ndarray, "n 512"]:
    """Draws every image of a grid with the factors of dSprites, as packed bits.

    A pixel is 1 iff its centre lies inside the sprite's outline; there is no anti-aliasing.
    The sprite's centre is (16 + 32 posX, 16 + 32 posY) px with y pointing down: its steps of
    32/31 px are no whole pixels, so each position draws a slightly different sprite.

    Args:
      grid: factors colour, shape (values 1 square, 2 ellipse, 3 heart), scale, orientation
        (radians), posX and posY (0 to 1), in this order.

    Returns:
      One row of 512 bytes per image in `np.packbits` order, the grid's order of images.
    """
    colours, shapes, scales, orientations, pos_x, pos_y = grid.values
    rows = np.empty((*grid.sizes, IMAGE_SIZE), dtype=np.uint64)
    for i, shape in enumerate(shapes):
        outline = dsprites_geometry.OUTLINES[round(shape) - 1]()
        for j, scale in enumerate(scales):
            for k, orientation in enumerate(orientations):
                placed = _place(outline, scale, orientation)
                for colour in range(len(colours)):
                    rows[colour, i, j, k] = _draw(placed, np.array(pos_x), np.array(pos_y))
    return rows.reshape(grid.num_images, IMAGE_SIZE).view(np.uint8)


def _place(
    outline: Float[np.ndarray, "v 2"], scale: float, orientation: float
) -> Float[np.ndarray, "v 2"]:
    """Canonical (u, v) to pixels (x, y) around the sprite's centre."""
    cos, sin = np.cos(orientation), np.sin(orientation)
    u, v = IMAGE_SIZE * scale * outline.T
    return np.stack([cos * u + sin * v, cos * v - sin * u], axis=-1)


def _draw(
    outline: Float[np.ndarray, "v 2"],
    pos_x: Float[np.ndarray, "nx"],
    pos_y: Float[np.ndarray, "ny"],
) -> UInt64[np.ndarray, "nx ny 64"]:
    """One outline at every position, by scan lines and the even-odd rule.

    A row of 64 pixels is one 64-bit word. Where the outline crosses the row, all pixels right
    of the crossing change sides: the row is the exclusive or of one mask per crossing.
    """
    centre_y = 16 + 32 * pos_y
    dy = (np.arange(IMAGE_SIZE) + 0.5 - centre_y[:, None]).ravel()
    lines, crossings = _crossings(outline, dy)
    centre_x = 16 + 32 * pos_x
    drawn = np.zeros((len(pos_x), len(lines)), dtype=np.uint64)
    for x in crossings:
        first = np.ceil(x + centre_x[:, None] - 0.5)
        drawn ^= _FROM_PIXEL[np.clip(first, 0, IMAGE_SIZE).astype(np.int64)]
    words = np.zeros((len(pos_x), len(dy)), dtype=np.uint64)
    words[:, lines] = drawn
    return words.reshape(len(pos_x), len(pos_y), IMAGE_SIZE)


def _crossings(
    outline: Float[np.ndarray, "v 2"], dy: Float[np.ndarray, "lines"]
) -> tuple[Int[np.ndarray, "touched"], Float[np.ndarray, "most touched"]]:
    """Where horizontal lines cross an outline.

    Returns:
      Which lines touch the outline at all, and for each of them the x of its crossings,
      padded with infinity to the largest number of crossings.
    """
    x1, y1 = outline.T
    x2, y2 = np.roll(outline, -1, axis=0).T
    line, edge = np.nonzero((y1 <= dy[:, None]) != (y2 <= dy[:, None]))
    x = x1[edge] + (dy[line] - y1[edge]) * (x2[edge] - x1[edge]) / (y2[edge] - y1[edge])
    touched, first, column, counts = np.unique(
        line, return_index=True, return_inverse=True, return_counts=True
    )
    padded = np.full((counts.max(initial=0), len(touched)), np.inf)
    padded[np.arange(len(line)) - first[column], column] = x
    return touched, padded


def _masks_from_pixel() -> UInt64[np.ndarray, "65"]:
    """Word c has the pixels c, c + 1, ..., 63 set, in the byte and bit order of `np.packbits`."""
    pixels = np.arange(IMAGE_SIZE) >= np.arange(IMAGE_SIZE + 1)[:, None]
    return np.packbits(pixels, axis=-1).view(np.uint64)[:, 0]


_FROM_PIXEL = _masks_from_pixel()
