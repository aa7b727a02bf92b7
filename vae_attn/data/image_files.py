"""Decodes one image file, all bits of it, whatever its format, depth and orientation."""

import contextlib
import ctypes
import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
from jaxtyping import Bool, Integer, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from vae_attn.errors import UserError

# Formats of still pictures whose first bytes say what they are, by Pillow's names. Left out are
# programs (eps), films, icons and what Pillow can only recognise.
_EXTENSIONS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpx"),
    "AVIF": (".avif",),
}
EXTENSIONS: tuple[str, ...] = tuple(end for ends in _EXTENSIONS.values() for end in ends)
KINDS = "png, jpeg, bmp, tiff, webp, gif, ppm, jp2 or avif"  # for messages

# Where a file has more than 8 bits per channel: the levels that become 0 and 255.
Levels = tuple[int, int]
_DEEPEST = 65535
ALL_LEVELS: Levels = (0, _DEEPEST)  # where nothing is known of the data set's own range

# A small file may unpack to gigabytes. Pillow's own limit is a global: changing it here would
# change it for the whole program, so that ours is checked per file.
MAX_PIXELS = 80_000_000

_GREY_MODES = ("1", "L", "LA", "La")
_ALWAYS_LOSSY = ("JPEG", "MPO")
_MAYBE_LOSSY = ("WEBP", "JPEG2000", "AVIF")


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
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
            f"{path}: its content is no {KINDS} image; replace or remove the file"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly every kind on damaged files
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UserError(
            f"{path}: cannot be read ({reason or type(error).__name__}); "
            "restore the file from its source or remove it"
        ) from error


class Decoded(NamedTuple):
    """An upright picture.

    Attributes:
      picture: in the file's own mode.
      deep: its levels, where the file has more than 8 bits per channel: grey or RGB.
      alpha: those of its opacity, 0 to 65535, where the file has more than 8 bits and any.
      file_format: as Pillow names it.
    """

    picture: Image.Image
    deep: Integer[np.ndarray, "height width channels"] | None
    alpha: Integer[np.ndarray, "height width"] | None
    file_format: str

    def pixels(self, levels: Levels) -> UInt8[np.ndarray, "height width channels"]:
        """Grey or RGB of 8 bits, over white where transparent."""
        if self.deep is not None:
            return _scale(self.deep, levels, self._opacity())
        return as_array(_flatten(self.picture, background=255))

    def marked(self) -> Bool[np.ndarray, "height width"]:
        """Where the picture is not black, nor transparent, nor dark by lossy compression."""
        if self.deep is not None:
            # Before any scaling: the value 1 of a 16-bit label image would round to 0.
            return (self.deep != 0).any(axis=-1) & (self._opacity() > 0)
        levels = as_array(_flatten(self.picture, background=0)).max(axis=-1)
        lossy = self.file_format in _ALWAYS_LOSSY or (
            self.file_format in _MAYBE_LOSSY and levels.max() >= 128
        )
        return levels >= 128 if lossy else levels > 0

    def _opacity(self) -> Integer[np.ndarray, "height width"]:
        """How far a pixel of a deep picture hides what is behind it, 0 to 65535."""
        if self.alpha is not None:
            return self.alpha
        hidden = self.picture.info.get("transparency")  # the one colour that is not shown
        if hidden is None or isinstance(hidden, bytes):
            return np.full(self.deep.shape[:2], _DEEPEST, np.uint16)
        return np.where((self.deep == np.array(hidden)).all(axis=-1), 0, _DEEPEST)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `_EXTENSIONS` that this Pillow knows."""
    Image.init()
    return tuple(name for name in _EXTENSIONS if name in Image.OPEN)


def _regular(path: pathlib.Path) -> BinaryIO:
    """Opens a regular file; opening a pipe would wait for its other end."""
    if not (path.is_file() or path.is_dir()) and path.exists():
        raise UserError(f"{path}: is no regular file; give an image file")
    return open(path, "rb")


@functools.cache
def _silence_libtiff() -> None:
    """Keeps libtiff from writing to stderr, where it calls every file "tempfile.tif".

    What it cannot decode still raises. Without Pillow's own copy of it, all stays as it was.
    """
    packages = pathlib.Path(PIL.__file__).parent.parent
    for path in (*packages.glob("[pP]illow.libs/libtiff*"), *packages.glob("PIL/.dylibs/libtiff*")):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))  # the one that Pillow has loaded
            for set_handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                set_handler.restype = ctypes.c_void_p
                set_handler(None)


@contextlib.contextmanager
def _opened(file: BinaryIO, path: pathlib.Path) -> Iterator[Image.Image]:
    """A picture whose pixels are not read yet, if it is one picture of a size we take.

    From a file object, not the path: given a path, Pillow maps an uncompressed TIFF into memory
    and scrambles it where its orientation is a quarter turn.
    """
    with Image.open(file, formats=_formats()) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise UserError(
                f"{path}: {picture.width} x {picture.height} pixels, over the limit of "
                f"{MAX_PIXELS:,}; make the image smaller"
            )
        if not picture.width * picture.height:
            raise ValueError("no pixels")
        frames = getattr(picture, "n_frames", 1)
        # MPO is a camera's still photograph with a preview after it: the first image counts.
        if frames > 1 and picture.format != "MPO":
            raise UserError(
                f"{path}: holds {frames} pictures (animated or several pages); save one per file"
            )
        yield picture


def decode(path: pathlib.Path) -> Decoded:
    """Reads a file's pixels, all bits of them; to be called within `naming(path)`."""
    with _regular(path) as file:
        with _opened(file, path) as picture:
            file_format, raw = picture.format or "", _raw_mode(picture)
            if file_format == "TIFF":
                _silence_libtiff()
            picture.load()
            upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I"):
            return Decoded(upright, _grey_levels(upright), None, file_format)
        if raw == "LA;16B":
            grey, alpha = np.moveaxis(_join(_reread(file, path, "RGBA")), -1, 0)
            return Decoded(upright, grey[..., None], alpha, file_format)
        if raw[:-1] in _DEEP_COLOUR:
            lower = _reread(file, path, raw[:-1] + _OTHER_BYTE[raw[-1]])
            levels = _join(np.stack([np.asarray(upright), lower], axis=-1))[..., 0]
            alpha = levels[..., 3] if levels.shape[-1] > 3 else None
            return Decoded(upright, levels[..., :3], alpha, file_format)
        return Decoded(upright, None, None, file_format)


# Pillow has no mode for colour of 16 bits: it reads the upper byte of each level, as this name
# of the file's order of bytes says, and under the name of the other order the lower byte.
_DEEP_COLOUR = ("RGB;16", "RGBX;16", "RGBA;16")
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def _raw_mode(picture: Image.Image) -> str:
    """How Pillow unpacks the file's pixels; empty where the format has no such thing."""
    arguments = picture.tile[0].args if picture.tile else None
    if isinstance(arguments, tuple):
        arguments = arguments[0] if arguments else None
    return arguments if isinstance(arguments, str) else ""


def is_deep(path: pathlib.Path) -> bool:
    """Whether a file has more than 8 bits per channel, by its header alone; within `naming`."""
    with _regular(path) as file, _opened(file, path) as picture:
        raw = _raw_mode(picture)
        return picture.mode.startswith("I") or raw == "LA;16B" or raw[:-1] in _DEEP_COLOUR


def _reread(file: BinaryIO, path: pathlib.Path, raw: str) -> UInt8[np.ndarray, "h w channels"]:
    """The upright pixels once more, unpacked in another way."""
    file.seek(0)
    with _opened(file, path) as picture:
        picture.tile = [
            tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
            for tile in picture.tile
        ]
        picture.load()
        return np.asarray(ImageOps.exif_transpose(picture))


def _join(pairs: UInt8[np.ndarray, "..."]) -> Integer[np.ndarray, "..."]:
    """Levels of 16 bits, from their upper and lower bytes in turn along the last axis."""
    return np.ascontiguousarray(pairs).view(">u2").astype(np.uint16)


def _grey_levels(picture: Image.Image) -> Integer[np.ndarray, "height width 1"]:
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > _DEEPEST:
        raise ValueError("more than 16 bits per pixel; save it with 8 or 16 bits")
    return values[..., None]


def _scale(
    deep: Integer[np.ndarray, "height width channels"],
    levels: Levels,
    opacity: Integer[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width channels"]:
    """Scales levels to 0..255, rounding to the nearest, over white where transparent."""
    pixels = np.empty(deep.shape, np.uint8)
    black, white = levels
    for channel in range(pixels.shape[-1]):  # one by one: they are four times as large meanwhile
        above = np.clip(deep[..., channel], black, white).astype(np.uint32) - black
        scaled = (above * 255 + (white - black) // 2) // (white - black)
        if opacity.min() < _DEEPEST:
            through = 255 * (_DEEPEST - opacity.astype(np.uint32))
            scaled = (scaled * opacity + through + _DEEPEST // 2) // _DEEPEST
        pixels[..., channel] = scaled
    return pixels


def _flatten(picture: Image.Image, *, background: int) -> Image.Image:
    """Converts any mode of 8 bits to grey ("L") or "RGB"; transparency shows the background."""
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


def as_array(picture: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
    """A picture of mode "L" or "RGB" as an array of its own."""
    pixels = np.array(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels
