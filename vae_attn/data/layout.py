"""What loaders ask of a folder of data: which entries count, and how problems are reported."""

import pathlib
from collections.abc import Sequence

from vae_attn.errors import UserError

_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def visible_entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Entries of a folder, sorted by name, without what a system or an editor leaves behind.

    Args:
      folder: an existing folder.

    Returns:
      All entries but hidden files (`.DS_Store`, `._001.tif`), `Thumbs.db`, `desktop.ini`,
      `__MACOSX` and editors' backups (`UCSDped1.m~`).

    Raises:
      UserError: the folder cannot be listed.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); give a folder that may be read"
        ) from error
    return [
        entry
        for entry in entries
        if not (
            entry.name.startswith(".")
            or entry.name.endswith("~")
            or entry.name.lower() in _SYSTEM_NAMES
        )
    ]


def problems_error(root: pathlib.Path, problems: Sequence[str], *, layout: str) -> UserError:
    """All that is wrong with a data set, in one error.

    Args:
      root: the data set's folder.
      problems: one sentence each, naming its path.
      layout: the layout expected, as one phrase.

    Returns:
      The error to raise: a heading sentence, then one line per problem.
    """
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    heading = f"{root}: {count} to fix before this data set can be used (expected: {layout}):"
    return UserError("\n  ".join([heading, *problems]))


def check_settings(*, image_size: int, validation_fraction: float) -> None:
    """Refuses settings no data set can satisfy.

    Args:
      image_size: side of the square images asked for, in pixels.
      validation_fraction: share of images or clips to hold out.

    Raises:
      UserError: the size is not positive, or the fraction is not strictly between 0 and 1.
    """
    if image_size < 1:
        raise UserError(f"data.image_size is {image_size}; give a positive number of pixels")
    if not 0 < validation_fraction < 1:
        raise UserError(
            f"data.validation_fraction is {validation_fraction}; "
            "give a share strictly between 0 and 1, such as 0.2"
        )


def held_out_count(total: int, fraction: float) -> int:
    """How many of `total` to hold out: the nearest whole number that leaves both sides one."""
    return min(max(round(total * fraction), 1), total - 1)
