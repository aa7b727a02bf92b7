"""Scores as files: metrics.json, and Markdown tables for people."""

import json
import pathlib
from collections.abc import Sequence

# Share of normal validation pixels above the threshold that is chosen without the test set.
FALSE_POSITIVE_RATE = 0.01

STD = "_std"  # appended to a score's name: its standard deviation over seeds

_COLUMNS = {  # of the table, with the heading of each
    "pixel_auroc": "pixel AUROC",
    "pixel_auroc_low": "95% from",
    "pixel_auroc_high": "to",
    "best_iou_test": "best IoU*",
    "iou": "IoU",
    "aupro": "AUPRO",
    "average_precision": "pixel AP",
    "pointing_game": "pointing game",
    "share_below_chance": "maps < 0.5",
    "image_auroc": "image AUROC (mass)",
    "image_auroc_max": "image AUROC (max)",
}

TABLE_NOTE = (
    "* at the threshold that is best on the test set, as in the paper; IoU takes the one that "
    f"{FALSE_POSITIVE_RATE:.0%} of the pixels of normal validation images exceed. Pointing game: "
    "share of maps whose peak lies in the defect. Maps < 0.5: share of maps whose own pixel AUROC "
    "is below chance. Image AUROC: normal against abnormal, by the map's mean or its maximum "
    "(reconstruction_error: by the likelihood). From, to: 95% bootstrap interval over images, "
    "which takes the six defects drawn on one digit for independent."
)


def write(
    metrics: dict[str, float], folder: pathlib.Path, *, title: str, published: Sequence[str]
) -> pathlib.Path:
    """Writes `metrics.json` and, beside it, `table.md`.

    Args:
      metrics: of `evaluate`.
      folder: created if missing.
      title: of the table.
      published: numbers of others, one line each, to stand under it.

    Returns:
      Path of the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n")
    return write_table(table(metrics), folder / "table.md", title=title, published=published)


def write_table(
    rows: list[list[str]], path: pathlib.Path, *, title: str, published: Sequence[str] = ()
) -> pathlib.Path:
    """Writes rows of cells, the first of them the header, as Markdown, with `TABLE_NOTE`."""
    header, *rows = rows
    lines = [f"# {title}", ""]
    lines += ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    lines += ["", TABLE_NOTE.replace("*", "\\*")]
    lines += [line for text in published for line in ("", text)]
    path.write_text("\n".join(lines) + "\n")
    return path


def table(metrics: dict[str, float]) -> list[list[str]]:
    """Rows of cells: a header, then one row a style and layer, in the order of `metrics`."""
    rows = list(dict.fromkeys(key.rsplit("/", 1)[0] for key in metrics))
    return [
        ["style", "layer", *_COLUMNS.values()],
        *(
            [*row.split("/"), *(cell(metrics, f"{row}/{column}") for column in _COLUMNS)]
            for row in rows
        ),
    ]


def cell(metrics: dict[str, float], name: str) -> str:
    """A score with three digits; of several seeds mean ± standard deviation; or nothing."""
    if name not in metrics:
        return ""
    deviation = f" ± {metrics[name + STD]:.3f}" if name + STD in metrics else ""
    return f"{metrics[name]:.3f}{deviation}"
