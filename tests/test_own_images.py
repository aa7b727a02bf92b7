"""Files of one's own, explained by a trained run that has lost its data."""

import dataclasses
import json
import logging
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_run import trained

import vae_attn
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly import own_images, thresholds
from vae_attn.experiments.anomaly.calibration import Calibration

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        workdir = tmp_path_factory.mktemp("runs") / "tiny"
        config, _ = trained(patch, workdir)
        yield config, workdir


@pytest.fixture
def photos(tmp_path):
    """Seven images of several sizes and kinds, two of which share a stem, and two broken ones."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, shape in {
        "a.png": (30, 50),
        "a.jpg": (30, 50, 3),
        "b.tif": (28, 28),
        "more/a.png": (64, 20, 3),
        "more/c.png": (1500, 1400),  # more than one strip of an overlay
        "more/d.png": (5, 9, 4),
        "more/[e].png": (28, 28),
    }.items():
        Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "more" / "text.png").write_text("no image", encoding="utf-8")
    (folder / "notes.txt").write_text("ignored in a folder", encoding="utf-8")
    (folder / ".hidden.png").write_text("likewise", encoding="utf-8")
    return folder


def test_other_formats_are_found_and_the_rest_is_named(photos, caplog):
    for name in ("a.webp", "b.GIF", "more/c.pgm"):
        Image.new("L", (4, 4)).save(photos / name)
    found = [str(path.relative_to(photos)) for path in own_images.find(str(photos))]
    assert {"a.webp", "b.GIF", "more/c.pgm"} < set(found)
    assert len(found) == 12
    (message,) = caplog.messages
    assert message.startswith("1 file is no image and was skipped: notes.txt (images are png, ")
    for n in range(6):
        (photos / f"more/{n}.csv").write_text("", encoding="utf-8")
    caplog.clear()
    own_images.find(str(photos))
    (message,) = caplog.messages
    assert "7 files are no images and were skipped: 0.csv, 1.csv, 2.csv, 3.csv" in message
    caplog.clear()
    own_images.find(str(photos / "*.png"))
    assert not caplog.messages


def rows_of(workdir):
    lines = (workdir / "explained" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def explain(run, images):
    experiment.run(run[0], run[1], mode="explain", images=str(images))
    return rows_of(run[1])


def test_a_folder_of_all_kinds(run, photos, caplog):
    """Seven are explained in two batches, the broken ones reported at the end."""
    caplog.set_level(logging.INFO, "vae_attn")
    with pytest.raises(
        UserError, match="2 of 9 images could not be explained, the others"
    ) as raised:
        explain(run, photos)
    assert str(photos / "broken.png") in str(raised.value)
    assert str(photos / "more" / "text.png") in str(raised.value)
    rows = rows_of(run[1])
    names = ["a.jpg", "a.png", "b.tif", "more/[e].png", "more/a.png", "more/c.png", "more/d.png"]
    assert [row["image"] for row in rows] == [str(photos / name) for name in names]
    folder, explainer = run[1] / "explained", vae_attn.load(run[1])
    stems = [row["files"]["overlay"].removesuffix("_overlay.png") for row in rows]
    # Two share a stem in the upper folder: whole names there, and stems in the other.
    expected = ["a.jpg", "a.png", "b.tif", "more/[e]", "more/a", "more/c", "more/d"]
    assert stems == expected
    threshold = explainer.calibration.image_threshold
    for row in rows:
        with Image.open(row["image"]) as opened:
            size, picture = opened.size, opened
            if "A" in picture.getbands():
                white = Image.new("RGBA", size, "white")
                picture = Image.alpha_composite(white, picture).convert("RGB")
            resized = picture.convert("L").resize((28, 28), Image.Resampling.LANCZOS)
        image = np.asarray(resized)[None, ..., None]
        (expected,), (score,) = explainer(image)
        assert row["score"] == pytest.approx(score, rel=1e-4)
        assert row["threshold"] == threshold
        assert row["abnormal"] == (score > threshold)
        files = {kind: folder / name for kind, name in row["files"].items()}
        found = np.load(files["map_values"])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        with Image.open(files["map"]) as grey:
            assert grey.mode == "I;16"
            values = np.asarray(grey).astype(np.float64) * row["map_scale"] / 65535
        np.testing.assert_allclose(values, found, atol=row["map_scale"] / 65535)
        latents = explainer.deviating_latents(image, count=8)
        assert [one["latent"] for one in row["latents"]] == latents.latents[0].tolist()
        assert [one["deviation"] for one in row["latents"]] == pytest.approx(
            latents.deviations[0].tolist(), rel=1e-3
        )
        counterpart = explainer.counterparts(image)
        exact = explainer.exact_maps(image, counterpart, latents.latents)
        signed = np.load(files["latent_maps_values"])
        np.testing.assert_allclose(signed, exact.maps[0], rtol=1e-2, atol=1e-5)
        for place, one in enumerate(row["latents"]):
            change = one["z"] - one["z_counterpart"]
            assert one["map_sum"] == pytest.approx(change, rel=1e-3, abs=1e-5)
            assert one["map_sum"] == pytest.approx(signed[place].sum(), rel=1e-3, abs=1e-5)
            assert one["z"] == pytest.approx(exact.z[0, place], rel=1e-3, abs=1e-5)
        with Image.open(files["overlay"]) as overlay:
            assert overlay.size == size
        with Image.open(files["latents"]) as latents:
            side = latents.height - 2 * 16  # two lines over each
            assert latents.width == (2 + 3) * side  # image, counterpart, three latents
    assert not list(folder.rglob("*.tmp"))
    abnormal = sum(row["abnormal"] for row in rows)
    assert f"{abnormal} of 7 images abnormal" in caplog.text


def test_the_decision_is_at_the_threshold_of_images(run, photos, tmp_path):
    config, workdir = run
    scores = sorted(row["score"] for row in explain(run, photos / "more" / "[!t]*.png"))
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    kept = Calibration.load(copy / "calibration.npz")
    middle = (scores[1] + scores[2]) / 2
    decided = dataclasses.replace(kept.images, value=middle)
    of_pixels = dataclasses.replace(kept.pixels, value=0.0)
    dataclasses.replace(kept, images=decided, pixels=of_pixels).save(copy / "calibration.npz")
    rows = explain((config, copy), photos / "more" / "[!t]*.png")
    assert [row["abnormal"] for row in rows] == [row["score"] > middle for row in rows]
    assert sum(row["abnormal"] for row in rows) == 2
    assert rows[0]["pixel_threshold"] == 0
    assert rows[0]["pixel_threshold_share"] == 0.01  # of an image's pixels, which may reach it
    assert rows[0]["held_out_normal_images"] == kept.images.images
    assert rows[0]["false_alarm_rate_interval"] == [kept.images.low, kept.images.high]


def test_too_few_normal_images_decide_nothing(run, photos, tmp_path, caplog):
    config, workdir = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    kept = Calibration.load(copy / "calibration.npz")
    few = thresholds.of_images(np.ones(12))
    dataclasses.replace(kept, images=few).save(copy / "calibration.npz")
    rows = explain((config, copy), photos / "more" / "[!t]*.png")
    assert [row["abnormal"] for row in rows] == [None] * len(rows)
    assert rows[0]["threshold"] is None
    reason = (
        "12 held-out normal images cannot carry a false-alarm rate of 5% of images: at least 19 "
    )
    assert reason in rows[0]["not_decided"]
    assert reason in caplog.text


def test_the_overlay_is_coloured_where_the_map_is_high():
    image = np.full((200, 9000, 1), 120, np.uint8)  # in two strips
    map_ = np.zeros((28, 28), np.float32)
    map_[:14] = 2.0
    found = own_images._overlay(image, map_, 2.0).astype(int)
    assert found.shape == (200, 9000, 3)
    assert np.ptp(found[150:], axis=2).max() == 0  # grey below
    assert np.ptp(found[:80], axis=2).min() > 50
    assert (found == found[:, :1]).all()


def test_one_file_a_pattern_and_a_rerun(run, photos):
    one = explain(run, photos / "more" / "[e].png")  # a name that is a pattern too
    assert [row["files"]["overlay"] for row in one] == ["[e]_overlay.png"]
    rows = explain(run, photos / "**" / "[ac].png")
    expected = ["a.png", "more/a.png", "more/c.png"]
    assert [row["image"] for row in rows] == [str(photos / name) for name in expected]
    assert [row["files"]["map"] for row in rows] == [
        "a_map.png",
        "more/a_map.png",
        "more/c_map.png",
    ]
    before = (run[1] / "explained" / "a_map.npy").read_bytes()
    Image.fromarray(np.zeros((30, 50), np.uint8)).save(photos / "a.png")
    explain(run, photos / "a.png")
    assert (run[1] / "explained" / "a_map.npy").read_bytes() != before


def test_a_named_file_that_is_no_image_is_reported(run, photos):
    with pytest.raises(UserError, match=r"1 of 3 .*\n  .*notes.txt: its content is no png"):
        explain(run, photos / "[abn]*[.jt][ipx][fgt]")
    assert len(rows_of(run[1])) == 2


@pytest.mark.parametrize("images", ["", "nowhere/*.png", "empty"])
def test_nothing_to_explain(run, tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("empty").mkdir()
    with pytest.raises(UserError, match=f"--images={images}".replace("*", r"\*") + " matches no"):
        explain(run, images)


def test_a_folder_that_cannot_be_written(run, photos, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(own_images, "FOLDER", str(tmp_path / "file" / "x"))
    with pytest.raises(UserError, match="cannot be read or written"):
        explain(run, photos / "b.tif")


def test_deep_images_are_scaled_as_the_training_images_were(run, tmp_path):
    """12 bits in a file of 16: with the levels of the run's data they are what 8 bits show."""
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    record = json.loads((workdir / "data.json").read_text(encoding="utf-8"))
    record["levels"] = [0, 4080]
    (tmp_path / "run" / "data.json").write_text(json.dumps(record), encoding="utf-8")
    shallow = RNG.integers(0, 256, (28, 28), dtype=np.uint8)
    for name, image in (("a8", shallow), ("b12", shallow.astype(np.uint16) * 16)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    first, second = explain((config, tmp_path / "run"), tmp_path / "[ab]*.png")
    assert second["score"] == pytest.approx(first["score"], rel=1e-5)
