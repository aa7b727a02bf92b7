"""Decoded images, kept on disk: decoded once, then mapped into memory.

They are written row by row, so that they may take more than the memory holds. An entry is one
`.npy` file per array, named by a key of the source files' contents and the target size, so that a
changed image or another size never meets an old entry. Any file in the folder may be deleted at any
time.
"""

import contextlib
import hashlib
import math
import os
import pathlib
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
import platformdirs

from vae_attn.data import memory
from vae_attn.errors import UserError

# Counts changes of how files are decoded or laid out: an entry of another version is not found.
_VERSION = 2

Keep = Callable[[str, int, np.ndarray], None]


class Spec(NamedTuple):
    """Shape and type of an array; rows are what its first axis counts."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def default_dir() -> pathlib.Path:
    """The user's cache; on Linux `$XDG_CACHE_HOME/vae_attn`, by default `~/.cache/vae_attn`.

    Raises:
      RuntimeError: there is no home folder.
    """
    folder = platformdirs.user_cache_path("vae_attn", appauthor=False)
    if not folder.is_absolute():  # `~` where it stands for nothing
        raise RuntimeError(f"{folder} is no absolute path")
    return folder


def content_key(paths: Sequence[pathlib.Path], **settings: object) -> str | None:
    """A key of what files hold (not of their names or dates) and of how they are decoded.

    Args:
      paths: the files, in the order in which they are decoded.
      **settings: all else the decoded arrays depend on, such as the target size.

    Returns:
      A hexadecimal key; None where a file cannot be read, so that nothing is kept under it.
    """
    digest = hashlib.sha256(
        repr((_VERSION, PIL.__version__, sorted(settings.items()), len(paths))).encode()
    )
    try:
        with ThreadPoolExecutor() as pool:
            for file_digest in pool.map(_file_digest, paths):
                digest.update(file_digest)
    except OSError:
        return None
    return digest.hexdigest()


def load_or_build(
    key: str | None,
    specs: dict[str, Spec],
    build: Callable[[Keep], None],
    *,
    cache_dir: str | os.PathLike[str] | None,
) -> dict[str, np.ndarray]:
    """Maps the arrays of an entry into memory; builds and keeps them where there is none.

    Args:
      key: from `content_key`; None builds without keeping.
      specs: the arrays by name; none of them is empty.
      build: `build(keep)` decodes, and calls `keep(name, index, row)`, from any thread, for every
        row that is not all zeros. What it raises passes through, nothing kept.
      cache_dir: the folder of entries, `default_dir()` where None.

    Returns:
      One array per name, read-only and memory-mapped where the cache works. A folder that cannot be
      written only causes a warning.

    Raises:
      UserError: if there is no cache, and too little memory to do without one.
    """
    if key is None:
        return _in_memory(specs, build)
    try:
        folder = pathlib.Path(cache_dir) if cache_dir is not None else default_dir()
    except RuntimeError as error:
        _warn(f"no cache of decoded images ({error}); set data.cache_dir")
        return _in_memory(specs, build)
    files = {name: folder / f"{key}-{name}.npy" for name in specs}
    kept = _open_all(files)
    if kept is not None:
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(_new(files[name], specs[name])) for name in specs}
            build(lambda name, index, row: opened[name].write(index, row))
    except OSError as error:
        _warn(
            f"{folder}: decoded images cannot be kept ({error.strerror}), so that they are "
            "decoded again each time; set data.cache_dir to a folder that can be written"
        )
        return _in_memory(specs, build)
    return _open_all(files) or _in_memory(specs, build)


def _in_memory(specs: dict[str, Spec], build: Callable[[Keep], None]) -> dict[str, np.ndarray]:
    needed, there = sum(spec.nbytes for spec in specs.values()), memory.available_bytes()
    if needed > there:
        raise UserError(
            f"the decoded images take {needed / 1e6:,.0f} MB, of which {there / 1e6:,.0f} MB fit "
            "into memory: set data.cache_dir to a folder that can be written and has that space."
        )
    arrays = {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    build(lambda name, index, row: arrays[name].__setitem__(index, row))
    return arrays


def _file_digest(path: pathlib.Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _open_all(files: dict[str, pathlib.Path]) -> dict[str, np.ndarray] | None:
    arrays = {name: _open(file) for name, file in files.items()}
    whole = {name: array for name, array in arrays.items() if array is not None}
    return whole if len(whole) == len(files) else None


def _open(file: pathlib.Path) -> np.memmap | None:
    """The mapped array, or None where the file is missing, cut short or no array at all."""
    try:
        with warnings.catch_warnings(action="error"):
            array = np.lib.format.open_memmap(file, mode="r")
        size = file.stat().st_size
    except Exception:  # numpy parses the header as Python's literals, which fails in any way
        return None
    if size != array.offset + array.nbytes:
        return None
    return array


class _NewFile:
    """A `.npy` file of zeros, and then of the rows that are written, in any order."""

    def __init__(self, stream: BinaryIO, spec: Spec) -> None:
        self._stream, self._spec, self._lock = stream, spec, threading.Lock()
        header = {
            "descr": np.lib.format.dtype_to_descr(spec.dtype),
            "fortran_order": False,
            "shape": spec.shape,
        }
        np.lib.format.write_array_header_1_0(stream, header)
        self._start = stream.tell()
        stream.truncate(self._start + spec.nbytes)

    def write(self, index: int, row: np.ndarray) -> None:
        if row.shape != self._spec.shape[1:] or row.dtype != self._spec.dtype:
            raise ValueError(f"row {index} is {row.dtype}{row.shape}, not a row of {self._spec}")
        # Not through a map of the file: a full disk would kill the process instead of raising.
        with self._lock:
            self._stream.seek(self._start + index * row.nbytes)
            self._stream.write(np.ascontiguousarray(row))


@contextlib.contextmanager
def _new(file: pathlib.Path, spec: Spec) -> Iterator[_NewFile]:
    """Writes under a temporary name, to the disk, then renames: the final name is always whole."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield _NewFile(stream, spec)
            stream.flush()
            # Else a power cut after the rename could leave the full length with zeros in it.
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
