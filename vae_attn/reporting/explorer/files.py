"""The files beside an explorer's page: thumbnails, and a script of data for each image.

A page opened from disk may draw a picture that lies beside it, but not read its pixels; what
it reads must come as scripts. Maps are 8-bit, each in steps of its own, all planes of an image
deflated into one base64 text.
"""

import base64
import contextlib
import io
import json
import pathlib
import secrets
import shutil
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vae_attn import whole_files
from vae_attn.reporting import figures

_THUMBNAIL = 96  # pixels: the longer side of each of its halves
_SHARP = 64  # pixels: pictures up to this size are kept exactly, larger thumbnails as JPEG

_LEAST = 1e-30  # the highest value of a map that is all but 0


_FOLDER = "images-"  # and eight characters, new for each page


@contextlib.contextmanager
def new_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder under a new name, so that the page there is keeps its own until it is replaced.

    Args:
      parent: the folder of the page, made if missing.

    Yields:
      The new folder; it is removed if its writer fails.
    """
    folder = parent / f"{_FOLDER}{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_other_folders(kept: pathlib.Path) -> None:
    """Removes what earlier pages, or a program that was killed, left beside a page's folder."""
    for folder in kept.parent.glob(_FOLDER + 8 * "[0-9a-f]"):
        if folder != kept:
            shutil.rmtree(folder, ignore_errors=True)


def quantise(
    values: Float[np.ndarray, "*shape"], threshold: float
) -> tuple[UInt8[np.ndarray, "*shape"], float]:
    """Values in 8 bits: the highest number of whole steps below each; negative ones are 0.

    Args:
      values: from 0, of one map.
      threshold: the steps are so wide that it is a whole number of them, so that what exceeds it
        is known exactly. They are at least 1/255 of the highest value, at most twice that.

    Returns:
      The number of steps, and a step's width.
    """
    step = max(float(values.max()), _LEAST) / 255
    if threshold > step:
        step = threshold / (threshold // step)
    # The small addend restores what dividing rounds away at a whole number of steps.
    return np.clip(np.floor(values / step + 1e-6), 0, 255).astype(np.uint8), step


def quantise_signed(
    values: Float[np.ndarray, "*shape"],
) -> tuple[UInt8[np.ndarray, "*shape"], float]:
    """Values of either sign in 8 bits: the nearest number of steps, 128 standing for 0.

    Returns:
      The number of steps, and a step's width.
    """
    step = max(float(np.abs(values).max()), _LEAST) / 127
    return (128 + np.rint(values / step)).astype(np.uint8), step


def pack(planes: Sequence[UInt8[np.ndarray, "_ _"]]) -> str:
    """Planes as text: differences to the pixel on the left, deflated, base64."""
    differences = (np.diff(plane, axis=1, prepend=np.uint8(0)) for plane in planes)
    raw = b"".join(np.ascontiguousarray(plane).tobytes() for plane in differences)
    return base64.b64encode(zlib.compress(raw, 6)).decode()


def shrink(
    maps: Float[np.ndarray, "n height width"], most: int
) -> Float[np.ndarray, "n small_height small_width"]:
    """Means over blocks, so that no side has more than `most` pixels."""
    factor = -(-max(maps.shape[1:]) // most)
    padding = [(0, -side % factor) for side in maps.shape[1:]]
    maps = np.pad(maps, [(0, 0), *padding], mode="edge")
    blocks = maps.reshape(
        len(maps), maps.shape[1] // factor, factor, maps.shape[2] // factor, factor
    )
    return blocks.mean(axis=(2, 4))


def picture(image: UInt8[np.ndarray, "height width channels"], *, exact: bool = True) -> str:
    """An image as a data URL: PNG; where it need not be exact, JPEG unless it is small."""
    return _data_url(_encode(image, exact=exact or max(image.shape[:2]) <= _SHARP))


def save_thumbnail(
    image: UInt8[np.ndarray, "height width channels"],
    overlay: Float[np.ndarray, "height width 3"],
    stem: pathlib.Path,
) -> pathlib.Path:
    """Writes one picture, the image on the left and its map on the right; returns its path."""
    left = np.broadcast_to(image, overlay.shape)
    both = np.concatenate([left, np.rint(255 * overlay).astype(np.uint8)], axis=1)
    content = _encode(both, exact=max(image.shape[:2]) <= _SHARP, shrink_to=_THUMBNAIL)
    path = stem.with_suffix(suffix_of(image))
    with whole_files.writing(path) as temporary:
        temporary.write_bytes(content)
    return path


def suffix_of(image: UInt8[np.ndarray, "height width channels"]) -> str:
    """Ending of the thumbnails of images of this size."""
    return ".png" if max(image.shape[:2]) <= _SHARP else ".jpg"


def save_script(identifier: str, record: dict[str, Any], folder: pathlib.Path) -> pathlib.Path:
    """Writes the script that hands an image's record to the page; returns its path."""
    path = folder / f"{identifier}.js"
    # Whatever a record may hold, JSON is JavaScript, and ASCII whatever the page's encoding.
    script = f'explorer.receive("{identifier}",{json.dumps(record, allow_nan=False)});\n'
    with whole_files.writing(path) as temporary:
        temporary.write_text(script, encoding="utf-8")
    return path


def colour_table() -> str:
    """The 256 colours of `figures.COLOUR_MAP`, RGB bytes in base64."""
    return _as_text(figures.colours(np.arange(256) / 255))


def signed_colour_table() -> str:
    """The 255 colours of `figures.signed_colours`, from -1 to 1, RGB bytes in base64."""
    return _as_text(figures.signed_colours(np.arange(-127, 128) / 127))


def _as_text(colours: Float[np.ndarray, "n 3"]) -> str:
    return base64.b64encode(np.rint(255 * colours).astype(np.uint8).tobytes()).decode()


def _encode(image: np.ndarray, *, exact: bool, shrink_to: int | None = None) -> bytes:
    made = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    if shrink_to and made.height > shrink_to:
        made = made.resize((round(made.width * shrink_to / made.height), shrink_to))
    file = io.BytesIO()
    if exact:
        made.save(file, "PNG")
    else:
        made.save(file, "JPEG", quality=88)
    return file.getvalue()


def _data_url(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
