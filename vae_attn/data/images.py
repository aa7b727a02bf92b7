"""Reads and resizes one image file: any depth, palette, alpha or orientation, to 8 bits."""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt8
from PIL import Image

from vae_attn.data import image_files
from vae_attn.data.image_files import ALL_LEVELS, Levels
from vae_attn.errors import UserError

_Result = TypeVar("_Result")


def read_image(
    path: pathlib.Path, *, channels: int | None = None, levels: Levels = ALL_LEVELS
) -> UInt8[np.ndarray, "height width channels"]:
    """Reads an image upright (its EXIF orientation applied), in 8 bits per channel.

    More than eight bits are scaled to eight (see `levels`), transparent pixels are laid over
    white as viewers show them, CMYK and palettes become RGB (a palette of greys becomes grey).

    Args:
      path: an image file (see `image_files.EXTENSIONS`); its content decides, not its ending.
      channels: 1 for grey (ITU-R 601 luma), 3 for RGB, None for what the file has.
      levels: what becomes 0 and 255 where the file has more than 8 bits per channel; what is
        darker or brighter is cut off. See `levels_of`.

    Returns:
      The pixels, 0 to 255.

    Raises:
      UserError: the file cannot be read, is truncated, animated, larger than `MAX_PIXELS`, no
        image, or holds values that have no 8-bit meaning (floats, 32 bits).
    """
    with image_files.naming(path):
        pixels = image_files.decode(path).pixels(levels)
    return to_channels(pixels, channels)


def read_mask(path: pathlib.Path) -> Bool[np.ndarray, "height width"]:
    """Reads a mask: True where a pixel is not black.

    So both 0/255 and 0/1 masks read right. Where the file is a JPEG, whose compression leaves
    faint greys around edges, True means a level of 128 or more; so it does in the other formats
    that may lose detail, if anything in them is that bright.

    Args:
      path: an image file, as for `read_image`; transparent pixels are False.

    Returns:
      True on anomalous pixels.

    Raises:
      UserError: as `read_image`.
    """
    with image_files.naming(path):
        return image_files.decode(path).marked()


def read_union(paths: Sequence[pathlib.Path]) -> Bool[np.ndarray, "height width"]:
    """Reads masks of one image: True where any of them is not black.

    Raises:
      UserError: as `read_mask`, and where their sizes differ.
    """
    union = read_mask(paths[0])
    for path in paths[1:]:
        mask = read_mask(path)
        if mask.shape != union.shape:
            raise UserError(
                f"{path}: {size_text(mask.shape)} pixels, but {paths[0]} has "
                f"{size_text(union.shape)}; draw all masks of an image at the image's size"
            )
        union |= mask
    return union


def extent(path: pathlib.Path) -> Levels | None:
    """The smallest and largest level of a file with more than 8 bits per channel, else None.

    Raises:
      UserError: as `read_image`, though a file of 8 bits is not read to its end.
    """
    with image_files.naming(path):
        deep = image_files.decode(path).deep if image_files.is_deep(path) else None
        return None if deep is None else (int(deep.min()), int(deep.max()))


def levels_of(extents: Iterable[Levels | None]) -> Levels:
    """What `read_image` takes as levels, so that a data set's own range fills the 8 bits.

    Cameras of 10, 12 or 14 bits write files of 16, of which their levels fill a small part.

    Args:
      extents: `extent` of each of the training images.

    Returns:
      The images' range, wider by half of it on both sides so that brighter and darker defects
      still differ, but no wider than 0 to the smallest 2^k - 1 that holds it. `ALL_LEVELS` where
      no image has more than 8 bits.
    """
    known = [one for one in extents if one is not None]
    if not known:
        return ALL_LEVELS
    low, high = min(low for low, _ in known), max(high for _, high in known)
    most = 2 ** max(8, high.bit_length()) - 1
    margin = -(-(high - low) // 2)
    return (max(0, low - margin), min(most, high + margin)) if margin else (0, most)


def to_channels(
    image: UInt8[np.ndarray, "height width channels_in"], channels: int | None
) -> UInt8[np.ndarray, "height width channels"]:
    """Converts between grey and RGB; None leaves the image as it is."""
    if channels is None or channels == image.shape[-1]:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=-1)
    return image_files.as_array(Image.fromarray(image).convert("L"))


def resize_image(
    image: UInt8[np.ndarray, "height width channels"], size: int
) -> UInt8[np.ndarray, "{size} {size} channels"]:
    """Resizes to a square of `size` pixels by antialiased Lanczos; the aspect ratio is not kept."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return image_files.as_array(picture.resize((size, size), Image.Resampling.LANCZOS))


def fit_images(
    images: Shaped[np.ndarray | Array, "n height width channels"], shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "n h w c"]:
    """Images of any size, grey or RGB, as a model takes them: `to_channels`, then `resize_image`.

    Args:
      images: 0 to 255.
      shape: height, width (the same) and channels.

    Raises:
      UserError: the images are not uint8, have other than 1 or 3 channels, or no pixels.
    """
    images = np.asarray(images)
    right = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3)
    if not right or 0 in images.shape[1:]:
        raise UserError(
            "images must be uint8, 0 to 255, of shape (n, height, width, 1 or 3), and are "
            f"{images.dtype} of shape {images.shape}"
        )
    if images.shape[1:] == shape:
        return images
    fitted = np.empty((len(images), *shape), np.uint8)
    for n, image in enumerate(images):
        fitted[n] = resize_image(to_channels(image, shape[-1]), shape[0])
    return fitted


def resize_mask(
    mask: Bool[np.ndarray, "height width"], size: int
) -> Bool[np.ndarray, "{size} {size}"]:
    """Resizes to a square of `size` pixels, nearest neighbour, so that a mask stays a mask.

    A defect so small that every sample misses it must not turn into "no defect": if nothing is
    left of a mask that is not empty, the pixels which its own pixels fall in are marked.
    """
    picture = Image.fromarray(mask.astype(np.uint8))
    resized = np.asarray(picture.resize((size, size), Image.Resampling.NEAREST)) > 0
    if mask.any() and not resized.any():
        rows, columns = np.nonzero(mask)
        resized = np.zeros((size, size), bool)
        resized[rows * size // mask.shape[0], columns * size // mask.shape[1]] = True
    return resized


def read_resized_image(
    path: pathlib.Path, size: int, *, channels: int | None = None, levels: Levels = ALL_LEVELS
) -> tuple[UInt8[np.ndarray, "{size} {size} channels"], tuple[int, int]]:
    """`read_image`, then `resize_image`; returns the (height, width) it had as well."""
    image = read_image(path, channels=channels, levels=levels)
    return resize_image(image, size), image.shape[:2]


def size_text(shape: tuple[int, int]) -> str:
    """A (height, width) as image programs write it: "width x height"."""
    return f"{shape[1]} x {shape[0]}"


def read_many(
    read: Callable[[pathlib.Path], _Result], paths: Sequence[pathlib.Path]
) -> tuple[list[_Result | None], list[str]]:
    """Applies `read` to every path, in threads, and continues after a failure.

    Args:
      read: raises UserError for a file that it cannot read.
      paths: the files.

    Returns:
      One result per path (None where reading failed), and the messages of all failures.
    """

    def attempt(path: pathlib.Path) -> tuple[_Result | None, str | None]:
        try:
            return read(path), None
        except UserError as error:
            return None, str(error)

    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter's lock
        outcomes = list(pool.map(attempt, paths))
    problems = [problem for _, problem in outcomes if problem is not None]
    return [result for result, _ in outcomes], problems
