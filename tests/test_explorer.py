"""The explorer's files say what the explainer says, whatever the images are called."""

import json
import re

import explorer_runs
import numpy as np
import pixel_thresholds
import pytest
from PIL import Image

from vae_attn.errors import UserError
from vae_attn.experiments.anomaly import evaluation as anomaly
from vae_attn.experiments.anomaly import explorer
from vae_attn.experiments.validation import validate
from vae_attn.reporting import page
from vae_attn.reporting.explorer import files as explorer_files


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page: its folder, what it knows, the explainer and the data."""
    folder = tmp_path_factory.mktemp("run")
    data = explorer_runs.data_of()
    path, known, explainer = explorer_runs.write(folder, data)
    return path.parent, known, explainer, data


def records_of(known, split):
    return [record for record in known["images"] if record["split"] == split]


def exact_maps(explainer, known, images):
    """All kinds of maps of images, computed the explainer's way."""
    raw = explainer.maps(images, styles=("contrast", "paper"), layers=("conv1", "conv2"))
    error = np.abs(0.25 - images / 255).mean(axis=3)
    made = []
    for kind in known["maps"]:
        if kind["own"]:
            made.append(explainer(images)[0])
        elif kind["layer"] == "fused":
            normal = explorer_runs.data_of().validation
            of = explainer.maps(normal, styles=(kind["style"],), layers=("conv1", "conv2"))
            layers = [raw[key] / of[key].mean() for key in of]
            made.append(np.mean(layers, axis=0))
        elif kind["style"] == "reconstruction_error":
            normal = explorer_runs.data_of().validation
            made.append(error / np.abs(0.25 - normal / 255).mean(axis=3).mean())
        else:
            key = kind["style"], kind["layer"]
            normal = explorer_runs.data_of().validation
            of = explainer.maps(normal, styles=key[:1], layers=key[1:])
            made.append(raw[key] / of[key].mean())
    return np.stack(made, axis=1)


def test_maps_masks_and_pictures_decode_to_what_they_were(written):
    folder, known, explainer, data = written
    styles = [(kind["style"], kind["layer"]) for kind in known["maps"]]
    assert styles == [
        ("contrast", "fused.ratio"), ("contrast", "conv1"), ("contrast", "conv2"),
        ("paper", "fused"), ("paper", "conv1"), ("paper", "conv2"),
        ("reconstruction_error", "image"),
    ]  # fmt: skip
    expected = exact_maps(explainer, known, data.test.images)
    for n, record in enumerate(records_of(known, "test")):
        shown = explorer_runs.read(folder / known["folder"], known, record["id"])
        for kind, levels, step, peak, exact in zip(
            known["maps"], shown["maps"], shown["steps"], shown["peaks"], expected[n], strict=True
        ):
            # Steps are widened a little, to make the threshold a whole number of them.
            finest = exact.max() / 255
            whole = kind["threshold"] // finest
            assert step <= 1.001 * finest * (1 + 1 / whole)
            np.testing.assert_allclose((levels + 0.5) * step, exact, atol=0.502 * step)
            np.testing.assert_array_equal(
                levels >= round(kind["threshold"] / step), exact >= kind["threshold"]
            )
            assert exact[peak[1], peak[0]] == exact.max()
        np.testing.assert_array_equal(shown["mask"], data.test.masks[n])
        picture = explorer_runs.pixels_of(shown["image"])
        np.testing.assert_array_equal(picture, data.test.images[n])
        assert set(explorer_runs.pixels_of(shown["reconstruction"]).ravel().tolist()) == {64}
        with Image.open(folder / known["folder"] / f"{record['id']}.png") as thumbnail:
            assert thumbnail.size == (2 * explorer_runs.WIDTH, explorer_runs.HEIGHT)
            left = np.asarray(thumbnail)[:, : explorer_runs.WIDTH]
        np.testing.assert_array_equal(left, data.test.images[n])


def test_latents_come_by_their_deviation(written):
    folder, known, explainer, data = written
    mean, _ = explainer.encode(data.test.images)
    deviation = mean / np.sqrt(2)  # of a variance of 1 against one of 1
    images, counterparts = data.test.images, explainer.counterparts(data.test.images)
    deviation_maps = explainer.deviation_maps(images, counterparts)
    for n, record in enumerate(records_of(known, "test")):
        shown = explorer_runs.read(folder / known["folder"], known, record["id"])
        latents = shown["latents"]
        whole, *order = latents["order"]
        assert whole is None
        assert sorted(order) == list(range(explorer_runs.LATENTS))
        of = deviation[n, order]
        assert np.all(np.diff(np.abs(of)) <= 1e-6)
        np.testing.assert_allclose(latents["deviations"][1:], of, rtol=1e-4)
        np.testing.assert_allclose(latents["deviations"][0], np.sum(of**2), rtol=1e-4)
        assert (latents["height"], latents["width"]) == (20, 24)
        exact = explainer.exact_maps(images[n : n + 1], counterparts[n : n + 1], np.array([order]))
        maps = np.concatenate([deviation_maps[n : n + 1], exact.maps[0]])
        np.testing.assert_allclose(latents["sums"], maps.sum(axis=(1, 2)), rtol=1e-3)
        blocks = maps.reshape(-1, 20, 2, 24, 2).mean(axis=(2, 4))
        steps = np.array(latents["steps"])[:, None, None]
        levels = shown["tiles"].astype(int) - 128
        np.testing.assert_allclose(levels * steps, blocks, atol=0.502 * steps.max())
        assert (levels < 0).any()
        assert (levels > 0).any()


def test_a_latent_moves_as_its_pixels_are_replaced(written):
    folder, known, explainer, data = written
    images = data.test.images
    counterparts, shares = explainer.counterparts(images), known["latents"]["shares"]
    for n, record in enumerate(records_of(known, "test")):
        shown = explorer_runs.read(folder / known["folder"], known, record["id"])
        assert set(explorer_runs.pixels_of(shown["counterpart"]).ravel().tolist()) == {128}
        whole, *paths = shown["latents"]["z"]
        assert whole is None
        order = np.array([shown["latents"]["order"][1:]])
        exact = explainer.exact_maps(images[n : n + 1], counterparts[n : n + 1], order)
        for place, (path, levels) in enumerate(zip(paths, shown["levels"], strict=True)):
            assert path[0] == pytest.approx(exact.z[0, place], rel=1e-4, abs=1e-5)
            assert path[-1] == pytest.approx(exact.z_counterpart[0, place], rel=1e-3, abs=1e-4)
            for number, (share, z) in enumerate(zip(shares, path, strict=True)):
                gone = levels <= number
                assert gone.sum() == round(share * gone.size)
                left = exact.z[0, place] - exact.maps[0, place][gone].sum()
                assert z == pytest.approx(left, rel=1e-3, abs=1e-3)


def test_each_kind_of_map_is_told_with_its_truth(written):
    _, known, _, _ = written
    truths = {(kind["style"], kind["layer"]): kind["truth"] for kind in known["maps"]}
    assert {kind for kind, truth in truths.items() if truth} == {("contrast", "conv1")}
    expected = "As an account of single latents: correlation 0.37, right latent 6% (chance 6%)."
    assert truths["contrast", "conv1"] == expected
    assert "correlation 0.99" in known["latents"]["truth"]


def test_index_has_scores_decisions_and_iou(written):
    _, known, explainer, data = written
    maps = explainer(data.test.images)[0]
    threshold = explainer.calibration.threshold
    for n, record in enumerate(records_of(known, "test")):
        assert record["name"] == data.test.names[n]
        assert record["class"] == data.test.class_names[data.test.labels[n]]
        assert record["abnormal"] == (data.test.labels[n] > 0)
        assert record["score"] == pytest.approx(maps[n].max(), rel=1e-5)
        assert record["flagged"] == (maps[n].max() > explainer.calibration.image_threshold)
        mask = data.test.masks[n]
        if mask.any():
            found = maps[n] >= threshold
            iou = (found & mask).sum() / (found | mask).sum()
            assert record["iou"] == pytest.approx(iou, abs=1e-4)
            y, x = np.unravel_index(maps[n].argmax(), maps[n].shape)
            assert record["elsewhere"] == (not mask[y, x]) or (maps[n] == maps[n].max()).sum() > 1
        else:
            assert "iou" not in record
    validation = records_of(known, "validation")
    assert [record["class"] for record in validation] == ["good"] * 24
    expected = explainer(data.validation)[0].max(axis=(1, 2))
    np.testing.assert_allclose([r["score"] for r in validation], expected, rtol=1e-5)
    # Some of each verdict, so that the above has seen them.
    assert {record["flagged"] for record in known["images"]} == {True, False}


def test_thresholds_are_those_of_normal_images(written):
    _, known, explainer, _ = written
    own, *others = known["maps"]
    assert own["threshold"] == explainer.calibration.threshold
    normal = explorer_runs.data_of().validation
    for kind in (other for other in others if other["layer"].startswith("conv")):
        key = kind["style"], kind["layer"]
        raw = explainer.maps(normal, styles=key[:1], layers=key[1:])[key]
        # Each by the others' scale.
        others_scale = (raw.mean() * len(raw) - raw.mean(axis=(1, 2))) / (len(raw) - 1)
        maps = raw / others_scale[:, None, None]
        assert np.mean(maps >= kind["threshold"]) <= 0.01
        assert kind["threshold"] == pytest.approx(pixel_thresholds.by_hand(maps), rel=0.02)
        assert kind["scale"] > 0
        assert kind["threshold"] < kind["limit"]


@pytest.mark.parametrize(("most", "test", "validation"), [(5, 5, 5), (0, 14, 24), (300, 14, 24)])
def test_as_many_images_as_the_config_says(tmp_path, most, test, validation):
    config = explorer_runs.config_of(max_images=most)
    path, known, _ = explorer_runs.write(tmp_path, explorer_runs.data_of(), config)
    assert len(records_of(known, "test")) == test
    assert len(records_of(known, "validation")) == validation
    files = {file.name for file in (path.parent / known["folder"]).iterdir()}
    ids = [record["id"] for record in known["images"]]
    assert files == {f"{i}.js" for i in ids} | {f"{i}.png" for i in ids}
    sampled = explorer_runs.data_of().test.sample(most, config.seed)
    assert [record["name"] for record in records_of(known, "test")] == list(sampled.names)


def test_no_more_images_at_once_than_a_batch(tmp_path, monkeypatch):
    asked = []
    maps = explorer_runs.Maps.maps

    def recorded(self, images, **options):
        asked.append(len(images))
        return maps(self, images, **options)

    data = explorer_runs.data_of(33)
    explainer = explorer_runs.Maps(data.validation)
    monkeypatch.setattr(explorer_runs.Maps, "maps", recorded)
    made = explorer.Explorer(explorer_runs.config_of(), explainer, data, scale=1.0, scores={})
    made.write(tmp_path)
    assert max(asked) == 4
    assert sum(asked) == 33 + 24 + 24  # test, validation, and once more for the thresholds


def test_negative_number_of_images_is_refused():
    with pytest.raises(UserError, match=r"report\.max_images=-1 must be 0 or more"):
        validate(explorer_runs.config_of(max_images=-1))


def test_drawn_defects_where_the_data_has_no_masks(monkeypatch, tmp_path):
    data = explorer_runs.data_of()
    marked = data.test.take(data.test.labels > 0)
    test = explorer_runs.data_of().test
    bare = type(test)(**{**vars(test), "masks": None, "has_mask": np.zeros(len(test), bool)})
    data = type(data)(**{**vars(data), "test": bare, "draws_defects": True})
    monkeypatch.setattr(anomaly, "defects", lambda data, most, seed: marked.sample(most, seed))
    _, known, _ = explorer_runs.write(tmp_path, data)
    drawn = records_of(known, "drawn defects")
    assert [record["class"] for record in drawn[:2]] == ["drawn: cut", "drawn: bent & torn"]
    assert all("iou" in record for record in drawn)
    assert not any("iou" in record for record in records_of(known, "test"))


def test_hostile_names_stay_text(tmp_path):
    names = [explorer_runs.HOSTILE, *(f"n{n}" for n in range(13))]
    path, known, _ = explorer_runs.write(tmp_path, explorer_runs.data_of(names=names))
    html = path.read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert html.count("</script>") == 2  # the data's and the program's
    block = re.search(r'id="explorer-data">(.*?)</script>', html, re.DOTALL)[1]
    assert json.loads(block)["images"][0]["name"] == explorer_runs.HOSTILE
    assert known["images"][0]["id"] == "00000"  # and no file is called like it


def test_what_an_earlier_report_left_is_gone(tmp_path):
    path, before, _ = explorer_runs.write(tmp_path, explorer_runs.data_of())
    killed = path.parent / "images-0123abcd"
    killed.mkdir()
    (path.parent / "images-of-mine").mkdir()
    path, known, _ = explorer_runs.write(tmp_path, explorer_runs.data_of())
    assert known["folder"] != before["folder"]
    left = {file.name for file in path.parent.iterdir()}
    assert left == {known["folder"], "images-of-mine", "index.html"}


def test_a_page_keeps_its_images_until_it_is_replaced(tmp_path, monkeypatch):
    """Whatever ends the writing: the page that is there finds all files that it names."""
    path, before, _ = explorer_runs.write(tmp_path, explorer_runs.data_of())
    kept = sorted((path.parent / before["folder"]).iterdir())

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    for module, name in ((explorer_files, "save_thumbnail"), (page, "_pictures")):
        monkeypatch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            explorer_runs.write(tmp_path, explorer_runs.data_of())
        monkeypatch.undo()
        assert f'"folder": "{before["folder"]}"' in path.read_text(encoding="utf-8")
        assert sorted((path.parent / before["folder"]).iterdir()) == kept


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "kept").write_text("as it was", encoding="utf-8")

    def fail():
        with explorer_files.new_folder(tmp_path) as new:
            (new / "half").write_text("", encoding="utf-8")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("threshold", [0.0, 1e-9, 0.03, 0.9, 1.0, 7.0])
def test_levels_know_the_threshold_exactly(threshold):
    values = np.random.default_rng(0).uniform(-0.2, 1, (30, 30)).astype(np.float32)
    values[0, :5] = threshold, np.nextafter(np.float32(threshold), 2), 0.0, 1.0, -0.5
    levels, step = explorer_files.quantise(values, threshold)
    assert levels.max() <= 255
    if threshold > 0.01:
        at_least = levels >= np.ceil(threshold / step - 1e-6)
        expected = values >= np.float32(threshold)
        assert np.sum(at_least != expected) == 0 or threshold > 1
    assert np.all(levels[values <= 0] == 0)


def test_signed_levels():
    values = np.random.default_rng(0).normal(size=(9, 11)).astype(np.float32)
    levels, step = explorer_files.quantise_signed(values)
    np.testing.assert_allclose((levels.astype(int) - 128) * step, values, atol=0.501 * step)
    assert np.abs(levels.astype(int) - 128).max() == 127
    nothing, step = explorer_files.quantise_signed(np.zeros((2, 2), np.float32))
    assert step > 0
    assert np.all(nothing == 128)


def test_map_of_nothing():
    levels, step = explorer_files.quantise(np.zeros((3, 4), np.float32), 0.5)
    assert not levels.any()
    assert np.isfinite(step)
    assert step > 0


def test_shrinking_keeps_the_means_of_blocks():
    maps = np.arange(2 * 70 * 33, dtype=np.float32).reshape(2, 70, 33)
    small = explorer_files.shrink(maps, 32)
    assert small.shape == (2, 24, 11)
    assert small[1, 0, 0] == pytest.approx(maps[1, :3, :3].mean())
    # The last row of blocks has one row of pixels, repeated.
    assert small[0, -1, 4] == pytest.approx(maps[0, 69, 12:15].mean())


def test_large_pictures_come_small(tmp_path):
    image = np.zeros((200, 100, 3), np.uint8)
    overlay = np.ones((200, 100, 3), np.float32)
    path = explorer_files.save_thumbnail(image, overlay, tmp_path / "a")
    assert path.suffix == explorer_files.suffix_of(image) == ".jpg"
    with Image.open(path) as made:
        assert made.size == (96, 96)
        pixels = np.asarray(made)
    assert pixels[:, :40].max() < 30 < 220 < pixels[:, 56:].min()
    np.testing.assert_array_equal(explorer_runs.pixels_of(explorer_files.picture(image)), image)


def test_a_page_without_images_runs_no_script(tmp_path):
    config = explorer_runs.config_of()
    path = page.write(
        config, tmp_path, title="<b>", summary="s", drawn={}, tables=[],
        links=[("bottle & co", "../bottle/report/index.html")],
    )  # fmt: skip
    html = path.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "script-src 'none'" in html.replace("&#39;", "'")
    assert "<title>&lt;b&gt; - vae_attn</title>" in html
    assert '<a href="../bottle/report/index.html">bottle &amp; co</a>' in html
