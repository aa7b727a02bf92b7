"""A run that is trained longer, and one that starts from another's weights."""

import json

import child_runs
import pytest
import small_models

from vae_attn import workdir as workdir_lib
from vae_attn.data import sources
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.training import loop
from vae_attn.workdir import DataRecord

pytestmark = pytest.mark.slow


def config_of(**values):
    config = child_runs.config_of(report__tensorboard_images=0)
    changed = {name.replace("__", "."): value for name, value in values.items()}
    small_models.use(config, "digits").update_from_flattened_dict(changed)
    return config


def begin(config, workdir, data=None, *, mode="train", **options):
    """As a run does."""
    record = DataRecord.of(data or sources.load(config), str(config.data.dir))
    workdir_lib.begin(config, workdir, mode=mode, data=record, **options)


def train(workdir, **values):
    """Trains alone, without calibration; through the same checks as a run's."""
    config = config_of(**values)
    data = sources.load(config)
    with workdir_lib.WorkdirLock() as lock:
        total = loop.total_steps(config, len(data.train))
        begin(config, workdir, data, lock=lock, total_steps=total)
    loop.train(config, workdir, data)
    return config


def state(workdir, **values):
    return child_runs.leaves(loop.restore(config_of(**values), workdir, which="latest"))


def kept(workdir):
    return json.loads((workdir / "config.json").read_text(encoding="utf-8"))["train"]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"train__steps": 3}, {"train__steps": 7}),
        ({"train__steps": 3, "num_seeds": 2}, {"train__steps": 7, "num_seeds": 2}),
        # 109 images in batches of 64: an epoch is two steps.
        (
            {"train__steps": 0, "train__epochs": 1, "train__batch_size": 64},
            {"train__steps": 0, "train__epochs": 3, "train__batch_size": 64},
        ),
        (
            {"train__steps": 3, "train__epochs": 3, "train__batch_size": 64},
            {"train__steps": 0, "train__epochs": 3, "train__batch_size": 64},
        ),
    ],
    ids=["steps", "seeds", "epochs", "steps to epochs"],
)
def test_a_longer_run_is_the_uninterrupted_one(short, long, tmp_path):
    train(tmp_path / "resumed", **short)
    assert kept(tmp_path / "resumed")["steps"] == short["train__steps"]
    train(tmp_path / "resumed", **long)
    train(tmp_path / "whole", **long)
    seeds = ["seed_0", "seed_1"] if long.get("num_seeds") else [""]
    for seed in seeds:
        one = {name: value for name, value in long.items() if name != "num_seeds"}
        resumed, whole = (state(tmp_path / name / seed, **one) for name in ("resumed", "whole"))
        child_runs.assert_equal(resumed, whole)
        assert kept(tmp_path / "resumed" / seed) == kept(tmp_path / "whole" / seed)


def test_a_shorter_run_is_refused(tmp_path):
    workdir = tmp_path / "run"
    train(workdir, train__steps=6)
    with pytest.raises(UserError, match=r"run of 6 steps, and --config.train.steps=4 asks for 4"):
        train(workdir, train__steps=4)
    with pytest.raises(UserError, match="holds a run of 6 steps"):
        workdir_lib.compare(config_of(train__steps=0, train__epochs=1), workdir, total_steps=5)
    assert kept(workdir)["steps"] == 6
    # What was planned, and not trained, may be less.
    train(tmp_path / "stopped", train__steps=6)
    config = config_of(train__steps=9)
    workdir_lib.keep_or_compare(config, tmp_path / "stopped", total_steps=9)
    train(tmp_path / "stopped", train__steps=8)
    assert kept(tmp_path / "stopped")["steps"] == 8


def test_evaluation_keeps_the_length_of_the_training(tmp_path):
    train(tmp_path, train__steps=2)
    with workdir_lib.WorkdirLock() as lock:
        config = config_of(train__steps=5)
        begin(config, tmp_path, mode="evaluate", lock=lock, total_steps=5)
    assert kept(tmp_path)["steps"] == 2


def test_another_learning_rate_names_the_way(tmp_path):
    train(tmp_path, train__steps=2)
    message = (
        r"train.learning_rate \(there 0.001, now 0.01\)\. Give another --workdir, .* "
        rf"--config.train.init_from={tmp_path}\."
    )
    with pytest.raises(UserError, match=message):
        train(tmp_path, train__steps=2, train__learning_rate=0.01)


def test_starts_from_another_runs_weights(tmp_path):
    source, workdir = tmp_path / "source", tmp_path / "run"
    train(source, train__steps=4)
    values = {"train__init_from": str(source), "train__learning_rate": 1e-9, "seed": 5}
    train(workdir, train__steps=1, **values)
    best = child_runs.leaves(loop.restore(config_of(), source, which="best"))
    found = state(workdir, **values)
    assert found[".step"] == 1
    assert found[".seed"] == 5
    weights = [name for name in best if name.startswith((".params", ".batch_stats"))]
    assert weights
    for name in weights:  # a step of 1e-9
        assert abs(found[name] - best[name]).max() < 1e-7, name
    assert max(abs(leaf).max() for name, leaf in found.items() if "nu" in name) > 0  # one step's
    assert kept(workdir)["init_from"] == str(source)
    # Resumed, the run no longer needs the other.
    source.rename(tmp_path / "away")
    train(workdir, train__steps=2, **values)
    with pytest.raises(UserError, match=r"train.init_from \(there '.*source', now ''\)"):
        train(workdir, train__steps=2, train__learning_rate=1e-9, seed=5)


def test_seeds_start_from_the_same_weights(tmp_path):
    train(tmp_path / "source", train__steps=2)
    values = {"train__init_from": str(tmp_path / "source"), "train__learning_rate": 1e-9}
    train(tmp_path / "run", train__steps=1, num_seeds=2, **values)
    first, second = (state(tmp_path / "run" / seed, **values) for seed in ("seed_0", "seed_1"))
    for name in first:
        if name.startswith(".params"):
            assert abs(first[name] - second[name]).max() < 1e-7, name


def test_weights_that_cannot_be_used(tmp_path, monkeypatch):
    source = tmp_path / "source"
    train(source, train__steps=2)

    def refused(message, name=source, **values):
        with pytest.raises(UserError, match=message):
            train(tmp_path / "run", train__steps=1, train__init_from=str(name), **values)

    refused("none holds no run: give the folder of one", tmp_path / "none")
    differs = r"of another model, which differs in params.*\(there float32\[.*, now float32\["
    refused(differs, model__latents=4)
    workdir_lib.keep_or_compare(config_of(), tmp_path / "empty")
    refused("empty holds no checkpoint", tmp_path / "empty")
    workdir_lib.keep_or_compare(config_of(num_seeds=2), tmp_path / "seeds")
    refused("seeds holds several seeds", tmp_path / "seeds")
    with pytest.raises(UserError, match="is the --workdir itself"):
        train(tmp_path / "empty", train__init_from=str(tmp_path / "empty"))
    config = config_of(train__init_from=str(source))
    config.model.pretrained = "x.pth"
    with pytest.raises(UserError, match=r"has --config.model.pretrained='', and this run 'x.pth'"):
        begin(config, tmp_path / "other", lock=workdir_lib.WorkdirLock(), total_steps=1)


def test_a_mode_that_needs_a_run_needs_no_source(tmp_path):
    config = config_of(train__init_from=str(tmp_path / "none"))
    with pytest.raises(UserError, match="holds no run: train it first"):
        experiment.run(config, tmp_path / "run", mode="evaluate")
