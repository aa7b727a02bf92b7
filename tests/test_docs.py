"""What the docs show runs: each extension is applied to a copy of the package."""

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


@pytest.mark.parametrize("section", SECTIONS)
def test_extension(section, tmp_path):
    shutil.copytree(ROOT / "vae_attn", tmp_path / "vae_attn")
    checked = False
    for kind, text in blocks(section):
        if kind == "diff":
            command = ["git", "apply", "--verbose", "-"]
            done = subprocess.run(
                command, input=text, text=True, cwd=tmp_path, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr
        elif kind.startswith("python file="):
            (tmp_path / kind.partition("=")[2]).write_text(text, encoding="utf-8")
        elif kind == "python check":
            environment = os.environ | {"PYTHONPATH": str(tmp_path)}
            command = [sys.executable, "-W", "error", "-c", text]
            subprocess.run(command, cwd=tmp_path, env=environment, check=True)
            checked = True
    assert checked


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
        assert str(page.relative_to(ROOT / "docs")) in site, page
    for picture in (ROOT / "docs").glob("*.png"):
        assert f"({picture.name})" in text or f"(docs/{picture.name})" in text, picture
