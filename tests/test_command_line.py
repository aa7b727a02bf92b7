"""What a command line means: the config of a file or of a run, and where the run goes."""

import pathlib

import pytest
from command_lines import parsed

from vae_attn import workdir as workdir_lib
from vae_attn.config import default_config
from vae_attn.errors import UserError

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture
def kept(tmp_path):
    """A run's folder that holds the config alone, and the config."""
    config = default_config()
    config.seed = 7
    config.evaluate.layers = ("conv2",)
    workdir_lib.keep_or_compare(config, tmp_path / "run")
    return tmp_path / "run", config


@pytest.mark.parametrize("mode", ["all", "train", "evaluate", "explain", "export"])
def test_a_run_knows_its_config(mode, kept, monkeypatch):
    folder, config = kept
    found, _ = parsed(monkeypatch, [f"--workdir={folder}", f"--mode={mode}"])
    assert found.to_json() == config.to_json()
    assert found.is_locked


@pytest.mark.parametrize("workdir", ["--workdir={}", "-workdir={}", "--workdir {}"])
def test_overrides_of_a_kept_config(workdir, kept, monkeypatch):
    workdir = workdir.format(kept[0]).split()
    overrides = ["--config.train.steps", "12", "--config.evaluate.layers=('conv1','conv2')"]
    for arguments in ([*workdir, *overrides], [*overrides, *workdir]):
        found, _ = parsed(monkeypatch, arguments)
        assert (found.seed, found.train.steps) == (7, 12)
        assert found.evaluate.layers == ("conv1", "conv2")
    with pytest.raises(UserError, match=r"no key 'train.stepz'; .* Did you mean 'train.steps'"):
        parsed(monkeypatch, [*workdir, "--config.train.stepz=3"])


def test_a_given_config_counts_also_in_the_folder_of_a_run(kept, monkeypatch):
    found, _ = parsed(monkeypatch, [f"--config={CONFIGS}/digits.py", f"--workdir={kept[0]}"])
    assert found.seed == 0
    found, _ = parsed(monkeypatch, [f"--config={kept[0]}/config.json", "--config.model.latents=3"])
    assert (found.seed, found.model.latents) == (7, 3)


def test_recipes_are_there_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, workdir = parsed(monkeypatch, ["--config=configs/digits.py:5"])
    assert (found.data.name, found.data.digit, str(workdir)) == ("digits", 5, "runs/digits_5")
    (tmp_path / "configs").mkdir()
    own = "from vae_attn.config import default_config\n\n\ndef get_config():\n"
    own += "    config = default_config()\n    config.seed = 9\n    return config\n"
    (tmp_path / "configs" / "digits.py").write_text(own, encoding="utf-8")
    found, _ = parsed(monkeypatch, ["--config=configs/digits.py"])  # the user's own comes first
    assert found.seed == 9
    for missing in ("configs/none.py", "digits.py", "other/digits.py"):
        with pytest.raises(UserError, match=r"cannot be loaded: .*No such file"):
            parsed(monkeypatch, [f"--config={missing}"])


def test_a_group_of_runs_knows_its_config(tmp_path, monkeypatch):
    config = default_config()
    config.data.name, config.data.category = "mvtec_ad", "table4"
    workdir_lib.keep_group(config, tmp_path)
    found, _ = parsed(monkeypatch, [f"--workdir={tmp_path}", "--mode=explain"])
    assert found.data.category == "table4"
    with pytest.raises(UserError, match="holds no run: train it first"):
        workdir_lib.require_run(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", '{"train": 3}', '{"seed": 1e999}', '{"seed": null}'])
def test_a_broken_config_of_a_run_is_named(text, kept, monkeypatch):
    (kept[0] / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"run/config\.json cannot be read"):
        parsed(monkeypatch, [f"--workdir={kept[0]}"])


@pytest.mark.parametrize(
    ("config", "overrides", "workdir"),
    [
        ("digits", [], "digits"),
        ("mnist.py:3", ["--config.data.dir=data/mnist"], "mnist_3"),
        ("mnist.py:3", ["--config.data.dir=/else/where/"], "mnist_3_where"),
        ("folder", ["--config.data.dir=photos"], "folder_photos"),
        ("folder.py:light", ["--config.data.dir=../my photos/."], "folder_light_my photos"),
        ("dsprites.py:factor_vae,10", [], "dsprites_factor_vae_10"),
        ("mvtec_ad.py:all", ["--config.data.dir=mine"], "mvtec_ad_all_mine"),
    ],
)
def test_default_workdir(config, overrides, workdir, monkeypatch):
    config = config if ".py" in config else f"{config}.py"
    _, found = parsed(monkeypatch, [f"--config={CONFIGS}/{config}", *overrides])
    assert found == pathlib.Path("runs") / workdir


def test_a_config_file_of_ones_own(tmp_path, monkeypatch):
    """It may have keys of its own; whatever it raises becomes one sentence."""
    path = tmp_path / "own.py"
    header = "from vae_attn.config import default_config\n\n\ndef get_config():\n"
    path.write_text(
        f"{header}    config = default_config()\n    config.model.depth = 2\n    return config\n",
        encoding="utf-8",
    )
    found, workdir = parsed(monkeypatch, [f"--config={path}", "--config.model.depth=5"])
    assert found.model.depth == 5
    workdir_lib.keep_or_compare(found, tmp_path / "run")
    assert workdir_lib.read(tmp_path / "run").model.depth == 5
    assert workdir == pathlib.Path("runs/own")
    for body in ("return None", "raise KeyError('lost')", "return {}['lost']"):
        path.write_text(f"{header}    {body}\n", encoding="utf-8")
        with pytest.raises(UserError, match=rf"--config={path} cannot be loaded: "):
            parsed(monkeypatch, [f"--config={path}"])
