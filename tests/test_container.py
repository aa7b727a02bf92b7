"""The Dockerfile, without an engine: its lines, what it copies, and what its argument can be."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_lint():
    hadolint = shutil.which("hadolint", path=pathlib.Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_all_that_the_build_reads_is_copied():
    """What pyproject.toml and setup.py name, and no file that is not there."""
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, flags=re.M)
              for name in line.split()}  # fmt: skip
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {"pyproject.toml", "setup.py", "vae_attn", "configs"}
    assert needed | {project["readme"], *project["license-files"]} <= copied


@pytest.mark.parametrize("extra", ["cpu", "cuda13", "tpu", "rocm"])
def test_argument(extra, tmp_path):
    """Its own lines of shell, with a pip that prints its arguments."""
    script = re.search(r"^RUN (case .*?)^# ", DOCKERFILE, flags=re.M | re.S).group(1)
    (tmp_path / "one.whl").touch()
    script = script.replace("\\\n", " ").replace("/wheels", str(tmp_path))
    code = f'pip() {{ echo "$@"; }}\nEXTRA={extra}\n{script}'
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, check=False)
    if extra == "rocm":
        assert done.returncode == 1
        assert "EXTRA=rocm must be cpu, cuda13 or tpu" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    extras = re.search(r"one\.whl\[(.*)\]", done.stdout).group(1).split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras) <= set(project["optional-dependencies"])
    assert (extra in extras) == (extra != "cpu")
