"""Decoded images, kept on disk: decoded once, then mapped into memory.

An entry is one `.npy` file an array, named by a key of the source files' contents and the target
size, so that a changed image or another size never meets an old entry. Any file in the folder
may be deleted at any time.
"""

import contextlib
import hashlib
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL

# Counts changes of how files are decoded or resized: an entry of another version is not found.
_VERSION = 1


def default_dir() -> pathlib.Path:
    """`$XDG_CACHE_HOME/vae_attn`, or `~/.cache/vae_attn` where the variable is unset or relative.

    Raises:
      RuntimeError: there is no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = pathlib.Path(base) if os.path.isabs(base) else pathlib.Path.home() / ".cache"
    return root / "vae_attn"


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
    names: Sequence[str],
    build: Callable[[], dict[str, np.ndarray]],
    *,
    cache_dir: str | os.PathLike | None,
) -> dict[str, np.ndarray]:
    """Maps the arrays of an entry into memory; builds and keeps them where there is none.

    Args:
      key: from `content_key`; None builds without keeping.
      names: names of the arrays; none of them is empty.
      build: decodes; returns an array a name. What it raises passes through, nothing kept.
      cache_dir: the folder of entries, `default_dir()` where None.

    Returns:
      An array a name, read-only and memory-mapped where the cache works. A folder that cannot be
      written only warns.
    """
    if key is None:
        return build()
    try:
        folder = pathlib.Path(cache_dir) if cache_dir is not None else default_dir()
    except RuntimeError as error:
        _warn(f"no cache of decoded images ({error}); set data.cache_dir")
        return build()
    files = {name: folder / f"{key}-{name}.npy" for name in names}
    kept = _open_all(files)
    if kept is not None:
        return kept
    arrays = build()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            _write(file, arrays[name])
    except OSError as error:
        _warn(
            f"{folder}: decoded images cannot be kept ({error.strerror}), so that they are "
            "decoded again each time; set data.cache_dir to a folder that can be written"
        )
        return arrays
    return _open_all(files) or arrays


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


def _write(file: pathlib.Path, array: np.ndarray) -> None:
    """Writes under a temporary name, to the disk, then renames: the final name is always whole."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, array, allow_pickle=False)
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
