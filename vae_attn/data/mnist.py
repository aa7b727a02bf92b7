"""MNIST as a one-class data set, from the four idx files or through tensorflow-datasets.

The idx format is described at the end of http://yann.lecun.com/exdb/mnist: a big-endian magic
number (2051 images, 2049 labels), one size per dimension, then the bytes.
"""

import gzip
import importlib.util
import math
import os
import pathlib
import zlib

import numpy as np
from jaxtyping import Int, UInt8

from vae_attn import extras
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.defects import SCORES_NOTE
from vae_attn.data.digits import check_digit, check_split, one_class_labels
from vae_attn.errors import UserError

# A small gzip file may unpack to gigabytes; the largest official file has 47 MB.
MAX_BYTES = 2**28

_MAGIC = {"images": 2051, "labels": 2049}
_KIND_OF_MAGIC = {magic: kind for kind, magic in _MAGIC.items()}
_PREFIX = {"train": "train", "test": "t10k"}
_PLACES = (".", "MNIST/raw", "raw")  # below data.dir: of the files; the last two are torchvision's
_Split = tuple[UInt8[np.ndarray, "_ 28 28 1"], Int[np.ndarray, "_"]]


def load(
    data_dir: str | os.PathLike[str],
    digit: int,
    *,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> AnomalyData:
    """Loads one digit of the train split to learn from, and the whole test split to explain.

    The four idx files are read, as they are or compressed with gzip, also under the spelling
    `train-images.idx3-ubyte`, from the folder itself or from `MNIST/raw` in it, where torchvision
    puts them. Where none is there, MNIST as prepared by tensorflow-datasets under `data_dir` is
    read; it is downloaded and prepared first if TensorFlow is installed.

    Args:
      data_dir: the folder that holds the data.
      digit: the normal class, 0 to 9.
      validation_fraction: share of the digit's train images that is held out for validation.
      seed: of the choice of the validation images.

    Returns:
      Images of 28x28x1; train and validation keep the order of the file.

    Raises:
      UserError: no data under `data_dir`, a truncated, corrupt or mislabelled file, `digit` not
        0 to 9, or `validation_fraction` leaves a part empty.
    """
    check_digit(digit)
    folder = pathlib.Path(data_dir)
    (train_images, train_digits), (test_images, test_digits) = _read(folder)
    own = np.flatnonzero(train_digits == digit)
    if not own.size:
        raise UserError(f"{folder} has no train image of digit {digit}; choose another digit")
    num_validation = check_split(validation_fraction, len(own), total=len(own))
    shuffled = np.random.default_rng(seed).permutation(own)
    labels, class_names = one_class_labels(test_digits, digit)
    return AnomalyData(
        name=f"MNIST, digit {digit}",
        draws_defects=True,
        scores_note=SCORES_NOTE,
        train=train_images[np.sort(shuffled[num_validation:])],
        validation=train_images[np.sort(shuffled[:num_validation])],
        test=LabelledImages(
            images=test_images,
            labels=labels,
            class_names=class_names,
            names=tuple(f"mnist/{index:05d}" for index in range(len(labels))),
            masks=None,
            has_mask=np.zeros(len(labels), bool),
        ),
    )


def _read(folder: pathlib.Path) -> tuple[_Split, _Split]:
    """Reads both splits from the idx files if there are any, else from tensorflow-datasets."""
    if not folder.is_dir() and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{folder} is no folder: create it and put MNIST's four files into it "
            "(train-images-idx3-ubyte.gz and so on), point data.dir to where they are, or install "
            "the extra vae_attn[tfds], which downloads them"
        )
    found = {place: _find_all(folder / place) for place in _PLACES}
    place = next((place for place, paths in found.items() if any(paths.values())), ".")
    files = found[place]
    missing = [_file_names(*key)[0] for key, path in files.items() if path is None]
    if len(missing) == len(files):
        return _read_tfds(folder, "train"), _read_tfds(folder, "test")
    if missing:
        raise UserError(
            f"{folder / place} lacks {', '.join(missing)} (with or without .gz); add them"
        )
    train, test = (_read_split(files[split, "images"], files[split, "labels"]) for split in _PREFIX)
    return train, test


def _file_names(split: str, kind: str) -> list[str]:
    """The spellings under which a file is distributed, without compression and with it."""
    rank = {"images": 3, "labels": 1}[kind]
    stems = [f"{_PREFIX[split]}-{kind}{dash}idx{rank}-ubyte" for dash in "-."]
    return [stem + suffix for stem in stems for suffix in ("", ".gz")]


def _find_all(folder: pathlib.Path) -> dict[tuple[str, str], pathlib.Path | None]:
    """The files of a folder by split and kind, None for those that are not there."""
    found = {}
    for key in ((split, kind) for split in _PREFIX for kind in ("images", "labels")):
        paths = (folder / name for name in _file_names(*key))
        found[key] = next((path for path in paths if path.is_file()), None)
    return found


def _read_split(image_path: pathlib.Path, label_path: pathlib.Path) -> _Split:
    """Reads one split and checks that images and labels belong together."""
    images, labels = _read_idx(image_path, "images"), _read_idx(label_path, "labels")
    if images.shape[1:] != (28, 28):
        height, width = images.shape[1:]
        raise UserError(
            f"{image_path} holds images of {height}x{width}, not MNIST's 28x28; "
            "put the official file in its place"
        )
    if len(images) != len(labels):
        raise UserError(
            f"{image_path} holds {len(images)} images and {label_path} {len(labels)} labels; "
            "put the two files of one split there"
        )
    if labels.size and labels.max() > 9:
        position = int(np.argmax(labels > 9))
        raise UserError(
            f"{label_path} has the label {labels[position]} at position {position}, where only "
            "digits 0 to 9 can be; put the official file in its place"
        )
    return images[..., None], labels.astype(np.int64)


def _read_idx(path: pathlib.Path, kind: str) -> UInt8[np.ndarray, "..."]:
    """Reads an idx file of bytes, whether or not it is compressed, whatever its name says."""
    again = "download it again"
    content = bytearray()
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            opened = gzip.GzipFile(fileobj=file) if is_gzip else file
            while block := opened.read(2**20):
                content += block
                if len(content) > MAX_BYTES:
                    raise UserError(
                        f"{path} holds more than {MAX_BYTES:,} bytes, unlike any MNIST; {again}"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); {again}") from error
    magic = int.from_bytes(content[:4], "big")
    if magic != _MAGIC[kind]:
        found = _KIND_OF_MAGIC.get(magic)
        what = f"holds {found}" if found else "is no idx file of bytes"
        raise UserError(
            f"{path} {what}: its magic number is {magic}, and that of {kind} is {_MAGIC[kind]}; "
            f"{again}"
        )
    rank = magic & 0xFF
    start = 4 + 4 * rank
    shape = tuple(
        int(size) for size in np.frombuffer(content[4:start], ">u4", len(content[4:start]) // 4)
    )
    expected = start + math.prod(shape)
    if len(shape) < rank or len(content) != expected:
        state = "truncated" if len(shape) < rank or len(content) < expected else "too long"
        raise UserError(
            f"{path} is {state}: {len(content)} bytes decompressed, and its header of sizes "
            f"{shape} asks for {expected}; {again}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_tfds(folder: pathlib.Path, split: str) -> _Split:
    """Reads a split that tensorflow-datasets prepared; prepares it where TensorFlow is there."""
    # Imported here: it takes a second that a run on idx files need not wait for.
    import tensorflow_datasets as tfds

    extras.load(
        "array_record", extra="tfds", purpose=f"reading tensorflow-datasets' {folder}/mnist"
    )
    if not any(folder.glob("mnist/*/dataset_info.json")):
        _prepare_tfds(folder)
    try:
        source = tfds.data_source("mnist", split=split, data_dir=folder)
        examples = [source[index] for index in range(len(source))]
    except Exception as error:  # tfds lets the errors of several libraries through
        raise UserError(
            f"{folder / 'mnist'} cannot be read by tensorflow-datasets ({_first_line(error)}); "
            "remove it and prepare it again in the array_record format"
        ) from error
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples], np.int64)


def _prepare_tfds(folder: pathlib.Path) -> None:
    """Downloads MNIST and prepares it, which needs TensorFlow where reading does not."""
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"no MNIST in {folder}: put the four files there (train-images-idx3-ubyte.gz, "
            "train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz), "
            "or install the extra vae_attn[tfds] to have them downloaded"
        )
    try:
        # The default format, tfrecord, cannot be read without TensorFlow.
        builder = tfds.builder("mnist", data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # tfds lets the errors of several libraries through
        raise UserError(
            f"tensorflow-datasets could not prepare MNIST in {folder} ({_first_line(error)}); "
            "put the four idx files there by hand"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
