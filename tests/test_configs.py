"""The files of configs/, and what each key of the anomaly data sets does."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vae_attn import workdir as workdir_lib
from vae_attn.config import default_config
from vae_attn.data import mvtec_ad, sources
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments import validation
from vae_attn.models import build
from vae_attn.training import loop, objectives, steps

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


def load(name, *variant):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_config_is_valid_and_shows_a_layer_that_it_scores(name):
    config = load(name)
    validation.validate(config)
    scored = config.evaluate.layers if name != "dsprites" else ("conv1", "conv2", "conv3")
    assert config.attention.layer in scored
    assert f"configs/{name}.py" in (CONFIGS / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["mvtec_ad", "mvtec_ad_light"])
def test_variants_of_mvtec(name):
    for category, mirror in mvtec_ad.MIRRORS.items():
        config = load(name, category)
        validation.validate(config)
        assert config.data.category == category
        mirrors = (config.data.mirror_horizontal, config.data.mirror_vertical)
        fixed = name == "mvtec_ad_light" and category in mvtec_ad.FIXED_POSE
        assert mirrors == ((False, False) if fixed else (mirror.horizontal, mirror.vertical))
        assert config.data.rotation == (3 if fixed else 30)
    for group in ("all", "table4"):
        validation.validate(load(name, group))
    with pytest.raises(UserError, match=r"'botle' is no category.*bottle, cable.*all or table4"):
        load(name, "botle")


@pytest.mark.parametrize("variant", ["quick", "light,quick"])
def test_quick_variant_of_a_folder_is_small(variant):
    quick = load("folder", variant)
    validation.validate(quick)
    assert quick.train.steps <= 200
    assert 0 < quick.evaluate.max_images <= 100
    assert 0 < quick.report.max_images <= 100
    assert quick.evaluate.max_images >= 19  # enough for a decision


def test_light_variant_of_a_folder():
    light, mvtec = load("folder", "light"), load("mvtec_ad_light")
    validation.validate(light)
    assert light.model.to_dict() == mvtec.model.to_dict()
    for key in ("steps", "batch_size", "learning_rate", "beta"):
        assert light.train[key] == mvtec.train[key], key
    assert light.attention.to_dict() == mvtec.attention.to_dict()
    assert light.data.name == "folder"
    assert not light.data.mirror_horizontal
    with pytest.raises(UserError, match=r"'ligth' is unknown"):
        load("folder", "ligth")


def test_stacks_of_ped1_and_grey_tiles():
    stacks = load("ucsd_ped1", "stacks")
    validation.validate(stacks)
    assert build.from_config(stacks).image_shape == (100, 100, 3)
    with pytest.raises(UserError, match=r"'stack' is unknown.*:stacks"):
        load("ucsd_ped1", "stack")
    tiles, light = load("magnetic_tiles"), load("mvtec_ad_light")
    assert build.from_config(tiles).image_shape == (128, 128, 1)
    assert tiles.data.mirror_horizontal
    assert tiles.data.mirror_vertical
    assert tiles.model.to_dict() == light.model.to_dict()
    for key in ("steps", "batch_size", "learning_rate", "beta"):
        assert tiles.train[key] == light.train[key], key


def test_recipes_of_the_report():
    """Its section on training; steps by hand from epochs, images an epoch and batch size."""
    mvtec, ped1 = load("mvtec_ad"), load("ucsd_ped1")
    for config, batch, size in ((mvtec, 8, 256), (ped1, 32, 100)):
        assert (config.train.learning_rate, config.train.batch_size) == (1e-4, batch)
        assert (config.train.epochs, config.model.latents) == (300, 32)
        assert (config.data.image_size, config.data.validation_fraction) == (size, 0.2)
    assert mvtec.data.rotation == 30
    assert loop.total_steps(mvtec, 167) == 300 * 10_000 // 8
    assert loop.total_steps(ped1, 6_800) == 300 * 6_800 // 32
    mvtec.train.steps = 7
    assert loop.total_steps(mvtec, 167) == 7


def test_augmentation_comes_from_the_config(monkeypatch, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(*, augment, **options):
        raise StoppedError(augment)

    monkeypatch.setattr(steps, "make_update_fn", stop)
    config = default_config()
    config.data.rotation, config.data.shift = 5.0, 2.0
    config.data.mirror_vertical = True
    with pytest.raises(StoppedError) as stopped:
        loop.train(config, tmp_path, sources.load(config))
    augment = stopped.value.args[0]
    assert (augment.rotation, augment.shift) == (5, 2)
    assert (augment.mirror_horizontal, augment.mirror_vertical) == (False, True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data.channels": 2}, r"--config.data.channels=2 must be 1 \(grey\), 3 \(colour\) or 0"),
        ({"data.images_per_epoch": -1}, "data.images_per_epoch=-1 must be 0 or more"),
        ({"data.category": "bottle"}, "data.category='bottle' must be empty unless data.name="),
        (
            {"data.name": "mvtec_ad"},
            "data.category='' must be one of bottle, .*zipper, all, table4",
        ),
        ({"model.pretrained": "x"}, "model.pretrained='x' must be empty unless model.name"),
        ({"model.freeze_trunk": True}, "model.freeze_trunk=True must be False unless model.pretra"),
        ({"data.channels": 3}, "mnist takes grey images, .* is 3: set data.channels=1"),
        (
            {
                "model.name": "mvtec_ad",
                "data.image_size": 64,
                "data.channels": 1,
                "model.pretrained": "download",
            },
            "model.pretrained='download' gives weights for colour images, .*set data.channels=3",
        ),
    ],
)
def test_values_that_cannot_be(keys, message):
    config = default_config()
    config.update_from_flattened_dict(keys)
    with pytest.raises(UserError, match=message):
        validation.validate(config)


def test_workdir_without_a_checkpoint_takes_another_config(tmp_path):
    config = default_config()
    workdir_lib.keep_or_compare(config, tmp_path)
    config.model.pretrained = "mended"
    workdir_lib.keep_or_compare(config, tmp_path)
    assert '"pretrained": "mended"' in (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    config.data.cache_dir = "elsewhere"
    workdir_lib.keep_or_compare(config, tmp_path)
    config.model.pretrained = "other"
    with pytest.raises(UserError, match=r"model.pretrained \(there 'mended', now 'other'\)"):
        workdir_lib.keep_or_compare(config, tmp_path)


@pytest.fixture
def grey_folder(tmp_path):
    root = tmp_path / "images"
    rng = np.random.default_rng(0)
    for folder in ("train/good", "test/good", "test/dent"):
        (root / folder).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (20, 20)).astype(np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


def test_grey_images_fit_a_colour_model(grey_folder, tmp_path):
    config = load("folder")
    config.data.dir, config.data.cache_dir = str(grey_folder), str(tmp_path / "cache")
    config.data.image_size = 64
    data = sources.load(config)
    assert data.train.shape == (2, 64, 64, 3)
    assert (data.train[..., 0] == data.train[..., 2]).all()
    assert list((tmp_path / "cache").glob("*.npy"))
    assert objectives.build_model(config).image_shape == (64, 64, 3)


@pytest.mark.slow
def test_grey_images_train_a_grey_model(grey_folder, tmp_path):
    config = load("folder", "light")
    config.data.dir, config.data.cache_dir = str(grey_folder), str(tmp_path / "cache")
    config.data.image_size, config.data.channels = 32, 1
    config.data.validation_fraction = 0.4
    config.train.batch_size, config.train.steps = 8, 1
    data = sources.load(config)
    assert data.train.shape[1:] == objectives.build_model(config).image_shape == (32, 32, 1)
    trained = loop.train(config, tmp_path / "run", data)
    assert trained.params["encoder"]["conv1"]["kernel"].shape == (4, 4, 1, 32)
    assert trained.params["decoder"]["convtr4"]["kernel"].shape[2] == 1


def test_light_convnet():
    model = build.build("convnet", image_size=128, latents=64)
    assert model.layers == (
        "conv1", "conv1_relu", "conv2", "conv2_relu", "conv3", "conv3_relu", "conv4", "conv4_relu",
    )  # fmt: skip
    x = jnp.zeros((1, 128, 128, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, jnp.zeros((1, 64))))
    features = jax.eval_shape(lambda v: model.apply(v, x, "conv4", method="features"), variables)
    assert features.shape == (1, 8, 8, 256)
    logits = jax.eval_shape(lambda v: model.apply(v, x, jnp.zeros((1, 64)))[0], variables)
    assert logits.shape == x.shape
    convolutions = [(3, 32), (32, 64), (64, 128), (128, 256)]
    expected = sum(16 * a * b + b for a, b in convolutions)  # encoder
    expected += sum(16 * a * b + a for a, b in convolutions)  # decoder, mirrored
    flat = 8 * 8 * 256
    expected += (flat * 256 + 256) + 2 * (256 * 64 + 64) + (64 * 256 + 256) + (256 * flat + flat)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected
    with pytest.raises(UserError, match=r"convnet takes a multiple of 16.*set data.image_size=128"):
        build.build("convnet", image_size=100, latents=8)


def test_no_category_at_all(tmp_path):
    config = load("mvtec_ad", "all")
    config.data.dir = str(tmp_path)
    with pytest.raises(UserError, match="holds no category of MVTec-AD; download it"):
        experiment.run(config, tmp_path / "run", mode="train")
    (tmp_path / "pill").mkdir()
    (tmp_path / "bottle").mkdir()
    assert mvtec_ad.present(tmp_path, "table4") == ("pill",)


def test_a_group_of_any_source_is_a_run_of_each_category(monkeypatch):
    row = sources.Source(load=dict, categories=("a", "b", "c"), groups={"some": ("c", "a")})
    monkeypatch.setitem(sources.SOURCES, "mine", row)
    config = default_config()
    config.data.name, config.data.category = "mine", "some"
    assert sources.is_group(config)
    found = sources.members(config)
    assert {name: one.data.category for name, one in found.items()} == {"c": "c", "a": "a"}
    config.data.category = "a"
    assert sources.members(config) == {}
