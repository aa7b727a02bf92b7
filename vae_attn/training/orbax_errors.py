"""What orbax raises and prints when a file cannot be written or read."""

import functools
import logging
import re
import sys
import types
import warnings
from typing import Any

_MOST_CHARACTERS = 200
# In what asyncio says of a failed task of orbax: its files, or what TensorStore could not read.
_OF_ORBAX = ("orbax", '"zarr" driver', "OCDBT database")


def reason(error: BaseException) -> str:
    """Why it failed, in a line: the error inside those that orbax wraps it in, some pages long."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:_MOST_CHARACTERS]


def refused_by_disk(error: BaseException) -> str | None:
    """What the operating system answered to a write; None where the error is none of its.

    Args:
      error: of orbax; what TensorStore writes comes as a ValueError that quotes the system's.
    """
    while error is not None:
        if isinstance(error, OSError):
            return str(error)
        if match := re.search(r"([^:]+) \[os_error_code", str(error)):
            return match[1].strip()
        error = error.__cause__
    return None


@functools.cache
def hush() -> None:
    """Keeps off the terminal what further writes and reads report, once one of them has failed.

    The first one's error is raised; nobody waits for the others, and Python would print
    a traceback of each.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda raised: None if _is_echo(raised) else hook(raised)
    logging.getLogger("asyncio").addFilter(
        lambda record: not any(word in record.getMessage() for word in _OF_ORBAX)
    )
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _is_echo(raised: Any) -> bool:
    """Whether it is of a coroutine of orbax that was given up, or of its event loop's end."""
    if isinstance(raised.object, types.CoroutineType):
        return "orbax" in raised.object.cr_code.co_filename
    return raised.exc_type is RuntimeError and str(raised.exc_value) == "Event loop is closed"
