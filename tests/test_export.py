"""The exported file, in an interpreter that cannot import this package."""

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
import sysconfig

import jax
import numpy as np
import pytest
from tiny_run import trained

import vae_attn
from vae_attn import workdir_scores
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly import export
from vae_attn.experiments.anomaly.calibration import MapStatistics, Variant
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.workdir_scores import Scored

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)

# As the README shows it. Run with -S, so that no .pth file makes an editable install importable.
WITHOUT_THE_PACKAGE = """
import sys
sys.path.append({packages!r})
try:
    import vae_attn
except ImportError:
    pass
else:
    raise SystemExit("the package can be imported")

import numpy as np
from jax import export

with open({file!r}, "rb") as file:
    attend = export.deserialize(bytearray(file.read()))
images = np.load({images!r})
maps, scores = attend.call(images)

one = attend.call(images[:1])
with open({latent_maps!r}, "rb") as file:
    attribute = export.deserialize(bytearray(file.read()))
found = attribute.call(images)
np.savez({latent_results!r}, maps=found[0], z=found[1], z_counterpart=found[2])
assert "vae_attn" not in sys.modules and "flax" not in sys.modules
np.savez({results!r}, maps=maps, scores=scores, map=one[0], score=one[1])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        workdir = tmp_path_factory.mktemp("runs") / "tiny"
        config, _ = trained(patch, workdir)
        config.attention.export_latents = True
        scores = {"contrast/fused.upper/pixel_auroc": 0.75, "paper/conv1/pixel_auroc": 0.5}
        parameters = vae_attn.load(workdir).calibration.parameters
        workdir_scores.write(workdir, scores, Scored.of([3], [parameters], config))
        (workdir / "card.md").write_text("# Model card", encoding="utf-8")
        experiment.run(config, workdir, mode="export")
        yield config, workdir


@pytest.mark.slow
def test_in_an_environment_without_this_package(run, tmp_path):
    _, workdir = run
    np.save(tmp_path / "images.npy", IMAGES)
    code = WITHOUT_THE_PACKAGE.format(
        packages=sysconfig.get_path("purelib"),
        file=str(workdir / "export" / "attention.stablehlo"),
        latent_maps=str(workdir / "export" / "latent_maps.stablehlo"),
        images=str(tmp_path / "images.npy"),
        results=str(tmp_path / "results.npz"),
        latent_results=str(tmp_path / "latents.npz"),
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, cwd=tmp_path)
    explainer = vae_attn.load(workdir)
    maps, scores = explainer(IMAGES)
    with np.load(tmp_path / "results.npz") as found:
        np.testing.assert_allclose(found["maps"], maps, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["scores"], scores, rtol=1e-4)
        np.testing.assert_allclose(found["map"], maps[:1], rtol=1e-4, atol=1e-5)
        assert found["score"].shape == (1,)
    with np.load(tmp_path / "latents.npz") as found:
        change = found["z"] - found["z_counterpart"]
        assert np.abs(change).max() > 1e-2
        sums, scale = found["maps"].sum(axis=(2, 3), dtype=np.float64), np.abs(change).max()
        np.testing.assert_allclose(sums, change, rtol=1e-4, atol=1e-4 * scale)
        every = np.broadcast_to(np.arange(explainer.model.latents), change.shape)
        exact = explainer.exact_maps(IMAGES, explainer.counterparts(IMAGES), every)
        np.testing.assert_allclose(found["maps"], exact.maps, rtol=1e-3, atol=1e-5 * scale)
        np.testing.assert_allclose(found["z"], explainer.encode(IMAGES)[0], rtol=1e-4, atol=1e-6)


def test_the_card_tells_how_to_use_it(run):
    _, workdir = run
    folder = workdir / "export"
    names = ["attention.stablehlo", "card.json", "card.md", "latent_maps.stablehlo"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "card.md").read_text(encoding="utf-8") == "# Model card"
    card, explainer = (
        json.loads((folder / "card.json").read_text(encoding="utf-8")),
        vae_attn.load(workdir),
    )
    content = (folder / "attention.stablehlo").read_bytes()
    assert card["sha256"] == hashlib.sha256(content).hexdigest()
    of_latents = (folder / card["latent_maps"]["file"]).read_bytes()
    assert card["latent_maps"]["sha256"] == hashlib.sha256(of_latents).hexdigest()
    assert card["latent_maps"]["style"] == "deeplift"
    assert card["latent_maps"]["output"]["maps"]["shape"] == [
        "batch",
        explainer.model.latents,
        28,
        28,
    ]
    assert card["input"]["shape"] == ["batch", 28, 28, 1]
    assert card["input"]["dtype"] == "uint8"
    assert card["output"]["maps"]["threshold"] == explainer.calibration.threshold
    assert card["output"]["scores"]["threshold"] == explainer.calibration.image_threshold
    assert card["attention"]["layers"] == ["conv1", "conv2"]
    assert card["data"]["dir"] == "data"
    assert card["output"]["scores"]["held_out_normal_images"] > 0
    assert "% of normal images" in card["output"]["scores"]["threshold_meaning"]
    assert card["metrics"] == {"pixel_auroc": 0.75}
    assert card["platforms"] == ["cpu", "cuda", "tpu"]
    assert card["versions"]["jax"] == jax.__version__
    assert card["data"]["name"] == "digits"
    assert str(pathlib.Path.home()) not in json.dumps(card)  # no path of the machine leaves it
    assert "data.dir" not in json.dumps(card)


@pytest.mark.parametrize("style", ["paper", "normal_difference", "feature_difference"])
@pytest.mark.parametrize("latent_batch_size", [None, 2])
def test_every_style_is_exported_for_a_batch_of_any_size(run, style, latent_batch_size):
    loaded = vae_attn.load(run[1])
    statistics = MapStatistics.of(np.ones((28, 28), np.float32), np.zeros((28, 28), np.float32))
    calibration = dataclasses.replace(
        loaded.calibration,
        variant=Variant(style, ("conv1",), "z"),
        statistics={(style, "conv1"): statistics},
    )
    explainer = Explainer.of(
        loaded.model, loaded.variables, calibration, latent_batch_size=latent_batch_size
    )
    exported = jax.export.deserialize(export.export(explainer).serialize())
    expected = explainer(IMAGES)
    for n in (1, 5):
        maps, scores = exported.call(IMAGES[:n])
        np.testing.assert_allclose(maps, expected[0][:n], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(scores, expected[1][:n], rtol=1e-3, atol=1e-3)


def test_broken_scores_are_told(run):
    config, workdir = run
    path = workdir / "evaluation" / "metrics.json"
    before = path.read_text(encoding="utf-8")
    for content in ('{"contrast/conv1/pixel_auroc": 0.', "[]", '{"a": null}'):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"metrics.json cannot be read .* writes it anew"):
            experiment.run(config, workdir, mode="export")
    path.write_text(before, encoding="utf-8")


def test_scores_of_another_model_are_not_on_the_card(run, caplog):
    config, workdir = run
    before = workdir_scores.of_run(workdir)
    assert before.scores
    scored = dataclasses.replace(before.scored, parameters=("other",))
    workdir_scores.write(workdir, before.scores, scored)
    experiment.run(config, workdir, mode="export")
    card = json.loads((workdir / "export" / "card.json").read_text(encoding="utf-8"))
    assert card["metrics"] == {}
    assert not (workdir / "export" / "card.md").exists()
    assert "are of another model, that of step 3: --mode=eval" in card["metrics_missing"]
    assert card["metrics_missing"] in caplog.text
    workdir_scores.write(workdir, before.scores, before.scored)
    experiment.run(config, workdir, mode="export")


def test_what_was_exported_stays_whole(run, monkeypatch):
    """A disk that is full in the middle of a file leaves the file that was there."""
    config, workdir = run
    folder = workdir / "export"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        experiment.run(config, workdir, mode="export")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_latent_maps_are_written_only_where_they_are_wanted(run):
    config, workdir = run
    config = config.copy_and_resolve_references()
    config.attention.export_latents = False
    experiment.run(config, workdir, mode="export")
    folder = workdir / "export"
    names = ["attention.stablehlo", "card.json", "card.md"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert "latent_maps" not in json.loads((folder / "card.json").read_text(encoding="utf-8"))
