"""Text files are opened with their encoding, whatever the user's locale.

ruff's PLW1514 sees only calls on what it knows to be a path; this sees all.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "configs", "docs", "launch", "tests", "third_party", "vae_attn")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# Whose `open` is not that of a file, or whose files are never text.
_OTHERS = {"Image", "archive", "gzip", "lzma", "opener", "os", "tarfile", "urllib", "zipfile"}


def without_encoding(tree):
    """The calls that open, read or write a text file by the locale's encoding."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or {"encoding", None} & {k.arg for k in call.keywords}:
            continue
        match call.func:
            case ast.Name(id="open"):
                mode = _mode(call, 1)
            case ast.Attribute(attr="fdopen", value=ast.Name(id="os")):
                mode = _mode(call, 1)
            case ast.Attribute(attr="open", value=ast.Name(id=name)) if name in _OTHERS:
                continue
            case ast.Attribute(attr="open"):
                mode = _mode(call, 0) or "b"  # of anything else, such as a page
            case ast.Attribute(attr="read_text" | "write_text"):
                mode = "r"
            case _:
                continue
        if "b" not in (mode or "r"):
            yield call


def _mode(call, place):
    """What is given for the mode; `r` without, None where it is no text."""
    values = [k.value for k in call.keywords if k.arg == "mode"] + call.args[place : place + 1]
    if not values:
        return "r"
    value = values[0].value if isinstance(values[0], ast.Constant) else None
    return value if isinstance(value, str) else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_have_an_encoding(path):
    tree = ast.parse(path.read_bytes())
    lines = [call.lineno for call in without_encoding(tree)]
    assert not lines, f"{path}: give encoding='utf-8' in lines {lines}"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("open(p, mode='rb')", False),
        ("p.open()", True),
        ("p.open('wb')", False),
        ("p.read_text()", True),
        ("p.write_text(t, encoding='utf-8')", False),
        ("Image.open(p)", False),
        ("os.fdopen(f, 'wb')", False),
    ],
)
def test_what_counts(code, found):
    assert bool([*without_encoding(ast.parse(code))]) == found
