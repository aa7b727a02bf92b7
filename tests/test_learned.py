"""The learned contrast: its network by hand, its training, and a run that has it."""

import dataclasses
import json
import shutil

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import sklearn.metrics
import small_models
from tiny_run import tiny_config, trained

import vae_attn
from vae_attn.data.augment import Augmentation
from vae_attn.errors import UserError
from vae_attn.experiments import learned, learned_training, validation
from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly import export
from vae_attn.experiments.anomaly.calibration import Calibration, Variant
from vae_attn.experiments.learned import Head

RNG = np.random.default_rng(0)
LAYERS = ("conv1", "conv2")


def learned_config():
    config = tiny_config()
    config.attention.style = "learned_contrast"
    config.learned.steps, config.learned.batch_size = 3, 4
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        workdir = tmp_path_factory.mktemp("runs") / "tiny"
        yield *trained(patch, workdir, config=learned_config()), workdir


@pytest.fixture(scope="module")
def explainer(run):
    return vae_attn.load(run[2])


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run[2], tmp_path / "run")
    return tmp_path / "run"


def convolved(x, layer):
    """A 3 x 3 convolution of (height, width, channels), padded by zeros."""
    kernel, bias = np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)
    planes = [
        sum(
            scipy.signal.correlate2d(x[..., k], kernel[..., k, out], mode="same")
            for k in range(x.shape[-1])
        )
        for out in range(kernel.shape[-1])
    ]
    return np.stack(planes, axis=-1) + bias


def test_network_by_hand():
    """One 1 x 1 convolution of all layers, resized and stacked; then two of 3 x 3."""
    shapes = {"a": (1, 3, 4, 2), "b": (1, 6, 8, 5), "image": (1, 12, 16, 3)}
    differences = {name: RNG.random(shape).astype(np.float32) for name, shape in shapes.items()}
    scales = {
        name: RNG.random(of.shape[1:]).astype(np.float32) + 0.1 for name, of in differences.items()
    }
    params = learned.Network().init(jax.random.key(0), differences)["params"]
    params = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32) / 4, params)
    stacked, kernels = [], []
    for number, name in enumerate(sorted(shapes)):
        d = np.log(1 + differences[name] / scales[name])
        stacked.append(jax.image.resize(d, (1, 6, 8, d.shape[3]), "bilinear")[0])
        kernels.append(params[f"layer_{number}"]["kernel"])
    x = np.concatenate(stacked, axis=2) @ np.concatenate(kernels) + params["bias"]
    x = np.maximum(convolved(np.maximum(x, 0), params["hidden"]), 0)
    expected = convolved(x, params["last"])[..., 0]
    found = learned.logits(params, scales, differences)
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-3)


def test_inputs_by_hand():
    """Of pixels and of a layer: the difference, and the image's own positive and negative parts."""
    model = small_models.plain(latents=3, image_shape=(8, 8, 1))
    x, other = jnp.asarray(RNG.random((2, 2, 8, 8, 1)), jnp.float32)
    variables = model.init(jax.random.key(0), x, jnp.zeros((2, 3)))
    found = learned.raw_inputs(model, variables, x, other, ("conv1",))
    a, b = (np.asarray(model.apply(variables, of, "conv1", method="features")) for of in (x, other))
    for name, (one, two), parts in (
        ("image", (x, other), [x, 1 - x]),
        ("conv1", (a, b), [np.maximum(a, 0), np.maximum(-a, 0)]),
    ):
        expected = np.concatenate([np.abs(one - two), *parts], axis=3)
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_scale_has_a_floor():
    mean = np.zeros((2, 2, 2), np.float32)
    mean[0, 0, 0] = 4.0
    found = learned.scale_of(mean)
    np.testing.assert_allclose(found[..., 0], [[4.1, 0.1], [0.1, 0.1]])
    np.testing.assert_allclose(found[..., 1], 0.1)


def test_training_is_a_function_of_its_seed_and_learns(run, explainer):
    _, data, _ = run
    settings = learned_training.Settings(60, 4, 1e-2, LAYERS, 0, seed=5)
    arguments = (explainer.model, explainer.variables, data.train)

    def train(**changed):
        return learned_training.train(*arguments, settings._replace(**changed), Augmentation())

    heads = {steps: train(steps=steps) for steps in (1, 60)}
    assert train(steps=1).digest == heads[1].digest
    assert train(steps=1, seed=6).digest != heads[1].digest
    draw = jax.jit(lambda key, *images: learned_training.drawn(key, *images, Augmentation()))
    # Of other images and anomalies than those it learned from.
    x, masks = draw(jax.random.key(9), data.validation, data.validation[::-1])
    images = np.rint(255 * np.asarray(x)).astype(np.uint8)
    precision = {}
    for steps, head in heads.items():
        with_head = dataclasses.replace(explainer, head=head, projection_steps=0)
        found = with_head.maps(images, styles=("learned",), layers=LAYERS)["learned", "image"]
        assert found.shape == masks.shape
        assert found.min() >= 0
        assert found.max() <= 1
        flat = np.asarray(masks).ravel(), found.ravel()
        precision[steps] = sklearn.metrics.average_precision_score(*flat)
    assert precision[60] > 1.5 * precision[1]
    assert precision[60] > 2 * np.mean(masks)


def test_maps_are_the_mean_of_both_styles(run, explainer):
    _, data, _ = run
    assert explainer.variant == Variant("learned_contrast", LAYERS, "upper")
    images = data.test.images[:5]
    counterparts = explainer.counterparts(images)
    raw = explainer.maps(
        images, styles=("learned", "contrast"), layers=LAYERS, counterparts=counterparts
    )
    assert set(raw) == {("learned", "image"), ("contrast", "conv1"), ("contrast", "conv2")}
    x, pairs = jnp.asarray(images / 255, jnp.float32), jnp.asarray(counterparts)
    by_head = learned.maps(explainer.model, explainer.variables, explainer.head, x, pairs)
    np.testing.assert_allclose(raw["learned", "image"], by_head, rtol=1e-3, atol=1e-5)

    def calibrated(key):
        normal = explainer.calibration.statistics[key]
        return raw[key] / (normal.mean + 2 * normal.std + 0.1 * normal.mean.mean())

    contrast = (calibrated(("contrast", "conv1")) + calibrated(("contrast", "conv2"))) / 2
    expected = (contrast + calibrated(("learned", "image"))) / 2
    maps, scores = explainer(images)
    np.testing.assert_allclose(maps, expected, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(scores, expected.max(axis=(1, 2)), rtol=2e-3)
    exported = jax.export.deserialize(export.export(explainer).serialize())
    np.testing.assert_allclose(exported.call(images)[0], maps, rtol=1e-3, atol=1e-4)


def test_the_head_is_kept_and_trained_anew_only_for_other_settings(run, copy, monkeypatch):
    config, _, workdir = run
    kept, origin = Head.load(workdir / learned.FILE)
    assert origin["parameters"] == Calibration.load(workdir / "calibration.npz").parameters
    assert (origin["steps"], origin["layers"], origin["seed"]) == (3, list(LAYERS), 0)
    # The same again from its seed, where the file is broken.
    path = copy / learned.FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert Head.load(path) is None
    with pytest.raises(UserError, match=r"learned.npz is missing or broken: run --mode=evaluate"):
        vae_attn.load(copy)
    trainings = []
    train = learned_training.train

    def counted(*arguments):
        trainings.append(arguments[3].steps)
        return train(*arguments)

    monkeypatch.setattr(learned_training, "train", counted)
    data = run[1]
    monkeypatch.setattr("vae_attn.data.sources.load", lambda config: data)
    for steps in (3, 3, 2):
        config = learned_config()
        config.learned.steps = steps
        experiment.run(config, copy, mode="train")
        if steps == 3:
            assert Head.load(path)[0].digest == kept.digest
    assert trainings == [3, 2]
    assert vae_attn.load(copy).head.digest != kept.digest
    # A head beside a calibration that was made with another.
    shutil.copy(workdir / learned.FILE, path)
    with pytest.raises(UserError, match="is another than the calibration's"):
        vae_attn.load(copy)


@pytest.mark.slow
def test_a_run_scores_and_shows_it(run, copy, monkeypatch):
    data = run[1]
    monkeypatch.setattr("vae_attn.data.sources.load", lambda config: data)
    config = learned_config()
    config.evaluate.styles, config.evaluate.faithful_images = ("paper",), 0
    config.evaluate.max_images = config.report.max_images = 12
    experiment.run(config, copy, mode="all")
    metrics = json.loads((copy / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    for name in ("learned/fused", "learned/fused.z", "learned_contrast/fused.upper"):
        assert 0 < metrics[f"{name}/average_precision"] < 1
    assert "learned/conv1/pixel_auroc" not in metrics
    table = (copy / "evaluation" / "table.md").read_text(encoding="utf-8")
    assert "| learned_contrast | fused.upper |" in table.replace("\\_", "_")
    assert (copy / "report" / "index.html").exists()
    config.learned.steps = 0
    with pytest.raises(UserError, match=r"with learned\.steps also learned, learned_contrast"):
        experiment.run(config, copy, mode="evaluate")


def test_what_cannot_be_is_refused():
    config = learned_config()
    for key, value in (("steps", -1), ("batch_size", 0), ("learning_rate", float("inf"))):
        wrong = config.copy_and_resolve_references()
        wrong.learned[key] = value
        with pytest.raises(UserError, match=f"learned.{key}"):
            validation.validate(wrong)
