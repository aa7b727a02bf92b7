"""Readers of dSprites files: the official `.npz` and tensorflow-datasets' copy, to packed bits."""

import pathlib
import warnings
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from vae_attn import extras
from vae_attn.data.factor_grid import FactorGrid
from vae_attn.errors import UserError

NPZ_NAME = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_IMAGE_SHAPE = (64, 64)
_BITS = "ub"  # `dtype.kind`s of the images
_TYPES = {_BITS: "type uint8 or bool", "iu": "integers", "f": "floating point numbers"}
# Images unpack to 4 KiB each: 2,048 at a time keep the reader's own memory at 8 MiB.
_CHUNK = 2048
_TFDS_LABELS = (
    "label_shape",
    "label_scale",
    "label_orientation",
    "label_x_position",
    "label_y_position",
)


def read_npz(path: pathlib.Path, grid: FactorGrid) -> UInt8[np.ndarray, "n 512"]:
    """Reads the official archive, image by image, without its 3 GB ever being unpacked at once.

    The members are parsed here rather than by `np.load`, which would unpack each whole;
    `metadata`, a pickle, is never opened. Factor classes and values are compared with the grid.

    Raises:
      UserError: no such file; truncated or damaged; members missing or of another shape or
        type; other factors or another order; pixels other than 0 and 1.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; download it, or leave data.dir empty.")
    packed = np.empty((grid.num_images, 512), dtype=np.uint8)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_factors(archive, path, grid)
            shape = (grid.num_images, *_IMAGE_SHAPE)
            for start, images in _chunks(archive, path, "imgs", shape, _BITS):
                packed[start : start + len(images)] = _pack(images, path)
    except UserError:
        raise
    except Exception as error:  # zipfile raises nearly every kind on damaged archives
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be read to its end ({reason}); it is truncated or damaged: "
            "download it again."
        ) from error
    return packed


def _check_factors(archive: zipfile.ZipFile, path: pathlib.Path, grid: FactorGrid) -> None:
    shape = (grid.num_images, len(grid.names))
    for start, classes in _chunks(archive, path, "latents_classes", shape, "iu"):
        expected = grid.classes(np.arange(start, start + len(classes)))
        if not np.array_equal(classes, expected):
            raise _other_factors(path, "latents_classes", grid)
    for start, values in _chunks(archive, path, "latents_values", shape, "f"):
        expected = grid.factor_values(grid.classes(np.arange(start, start + len(values))))
        if not np.allclose(values, expected, rtol=0, atol=1e-5):
            raise _other_factors(path, "latents_values", grid)


def _other_factors(path: pathlib.Path, member: str, grid: FactorGrid) -> UserError:
    sizes = " x ".join(map(str, grid.sizes))
    return UserError(
        f"{path}: {member} are not the factors of dSprites ({', '.join(grid.names)}: {sizes}, "
        "the last varying fastest); use the official file."
    )


def _chunks(
    archive: zipfile.ZipFile,
    path: pathlib.Path,
    name: str,
    shape: tuple[int, ...],
    kinds: str,
) -> Iterator[tuple[int, np.ndarray]]:
    """Streams the rows of one array of an npz archive: (first row, rows).

    Args:
      archive: the open archive.
      path: its name, for messages.
      name: the array's name in it.
      shape: what it must have.
      kinds: the `dtype.kind`s allowed.
    """
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise UserError(f"{path} has no array {name}; use the official file.") from None
    # zipfile unpacks a piece at a time of these alone; of others a few bytes become gigabytes.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{path}: {name} is not compressed by deflate; use the official file.")
    stream = archive.open(entry)
    with stream:
        dtype = _check_header(stream, path, name, shape, kinds)
        row_bytes = dtype.itemsize * int(np.prod(shape[1:]))
        for start in range(0, shape[0], _CHUNK):
            count = min(_CHUNK, shape[0] - start)
            content = stream.read(count * row_bytes)
            if len(content) != count * row_bytes:
                raise EOFError(f"{name} ends early")
            yield start, np.frombuffer(content, dtype).reshape(count, *shape[1:])
        # The archive's checksum is compared only when its end is read.
        if stream.read(1):
            raise EOFError(f"{name} is longer than its shape")


def _check_header(
    stream: zipfile.ZipExtFile,
    path: pathlib.Path,
    name: str,
    shape: tuple[int, ...],
    kinds: str,
) -> np.dtype:
    try:
        # Headers of other versions say themselves how long they are, up to 4 GiB.
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version of the format")
        with warnings.catch_warnings(action="ignore"):  # of long integers, as Python 2 wrote them
            found, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise
    except Exception as error:  # numpy parses the header as Python's literals
        raise UserError(f"{path}: {name} is not an array of numbers; use the official file.") from (
            error
        )
    wide = kinds == _BITS and dtype.itemsize != 1
    if found != shape or dtype.kind not in kinds or wide or fortran_order:
        order = " in column order" if fortran_order else ""
        raise UserError(
            f"{path}: {name} has shape {found} and type {dtype}{order}, expected {shape} "
            f"and {_TYPES[kinds]}; use the official file."
        )
    return dtype


def _pack(images: np.ndarray, path: pathlib.Path | str) -> UInt8[np.ndarray, "n 512"]:
    if images.max(initial=0) > 1:
        raise UserError(f"{path}: images have pixels other than 0 and 1; use the official file.")
    return np.packbits(images.reshape(len(images), -1), axis=-1)


def read_tfds(directory: pathlib.Path, grid: FactorGrid) -> UInt8[np.ndarray, "n 512"]:
    """Reads tensorflow-datasets' `dsprites`, prepared in array_record format; no tensorflow.

    Its examples are shuffled on disk; their labels put them back in the grid's order. Every image
    is a PNG of its own, so that this takes minutes where the `.npz` takes seconds.

    Raises:
      UserError: not prepared there in that format; labels that do not fill the grid once each;
        pixels other than 0 and 1.
    """
    import tensorflow_datasets as tfds  # slow to import, and only this source needs it

    purpose = f"reading tensorflow-datasets' {directory}/dsprites"
    extras.load("array_record", extra="tfds", purpose=purpose)
    try:
        source = tfds.data_source(
            "dsprites", split="train", data_dir=str(directory), download=False
        )
    except (AssertionError, NotImplementedError, OSError, ValueError) as error:
        raise UserError(
            f"{directory} holds no dsprites in array_record format; prepare it where tensorflow "
            "is installed, with tfds.builder('dsprites', data_dir=..., file_format="
            "'array_record').download_and_prepare(), or leave data.dir empty."
        ) from error
    where = f"{directory}/dsprites"
    packed = np.empty((grid.num_images, 512), dtype=np.uint8)
    seen = np.zeros(grid.num_images, dtype=bool)
    for start in range(0, len(source), _CHUNK):
        examples = source.__getitems__(range(start, min(start + _CHUNK, len(source))))
        labels = [[0, *(int(example[label]) for label in _TFDS_LABELS)] for example in examples]
        try:
            indices = grid.indices(np.array(labels))
        except ValueError as error:
            raise _other_factors(pathlib.Path(where), "labels", grid) from error
        packed[indices] = _pack(np.stack([example["image"] for example in examples]), where)
        seen[indices] = True
    if len(source) != grid.num_images or not seen.all():
        raise UserError(
            f"{where}: {len(source)} examples fill {seen.sum()} of the {grid.num_images} "
            "combinations of factors; prepare it again."
        )
    return packed
