"""Any command line: a config that is valid, or one sentence that says what is not."""

import importlib.util
import pathlib

import pytest
from command_lines import parsed
from fuzzing import answer, examples
from hypothesis import example, given
from hypothesis import strategies as st

from vae_attn import config as config_lib
from vae_attn import workdir as workdir_lib
from vae_attn.experiments import validation

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py"))}
DIGITS = f"--config={CONFIGS['digits']}"


def _leaves(tree, prefix=""):
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if hasattr(value, "items"):
            yield from _leaves(value, f"{prefix}{key}.")


KEYS = sorted(_leaves(config_lib.default_config()))
_TEXT = st.text(max_size=12)
_VALUES = st.one_of(
    _TEXT,
    st.text(alphabet="()[]{}',\"\\0123456789.e-+_:*dnox", max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["(" * 500, "1" * 5000, "-" * 3000 + "1", "[" * 99 + "]" * 99, "1e400", "nan", "-inf"]
    ),
    st.sampled_from(
        ["None", "{}", "{'a': 1}", "{'seed': {}}", "('\\d',)", "'\\d'", "a" * 9999, "\0", "\ud800"]
    ),
    st.sampled_from(
        ["conv1", "conv1,conv2", "('conv1',)", "authors_code", "dsprites", "mvtec_ad", "all"]
    ),
)
_OVERRIDES = st.tuples(
    st.sampled_from(
        ["--config.", "--config.", "--config.", "--", "-config.", "--noconfig.", "--config.."]
    ),
    st.sampled_from(KEYS) | _TEXT,
    st.sampled_from(["=", "=", "=", "", " "]),
    _VALUES,
).map("".join)
_OTHERS = st.tuples(
    st.sampled_from(
        ["--mode=", "--images=", "--workdir=", "--num_processes=", "--process_id=", "--"]
    ),
    _VALUES,
).map("".join)


def _parse(monkeypatch, arguments):
    """The config that a command line gives, checked as a run does first."""
    config, _ = parsed(monkeypatch, arguments)
    validation.validate(config)
    return config


@given(overrides=st.lists(_OVERRIDES, min_size=1, max_size=3))
@example(["--config.seed=7"])
@example(["--config.attention.layers=('\\d',)"])
@examples(300)
def test_any_override(monkeypatch, tmp_path, overrides):
    monkeypatch.chdir(tmp_path)
    config = answer(lambda: _parse(monkeypatch, [DIGITS, *overrides]))
    if config is not None:
        workdir_lib.keep_or_compare(config, tmp_path / "run")
        assert validation.load(tmp_path / "run").to_json() == config.to_json()
    if overrides == ["--config.seed=7"]:
        assert config.seed == 7
    assert [path.name for path in tmp_path.iterdir()] in ([], ["run"])


@given(arguments=st.lists(_OTHERS | _OVERRIDES | st.just(DIGITS), max_size=3))
@examples(200)
def test_any_command_line(monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    answer(lambda: _parse(monkeypatch, arguments))
    assert not [*tmp_path.iterdir()]


@given(name=_VALUES)
@examples(60)
def test_any_config_file(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    assert answer(lambda: _parse(monkeypatch, [f"--config={name}"])) is None


_VARIANTS = st.one_of(
    _VALUES,
    st.sampled_from(
        ["3", "٣", "²", "03", "bottle", "light", "all", "table4", "beta_vae,10", "vae", "10"]
    ),
    st.lists(st.sampled_from(["vae", "factor_vae", ",", "10", "1" * 9, " ", "/", "..", "\n"])).map(
        "".join
    ),
)


@pytest.mark.parametrize("name", CONFIGS)
@given(variant=_VARIANTS)
@examples(60)
def test_any_variant(monkeypatch, tmp_path, name, variant):
    """Through the file's own function, and by the command line, where it follows a colon."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if name != "magnetic_tiles":  # which takes none
        config = answer(lambda: module.get_config(variant), *_named(variant))
        if config is not None:
            validation.validate(config)
    monkeypatch.chdir(tmp_path)
    config = answer(lambda: _parse(monkeypatch, [f"--config={CONFIGS[name]}:{variant}"]))
    if config is not None:
        validation.validate(config)


def _named(variant):
    """What the sentence has to hold: the variant, or what of it is wrong, quoted."""
    return ["'"] if "'" not in variant else []
