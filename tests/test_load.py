"""A trained run is loaded from its folder alone."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny_config, trained

import vae_attn
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly import explainer as explainer_lib
from vae_attn.experiments.anomaly import loading
from vae_attn.experiments.anomaly.calibration import Calibration, Variant

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        workdir = tmp_path_factory.mktemp("runs") / "tiny"
        yield *trained(patch, workdir), workdir


@pytest.fixture(scope="module")
def explainer(run):
    return vae_attn.load(run[2])


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run[2], tmp_path / "run")
    return tmp_path / "run"


def by_hand(explainer, images):
    """Raw maps of single layers, calibrated by their formula and averaged."""
    layers = explainer.variant.layers
    raw = explainer.maps(images, styles=("contrast",), layers=layers)
    fused = 0
    for layer in layers:
        normal = explainer.calibration.statistics["contrast", layer]
        mean, std = normal.mean.astype(np.float64), normal.std.astype(np.float64)
        fused += raw["contrast", layer] / (mean + 2 * std + 0.1 * mean.mean()) / len(layers)
    return fused


def test_maps_and_scores_are_those_of_the_parts(run, explainer):
    config, data, _ = run
    assert explainer.variant.layers == config.attention.layers
    images = data.test.images[:6]
    maps, scores = explainer(images)
    expected = by_hand(explainer, images)
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scores, expected.max(axis=(1, 2)), rtol=1e-3)
    again, _ = explainer(images, explainer.counterparts(images))
    np.testing.assert_allclose(again, maps, rtol=1e-3, atol=1e-5)
    normal = explainer(data.validation)[1]  # by which it was calibrated
    assert np.mean(normal > explainer.calibration.image_threshold) < 0.3


def test_a_batch_of_any_size_compiles_once(run, explainer):
    images = run[1].test.images
    explainer(images[:2])
    compiled = explainer_lib._explain_jit.jitted()._cache_size()
    sizes = {n: explainer(images[:n]) for n in (1, 4, 5, 11)}
    assert explainer_lib._explain_jit.jitted()._cache_size() == compiled
    for n, (maps, scores) in sizes.items():
        assert maps.shape == (n, 28, 28)
        np.testing.assert_allclose(scores, sizes[11][1][:n], rtol=1e-5)
    maps, scores = explainer(images[:0])
    assert (maps.shape, scores.shape) == ((0, 28, 28), (0,))


def test_images_of_any_size_and_colour(explainer):
    colour = RNG.integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    expected = [
        np.asarray(Image.fromarray(image).convert("L").resize((28, 28), Image.Resampling.LANCZOS))
        for image in colour
    ]
    maps, scores = explainer(np.stack(expected)[..., None])
    found = explainer(colour)
    np.testing.assert_array_equal(found[0], maps)
    np.testing.assert_array_equal(found[1], scores)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 28, 28, 1), np.float32), np.zeros((2, 28, 28, 4), np.uint8)]
)
def test_images_that_are_none(explainer, images):
    with pytest.raises(UserError, match="images must be uint8, 0 to 255, of shape"):
        explainer(images)


def test_deviating_latents(run, explainer):
    images = run[1].test.images[:5]
    found = explainer.deviating_latents(images, count=2)
    exact = explainer.exact_maps(images, explainer.counterparts(images), found.latents)
    mean, logvar = (x.astype(np.float64) for x in explainer.encode(images))
    normal = explainer.calibration
    expected = (mean - normal.normal_mean) / np.sqrt(np.exp(logvar) + normal.normal_variance)
    for n in range(5):
        order = np.argsort(-np.abs(expected[n]))[:2]
        np.testing.assert_array_equal(found.latents[n], order)
        np.testing.assert_allclose(found.deviations[n], expected[n][order], rtol=1e-3)
        np.testing.assert_allclose(exact.z[n], mean[n][order], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(exact.sums, exact.z - exact.z_counterpart, rtol=1e-3, atol=1e-6)
    assert explainer.deviating_latents(images, count=99).latents.shape == (5, 3)


def test_the_call_is_pure(run, explainer):
    """Jitted as it is, with other parameters: another answer, and no hidden state."""
    images = run[1].test.images[:2]
    other = jax.tree.map(lambda x: x * 1.5, explainer.variables)
    maps, scores = jax.jit(dataclasses.replace(explainer, variables=other).explain)(images)
    assert np.abs(scores - explainer(images)[1]).max() > 1e-3
    np.testing.assert_allclose(explainer(images)[0], by_hand(explainer, images), rtol=1e-3)
    assert maps.shape == (2, 28, 28)


def test_importing_stays_light():
    code = (
        "import sys, vae_attn.attention; "
        "heavy = {'flax', 'orbax', 'optax', 'PIL', 'matplotlib'} & set(sys.modules); "
        "names = {*vae_attn.__all__} - {'load', '__version__'}; assert names < {*dir(vae_attn)}; "
        "assert all(callable(getattr(vae_attn, name)) for name in names); "
        "heavy |= {'flax', 'orbax', 'optax', 'PIL', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy; assert callable(vae_attn.load); assert 'flax' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        vae_attn.lod  # noqa: B018


def test_no_run_and_no_calibration(run, copy, tmp_path):
    with pytest.raises(UserError, match=r"nowhere holds no run: train it first"):
        vae_attn.load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UserError, match="which='newest' must be best or latest"):
        vae_attn.load(copy, which="newest")
    path = copy / "calibration.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"calibration.npz is missing or broken .*--mode=evaluate"):
        vae_attn.load(copy)
    path.unlink()
    with pytest.raises(UserError, match=r"calibration.npz is missing or broken"):
        vae_attn.load(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="holds no checkpoint: train it first"):
        vae_attn.load(copy)
    (copy / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        vae_attn.load(copy)


def test_calibration_of_other_parameters_is_refused(copy, monkeypatch):
    monkeypatch.setattr(loading, "digest", lambda variables: "ffffffff")
    with pytest.raises(UserError, match=r"belongs to other parameters \(wanted: the best"):
        vae_attn.load(copy)


def test_several_runs_in_a_folder(run, copy):
    with pytest.raises(UserError, match=r"holds several runs \(run\), and one is needed"):
        vae_attn.load(copy.parent)
    path = copy / "config.json"
    kept = json.loads(path.read_text(encoding="utf-8")) | {"num_seeds": 2}
    path.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(UserError, match=r"holds several runs, and one is needed"):
        vae_attn.load(copy)
    kept |= {"num_seeds": 1, "data": kept["data"] | {"name": "dsprites", "image_size": 64}}
    kept |= {"model": kept["model"] | {"name": "dsprites"}}
    path.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(UserError, match="no image is abnormal: it has no calibration"):
        vae_attn.load(copy)


def test_a_config_that_is_not_the_runs_is_refused(run):
    """By the program: other training keys, and maps that the run was not calibrated for."""
    _, _, workdir = run
    other = tiny_config()
    other.model.latents = 5
    with pytest.raises(UserError, match=r"another config: model.latents \(there 3, now 5\)"):
        experiment.run(other, workdir, mode="export")
    other = tiny_config()
    other.attention.style = "paper"
    with pytest.raises(UserError, match=r"calibrated for contrast at conv1, conv2, calibration=up"):
        experiment.run(other, workdir, mode="export")
    other = tiny_config()
    other.num_seeds = 2
    with pytest.raises(UserError, match="holds several runs, and one is needed"):
        experiment.run(other, workdir, mode="export")
    assert not (workdir / "export").exists()


def test_loads_what_the_run_was_last_calibrated_for(copy):
    """As after an evaluation with other attention keys than those of config.json."""
    kept = Calibration.load(copy / "calibration.npz")
    kept = dataclasses.replace(kept, variant=Variant("contrast", ("conv2",)))
    kept.save(copy / "calibration.npz")
    explainer = vae_attn.load(copy)
    assert explainer.variant.name == "contrast/conv2"
    images = RNG.integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    raw = explainer.maps(images, styles=("contrast",), layers=("conv2",))["contrast", "conv2"]
    scale = kept.statistics["contrast", "conv2"].mean.mean()
    np.testing.assert_allclose(explainer(images)[0], raw / scale, rtol=1e-3)
