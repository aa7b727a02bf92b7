"""A run's maps are chosen by anomalies drawn on its held-out images, and by nothing else."""

import dataclasses
import json

import numpy as np
import pytest
import small_data
from tiny_run import tiny_config

import vae_attn
from vae_attn.data import sources
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments import validation
from vae_attn.experiments.anomaly import evaluation, selection
from vae_attn.experiments.anomaly.calibration import Variant
from vae_attn.experiments.anomaly.selection import Selection

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 24, 24, 1), dtype=np.uint8)


def test_half_is_drawn_on_and_half_calibrates():
    data = dataclasses.replace(small_data.small_data(IMAGES), validation=IMAGES[:10])
    found = selection.drawn_data(data, seed=1)
    np.testing.assert_array_equal(found.validation, IMAGES[:5])
    test = found.test
    normal, drawn = test.take(test.labels == 0), test.take(test.labels == 1)
    np.testing.assert_array_equal(normal.images, IMAGES[5:10])
    assert not normal.masks.any()
    assert len(drawn) > 80
    assert drawn.masks.any(axis=(1, 2)).all()
    for image, mask in zip(drawn.images, drawn.masks, strict=True):
        # Outside of the mask it is one of the held-out images, whichever.
        same = [(image == base)[~mask].all() for base in normal.images]
        assert sum(same) == 1
        base = normal.images[same.index(True)]
        assert (np.abs(image.astype(int) - base)[mask] > 6).all()
    many = dataclasses.replace(data, validation=np.concatenate([IMAGES] * 20))
    assert len(selection.drawn_data(many, seed=1).test) < 3 * 96
    again, other = (selection.drawn_data(data, seed=seed).test.images for seed in (1, 2))
    np.testing.assert_array_equal(again, test.images)
    assert other.shape != again.shape or (other != again).any()
    few = dataclasses.replace(data, validation=IMAGES[:3])
    with pytest.raises(UserError, match=r"evaluate.select: 3 held-out images are too few"):
        selection.drawn_data(few, seed=1)


def test_the_best_is_taken_and_kept(tmp_path):
    variants = [
        Variant("paper", ("a",)),
        Variant("contrast", ("a", "b"), "z"),
        Variant("x", ("a",)),
    ]
    scores = {"paper/a/average_precision": 0.2, "contrast/fused.z/average_precision": 0.5}
    scores |= {"x/a/average_precision": 0.5, "median_difference/image/average_precision": 0.9}
    scores |= {"paper/a/aupro": 1.0, "paper/a/pixel_auroc": 0.7}
    found = Selection.of(variants, scores, {"seed": 1})
    assert found.variant == variants[1]
    assert found.keys == {"style": "contrast", "layers": ("a", "b"), "calibration": "z"}
    assert found.scores["median_difference/image/drawn_average_precision"] == 0.9
    assert found.scores["paper/a/drawn_pixel_auroc"] == 0.7
    assert not [name for name in found.scores if "aupro" in name]
    path = tmp_path / "selection.json"
    assert Selection.load(path) is None
    found.save(path)
    assert Selection.load(path) == found
    for broken in ("{", "[]", json.dumps({"variant": {}}), path.read_text(encoding="utf-8")[:99]):
        path.write_text(broken, encoding="utf-8")
        assert Selection.load(path) is None


def test_rank_correlation_by_hand():
    drawn, real = RNG.permutation(np.arange(12.0)), RNG.permutation(np.arange(12.0))
    drawn[3] = drawn[4]  # a tie takes the mean of its ranks
    scores = {f"s/{n}/average_precision": value for n, value in enumerate(real.tolist())}
    scores |= {f"s/{n}/drawn_average_precision": value for n, value in enumerate(drawn.tolist())}
    scores |= {"s/99/drawn_average_precision": 5.0, "s/0/drawn_pixel_auroc": 0.5}

    def ranks(values):
        return [(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values]

    expected = np.corrcoef(ranks(drawn), ranks(real))[0, 1]
    found = selection.rank_correlations(scores)
    assert found == {"average_precision": (pytest.approx(expected), 12)}
    assert f"{expected:.2f} by average precision (12 maps)" in selection.described(scores)
    assert selection.described({"s/0/average_precision": 0.5}) == ""


def select_config():
    config = tiny_config()
    config.evaluate.select = True
    config.evaluate.styles, config.evaluate.faithful_images = ("paper", "contrast"), 0
    config.evaluate.max_images = 20
    return config


@pytest.mark.slow
def test_a_run_chooses_before_the_test_set_is_opened(tmp_path, monkeypatch, caplog):
    config, workdir = select_config(), tmp_path / "run"
    data, scored = sources.load(config), []
    evaluate = evaluation.evaluate

    def watched(explainer, data, **options):
        scored.append(data.test.class_names)
        return evaluate(explainer, data, **options)

    monkeypatch.setattr(evaluation, "evaluate", watched)
    monkeypatch.setattr(sources, "load", lambda config: data)
    experiment.run(config, workdir, mode="train")
    assert scored == [("held out", "drawn")]
    kept = Selection.load(workdir / "selection.json")
    best = max(
        (name for name in kept.scores if name.startswith(("paper", "contrast"))),
        key=lambda name: kept.scores[name] if name.endswith("drawn_average_precision") else -1,
    )
    assert best == f"{kept.variant.name}/drawn_average_precision"
    assert vae_attn.load(workdir).variant == kept.variant
    # Scored with what was chosen, which is not chosen again.
    caplog.set_level("INFO", "vae_attn")
    experiment.run(config, workdir, mode="evaluate")
    assert len(scored) == 2
    assert scored[1] == data.test.class_names
    assert f"chosen by drawn anomalies: {kept.variant.name}" in caplog.text
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics[best] == kept.scores[best]
    rho, count = selection.rank_correlations(metrics)["average_precision"]
    table = (workdir / "evaluation" / "table.md").read_text(encoding="utf-8")
    for text in (table, caplog.text):
        assert f"{rho:.2f} by average precision ({count} maps)" in text
    assert "AP, drawn" in table


def test_what_cannot_be_chosen_is_refused():
    config = select_config()
    config.attention.layers = ("conv1",)
    with pytest.raises(UserError, match=r"empty or equal to evaluate\.layers with"):
        validation.validate(config)
