"""What is published: one version, and a release that takes it."""

import pathlib
import re

import yaml

import vae_attn

ROOT = pathlib.Path(__file__).resolve().parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_version_is_the_same_everywhere():
    newest = re.search(r"^## (\S+)$", read("CHANGELOG.md"), flags=re.M)
    assert newest.group(1) == vae_attn.__version__
    assert yaml.safe_load(read("CITATION.cff"))["version"] == vae_attn.__version__


def test_names_at_the_top():
    assert {"__version__", *vae_attn._MODULES} == set(vae_attn.__all__)
    for name in vae_attn.__all__:
        assert getattr(vae_attn, name)


def test_tag_of_a_release_is_compared_with_the_version():
    """By the very line that the workflow looks for."""
    release = yaml.safe_load(read(".github/workflows/release.yml"))
    steps = release["jobs"]["build"]["steps"]
    (command,) = [step["run"] for step in steps if "TAG" in step.get("env", {})]
    line = re.search(r'"(__version__ = .*)" ', command).group(1).replace("\\", "")
    wanted = line.replace("${TAG#v}", vae_attn.__version__)
    assert wanted in read(command.split()[-1]).splitlines()


def test_only_the_upload_gets_a_token():
    release = yaml.safe_load(read(".github/workflows/release.yml"))
    assert release["permissions"] == {"contents": "read"}
    assert "permissions" not in release["jobs"]["build"]
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}


def test_contributors_are_told_commands_that_exist():
    block = re.search(r"```sh\n(.*?)```", read("CONTRIBUTING.md"), flags=re.S).group(1)
    targets = re.search(r"^\.PHONY: (.*)$", read("Makefile"), flags=re.M).group(1).split()
    for line in block.splitlines():
        command = line.partition("#")[0].split()
        if command[0] == "make":
            assert command[1] in targets
        else:
            assert (ROOT / command[0]).stat().st_mode & 0o100, command
        if command != [".ci/run"]:
            assert " ".join(command) in read(".ci/run"), command
