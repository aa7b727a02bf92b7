"""A whole small run: training, scores, pictures, page."""

import json

import jax
import numpy as np
import pytest
import sklearn.metrics
import small_models
from PIL import Image

from vae_attn import attention
from vae_attn.config import default_config
from vae_attn.data import sources
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly import evaluation as anomaly
from vae_attn.experiments.anomaly.calibration import Variant
from vae_attn.experiments.anomaly.explainer import calibrate
from vae_attn.experiments.validation import validate
from vae_attn.reporting import figures
from vae_attn.training import loop, objectives


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the small model on digits: config, workdir."""
    config = small_models.use(default_config(), "deep_digits")
    config.model.latents = 4
    config.train.batch_size = 32
    config.train.steps = 60
    config.train.checkpoint_every = 30
    config.attention.projection_steps = 2
    config.evaluate.max_images = 60
    config.evaluate.faithful_images = 8
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    experiment.run(config, workdir, mode="all")
    return config, workdir


@pytest.fixture(scope="module")
def explained(finished):
    """The finished run's explainer and data."""
    config, workdir = finished
    data = sources.load(config)
    state = loop.restore(config, workdir, which="best")
    return explainer_of(config, state.variables, data), data


def explainer_of(config, variables, data, **options):
    return calibrate(
        objectives.build_model(config),
        variables,
        data.train,
        data.validation,
        variant=Variant("contrast", ("conv1", "conv2"), "ratio"),
        **options,
    )


def raw(explainer, images, style, layer):
    return explainer.maps(images, styles=(style,), layers=(layer,))[style, layer]


def test_workdir_holds_what_the_readme_says(finished):
    _, workdir = finished
    written = ("evaluation/table.md", "evaluation/scored.json", "card.md", "report/index.html")
    for name in ("config.json", "metrics.jsonl", *written):
        assert (workdir / name).stat().st_size > 0, name
    assert list((workdir / "tensorboard").iterdir())
    assert (workdir / "checkpoints" / "60").is_dir()


def test_scores_have_flat_keys_for_every_style_and_layer(finished):
    config, workdir = finished
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    for style in attention.STYLES:
        for layer in config.evaluate.layers:
            for name in ("pixel_auroc", "pointing_game", "share_below_chance", "image_auroc"):
                assert 0 <= metrics[f"{style}/{layer}/{name}"] <= 1
    for score in ("reconstruction_error", "kl", "standardised_deviation"):
        assert 0 <= metrics[f"{score}/image/image_auroc"] <= 1
    names = ("pixel_auroc", "average_precision", "best_f1_test", "best_iou_test", "aupro")
    for name in (*names, "image_auroc", "image_auroc_max", "image_average_precision_max"):
        interval = [metrics[f"contrast/conv1/{name}{x}"] for x in ("_low", "", "_high")]
        assert interval == sorted(interval)
        assert interval[0] < interval[2]
    assert "kl/image/image_auroc_high" in metrics
    for name in ("deeplift/image", "paper/conv1", "difference/image"):
        assert -1 <= metrics[f"faithfulness/{name}/correlation"] <= 1
    assert metrics["faithfulness/deeplift/image/completeness_error"] < 1e-4
    table = (workdir / "evaluation" / "table.md").read_text(encoding="utf-8")
    assert table.index("## Where is the defect?") < table.index("## Is the map true of its latent?")
    assert f"{metrics['contrast/conv1/pixel_auroc']:.3f} [" in table
    assert "six defects drawn on one digit" in table
    for row in ("paper/conv1", "reconstruction_error/image"):
        missed = metrics[f"{row}/share_missed"]
        assert missed == pytest.approx(1 - metrics[f"{row}/pointing_game"])
        assert f" {missed:.3f} |" in table


def test_scores_against_scikit_learn(finished, explained):
    """The whole chain once more by hand: maps of the defects, labels of the test images."""
    config, workdir = finished
    _, data = explained
    explainer = explainer_of(config, explained[0].variables, data, projection_steps=2)
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    located = anomaly.defects(data, 60, config.seed)
    maps = raw(explainer, located.images, "contrast", "conv2")
    expected = sklearn.metrics.roc_auc_score(located.masks.ravel(), maps.ravel())
    assert metrics["contrast/conv2/pixel_auroc"] == pytest.approx(expected, abs=2e-3)
    peaks = [mask.ravel()[m.argmax()] for m, mask in zip(maps, located.masks, strict=True)]
    assert metrics["contrast/conv2/pointing_game"] == pytest.approx(np.mean(peaks), abs=0.02)
    fused = explainer(located.images)[0]
    expected = sklearn.metrics.roc_auc_score(located.masks.ravel(), fused.ravel())
    assert metrics["contrast/fused.ratio/pixel_auroc"] == pytest.approx(expected, abs=2e-3)
    test = data.test.sample(60, config.seed)
    mass = raw(explainer, test.images, "paper", "conv1").mean(axis=(1, 2))
    expected = sklearn.metrics.roc_auc_score(test.labels > 0, mass)
    assert metrics["paper/conv1/image_auroc"] == pytest.approx(expected, abs=1e-3)


def test_figures_are_pictures_and_stand_in_the_page(finished):
    _, workdir = finished
    names = {path.stem for path in (workdir / "figures").glob("*.png")}
    maps = {"classes", "defects", "layers", "normal", "latents"}
    assert names == maps | {"training", "localisation", "detection"}
    for path in (workdir / "figures").glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.std() > 5, path
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png;base64,') == len(names)
    assert "://" not in page  # nothing comes from elsewhere
    assert page.count('<svg viewBox="0 0 420 300"') == 3
    (folder,) = (workdir / "report").glob("images-*")
    images = [file.suffix for file in folder.iterdir()]
    # Of each kind at most 300: test images, validation, drawn defects.
    assert images.count(".js") == images.count(".png") > 300
    kept = json.loads((workdir / "evaluation" / "curves.json").read_text(encoding="utf-8"))
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    normal = sum(kept["histogram"]["normal"])
    assert f">{kept['num_images']} test images, {normal} of them normal<" in page
    # Pixel AUROC, AP, AUPRO and misses; 18 held-out images give no threshold for an IoU.
    assert page.count(f">{kept['num_located']} images with true masks<") == 4
    assert "18 held-out normal images cannot carry a false-alarm rate of 5% of images" in page
    assert not any(name.endswith("/iou") for name in metrics)
    assert list(kept["roc"]) == [
        *("contrast/conv1", "paper/fused", "reconstruction_error/image"),
        "median_difference_smooth/image",
    ]
    for name, curve in kept["pro"].items():
        assert curve["area"] == pytest.approx(metrics[f"{name}/aupro"])
    assert kept["roc"]["contrast/conv1"]["area"] == metrics["contrast/conv1/image_auroc_max"]


def test_other_config_on_the_same_workdir_is_refused(finished):
    config, workdir = finished
    other = config.copy_and_resolve_references()
    other.train.learning_rate = 0.5
    other.model.latents = 5
    with pytest.raises(
        UserError, match=r"model.latents \(there 4, now 5\), train.learning_rate .*0.5"
    ):
        experiment.run(other, workdir, mode="train")


def test_other_evaluation_on_the_same_workdir_is_welcome(finished):
    config, workdir = finished
    other = config.copy_and_resolve_references()
    other.evaluate.layers = ("conv1_relu",)
    other.evaluate.styles = ("paper",)
    other.evaluate.max_images = 20
    path = workdir / "evaluation" / "metrics.json"
    before = path.read_text(encoding="utf-8")
    experiment.run(other, workdir, mode="evaluate")
    assert "paper/conv1_relu/pixel_auroc" in json.loads(path.read_text(encoding="utf-8"))
    path.write_text(before, encoding="utf-8")


def test_unwritable_workdir(finished, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"--workdir=.*file/run cannot be written"):
        experiment.run(finished[0], tmp_path / "file" / "run", mode="train")


def test_batches_do_not_change_maps(explained):
    explainer, data = explained
    images = data.test.images[:7]
    whole = explainer.maps(images, styles=("paper", "contrast"), layers=("conv1",))
    parts = [
        explainer.maps(images[i : i + 1], styles=("paper", "contrast"), layers=("conv1",))
        for i in range(7)
    ]
    for key, maps in whole.items():
        joined = np.concatenate([part[key] for part in parts])
        np.testing.assert_allclose(maps, joined, rtol=1e-4, atol=1e-6)


def test_latent_maps_average_to_the_map(explained):
    explainer, data = explained
    images = data.test.images[:3]
    latent_maps = explainer.latent_maps(images, style="contrast", layer="conv2")
    assert latent_maps.shape == (3, 4, 28, 28)
    expected = raw(explainer, images, "contrast", "conv2")
    np.testing.assert_allclose(latent_maps.mean(axis=1), expected, rtol=1e-3, atol=1e-6)


def test_image_scores_by_their_formulas(explained):
    explainer, data = explained
    images = data.test.images[:5]
    scores = explainer.image_scores(images)
    mean, logvar = (x.astype(np.float64) for x in explainer.encode(images))
    normal_mean, normal_logvar = explainer.encode(data.train)
    variance = np.exp(normal_logvar).mean(0) + normal_mean.var(0)
    deviation = ((mean - normal_mean.mean(0)) ** 2 / (np.exp(logvar) + variance)).sum(1)
    np.testing.assert_allclose(scores["standardised_deviation"], deviation, rtol=1e-3)
    kl = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(1)
    np.testing.assert_allclose(scores["kl"], kl, rtol=1e-4)
    p, x = explainer.reconstruct(images).astype(np.float64), images / 255
    cross_entropy = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum((1, 2, 3))
    np.testing.assert_allclose(scores["reconstruction_error"], cross_entropy, rtol=1e-4)
    baselines = explainer.baseline_maps(images, explainer.counterparts(images))
    error = baselines["reconstruction_error", "image"]
    np.testing.assert_allclose(error, np.abs(p - x)[..., 0], atol=1e-6)


def test_layer_that_the_model_has_not(explained):
    explainer, data = explained
    with pytest.raises(
        UserError, match="layer 'conv7' is not one of the model's; choose from conv1"
    ):
        raw(explainer, data.test.images[:1], "paper", "conv7")


def test_overlay_leaves_calm_pixels_grey_and_uses_one_scale():
    images = np.full((2, 4, 4, 1), 200, np.uint8)
    maps = np.zeros((2, 4, 4), np.float32)
    maps[1, 0, 0] = 5.0
    found = figures.overlay(images, maps, 5.0)
    assert np.ptp(found[0]) < 1e-6
    assert np.abs(found[1, 0, 0] - found[0, 0, 0]).max() > 0.2
    np.testing.assert_array_equal(found[1, 1:], found[0, 1:])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.batch_size", 0, "--config.train.batch_size=0 must be greater than 0"),
        ("attention.style", "gradcam", "--config.attention.style='gradcam' must be of paper"),
        (
            "evaluate.layers",
            ("conv1", "conv8"),
            "'conv8' must be one of the layers of model.name=mnist: conv1",
        ),
        ("evaluate.checkpoint", "first", "must be best, latest or all"),
        ("parallel.mode", "threads", "must be pmap or shard_map"),
        ("data.name", "cifar", "data.name='cifar' is unknown"),
        ("data.digit", 12, "12"),
        ("data.validation_fraction", 1.5, "must be between 0 and 1"),
    ],
)
def test_config_values_that_cannot_be(key, value, message, tmp_path):
    config = default_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        experiment.run(config, tmp_path / "run", mode="train")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["ratio", "z"])
def test_maps_that_depend_on_their_batch_are_not_calibrated(kind):
    config = default_config()
    config.attention.style, config.attention.calibration = "authors_code", kind
    with pytest.raises(UserError, match="must be none with style=authors_code, whose maps depend"):
        validate(config)
    config.attention.calibration = "none"
    validate(config)


def test_devices_are_simulated():
    assert len(jax.devices()) == 8
