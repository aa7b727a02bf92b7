"""Every code block of README and docs: Python is executed, and commands are what they can be."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import doc_stand_ins
import numpy as np
import pytest
from command_lines import parsed
from PIL import Image
from tiny_run import tiny_config, trained

from vae_attn import workdir as workdir_lib
from vae_attn.config import default_config
from vae_attn.experiments import validation

ROOT = pathlib.Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", flags=re.M | re.S)
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
ELSEWHERE = ("extending", "faithfulness")  # whose Python test_docs and test_faithfulness run
BLOCKS = {page: FENCE.findall(page.read_text(encoding="utf-8")) for page in PAGES}
COMMANDS = sorted(
    {
        line
        for blocks in BLOCKS.values()
        for kind, text in blocks
        if kind == "sh"
        for line in text.replace("\\\n", " ").splitlines()
        if line
    }
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that gives the folder of a trained and calibrated run, made when it is needed."""
    found = []

    def run():
        if not found:
            folder = tmp_path_factory.mktemp("docs") / "run"
            with pytest.MonkeyPatch.context() as patch:
                trained(patch, folder, config=tiny_config())
            found.append(folder)
        return found[0]

    return run


def test_every_block_says_what_it_is():
    executed = [blocks for page, blocks in BLOCKS.items() if page.stem not in ELSEWHERE]
    kinds = {kind for blocks in executed for kind, _ in blocks}
    named = {
        f"python data={name}"
        for name in ("own_vae", "photographs", "run", "run_and_images", "export")
    }
    assert kinds == {"python", "sh", "text"} | named


@pytest.mark.parametrize(
    "page",
    [
        page
        for page, blocks in BLOCKS.items()
        if any(kind.startswith("python") for kind, _ in blocks) and page.stem not in ELSEWHERE
    ],
    ids=lambda page: page.stem,
)
def test_python(page, made, tmp_path, monkeypatch):
    """All blocks of a page, one after the other."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    for kind, text in BLOCKS[page]:
        if kind.startswith("python data="):
            names |= getattr(doc_stand_ins, kind.partition("=")[2])(made)
        if kind.startswith("python"):
            exec(compile(text, str(page), "exec"), names)


def check_flags(program, arguments):
    """That the program's help names them."""
    command = [sys.executable, *program, "--help"]
    usage = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert all(argument.partition("=")[0] in usage for argument in arguments), usage


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path, monkeypatch):
    words = shlex.split(command.removeprefix(".venv/bin/"), comments=True)
    if words[0] == "vae-attn":
        words = ["python", "-m", "vae_attn.main", *words[1:]]
    match words:
        case ["python", "-m", "venv", ".venv"]:
            pass
        case ["make", target]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert target in re.search(r"^\.PHONY: (.*)$", makefile, flags=re.M)[1].split()
        case ["pip", "install", *arguments]:
            known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            extras = re.findall(r"\[(.*?)\]", " ".join(arguments))
            assert set(extras) <= set(known["optional-dependencies"])
        case ["python", "-m", "vae_attn.main", *arguments]:
            check_run(arguments, tmp_path, monkeypatch)
        case ["python", "-m", "benchmarks.run"]:  # with PyTorch, which no test needs
            assert (ROOT / "benchmarks" / "run.py").is_file()
        case ["python", "launch/sweep.py", *arguments]:
            script = [sys.executable, str(ROOT / "launch" / "sweep.py"), *arguments, "--dry_run"]
            done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
            assert done.stdout.count("vae_attn.main") == 8
        case ["python", "launch/local.py", *_, "--", first]:
            check_run([first], tmp_path, monkeypatch)
        case ["python", "-m", "benchmarks.accelerator", *arguments]:
            check_flags(["-m", "benchmarks.accelerator"], arguments)
        case ["python", "launch/claim4.py", *arguments]:
            check_flags(["launch/claim4.py"], arguments)
        case [script] if (ROOT / script).is_file():
            pass
        case _:
            pytest.fail(f"nothing here says how to check {command!r}")


def check_run(arguments, tmp_path, monkeypatch):
    """The flags are known and the config can be run; a run that is only named is a new one."""
    monkeypatch.chdir(tmp_path)
    for argument in arguments:
        if argument.startswith("--workdir=") and not any("--config=" in a for a in arguments):
            workdir_lib.keep_or_compare(default_config(), pathlib.Path(argument.partition("=")[2]))
    config, _ = parsed(monkeypatch, arguments)
    if config is not None:
        validation.validate(config)


# What makes a documented run small.
SMALL = {
    "model.name": "small_models:digits",
    "model.latents": 3,
    "data.image_size": 28,
    "data.channels": 1,
    "data.cache_dir": "cache",
    "train.batch_size": 8,
    "train.steps": 2,
    "train.checkpoint_every": 2,
    "attention.layer": "conv1",
    "attention.layers": (),
    "evaluate.layers": ("conv1",),
    "evaluate.faithful_images": 0,
    "report.max_images": 2,
}


@pytest.mark.slow
def test_the_pages_on_own_images_in_small(tmp_path, monkeypatch):
    """All its commands and the blocks between them, in order, on pictures of noise."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder, count, shape in (
        ("photos/train/good", 20, (40, 40)),
        ("photos/test/good", 2, (40, 40)),
        ("photos/test/scratch", 2, (40, 40)),
        ("new_photos", 2, (60, 50)),
        ("photographs/train/good", 25, (300, 260)),
        ("photographs/test/good", 1, (300, 260)),
        ("photographs/test/scratch", 1, (300, 260)),
    ):
        pathlib.Path(folder).mkdir(parents=True)
        for n in range(count):
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(pathlib.Path(folder, f"{n}.png"))
    small = [f"--config.{key}={value}" for key, value in SMALL.items()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    for kind, text in BLOCKS[ROOT / "docs" / "own-images.md"]:
        if kind == "python data=photographs":
            exec(compile(text, "own-images.md", "exec"), {"__name__": "docs"})
        for line in text.splitlines() if kind == "sh" else ():
            _, *arguments = shlex.split(line)
            if any(argument.startswith("--config=") for argument in arguments):
                arguments += small
            command = [sys.executable, "-W", "error", *arguments]
            subprocess.run(command, env=environment, check=True)
    assert pathlib.Path("runs/folder_photos/report/index.html").exists()
    of_photos = pathlib.Path("runs/folder_photos/explained/results.jsonl")
    assert len(of_photos.read_text(encoding="utf-8").splitlines()) == 2
    of_tiles = pathlib.Path("runs/folder_light_tiles/explained/results.jsonl")
    for row in map(json.loads, of_tiles.read_text(encoding="utf-8").splitlines()):
        assert row["tiles"]["above_threshold"] is not None
        assert row["abnormal"] is None
