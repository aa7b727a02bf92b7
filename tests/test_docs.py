"""What the docs show runs: each extension is applied to a copy of the package."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECTIONS = dict(
    part.split("\n", 1)
    for part in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").split("\n## ")[1:]
)


def blocks(section):
    """The fenced blocks of a section: what stands behind the fence, and the text."""
    return re.findall(r"^```([^\n]+)\n(.*?)^```$", SECTIONS[section], flags=re.M | re.S)


def extend(folder, section):
    """Makes the changes of a section in a folder with a copy of the package."""
    for kind, text in blocks(section):
        if kind == "diff":
            command = ["git", "apply", "--verbose", "-"]
            done = subprocess.run(
                command, input=text, text=True, cwd=folder, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr
        elif kind.startswith("python file="):
            (folder / kind.partition("=")[2]).write_text(text, encoding="utf-8")


def run_in(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True)


@pytest.fixture
def copied(tmp_path):
    """A folder with a copy of the package."""
    shutil.copytree(ROOT / "vae_attn", tmp_path / "vae_attn")
    return tmp_path


@pytest.mark.parametrize("section", SECTIONS)
def test_extension(section, copied):
    extend(copied, section)
    checks = [text for kind, text in blocks(section) if kind == "python check"]
    assert checks
    for text in checks:
        run_in(copied, "-W", "error", "-c", text)


OF_A_RUN = {
    "digits": (
        ("A model", "An attention style", "A score of maps", "A data set", "An objective"),
        {
            "data.name": "stripes",
            "train.objective": "capacity",
            "train.epochs": 0,
            "evaluate.styles": ("layer_cam", "contrast"),
            "evaluate.layers": ("conv1", "conv2"),
            "attention.style": "layer_cam",
        },
        {"layer_cam/conv2/median_auroc", "contrast/conv1/median_auroc", "layer_cam/conv1/aupro"},
    ),
    "dsprites": (
        ("A model", "A score of factors", "A grid of factors"),
        {
            "data.name": "squares",
            "factor.ad_layer": "conv1",
            "evaluate.points": 100,
            "evaluate.layers": ("conv1",),
        },
        {"responsive_latents", "factor_vae"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OF_A_RUN)
def test_extensions_in_a_run(recipe, copied):
    """All changes at once: trained, scored and explained by the command line."""
    sections, keys, names = OF_A_RUN[recipe]
    for section in sections:
        extend(copied, section)
    keys |= {"data.image_size": 16, "data.channels": 1, "model.name": "my_vae:small_vae"}
    keys |= {"train.steps": 4, "train.batch_size": 8, "attention.layer": "conv1"}
    options = [f"--config.{key}={value}" for key, value in keys.items()]
    config = f"--config={ROOT / 'configs' / recipe}.py"
    run_in(copied, "-W", "error", "-m", "vae_attn.main", config, "--workdir=run", *options)
    scores = json.loads(
        (copied / "run" / "evaluation" / "metrics.json").read_text(encoding="utf-8")
    )
    assert names <= set(scores)
    assert (copied / "run" / "report" / "index.html").exists()


PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(path):
    """What the headings of a page are linked by, here as on the site."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_pictures_and_anchors_exist(path):
    links = re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_and_picture_is_reached():
    """From the README or the site's list of pages, and from a page that shows it."""
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    for page in (ROOT / "docs").rglob("*.md"):
        named = rf": {re.escape(str(page.relative_to(ROOT / 'docs')))}$"
        assert re.search(named, site, flags=re.M), page
    for picture in (ROOT / "docs").glob("*.png"):
        assert f"({picture.name})" in text or f"(docs/{picture.name})" in text, picture
