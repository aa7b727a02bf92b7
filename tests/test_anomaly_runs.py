"""Whole small runs on the twins of MVTec-AD and Ped1, and on a folder without masks."""

import json
import shutil

import numpy as np
import pixel_thresholds
import pytest
import sklearn.metrics
import small_models
import synthetic
from PIL import Image

from vae_attn.config import default_config
from vae_attn.data import sources
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly import frame_scores
from vae_attn.experiments.anomaly.calibration import variant_of
from vae_attn.experiments.anomaly.explainer import calibrate
from vae_attn.training import loop, objectives


def small_config(name, root, tmp_path, channels=3):
    config = small_models.use(default_config(), "shallow", size=32, channels=channels)
    config.data.name = name
    config.data.dir, config.data.cache_dir = str(root), str(tmp_path / "cache")
    config.data.validation_fraction = 0.2
    config.model.latents = 2
    config.train.batch_size = 8
    config.train.steps = 2
    config.attention.projection_steps = 0
    config.evaluate.styles = ("contrast",)
    config.evaluate.faithful_images = 0
    config.evaluate.layers = ("conv1",)
    return config


def own_size_auroc(images, maps):
    """By scikit-learn, of maps that Pillow enlarges to the masks' own size."""
    truths, scores = [], []
    for n, one in enumerate(maps):
        mask = images.full_mask(n)
        enlarged = Image.fromarray(one).resize(mask.shape[::-1], Image.Resampling.BILINEAR)
        truths.append(mask.ravel())
        scores.append(np.asarray(enlarged).ravel())
    return sklearn.metrics.roc_auc_score(np.concatenate(truths), np.concatenate(scores))


@pytest.fixture(scope="module")
def mvtec_twin(tmp_path_factory):
    root = tmp_path_factory.mktemp("twin") / "mvtec_ad"
    synthetic.write_mvtec_ad(root)
    shutil.rmtree(root / "carpet")
    return root


def explainer_of(config, variables, data):
    model, variant = objectives.build_model(config), variant_of(config.attention)
    return calibrate(model, variables, data.train, data.validation, variant=variant)


def metrics_of(workdir):
    return json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_all_categories_that_are_there(mvtec_twin, tmp_path, caplog):
    config = small_config("mvtec_ad", mvtec_twin, tmp_path)
    config.data.category = "all"
    workdir = tmp_path / "run"
    experiment.run(config, workdir, mode="train")
    assert not (workdir / "table.md").exists()
    config.evaluate.styles = ("paper", "contrast")
    config.evaluate.faithful_images = 0
    caplog.set_level("WARNING", "vae_attn")
    experiment.run(config, workdir, mode="evaluate")
    assert "which are skipped: bottle, cable, capsule, carpet, leather" in caplog.text
    table = (workdir / "table.md").read_text(encoding="utf-8")
    assert table.startswith("# 2 categories\n\n## Table 4 of the report, made again")
    assert "0.98 / 0.44" in table  # Liu et al. on the hazelnut
    assert "six defects" not in table
    for category in ("hazelnut", "grid"):
        kept = json.loads((workdir / category / "config.json").read_text(encoding="utf-8"))["data"]
        assert kept["category"] == category
        assert kept["mirror_vertical"]
        metrics = metrics_of(workdir / category)
        for row in ("contrast/conv1", "reconstruction_error/image"):
            cells = f"| MVTec-AD {category} | {row.replace('/', ' | ')} | "
            assert f"{cells}{metrics[f'{row}/pixel_auroc']:.3f} [" in table
            pair = [metrics[f"{row}/{name}"] for name in ("pixel_auroc", "best_iou_test")]
            line = next(line for line in table.splitlines() if line.startswith(f"| {category} |"))
            assert f"{pair[0]:.3f} / {pair[1]:.3f}" in line
    experiment.run(config, workdir, mode="explain")
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    assert "Table 4 of the report, made again" in page
    assert "data:image/png" in page
    assert page.count('href="../') == 2
    for category in ("hazelnut", "grid"):
        assert f'href="../{category}/report/index.html"' in page
        assert list((workdir / category / "report").glob("images-*/00000.js"))
    # A row of one image's defect, truth, two maps, four times over, for each of two categories.
    with Image.open(workdir / "figures" / "defects.png") as sheet:
        assert sheet.width > 4 * sheet.height
    # The scores once more by scikit-learn, of colour images with their masks.
    config.data.category = "hazelnut"
    data = sources.load(config)
    variables = loop.restore(config, workdir / "hazelnut", which="best").variables
    explainer = explainer_of(config, variables, data)
    maps = explainer.maps(data.test.images, styles=("contrast",), layers=("conv1",))
    maps = maps["contrast", "conv1"]
    expected = own_size_auroc(data.test, maps)
    metrics = metrics_of(workdir / "hazelnut")
    assert metrics["contrast/conv1/pixel_auroc"] == pytest.approx(expected, abs=2e-3)
    expected = sklearn.metrics.roc_auc_score(data.test.labels > 0, maps.max((1, 2)))
    assert metrics["contrast/conv1/image_auroc_max"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_calibration_comes_with_training_and_belongs_to_its_parameters(mvtec_twin, tmp_path):
    root = tmp_path / "grid"
    shutil.copytree(mvtec_twin / "grid", root)
    for path in sorted((root / "train" / "good").glob("*.png")):
        with Image.open(path) as image:
            for degrees in (90, 180, 270):
                image.rotate(degrees).save(path.with_stem(f"{path.stem}_{degrees}"))
    config = small_config("folder", root, tmp_path)
    # Enough images and active latents for a threshold.
    config.data.validation_fraction = 0.5
    config.train.steps, config.train.learning_rate, config.train.beta = 20, 1e-2, 1e-3
    config.attention.layer = "conv1"
    workdir = tmp_path / "run"
    experiment.run(config, workdir, mode="train")
    first = (workdir / "calibration.npz").read_bytes()
    experiment.run(config, workdir, mode="evaluate")
    assert (workdir / "calibration.npz").read_bytes() == first
    # Trained anew to the same step: other parameters, so another calibration.
    shutil.rmtree(workdir / "checkpoints")
    config.seed = 1
    experiment.run(config, workdir, mode="train")
    second = (workdir / "calibration.npz").read_bytes()
    assert second != first
    # Its threshold once more: of normal maps, each scaled by the mean of the others.
    data = sources.load(config)
    variables = loop.restore(config, workdir, which="best").variables
    explainer = explainer_of(config, variables, data)
    layer = ("contrast", config.attention.layer)
    raw = explainer.maps(data.validation, styles=layer[:1], layers=layer[1:])[layer]
    maps = [raw[n] / np.delete(raw, n, axis=0).mean() for n in range(len(raw))]
    expected = pixel_thresholds.by_hand(np.stack(maps))
    assert explainer.calibration.threshold == pytest.approx(expected, rel=0.02)
    assert explainer.calibration.pixels.images == len(raw)


def test_broken_categories_are_all_told_before_the_first_run(mvtec_twin, tmp_path):
    root = tmp_path / "mvtec_ad"
    shutil.copytree(mvtec_twin, root)
    shutil.copytree(root / "grid", root / "bottle")
    broken = [root / "hazelnut/test/good/000.png", root / "grid/train/good/003.png"]
    for path in broken:
        path.write_text("no image", encoding="utf-8")
    config = small_config("mvtec_ad", root, tmp_path)
    config.data.category = "all"
    with pytest.raises(UserError, match="2 of 3 data sets cannot be used") as caught:
        experiment.run(config, tmp_path / "run", mode="train")
    assert all(str(path) in str(caught.value) for path in broken)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_masks_without_a_masked_defect_still_end_in_a_page(mvtec_twin, tmp_path):
    root = tmp_path / "grid"
    shutil.copytree(mvtec_twin / "grid", root)
    for defect in ("hole", "scratch", "stain"):
        shutil.rmtree(root / "test" / defect)
        shutil.rmtree(root / "ground_truth" / defect)
    config = small_config("folder", root, tmp_path)
    experiment.run(config, tmp_path / "run", mode="all")
    assert (tmp_path / "run/report/index.html").exists()
    assert not (tmp_path / "run/figures/defects.png").exists()


@pytest.mark.slow
def test_folder_without_masks_is_scored_by_image(mvtec_twin, tmp_path):
    root = tmp_path / "grid"
    shutil.copytree(mvtec_twin / "grid", root)
    shutil.rmtree(root / "ground_truth")
    config = small_config("folder", root, tmp_path)
    experiment.run(config, tmp_path / "run", mode="all")
    metrics = metrics_of(tmp_path / "run")
    assert 0 <= metrics["contrast/conv1/image_auroc"] <= 1
    assert not [key for key in metrics if "pixel" in key or "iou" in key]
    drawn = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert drawn == {"classes", "normal", "latents", "training", "detection"}


@pytest.mark.slow
def test_ped1_pixels_on_clips_with_masks_frames_on_all(tmp_path):
    synthetic.write_ucsd_ped1(tmp_path / "twin")
    config = small_config("ucsd_ped1", tmp_path / "twin", tmp_path, channels=3)
    config.data.frames, config.evaluate.smooth_frames = 3, 2.0
    experiment.run(config, tmp_path / "run", mode="all")
    metrics = metrics_of(tmp_path / "run")
    data = sources.load(config)
    assert 0 < data.test.has_mask.sum() < len(data.test)
    variables = loop.restore(config, tmp_path / "run", which="best").variables
    explainer = explainer_of(config, variables, data)
    images = data.test.images
    maps = explainer.baseline_maps(images, explainer.counterparts(images))
    maps = maps["reconstruction_error", "image"]
    has = data.test.has_mask
    expected = own_size_auroc(data.test.take(has), maps[has])
    assert metrics["reconstruction_error/image/pixel_auroc"] == pytest.approx(expected, abs=2e-3)
    scores = explainer.image_scores(data.test.images)["kl"]
    expected = sklearn.metrics.roc_auc_score(np.asarray(data.test.labels) > 0, scores)
    assert metrics["kl/image/image_auroc"] == pytest.approx(expected, abs=1e-6)
    peaks = frame_scores.smoothed(maps.max(axis=(1, 2)), data.test.names, 2.0)
    expected = sklearn.metrics.roc_auc_score(np.asarray(data.test.labels) > 0, peaks)
    found = metrics["reconstruction_error/image/frame_auroc_smoothed"]
    assert found == pytest.approx(expected, abs=1e-6)
    for name in ("defects", "layers", "normal"):
        assert (tmp_path / "run" / "figures" / f"{name}.png").exists()
    page = (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    table = (tmp_path / "run" / "evaluation" / "table.md").read_text(encoding="utf-8")
    for text in (page, table):
        assert "Of 6 test clips 5 are scored, pixels on the 3 of them with masks" in text
        assert "Table 3 of the report, made again" in text
        assert "six defects" not in text
