"""Tables for people, as Markdown."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from vae_attn import whole_files


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
