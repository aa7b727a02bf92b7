"""Damaged and hostile files of a run's folder: metrics, calibration and config."""

import json
import os
import warnings
import zipfile

import numpy as np
import pytest
from fuzzing import answer, damaged, examples, memory_limit
from hypothesis import given
from hypothesis import strategies as st

from vae_attn import config as config_lib
from vae_attn import workdir as workdir_lib
from vae_attn.experiments import validation
from vae_attn.experiments.anomaly.calibration import Calibration, MapStatistics, Variant
from vae_attn.experiments.anomaly.thresholds import Threshold
from vae_attn.training.telemetry import Telemetry, read_metrics

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)

# metrics.jsonl

_LINES = "".join(json.dumps({"step": n, "loss": 1 / n, "seed 0/loss": n}) + "\n" for n in (1, 2, 3))


def _curves(workdir):
    """The curves that are numbers, or one sentence; a run that is gone on with says the same."""
    path = workdir / "metrics.jsonl"
    found = answer(lambda: read_metrics(workdir), path)
    for steps, values in (found or {}).values():
        assert np.array(steps, np.int64).shape == np.array(values, np.float64).shape
    return found


@given(content=damaged(_LINES.encode()))
@examples(300)
def test_damaged_metrics(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    _curves(tmp_path)


@given(rows=st.lists(_JSON | st.dictionaries(st.sampled_from(["step", "loss"]), _JSON), max_size=3))
@examples(200)
def test_any_json_as_metrics(tmp_path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    _curves(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"step": 1, "loss": 1' + "0" * 5000 + "}",
        '{"step": 1e400}',
        '{"step": true, "loss": 0}',
        '{"step": 1, "loss": null}',
        '{"step": 1, "loss": "a"}',
        "",
    ],
)
def test_lines_that_are_no_metrics(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(_LINES + line + "\n", encoding="utf-8")
    assert _curves(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text(
        _LINES + line, encoding="utf-8"
    )  # the last one, cut by a power failure
    assert _curves(tmp_path)["loss"][0] == [1, 2, 3]


def test_a_run_that_goes_on_says_which_line_is_damaged(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(_LINES + "{}\n", encoding="utf-8")

    def go_on():
        return Telemetry(tmp_path, start_step=2, total_steps=3)

    assert answer(go_on, f"{tmp_path / 'metrics.jsonl'}, line 4") is None
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == _LINES + "{}\n"


# calibration.npz

CALIBRATION = Calibration(
    parameters="0123abcd",
    variant=Variant("paper", ("a", "b"), "ratio"),
    projection_steps=7,
    normal_mean=np.ones(3, np.float32),
    normal_variance=np.ones(3, np.float32),
    statistics={("paper", name): MapStatistics.measure([np.ones((2, 4, 4))]) for name in "ab"},
    pixels=Threshold(1.25, 0.01, 40, 0.005, 0.02),
    images=Threshold(2.5, 0.05, 40, 0.01, 0.1),
    active_latents=3,
)


def _usable(path):
    """The calibration, of which all is there that its variant needs, or None."""
    with memory_limit(256):
        found = answer(lambda: Calibration.load(path))
    if found is not None:
        maps = {("paper", name): np.ones((1, 4, 4), np.float32) for name in "abcdef"}
        keys = [(found.variant.style, layer) for layer in found.variant.layers]
        if all(key in maps and found.statistics[key].mean.shape == (4, 4) for key in keys):
            with warnings.catch_warnings(action="ignore"):  # values may be any
                assert found.variant.maps(maps, found.statistics).shape == (1, 4, 4)
    return found


@given(data=st.data())
@examples(200)
def test_damaged_calibration(tmp_path, data):
    path = tmp_path / "calibration.npz"
    CALIBRATION.save(path)
    assert _usable(path) is not None
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    _usable(path)


def _members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@given(data=st.data())
@examples(300)
def test_damaged_arrays_behind_right_checksums(tmp_path, data):
    path = tmp_path / "calibration.npz"
    CALIBRATION.save(path)
    members = _members(path)
    names = sorted(members)
    for _ in range(data.draw(st.integers(1, 3))):
        name, other = (data.draw(st.sampled_from(names)) for _ in range(2))
        kind = data.draw(st.sampled_from(["damage", "swap", "drop"]))
        if kind == "damage":
            members[name] = data.draw(damaged(members.get(name, b"")))
        elif kind == "swap":
            members[name] = members.get(other, b"")
        else:
            members.pop(name, None)
    _zip(path, members)
    _usable(path)


class _Attack:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_calibrations_that_run_or_unpack(tmp_path):
    path, proof = tmp_path / "calibration.npz", tmp_path / "proof"
    CALIBRATION.save(path)
    members = _members(path)
    np.save(tmp_path / "a.npy", np.array([_Attack(proof)], dtype=object), allow_pickle=True)
    attack = (tmp_path / "a.npy").read_bytes()
    for name in members:
        _zip(path, members | {name: attack})
        assert _usable(path) is None
    for content in (attack, attack[attack.index(b"\x80") :], b""):
        path.write_bytes(content)
        assert _usable(path) is None
    assert not proof.exists()
    _zip(path, members | {"more.npy": bytes(2**29)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    assert _usable(path) is None


# config.json


def _config(workdir):
    """A config with which a run could be built, or one sentence."""
    found = answer(lambda: validation.load(workdir), workdir / "config.json")
    if found is not None:
        validation.validate(found)
        answer(lambda: workdir_lib.compare(config_lib.default_config(), workdir), workdir)
    return found


_VALID = json.loads(config_lib.default_config().to_json())


@given(content=damaged(json.dumps(_VALID, indent=2, sort_keys=True).encode()))
@examples(150)
def test_damaged_config(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    _config(tmp_path)


_KEYS = [(key, None) for key in _VALID]
_KEYS += [(key, inner) for key, tree in _VALID.items() if isinstance(tree, dict) for inner in tree]
_VALUES = _JSON | st.sampled_from(
    [-1, 0, 10**30, 1e308, "conv1", ["conv1", ["conv1"]], [None], [{}], "mvtec_ad"]
)


@given(
    changes=st.lists(st.tuples(st.sampled_from(_KEYS), _VALUES), min_size=1, max_size=3), more=_JSON
)
@examples(200)
def test_any_json_as_values_of_a_config(tmp_path, changes, more):
    tree = json.loads(json.dumps(_VALID))
    for (key, inner), value in changes:
        if inner is None:
            tree[key] = value
        elif isinstance(tree[key], dict):
            tree[key][inner] = value
    (tmp_path / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    _config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(more), encoding="utf-8")
    _config(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"a":' * 50_000, '{"a":' * 400 + "1" + "}" * 400, "1" * 5000, "", '"\\ud800"']
)
def test_configs_that_are_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    _config(tmp_path)
