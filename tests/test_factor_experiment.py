"""A whole small run on ground-truth factors: training, resume, scores, pictures, page."""

import functools
import importlib.util
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from event_files import pictures_of, scalars_of
from PIL import Image

from vae_attn import attention, workdir_scores
from vae_attn import config as config_lib
from vae_attn.data import dsprites
from vae_attn.data.factor_grid import FactorGrid
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments import validation
from vae_attn.experiments.disentanglement import diagnosis, latent_figures, representation
from vae_attn.experiments.disentanglement import report as factor_report
from vae_attn.experiments.disentanglement.scores import NAMES
from vae_attn.experiments.maps import Mapper
from vae_attn.models.discriminator import Discriminator
from vae_attn.training import attention_loss, factor, loop, objectives, steps
from vae_attn.training.telemetry import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
GRID = FactorGrid(
    dsprites.GRID.names,
    ((1.0,), (1.0, 2.0), (0.5, 1.0), (0.0, 0.7, 1.4), (0.0, 0.5, 1.0), (0.0, 0.5, 1.0)),
)


def load_configs():
    spec = importlib.util.spec_from_file_location("dsprites", ROOT / "configs" / "dsprites.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


get_config, VARIANTS = load_configs().get_config, tuple(load_configs().VARIANTS)


OBJECTIVE = (
    "AD-FactorVAE (gamma 40, of standardized codes, lambda 1 of the overlap of the published maps "
    "at conv1) with 4 latents"
)


def small_config(variant):
    config = small_models.use(get_config(f"{variant},4"), "shapes")
    config.train.batch_size = 16
    config.train.learning_rate = 1e-2
    config.train.steps = 60
    config.train.checkpoint_every = 30
    config.train.log_every = 10
    config.factor.ad_layer = config.attention.layer = "conv1"
    config.evaluate.layers = ("conv1",)
    config.evaluate.points = 200
    config.evaluate.faithful_images = 8
    return config


@pytest.fixture(scope="module", autouse=True)
def small():
    """Few images and a small discriminator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dsprites, "GRID", GRID)
        patch.setattr(factor, "Discriminator", functools.partial(Discriminator, units=16))
        patch.setattr(representation, "_QUICK_VOTES", 100)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of AD-FactorVAE: config, workdir."""
    config = small_config("ad_factor_vae_paper")
    workdir = tmp_path_factory.mktemp("runs") / "ad"
    experiment.run(config, workdir, mode="all")
    return config, workdir


def test_training_is_followed(finished):
    _, workdir = finished
    curves = read_metrics(workdir)
    assert curves["factor_vae_quick"][0] == curves["validation_loss"][0] == [30, 60]
    for name in ("total_correlation", "discriminator_loss", "attention_disentanglement"):
        assert curves[name][0] == [10, 20, 30, 40, 50, 60]
    for name in ("discriminator_accuracy", "empty_maps"):
        assert curves[name][0] == [10, 20, 30, 40, 50, 60]
        assert 0 <= min(curves[name][1]) <= max(curves[name][1]) <= 1
    for name in ("gaussian_total_correlation", "active_latents", "latent_deviation/z3"):
        assert curves[name][0] == [30, 60]
    assert curves["loss"][1][-1] < curves["loss"][1][0] / 2
    pictures = pictures_of(workdir / "tensorboard")
    assert sorted(pictures) == [f"traversals/image_{n}" for n in range(4)]
    for shown in pictures.values():
        assert [step for step, _ in shown] == [30, 60]
        assert shown[0][1].shape == (4 * 64, 11 * 64, 3)  # four latents
        assert (shown[0][1] != shown[1][1]).any()
    scores = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    (value,) = scalars_of(workdir / "tensorboard")["score/mig"]
    assert value == (60, pytest.approx(scores["mig"]))


def test_scores_stand_beside_the_papers(finished):
    config, workdir = finished
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert set(NAMES) - {"dci", "infomec"} < metrics.keys()
    assert all(0 <= metrics[name] <= 1 for name in metrics if name.startswith((*NAMES,)))
    assert not any("auroc" in name for name in metrics)
    assert metrics["faithfulness/deeplift/image/which_latent"] > 0.5
    table = (workdir / "evaluation" / "table.md").read_text(encoding="utf-8")
    assert table.count("## Is the map true of its latent?") == 1
    assert table.count("## Is the map where its factor is?") == 1
    assert 0 < metrics["faithfulness/chance/image/factor_mass_scale"] < 0.2
    assert metrics["faithfulness/paper/conv1/factor_rank_posX"] >= 0
    assert f"| factor_vae | {metrics['factor_vae']:.3f} | 1 | about .82 (recalled) |" in table
    # Once more by hand: the mean losses over all images, of which there are fewer than a sample.
    data = dsprites.load_dsprites(grid=GRID)
    variables = loop.restore(config, workdir, which="latest").variables
    x = np.unpackbits(data.stored, axis=1).reshape(-1, 64, 64, 1).astype(np.float32)
    model = objectives.build_model(config)
    mean, logvar = map(
        np.asarray, model.apply(variables, data.pixels(data.stored), method="encode")
    )
    kl = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).mean(axis=0)
    assert metrics["kl"] == pytest.approx(kl.sum(), rel=1e-3)
    assert metrics["active_latents"] == (kl > 0.01).sum() > 0
    spread = np.cov(mean.T) + np.diag(np.exp(logvar).mean(axis=0))
    curves = read_metrics(workdir)
    for k in range(4):
        found = curves[f"latent_deviation/z{k}"][1][-1]
        assert found == pytest.approx(np.sqrt(spread[k, k]), rel=1e-3)
    correlation = -0.5 * np.log(np.linalg.det(spread) / np.diag(spread).prod())
    assert metrics["gaussian_total_correlation"] == pytest.approx(correlation, rel=1e-2)
    assert curves["gaussian_total_correlation"][1][-1] == pytest.approx(correlation, rel=1e-2)
    p = np.asarray(model.apply(variables, jnp.asarray(mean), method="reconstruct"), np.float64)
    p = np.clip(p, 1e-12, 1 - 1e-12)
    cross_entropy = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=(1, 2, 3)).mean()
    assert metrics["reconstruction"] == pytest.approx(cross_entropy, rel=1e-3)


def test_pictures_stand_in_the_page(finished):
    _, workdir = finished
    names = {path.name for path in (workdir / "figures").iterdir()}
    pictures = {f"{name}.png" for name in ("traversal", "attention", "training", "runs")}
    assert names == pictures | {"traversals.gif"}
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 4
    assert page.count('src="data:image/gif;base64,') == 1
    assert OBJECTIVE in page
    blind = diagnosis.blindness(read_metrics(workdir))
    assert ("The discriminator is blind" in page) == bool(blind)
    with Image.open(workdir / "figures" / "traversals.gif") as moving:
        assert moving.n_frames > 10
        first = np.asarray(moving.convert("L"), int)
        moving.seek(10)
        assert np.abs(np.asarray(moving.convert("L"), int) - first).max() > 20


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(finished):
    config, workdir = finished
    other = workdir.parent.parent / "resumed"
    shutil.copytree(workdir, other)
    shutil.rmtree(other / "checkpoints" / "60")
    experiment.run(config, other, mode="train")
    assert (other / "metrics.jsonl").read_text(encoding="utf-8") == (
        workdir / "metrics.jsonl"
    ).read_text(encoding="utf-8")
    states = [loop.restore(config, path, which="latest") for path in (other, workdir)]
    assert states[0].vae.step == 60
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))


def test_beta_vae_has_no_discriminator(tmp_path):
    config = small_config("beta_vae")
    config.train.steps = config.train.checkpoint_every = 2
    experiment.run(config, tmp_path / "run", mode="train")
    curves = read_metrics(tmp_path / "run")
    assert "factor_vae_quick" in curves
    assert "total_correlation" not in curves
    terms = curves["reconstruction"][1][0] + 4 * curves["kl"][1][0]
    assert curves["loss"][1][0] == pytest.approx(terms, rel=1e-5)


@pytest.mark.slow
def test_two_seeds(tmp_path):
    config = small_config("factor_vae")
    config.num_seeds = 2
    config.train.steps = config.train.checkpoint_every = 10
    workdir = tmp_path / "both"
    experiment.run(config, workdir, mode="all")
    curves = read_metrics(workdir)
    quick = [curves[f"factor_vae_quick/seed_{n}"][1][0] for n in (0, 1)]
    assert curves["factor_vae_quick"][1][0] == pytest.approx(np.mean(quick))
    paths = [workdir / f"seed_{n}" / "evaluation" / "metrics.json" for n in (0, 1)]
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert first["reconstruction"] != second["reconstruction"]
    for name in ("reconstruction", "factor_vae", "dci_disentanglement"):
        assert metrics[name] == pytest.approx((first[name] + second[name]) / 2)
        deviation = abs(first[name] - second[name]) / np.sqrt(2)
        assert metrics[f"{name}_std"] == pytest.approx(deviation)
    shown = f"| reconstruction | {metrics['reconstruction']:.3f} ± "
    assert shown in (workdir / "evaluation" / "table.md").read_text(encoding="utf-8")
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("Seed 0, the first of 2.</figcaption>") == 3
    pairs = [(one["reconstruction"], one["factor_vae"]) for one in (first, second)]
    assert factor_report.scored_neighbours(tmp_path) == {"both": pairs}


def test_variants_of_the_config():
    config = get_config()
    assert (config.model.latents, config.model.name) == (10, "dsprites_glorot")
    assert (config.factor.gamma, config.factor.ad_weight) == (40, 0)
    assert config.factor.discriminator_input == "standardized"
    assert get_config("beta_vae").train.beta > 1
    assert get_config("vae").factor.gamma == 0
    assert get_config("beta_tc_vae").train.objective == "beta_tc_vae"
    # The report's table, as the first runs had it.
    for variant, weight in (("factor_vae_published,32", 0), ("ad_factor_vae_published,32", 1)):
        config = get_config(variant)
        assert (config.model.latents, config.model.name) == (32, "dsprites")
        assert (config.factor.gamma, config.factor.ad_weight) == (40, weight)
        assert config.factor.discriminator_input == "codes"
        assert (config.factor.initialization, config.factor.ad_form) == ("normal", "paper")
    with pytest.raises(UserError, match="variant 'tc_vae' is unknown: give one of :vae, :beta_vae"):
        get_config("tc_vae,10")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_be_trained(variant):
    config = get_config(variant)
    validation.validate(config)
    data = dsprites.load_dsprites(grid=GRID)
    task = objectives.make_task(config, data.pixels)
    state = jax.eval_shape(lambda: task.create(seed=0))
    indices = task.batch_indices(seed=0, step=0, batch_size=64, num_examples=len(data.train))
    on_one = jax.vmap(task.update, in_axes=(None, None, 0), axis_name=steps.AXIS)
    after, metrics = jax.eval_shape(on_one, state, data.train, indices[None])
    assert jax.tree.structure(after) == jax.tree.structure(state)
    discriminates = config.train.objective == "factor_vae"
    assert ("discriminator_accuracy" in metrics) == discriminates
    assert ("empty_maps" in metrics) == (config.factor.ad_weight > 0)


def test_forms_of_the_attention_loss_have_a_variant_each():
    with_attention = [config for config in map(get_config, VARIANTS) if config.factor.ad_weight]
    assert {config.factor.ad_form for config in with_attention} == {*attention_loss.FORMS}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor.ad_pairs": 3}, r"factor.ad_pairs=3 must be from 1 to 2, .*model.latents=4"),
        ({"factor.ad_layer": "conv7"}, "factor.ad_layer='conv7' must be one of the layers"),
        ({"factor.gamma": -1.0}, "factor.gamma=-1.0 must be 0 or more"),
        ({"factor.ad_form": "maps"}, "factor.ad_form='maps' must be one of paper, exact_overlap"),
        ({"factor.discriminator_input": "z"}, "discriminator_input='z' must be one of codes, stan"),
        ({"factor.initialization": "he"}, "factor.initialization='he' must be one of normal, glo"),
        ({"data.source": "web"}, "data.source='web' must be one of auto, npz, tfds, rendered"),
        ({"model.name": "mnist"}, "model.name=mnist takes images of 28 x 28"),
        (
            {"train.objective": "vae"},
            "factor.gamma=40.0 must be 0 unless train.objective=",
        ),
        ({"data.dir": "/no/such/folder"}, "/no/such/folder holds neither"),
    ],
)
def test_config_values_that_cannot_be(changes, message, tmp_path):
    config = small_config("ad_factor_vae")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        experiment.run(config, tmp_path / "run", mode="train")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["evaluate", "explain"])
def test_without_a_run_there_is_nothing_to_score(mode, tmp_path):
    with pytest.raises(UserError, match="holds no run: train it first"):
        experiment.run(small_config("factor_vae"), tmp_path / "run", mode=mode)
    assert not (tmp_path / "run").exists()


def test_default_config_has_no_discriminator():
    config = config_lib.default_config()
    validation.validate(config)
    assert config.factor.gamma == config.factor.ad_weight == 0
    assert config.attention.style in attention.STYLES


# Figures


class Stub(Mapper):
    """Latents are the image's mean times 0, 1, 2; a decoded image's rows are z."""

    def __init__(self):
        pass

    def encode(self, images):
        mean = images.mean(axis=(1, 2)) / 255 * np.arange(3, dtype=np.float32)
        return mean.astype(np.float32), np.zeros_like(mean, np.float32)

    def decode(self, z):
        return np.tile(z[:, None, :, None], (1, 3, 1, 1))


def test_traversal_changes_one_latent_at_a_time():
    images = np.full((2, 3, 3, 1), 51, np.uint8)
    centre, spread = np.float32([0.5, 7, -1]), np.float32([1, 7, 0.1])
    decoded = factor_report.traverse(Stub(), images, np.array([2, 0]), centre, spread)
    assert decoded.shape == (2, 2, 11, 3, 3, 1)
    z = decoded[1, :, :, 0, :, 0]
    np.testing.assert_allclose(z[0, :, 2], np.linspace(-1.2, -0.8, 11), atol=1e-6)
    np.testing.assert_allclose(z[0, :, :2], np.tile([0.0, 0.2], (11, 1)), atol=1e-6)
    np.testing.assert_allclose(z[1, :, 0], np.linspace(-1.5, 2.5, 11), atol=1e-6)
    np.testing.assert_allclose(z[1, :, 1:], np.tile([0.2, 0.4], (11, 1)), atol=1e-6)


def test_animation_goes_there_and_back():
    decoded = np.zeros((1, 1, 4, 20, 20, 1))
    decoded += np.linspace(0, 1, 4)[:, None, None, None]
    frames = latent_figures.animation(decoded, ["z0"])
    levels = [np.asarray(frame)[-10, 10] for frame in frames]
    assert levels == [0, 85, 170, 255, 170, 85]


def test_runs_of_a_folder(tmp_path):
    for name, metrics in {
        "one": {"reconstruction": 40.0, "factor_vae": 0.7},
        "digits": {"paper/conv1/pixel_auroc": 0.5},
    }.items():
        scored = workdir_scores.Scored.of([1], ["digest"], config_lib.default_config())
        workdir_scores.write(tmp_path / name, metrics, scored)
    (tmp_path / "unfinished").mkdir()
    assert factor_report.scored_neighbours(tmp_path) == {"one": [(40.0, 0.7)]}
