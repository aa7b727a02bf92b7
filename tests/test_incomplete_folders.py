"""Folders with only some kinds of test images give what they can, and say what they cannot."""

import json
import shutil

import pytest
from test_workdir_data import config_for, write_images

from vae_attn.experiments import run as experiment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on normal images alone: 40 to learn from, half of them held out."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "images" / "train" / "good", 44, seed=0)
    experiment.run(configured(root), root / "run", mode="train")
    return root


def configured(root):
    config = config_for(root / "images")
    config.data.validation_fraction = 0.5
    config.report.tensorboard_images = 2
    config.evaluate.styles = ("contrast",)
    config.evaluate.faithful_images = 0
    return config


def run_with(trained, root, kinds, mode="all"):
    """The same run, with other test images beside."""
    shutil.copytree(trained, root, dirs_exist_ok=True)
    for n, kind in enumerate(kinds):
        write_images(root / "images" / "test" / kind, 6, seed=n + 1)
    experiment.run(configured(root), root / "run", mode=mode)
    metrics = json.loads((root / "run" / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    table = (root / "run" / "evaluation" / "table.md").read_text(encoding="utf-8")
    page = (root / "run" / "report" / "index.html").read_text(encoding="utf-8")
    figures = {path.stem for path in (root / "run" / "figures").glob("*.png")}
    return metrics, table, page, figures


def test_normal_images_alone_train_calibrate_and_explain(trained, tmp_path, caplog):
    caplog.set_level("INFO", "vae_attn")
    metrics, table, page, figures = run_with(trained, tmp_path, ())
    assert metrics.keys() == {"active_latents/image/count"}
    assert "no image is scored, as there are no test images" in caplog.text
    before = caplog.text.index("no image is scored")
    assert before < caplog.text.index("scores:")
    assert "no image is scored, as there are no test images" in table
    assert figures == {"normal", "latents", "training"}
    assert '"split": "validation"' in page
    assert '"flagged": ' in page
    photo = next((tmp_path / "images" / "train" / "good").iterdir())
    experiment.run(configured(tmp_path), tmp_path / "run", mode="explain", images=str(photo))
    (row,) = (
        (tmp_path / "run" / "explained" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert json.loads(row)["abnormal"] in (True, False, None)


def test_good_test_images_alone_give_the_false_alarm_rate(trained, tmp_path):
    metrics, table, _, _ = run_with(trained, tmp_path, ("good",))
    assert not [key for key in metrics if "auroc" in key or "iou" in key]
    name = "reconstruction_error/image.z/false_alarm_rate"
    rate = metrics[name]
    assert rate in [n / 6 for n in range(7)]
    assert metrics[f"{name}_low"] <= rate <= metrics[f"{name}_high"]
    assert metrics[f"{name}_high"] > 0.4  # of six images
    assert "only the false alarms are counted" in table


def test_defects_alone_give_no_image_scores(trained, tmp_path):
    metrics, table, _, figures = run_with(trained, tmp_path, ("scratch",))
    assert metrics.keys() == {"active_latents/image/count"}
    assert "pixels are not scored" in table
    assert "classes" in figures
