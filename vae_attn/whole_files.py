"""Files that are written whole or not at all, and arrays read from them."""

import contextlib
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name beside `path` to write to, with its ending; `path` itself once that has succeeded.

    A failure removes what was written. A kill leaves it, for the next call to write over.
    """
    temporary = path.with_name(f".writing-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file as `np.savez` writes it: uncompressed, so never larger than it.

    Raises:
      Exception: of nearly any kind, from zipfile and numpy, for a file that is broken or another's.
    """
    # Opened here: np.load leaves a file open that it finds broken.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        entries = file.zip.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or path.stat().st_size < sum(entry.file_size for entry in entries):
            raise ValueError(f"{path} unpacks to more than it holds")
        return dict(file)
