"""What the figures of maps show: truth as an image, names over it, one scale a map."""

import numpy as np
import pytest

from vae_attn.config import default_config
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.experiments.anomaly import map_figures
from vae_attn.experiments.anomaly.calibration import Variant
from vae_attn.experiments.anomaly.explainer import Explainer


class Maps(Explainer):
    """Without a model: raw maps are the image itself, at conv1 a thousand times over."""

    variant = Variant("contrast", ("conv1",))

    def __init__(self):
        pass

    def maps(self, images, *, styles, layers):
        pixels = images.mean(axis=3) / np.float32(255)
        scale = {"conv1": 1000.0, "conv2": 1.0}
        return {(s, layer): pixels * scale[layer] for s in styles for layer in layers}

    def __call__(self, images):
        maps = images.mean(axis=3) / np.float32(255)
        return maps, maps.max(axis=(1, 2))

    def counterparts(self, images):
        return np.zeros(images.shape, np.float32)


def labelled(names, labels, class_names):
    rng = np.random.default_rng(0)
    n = len(names)
    masks = np.zeros((n, 6, 6), bool)
    masks[np.arange(n), np.arange(n) % 6] = np.asarray(labels)[:, None] > 0
    return LabelledImages(
        images=rng.integers(1, 255, (n, 6, 6, 1), dtype=np.uint8),
        labels=np.asarray(labels),
        class_names=class_names,
        names=tuple(names),
        masks=masks,
        has_mask=np.ones(n, bool),
    )


@pytest.fixture
def drawn():
    """A painter, its data, and the test images."""
    names = ["good/000", "good/001", "cut_lead/000", "cut_lead/001", "bent/000"]
    test = labelled(names, [0, 0, 1, 1, 2], ("good", "cut_lead", "bent"))
    data = AnomalyData("thing", test.images, test.images, test)
    config = default_config()
    return config, map_figures.Painter(config, Maps(), data), data


def headings(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def picture_of(figure, row, column, *, columns):
    (image,) = figure.axes[row * columns + column].get_images()
    return image.get_array()


@pytest.mark.parametrize("draw", [map_figures.defects, map_figures.layers])
def test_truth_is_an_image_of_its_own_under_the_names(drawn, draw):
    config, painter, data = drawn
    figure, _, caption = draw(config, painter, data, data.test)
    assert sorted(headings(figure)) == ["bent\n000", "cut lead\n000", "cut lead\n001"]
    assert "Random images" in caption
    assert [axis.get_ylabel() for axis in figure.axes[::3]][:2] == ["input", "ground truth"]
    for column, name in enumerate(headings(figure)):
        index = data.test.names.index(name.replace(" ", "_").replace("\n", "/"))
        truth = picture_of(figure, 1, column, columns=3)
        np.testing.assert_array_equal(truth > 0, data.test.masks[index])
        shown = picture_of(figure, 0, column, columns=3)
        np.testing.assert_array_equal(shown, data.test.images[index, ..., 0])


def test_a_layer_s_raw_maps_have_a_scale_of_their_own(drawn):
    """The maps of the config and the raw ones of its only layer may differ by a factor."""
    _, painter, data = drawn
    rows = painter.layer_rows(data.test.images)
    expected = painter.rows(data.test.images)["contrast\nconv1"]
    assert list(rows) == ["paper\nconv1", "paper\nconv2", "contrast\nconv1", "contrast\nconv2"]
    for row in rows.values():
        np.testing.assert_allclose(row, expected, rtol=1e-4)


def test_normal_images_are_normal(drawn):
    config, painter, data = drawn
    figure, _, _ = map_figures.normal(config, painter, data)
    assert sorted(headings(figure)) == ["good\n000", "good\n001"]


def test_sheet_has_up_to_four_defects_of_each_category(drawn):
    config, painter, data = drawn
    many = labelled([f"a/{n}" for n in range(9)], [1] * 9, ("good", "a"))
    examples = {
        "thing": map_figures.examples(config, painter, data.test),
        "many": map_figures.examples(config, painter, many),
    }
    assert len(examples["many"]["names"]) == 4
    assert all(rows.dtype == np.uint8 for key, rows in examples["many"].items() if key != "names")
    figure, _, _ = map_figures.sheet(config, examples)
    assert len(figure.axes) == 2 * 4 * 4
    assert [figure.axes[n * 16].get_ylabel() for n in range(2)] == ["thing", "many"]
    shown = [name for name in headings(figure) if name[0] in "abc" and "\n" in name]
    assert len([name for name in shown if name.startswith("a\n")]) == 4
    # `thing` has three defects, and white where a fourth would be.
    assert (picture_of(figure, 0, 12, columns=16) == 255).all()
    assert not (picture_of(figure, 1, 12, columns=16) == 255).all()


def test_defects_of_every_class_get_their_turn(drawn):
    config, painter, data = drawn
    many = labelled(
        [f"{'abc'[n % 20 // 9]}/{n}" for n in range(40)],
        [1 + n % 20 // 9 for n in range(40)],
        ("good", "a", "b", "c"),
    )
    figure, _, _ = map_figures.defects(config, painter, data, many)
    kinds = [name.split("\n")[0] for name in headings(figure)]
    assert len(kinds) == 10
    assert {kinds.count(kind) for kind in "abc"} == {3, 4}
