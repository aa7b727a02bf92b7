"""Saves a run's figures and writes the page that shows them, whatever the run was about."""

import base64
import hashlib
import importlib.resources
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe
import ml_collections
from matplotlib.figure import Figure
from PIL import Image

from vae_attn import whole_files
from vae_attn.progress import Progress
from vae_attn.reporting import figures
from vae_attn.reporting.explorer import files as explorer_files
from vae_attn.reporting.svg_plots import Plot
from vae_attn.reporting.tables import Table

# What a report draws: the figure, or the frames of an animation; its heading; its caption.
Drawn = tuple[Figure | list[Image.Image], str, str]

_FRAME_MILLISECONDS = 90
# The explorer's scripts, in the order in which they stand in the page.
_SCRIPTS = ("data", "words", "gallery", "drawing", "switches", "viewer", "start")


class Fact(NamedTuple):
    """A tile at the top of the page.

    Attributes:
      name: of the number.
      value: the number.
      meaning: in a few words.
      of: of how many images it is, such as "60 test images"; "" where it is of none.
    """

    name: str
    value: str
    meaning: str
    of: str = ""


def write(
    config: ml_collections.ConfigDict | None,
    workdir: pathlib.Path,
    *,
    title: str,
    summary: str,
    drawn: Mapping[str, Drawn | Callable[[], Drawn]],
    tables: Sequence[Table],
    facts: Sequence[Fact] = (),
    links: Sequence[tuple[str, str]] = (),
    explorer: dict[str, Any] | None = None,
    plots: Sequence[Plot] = (),
    file: str = "report/index.html",
) -> pathlib.Path:
    """Writes `figures/*.png` (animations: `.gif`) and `report/index.html`, which contains them.

    The page is replaced in one step. The files of its explorer lie in a folder of their own name,
    so that an old page keeps its images until the new one has taken its place.

    Args:
      config: the run's, shown at the end of the page; None where there is more than one.
      workdir: the run's.
      title: of the page.
      summary: its first paragraph.
      drawn: what is shown, by file name without its ending. A function is called when its turn
        comes, and its figure is written immediately.
      tables: of scores, shown after the figures.
      facts: the few numbers that stand on top.
      links: to other pages: text and address.
      explorer: what `explorer.Explorer.write` returned; its files lie beside the page.
      plots: shown before the figures.
      file: of the page, in the workdir.

    Returns:
      Path of the page.
    """
    shown = _pictures(workdir, drawn)
    sections = {
        "explorer": ("Explorer", explorer),
        "curves": ("Curves", plots),
        "figures": ("Figures", shown),
        "scores": ("Scores", tables),
        "config": ("Config", config),
    }
    script = _explorer_script() if explorer else ""
    style = _source("page.css") + (_source("explorer.css") if explorer else "")
    html = _ENVIRONMENT.get_template("report.html.jinja").render(
        title=title,
        summary=summary,
        sections=[(anchor, name) for anchor, (name, content) in sections.items() if content],
        facts=facts,
        links=links,
        explorer=explorer,
        plots=plots,
        figures=shown,
        tables=tables,
        config=config.to_yaml() if config else "",
        # Files of the package's own, not data: they are not escaped.
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        policy=_policy(style, script),
    )
    path = workdir / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_files.writing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    if explorer:
        explorer_files.remove_other_folders(path.parent / explorer["folder"])
    return path


def _pictures(
    workdir: pathlib.Path, drawn: Mapping[str, Drawn | Callable[[], Drawn]]
) -> list[dict]:
    """Draws and saves the figures; what the template has to know of each, its content included."""
    (workdir / "figures").mkdir(parents=True, exist_ok=True)
    shown = []
    with Progress("drawing", total=len(drawn), unit="figures") as progress:
        for name, one in drawn.items():
            picture, heading, caption = one() if callable(one) else one
            path = _save(picture, workdir / "figures" / name)
            content = base64.b64encode(path.read_bytes()).decode()
            with Image.open(path) as saved:
                width, height = saved.size
            shown.append(
                {"heading": heading, "caption": caption, "kind": path.suffix.removeprefix("."),
                 "content": content, "width": width, "height": height}
            )  # fmt: skip
            progress.add()
    return shown


_FILES = importlib.resources.files("vae_attn.reporting")


def _source(name: str) -> str:
    """A file of the package's own, of the page's shell or of its explorer."""
    shell = _FILES / "templates" / name
    file = shell if shell.is_file() else _FILES / "explorer" / name
    return file.read_text(encoding="utf-8")


def _explorer_script() -> str:
    """The explorer's scripts in one function, whose only global hands data to `receive`."""
    parts = "\n".join(_source(f"{name}.js") for name in _SCRIPTS)
    ending = "return Object.freeze({ receive });\n"
    return f'"use strict";\n\nconst explorer = (() => {{\n{parts}\n{ending}}})();\n'


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FunctionLoader(_source),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def _policy(style: str, script: str) -> str:
    """A content security policy: what is inline here and the files beside the page, no network."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    scripts = f"'self' file: {digest(script)}" if script else "'none'"
    return (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src 'self' file: data:; "
        f"style-src {digest(style)}; script-src {scripts}"
    )


def _save(picture: Figure | list[Image.Image], stem: pathlib.Path) -> pathlib.Path:
    if isinstance(picture, Figure):
        figures.save(picture, path := stem.with_suffix(".png"))
        return path
    path = stem.with_suffix(".gif")
    first, *rest = picture
    animation = {"append_images": rest, "duration": _FRAME_MILLISECONDS, "loop": 0}
    with whole_files.writing(path) as temporary:
        first.save(temporary, save_all=True, **animation)
    return path
