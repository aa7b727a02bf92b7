"""Reads and resizes one image file: any depth, palette, alpha or orientation, to 8 bits."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from vae_attn.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

# A small file may unpack to gigabytes. Pillow's own limit is a global: changing it here would
# change it for the whole program, so that ours is checked per file.
MAX_PIXELS = 80_000_000

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_GREY_MODES = ("1", "L", "LA", "La")

_Result = TypeVar("_Result")


def read_image(
    path: pathlib.Path, *, channels: int | None = None
) -> UInt8[np.ndarray, "height width channels"]:
    """Reads an image upright (its EXIF orientation applied), in 8 bits a channel.

    Sixteen bits are scaled to eight (65535 to 255), transparent pixels are laid over white as
    viewers show them, CMYK and palettes become RGB (a palette of greys becomes grey).

    Args:
      path: a png, jpeg, bmp or tiff file; its content decides, not its ending.
      channels: 1 for grey (ITU-R 601 luma), 3 for RGB, None for what the file has.

    Returns:
      The pixels, 0 to 255.

    Raises:
      UserError: the file cannot be read, is truncated, animated, larger than `MAX_PIXELS`, no
        image, or holds values that have no 8-bit meaning (floats, 32 bits).
    """
    with _told_by_path(path):
        picture, _ = _decode(path)
        picture = _flatten(picture, background=255)
    return to_channels(_pixels(picture), channels)


def read_mask(path: pathlib.Path) -> Bool[np.ndarray, "height width"]:
    """Reads a mask: True where a pixel is not black.

    So both 0/255 and 0/1 masks read right. Where the file is a JPEG, whose compression leaves
    faint greys around edges, True means a level of 128 or more.

    Args:
      path: a png, jpeg, bmp or tiff file, as for `read_image`; transparent pixels are False.

    Returns:
      True on anomalous pixels.

    Raises:
      UserError: as `read_image`.
    """
    with _told_by_path(path):
        picture, file_format = _decode(path)
        if picture.mode.startswith("I"):
            # Before any scaling: the value 1 of a 16-bit label image would round to 0.
            return np.asarray(picture) != 0
        levels = _pixels(_flatten(picture, background=0)).max(axis=-1)
    return levels >= 128 if file_format in ("JPEG", "MPO") else levels > 0


def to_channels(
    image: UInt8[np.ndarray, "height width channels_in"], channels: int | None
) -> UInt8[np.ndarray, "height width channels"]:
    """Converts between grey and RGB; None leaves the image as it is."""
    if channels is None or channels == image.shape[-1]:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=-1)
    return _pixels(Image.fromarray(image).convert("L"))


def resize_image(
    image: UInt8[np.ndarray, "height width channels"], size: int
) -> UInt8[np.ndarray, "{size} {size} channels"]:
    """Resizes to a square of `size` pixels by antialiased Lanczos; the aspect ratio is not kept."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return _pixels(picture.resize((size, size), Image.Resampling.LANCZOS))


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
    path: pathlib.Path, size: int, *, channels: int | None = None
) -> tuple[UInt8[np.ndarray, "{size} {size} channels"], tuple[int, int]]:
    """`read_image`, then `resize_image`; returns the (height, width) it had as well."""
    image = read_image(path, channels=channels)
    return resize_image(image, size), image.shape[:2]


def read_resized_mask(
    path: pathlib.Path, size: int
) -> tuple[Bool[np.ndarray, "{size} {size}"], tuple[int, int]]:
    """`read_mask`, then `resize_mask`; returns the (height, width) it had as well."""
    mask = read_mask(path)
    return resize_mask(mask, size), mask.shape


def size_text(shape: tuple[int, int]) -> str:
    """A (height, width) as image programs write it: "width x height"."""
    return f"{shape[1]} x {shape[0]}"


def read_many(
    read: Callable[[pathlib.Path], _Result], paths: Sequence[pathlib.Path]
) -> tuple[list[_Result | None], list[str]]:
    """Applies `read` to every path, in threads, and goes on after a failure.

    Args:
      read: raises UserError for a file that it cannot read.
      paths: the files.

    Returns:
      One result a path (None where reading failed), and the messages of all failures.
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


@contextlib.contextmanager
def _told_by_path(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever goes wrong with a file into one sentence that names it."""
    too_large = f"{path}: more than {MAX_PIXELS:,} pixels; make the image smaller"
    try:
        yield
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(too_large) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path}: its content is no png, jpeg, bmp or tiff image; replace or remove the file"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly every kind on damaged files
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UserError(
            f"{path}: cannot be read ({reason or type(error).__name__}); "
            "restore the file from its source or remove it"
        ) from error


def _decode(path: pathlib.Path) -> tuple[Image.Image, str]:
    """The upright picture in the file's own mode, and the file's format."""
    if not (path.is_file() or path.is_dir()) and path.exists():  # a pipe would be waited for
        raise UserError(f"{path}: is no regular file; give an image file")
    # A file object, not the path: given a path, Pillow maps an uncompressed TIFF into memory and
    # scrambles it where its orientation is a quarter turn.
    with open(path, "rb") as file, Image.open(file, formats=_FORMATS) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise UserError(
                f"{path}: {picture.width} x {picture.height} pixels, over the limit of "
                f"{MAX_PIXELS:,}; make the image smaller"
            )
        if not picture.width * picture.height:
            raise ValueError("no pixels")
        file_format = picture.format or ""
        frames = getattr(picture, "n_frames", 1)
        # MPO is a camera's still photograph with a preview behind it: the first image counts.
        if frames > 1 and file_format != "MPO":
            raise UserError(
                f"{path}: holds {frames} pictures (animated or several pages); save one per file"
            )
        picture.load()
        return ImageOps.exif_transpose(picture), file_format


def _flatten(picture: Image.Image, *, background: int) -> Image.Image:
    """Converts any mode to 8-bit grey ("L") or "RGB"; transparency shows the background."""
    if picture.mode.startswith("I"):
        return _from_16_bits(picture)
    if picture.mode == "F":
        raise ValueError("floating-point values; save it with 8 or 16 bits")
    grey = picture.mode in _GREY_MODES
    palette = picture.mode in ("P", "PA")
    if picture.has_transparency_data:
        if picture.mode == "La":
            picture = picture.convert("LA")
        canvas = Image.new("RGBA", picture.size, (background,) * 3 + (255,))
        picture = Image.alpha_composite(canvas, picture.convert("RGBA"))
    picture = picture.convert("L" if grey else "RGB")
    if palette:
        red, green, blue = np.moveaxis(np.asarray(picture), -1, 0)
        if np.array_equal(red, green) and np.array_equal(green, blue):
            picture = picture.convert("L")
    return picture


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """Scales 0..65535 to 0..255, rounding to the nearest."""
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("more than 16 bits a pixel; save it with 8 or 16 bits")
    scaled = values.astype(np.uint32)
    scaled += 128
    scaled //= 257
    return Image.fromarray(scaled.astype(np.uint8))


def _pixels(picture: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
    pixels = np.array(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels
