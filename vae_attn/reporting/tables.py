"""Scores as files: metrics.json, and Markdown tables for people."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vae_attn import whole_files
from vae_attn.errors import UserError


class Table(NamedTuple):
    """A table for people, as Markdown or on a page.

    Attributes:
      title: heading over it.
      rows: of cells, the first of them the header; none where the note alone is shown.
      note: small print under it.
    """

    title: str
    rows: list[list[str]]
    note: str


def write(metrics: Mapping[str, float], folder: pathlib.Path) -> None:
    """Writes `metrics.json` into a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=2, allow_nan=False)
    with whole_files.writing(folder / "metrics.json") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read(folder: pathlib.Path) -> dict[str, float]:
    """The scores that `write` left in a folder; none where there is no such file.

    Raises:
      UserError: if the file cannot be read, or holds anything else.
    """
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not all(type(value) in (int, float) for value in metrics.values()):
            raise ValueError("not all of it are numbers")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): --mode=evaluate writes it anew, or move it away."
        ) from error
    return metrics


def write_markdown(tables: Sequence[Table], path: pathlib.Path, *, title: str) -> pathlib.Path:
    """Writes tables, each with its heading and note, under one title; returns the path."""
    lines = [f"# {title}"]
    for table in tables:
        lines += ["", f"## {table.title}", ""]
        if table.rows:
            header, *rows = table.rows
            cells = [header, ["---"] * len(header), *rows]
            lines += [*("| " + " | ".join(row) + " |" for row in cells), ""]
        lines += [table.note]
    with whole_files.writing(path) as temporary:
        temporary.write_text("\n".join(lines).replace("*", "\\*") + "\n", encoding="utf-8")
    return path
