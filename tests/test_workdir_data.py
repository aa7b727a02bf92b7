"""A run never continues on other images, whatever is done with it."""

import json
import shutil

import numpy as np
import pytest
import small_models
from PIL import Image

from vae_attn.config import default_config
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.workdir import DATA


def write_images(folder, count, *, seed):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for n in range(count):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n:03d}.png")


def config_for(root, num_seeds=1):
    config = small_models.use(default_config(), "plain")
    config.data.name, config.data.dir = "folder", str(root)
    config.data.cache_dir = str(root.parent / "cache")
    config.model.latents, config.num_seeds = 3, num_seeds
    config.train.batch_size, config.train.steps, config.train.checkpoint_every = 8, 2, 2
    config.attention.layer, config.attention.projection_steps = "conv1", 1
    config.evaluate.layers, config.evaluate.batch_size = ("conv1",), 4
    config.report.tensorboard_images = 0
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on images `a`, and another folder `b` of as many others."""
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate("ab"):
        write_images(root / name / "train" / "good", 12, seed=seed)
        write_images(root / name / "test" / "good", 2, seed=9)
    experiment.run(config_for(root / "a"), root / "run", mode="train")
    return root


@pytest.mark.parametrize("mode", ["train", "evaluate", "explain", "all"])
def test_other_images_are_refused_in_every_mode(trained, mode):
    before = sorted((trained / "run").rglob("*"))
    with pytest.raises(UserError, match="holds a run on other images") as caught:
        experiment.run(config_for(trained / "b"), trained / "run", mode=mode)
    message = str(caught.value)
    assert str(trained / "a") in message
    assert str(trained / "b") in message
    assert "11 to train on and 1 held out of a" in message
    assert "another --workdir" in message
    assert "init_from" in message
    assert "\n" not in message
    assert sorted((trained / "run").rglob("*")) == before


@pytest.mark.parametrize("change", ["added", "taken", "altered"])
def test_changed_training_images_are_refused(trained, tmp_path, change):
    shutil.copytree(trained / "a", tmp_path / "a")
    good = tmp_path / "a" / "train" / "good"
    if change == "added":
        write_images(good, 13, seed=0)
    elif change == "taken":
        (good / "003.png").unlink()
    else:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(good / "003.png")
    with pytest.raises(UserError, match="other images"):
        experiment.run(config_for(tmp_path / "a"), trained / "run", mode="train")


def test_moved_and_renamed_images_are_the_same(trained, tmp_path):
    shutil.copytree(trained / "a", tmp_path / "moved")
    experiment.run(config_for(tmp_path / "moved"), trained / "run", mode="train")


def test_a_run_that_does_not_say_what_it_learned_from_is_refused(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / DATA).unlink()
    with pytest.raises(UserError, match="does not say on which images"):
        experiment.run(config_for(trained / "a"), tmp_path / "run", mode="train")
    (tmp_path / "run" / DATA).write_text("[1", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        experiment.run(config_for(trained / "a"), tmp_path / "run", mode="train")


def test_without_a_checkpoint_the_images_may_be_corrected(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    experiment.run(config_for(trained / "b"), tmp_path / "run", mode="train")
    kept = json.loads((tmp_path / "run" / DATA).read_text(encoding="utf-8"))
    assert (kept["train"], kept["validation"], kept["name"]) == (11, 1, "b")


def test_every_seed_keeps_and_compares_its_data(trained, tmp_path):
    config = config_for(trained / "a", num_seeds=2)
    experiment.run(config, tmp_path / "run", mode="train")
    assert all((tmp_path / "run" / f"seed_{n}" / DATA).exists() for n in (0, 1))
    one = config_for(trained / "b")
    with pytest.raises(UserError, match="other images"):
        experiment.run(one, tmp_path / "run" / "seed_0", mode="train")


def test_the_first_line_counts_all_images_and_what_is_missing(trained, caplog):
    caplog.set_level("INFO", "vae_attn")
    experiment.run(config_for(trained / "a"), trained / "run", mode="train")
    assert "11 images to train on, 1 held out, 2 to test (2 normal, 0 not)" in caplog.text
    assert "only the false alarms are counted" in caplog.text
