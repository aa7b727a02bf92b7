"""Models of anyone's: trained, scored, explained, exported, loaded like ours; what is refused."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_models

import vae_attn
from vae_attn import config as config_lib
from vae_attn.data import sources
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments import validation
from vae_attn.models import build
from vae_attn.models.discriminator import Discriminator
from vae_attn.models.model import Model
from vae_attn.training import factor, loop, objectives, parallel, state, steps
from vae_attn.training.telemetry import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1)).astype(np.uint8)


def config_of(function="vae", **values):
    config = config_lib.default_config()
    config.model.name, config.data.channels = f"own_models:{function}", 1
    config.model.latents = 3
    config.model.width = 6  # a key that no default has
    config.attention.layer, config.evaluate.layers = "one", ("one", "two")
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a stranger's model on digits: config, workdir."""
    config = config_of()
    config.train.batch_size = 16
    config.train.steps = config.train.checkpoint_every = 3
    config.train.log_every = 1
    config.attention.projection_steps = 1
    config.attention.layers, config.attention.calibration = ("one", "two"), "upper"
    config.evaluate.styles = ("paper", "contrast")
    config.evaluate.max_images = config.report.max_images = 40
    config.evaluate.faithful_images = 8
    workdir = tmp_path_factory.mktemp("runs") / "own"
    experiment.run(config, workdir, mode="all")
    return config, workdir


@pytest.mark.slow
def test_it_is_trained_scored_and_explained(finished):
    config, workdir = finished
    assert read_metrics(workdir)["loss"][0] == [1, 2, 3]
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    for row in ("paper/one", "paper/two", "contrast/two", "contrast/fused.upper"):
        assert 0 <= metrics[f"{row}/pixel_auroc"] <= 1
    assert (workdir / "report" / "index.html").stat().st_size > 0
    first = state.create(model=objectives.build_model(config), tx=optax.identity(), seed=0)
    trained = loop.restore(config, workdir, which="latest")
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.variables, trained.variables)
    assert min(jax.tree.leaves(moved)) > 0  # parameters and batch statistics, all of them
    # A key of its own arrives, and counts as one of the config's that change the training.
    assert trained.params["module"]["first"]["kernel"].shape == (4, 4, 1, 6)
    with pytest.raises(UserError, match=r"another config: model.width \(there 6, now 8\)"):
        experiment.run(config_of(model__width=8), workdir, mode="train")


@pytest.mark.slow
def test_it_is_loaded_and_exported(finished):
    """Without its config and its data; and the exported function needs neither of its classes."""
    config, workdir = finished
    explainer = vae_attn.load(workdir)
    maps, scores = explainer(IMAGES)
    assert maps.shape == (8, 28, 28)
    experiment.run(config, workdir, mode="export")
    content = (workdir / "export" / "attention.stablehlo").read_bytes()
    found = jax.export.deserialize(bytearray(content)).call(IMAGES[:5])
    np.testing.assert_allclose(found[0], maps[:5], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[1], scores[:5], rtol=1e-3, atol=1e-4)
    card = json.loads((workdir / "export" / "card.json").read_text(encoding="utf-8"))
    assert card["model"]["name"] == "own_models:vae"


@pytest.mark.slow
def test_the_run_resumes(finished):
    config, workdir = finished
    before = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    again = loop.train(config, workdir, sources.load(config))
    assert int(again.step) == 3
    assert (workdir / "metrics.jsonl").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("layer", ["one", "two"])
def test_the_adaptor_encodes_at_any_layer_alike(layer):
    model = build.build(
        "own_models:vae", latents=3, image_size=28, channels=1, layer=layer, axis_name=steps.AXIS
    )
    assert isinstance(model, Model)
    assert model.image_shape == (28, 28, 1)
    assert model.layers == ()  # it does not say
    assert model.dense_mean(layer) is None
    variables = state.create(model=model, tx=optax.identity(), seed=0).variables
    x, noise = jnp.float32(IMAGES) / 255, jax.random.normal(jax.random.key(1), (8, 3))
    mean, logvar = model.apply(variables, x, method="encode")
    module = model.module.clone()
    own = {name: tree["module"] for name, tree in variables.items()}
    features = module.apply(own, x, "two", train=False, method="features")
    expected = module.apply(own, features, "two", train=False, method="head")
    np.testing.assert_allclose(mean, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logvar, expected[1], rtol=1e-4, atol=1e-5)
    logits, *_ = model.apply(variables, x, noise)
    z = mean + jnp.exp(logvar / 2) * noise
    expected = module.apply(own, z, train=False, method="decode")
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    found = model.apply(variables, z, method="reconstruct")
    np.testing.assert_allclose(found, jax.nn.sigmoid(expected), rtol=1e-4, atol=1e-5)


def test_it_takes_the_attention_disentanglement_loss():
    """With a discriminator and a gradient through alpha."""
    model = build.build("own_models:plain", latents=4, image_size=28, channels=1, layer="two")
    networks = {
        "model": model,
        "discriminator": Discriminator(units=8, hidden_layers=1),
        "tx": optax.sgd(1e-3),
        "discriminator_tx": optax.sgd(1e-3),
    }
    objective = factor.FactorObjective(ad_weight=5.0, ad_layer="one")
    update = functools.partial(factor.make_factor_update_fn, objective=objective)
    update = parallel.parallelize(
        update(**networks, pixels_of=steps.to_unit),
        mode="pmap",
        batch_size=8,
        devices=jax.devices()[:1],
    )
    first = factor.create(**networks, seed=0)
    indices = np.stack([np.arange(8), np.arange(8)[::-1]], axis=1).astype(np.int32)
    after, metrics = update(*parallel.replicate((first, IMAGES), jax.devices()[:1]), indices)
    assert np.isfinite(metrics["attention_disentanglement"])
    kernel = first.vae.params["module"]["first"]["kernel"]
    assert np.abs(after.vae.params["module"]["first"]["kernel"] - kernel).max() > 0


def test_whole_models_pass():
    for function in ("vae", "listed", "plain"):
        validation.validate(config_of(function))
    config = small_models.use(config_lib.default_config(), "digits")
    validation.validate(config)
    assert objectives.build_model(config).layers == ("conv1", "conv1_relu", "conv2")


LISTS = "must be one of the layers of model.name=own_models:{}: one, two"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.name": "no_such_module:vae"}, "no_such_module cannot be imported.*on PYTHONPATH"),
        ({"model.name": "broken_models:vae"}, r"\(OSError: no such disk, .*broken_models.py:3\)"),
        ({"model.name": "own_models:gan"}, "own_models has no function 'gan'; write"),
        ({"model.name": "own_models:number"}, "own_models has no function 'number'; write"),
        ({"model.name": ":vae"}, "':vae' is unknown; choose"),
        ({"model.name": "own_models"}, r"'own_models' is unknown; .* or package.module:function"),
        ({"model.name": "own_models:failing"}, "raised ZeroDivisionError: .*own_models.py:"),
        ({"model.name": "own_models:closed"}, r"raised TypeError: .* and \*\*options"),
        (
            {"model.name": "own_models:no_module"},
            "returned an object of type dict, and must return",
        ),
        ({"model.name": "own_models:without_decode"}, "returned a WithoutDecode without decode"),
        (
            {"model.name": "own_models:flat"},
            r"features at attention.layer='one' must return \(batch, height, width, channels\), as "
            r".* returned \(batch, 294\)\.",
        ),
        (
            {"model.name": "own_models:mean_alone"},
            r"head at attention.layer='one' must return two arrays, .* returned \(batch, 3\)\.",
        ),
        (
            {"model.name": "own_models:short_logvar"},
            r"must return logvar of the shape \(batch, 3\), and returned \(batch, 1\)\.",
        ),
        (
            {"model.name": "own_models:small_pictures"},
            r"logits of the images' shape \(batch, 28, 28, 1\), and returned \(batch, 14, 14, 1\)",
        ),
        ({"model.name": "own_models:counting"}, "collection 'counters', and may have params and"),
        (
            {"model.name": "own_models:broken"},
            r"decode\(z, train=True\) raised RuntimeError: the brush is gone; see vae_attn/models",
        ),
        ({"attention.layer": "three"}, "features at attention.layer='three' raised KeyError"),
        ({"evaluate.layers": ("one", "3")}, "features at evaluate.layers='3' raised KeyError: '3'"),
        (
            {"model.name": "own_models:listed", "evaluate.layers": ("one", "3")},
            r"--config.evaluate.layers='3' " + LISTS.format("listed"),
        ),
        (
            {"model.name": "own_models:listed", "attention.layers": ("three",)},
            r"--config.attention.layers='three' " + LISTS.format("listed"),
        ),
        ({"data.channels": 0}, "data.channels=0 leaves its channels open: set data.channels=1 for"),
        ({"model.pretrained": "download"}, "must be empty unless model.name=mvtec_ad"),
        ({"model.axis_name": "x"}, "config.model.axis_name is no key of a config file's"),
        ({"model.name": "mnist"}, "model.width=6 is for a model of your own, and model.name=mnist"),
        (
            {"model.name": "small_models:fixed", "model.latents": 5},
            r"returned a VAE of 3 latents for images of \(28, 28, 1\), and was asked for 5 and",
        ),
        (
            {
                "data.name": "dsprites",
                "data.image_size": 64,
                "train.objective": "factor_vae",
                "factor.gamma": 1.0,
                "factor.ad_layer": "one",
            },
            "'own_models:vae' has batch normalisation, which factor.gamma and factor.ad_weight",
        ),
    ],
)
def test_what_a_model_must_not_do(values, message):
    config = config_of()
    config.update_from_flattened_dict({k: v for k, v in values.items() if k in config_keys(config)})
    for key in values.keys() - config_keys(config):
        config.model[key.removeprefix("model.")] = values[key]
    with pytest.raises(UserError, match=message) as caught:
        validation.validate(config)
    assert "\n" not in str(caught.value)


def config_keys(config):
    return config_lib.flat(config.to_dict()).keys()


def test_the_program_reports_it_in_one_sentence(tmp_path):
    """And finds a module in a folder on PYTHONPATH."""
    (tmp_path / "stranger.py").write_text("def model(**options):\n    return 3\n", encoding="utf-8")
    process = subprocess.run(
        [
            *(sys.executable, "-m", "vae_attn.main", "--config=configs/digits.py"),
            *("--config.model.name=stranger:model", "--config.data.channels=1"),
            f"--workdir={tmp_path / 'run'}",
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith(
        "vae_attn: model.name='stranger:model': the function returned an object of type int,"
    )
    assert not (tmp_path / "run").exists()
