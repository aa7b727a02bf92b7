"""Saves a run's figures and writes the page that shows them, whatever the run was about."""

import base64
import importlib.resources
import pathlib
from collections.abc import Sequence

import jinja2
import ml_collections
from matplotlib.figure import Figure
from PIL import Image

from vae_attn import whole_files
from vae_attn.evaluation.tables import Table

# What a report draws: the figure, or the frames of an animation; its heading; its caption.
Drawn = tuple[Figure | list[Image.Image], str, str]

_FRAME_MILLISECONDS = 90


def write(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    title: str,
    summary: str,
    drawn: dict[str, Drawn],
    tables: Sequence[Table],
) -> pathlib.Path:
    """Writes `figures/*.png` (animations: `.gif`) and `report/index.html`, which contains them.

    Args:
      config: the run's, shown at the end of the page.
      workdir: the run's.
      title: of the page.
      summary: its first paragraph.
      drawn: what is shown, by file name without its ending.
      tables: of scores, shown behind the figures.

    Returns:
      Path of the page.
    """
    (workdir / "figures").mkdir(parents=True, exist_ok=True)
    shown = []
    for name, (picture, heading, caption) in drawn.items():
        path = _save(picture, workdir / "figures" / name)
        content = base64.b64encode(path.read_bytes()).decode()
        kind = path.suffix.removeprefix(".")
        shown.append({"heading": heading, "caption": caption, "kind": kind, "content": content})
    source = importlib.resources.files("vae_attn.reporting") / "templates" / "report.html.jinja"
    template = jinja2.Environment(autoescape=True).from_string(source.read_text())
    html = template.render(
        title=title,
        summary=summary,
        figures=shown,
        tables=tables,
        config=config.to_yaml(),
    )
    path = workdir / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_files.writing(path) as temporary:
        temporary.write_text(html)
    return path


def first_seed(config: ml_collections.ConfigDict) -> str:
    """For the captions of what shows one model: which of several seeds; nothing for one seed."""
    several = config.num_seeds > 1
    return f" Seed {config.seed}, the first of {config.num_seeds}." if several else ""


def all_seeds(config: ml_collections.ConfigDict, how: str) -> str:
    """For the captions of what shows all seeds: how; nothing for one seed."""
    return f" {config.num_seeds} seeds: {how}." if config.num_seeds > 1 else ""


def _save(picture: Figure | list[Image.Image], stem: pathlib.Path) -> pathlib.Path:
    if isinstance(picture, Figure):
        path = stem.with_suffix(".png")
        with whole_files.writing(path) as temporary:
            picture.savefig(temporary)
        return path
    path = stem.with_suffix(".gif")
    first, *rest = picture
    animation = {"append_images": rest, "duration": _FRAME_MILLISECONDS, "loop": 0}
    with whole_files.writing(path) as temporary:
        first.save(temporary, save_all=True, **animation)
    return path
