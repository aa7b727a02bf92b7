"""Scores as files: metrics.json, and Markdown tables for people."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vae_attn import whole_files
from vae_attn.errors import UserError
from vae_attn.experiments.anomaly.calibration import FALSE_POSITIVE_RATE

STD = "_std"  # appended to a score's name: its standard deviation over seeds
LOW, HIGH = "_low", "_high"  # appended: the ends of its bootstrap interval

_COLUMNS = {  # of the table of scores, with the heading of each
    "pixel_auroc": "pixel AUROC",
    "best_iou_test": "best IoU*",
    "iou": "IoU",
    "aupro": "AUPRO",
    "average_precision": "pixel AP",
    "share_missed": "defect missed",
    "share_below_chance": "maps < 0.5",
    "image_auroc": "image AUROC (mass)",
    "image_auroc_max": "image AUROC (max)",
}

SCORES_NOTE = (
    "* at the threshold that is best on the test set, as in the paper; IoU takes the one that "
    f"{FALSE_POSITIVE_RATE:.0%} of the pixels of normal validation images exceed. Defect missed: "
    "share of maps whose peak lies outside of the defect. Maps < 0.5: share of maps whose own "
    "pixel AUROC is below chance. Image AUROC: normal against abnormal, by the map's mean or its "
    "maximum (reconstruction_error: by the likelihood). In brackets: 95% bootstrap interval over "
    "images."
)


class Table(NamedTuple):
    """A table for people, as Markdown or on a page.

    Attributes:
      title: heading over it.
      rows: of cells, the first of them the header.
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
        header, *rows = table.rows
        cells = [header, ["---"] * len(header), *rows]
        lines += ["", f"## {table.title}", ""]
        lines += ["| " + " | ".join(row) + " |" for row in cells]
        lines += ["", table.note]
    with whole_files.writing(path) as temporary:
        temporary.write_text("\n".join(lines).replace("*", "\\*") + "\n", encoding="utf-8")
    return path


def scores(metrics: Mapping[str, float], *, note: str) -> Table:
    """The table of one run's scores: a row a style and layer, in the order of `metrics`.

    Args:
      metrics: of `anomaly.evaluate`.
      note: `AnomalyData.scores_note`.
    """
    rows = list(dict.fromkeys(key.rsplit("/", 1)[0] for key in metrics))
    cells = [
        [*row.split("/"), *(cell(metrics, f"{row}/{c}", interval=True) for c in _COLUMNS)]
        for row in rows
    ]
    header = ["style", "layer", *_COLUMNS.values()]
    return Table("Scores", [header, *cells], f"{SCORES_NOTE} {note}".strip())


def cell(metrics: Mapping[str, float], name: str, *, interval: bool = False) -> str:
    """A score with three digits; of several seeds mean ± standard deviation; or nothing.

    Args:
      metrics: scores by name.
      name: of the score.
      interval: whether its bootstrap interval follows in brackets, if there is one.
    """
    if name not in metrics:
        return ""
    text = f"{metrics[name]:.3f}"
    if name + STD in metrics:
        text += f" ± {metrics[name + STD]:.3f}"
    if interval and name + LOW in metrics:
        text += f" [{metrics[name + LOW]:.3f}, {metrics[name + HIGH]:.3f}]"
    return text
