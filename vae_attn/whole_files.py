"""Files that are written whole or not at all."""

import contextlib
import pathlib
from collections.abc import Iterator


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
