"""A run's card: what stands in it is what the run has."""

import dataclasses
import json
import re

import numpy as np
import pytest
from small_data import small_data

import vae_attn
from vae_attn.config import default_config
from vae_attn.data.factor_grid import FactorData, FactorGrid
from vae_attn.experiments import model_card
from vae_attn.experiments.anomaly import loading, published
from vae_attn.experiments.anomaly.calibration import Calibration, MapStatistics, Variant
from vae_attn.experiments.anomaly.experiment import AnomalyExperiment
from vae_attn.experiments.anomaly.thresholds import Threshold
from vae_attn.experiments.disentanglement.experiment import DisentanglementExperiment
from vae_attn.workdir import DataRecord

TRUE = {
    f"faithfulness/{kind}/{measure}": value
    for kind, values in {"deeplift/image": (0.99, 0.98), "paper/conv1": (0.12, 0.06)}.items()
    for measure, value in zip(("correlation", "which_latent"), values, strict=True)
}
NAME = "contrast/fused.upper"
SCORES = TRUE | {
    f"{NAME}/pixel_auroc": 0.9512,
    f"{NAME}/pixel_auroc_low": 0.9423,
    f"{NAME}/pixel_auroc_high": 0.9634,
    f"{NAME}/best_iou_test": 0.41,
    f"{NAME}/image_auroc_max": 0.875,
}


@pytest.fixture
def bottle(tmp_path):
    config = default_config()
    config.data.name, config.data.category, config.train.steps = "mvtec_ad", "bottle", 77
    config.attention.layers = config.evaluate.layers = ("conv1", "conv2")
    config.attention.calibration = "upper"
    config.report.tensorboard_images = 0
    data = dataclasses.replace(small_data(np.zeros((9, 28, 28, 1), np.uint8)), name="a | b")
    data = dataclasses.replace(data, missing=("masks are missing",))
    record = DataRecord.of(data, "photos")
    kept = dataclasses.asdict(record) | {"levels": [0, 65535]}
    (tmp_path / "data.json").write_text(json.dumps(kept), encoding="utf-8")
    return AnomalyExperiment(config, data), config, tmp_path, record


def sections(path):
    text = path.read_text(encoding="utf-8")
    return dict(part.split("\n", 1) for part in text.split("\n## ")[1:])


def rows(section):
    found = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return dict(row for row in found[2:] if len(row) == 2)


def test_of_a_run_on_normal_images(bottle):
    experiment, config, workdir, record = bottle
    threshold = Threshold(1.25, rate=0.05, images=40, low=0.01, high=0.13)
    statistics = MapStatistics.measure([np.ones((2, 4, 4), np.float32)])
    Calibration(
        parameters="none",
        variant=Variant("contrast", ("conv1",), "upper"),
        projection_steps=0,
        normal_mean=np.zeros(3, np.float32),
        normal_variance=np.ones(3, np.float32),
        statistics={("contrast", "conv1"): statistics},
        pixels=Threshold(None, missing="5 images are too few"),
        images=threshold,
    ).save(workdir / loading.CALIBRATION)
    card = sections(model_card.write(experiment, config, workdir, SCORES, "70"))
    made = rows(card["Data and model"])
    assert made["fingerprint of both"] == record.fingerprint
    assert made["data"] == r"a \| b"
    assert (made["images to train on"], made["images held out"]) == ("9", "5")
    assert made["checkpoint"] == "step 70"
    assert f"vae_attn {vae_attn.__version__}," in made["made with"]
    keys = rows(card["Config"])
    assert keys["train.steps"] == "77"
    assert keys["data.category"] == '"bottle"'
    assert "train.learning_rate" not in keys  # as the default
    main = rows(card["Main scores"])
    assert main[f"pixel_auroc/{NAME}"] == "0.951 [0.942, 0.963]"
    assert main[f"image_auroc_max/{NAME}"] == "0.875"
    theirs = published.TABLE_4_LIU_RECALLED["bottle"][0]
    assert f"{theirs:.2f}" in card["Table 4 of the report, made again"]
    truth = card["Is the map true of its latent?"]
    assert re.search(r"^\| deeplift \| image \| 0.990 ", truth, flags=re.M)
    limits = card["Limits"]
    assert "An image counts as abnormal above 1.25, which at most 5% of normal images" in limits
    assert "A pixel gets no decision: 5 images are too few." in limits
    assert "Not scored: masks are missing." in limits


def test_of_a_grid_of_factors(tmp_path):
    config = default_config()
    config.data.name, config.model.name, config.data.image_size = "dsprites", "dsprites", 64
    config.report.tensorboard_images = 0
    grid = FactorGrid(names=("x",), values=((0, 1),))
    data = FactorData("two", grid, np.zeros((2, 64, 64, 1), np.uint8))
    (tmp_path / "data.json").write_text(
        '{"fingerprint": "f", "train": 2, "validation": 2, "name": "two", "dir": "d"}',
        encoding="utf-8",
    )
    experiment = DisentanglementExperiment(config, data)
    card = sections(model_card.write(experiment, config, tmp_path, TRUE | {"factor_vae": 0.7}, "5"))
    assert re.search(r"factor_vae \| 0.700", card["Main scores"])
    assert "about .82 (recalled)" in card["Scores"]
    assert "A random rotation of the true factors" in card["Limits"]
