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


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_and_pictures_exist(path):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (path.parent / link).exists(), link
