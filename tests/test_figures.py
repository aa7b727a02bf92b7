"""The helpers that every figure is drawn with."""

import itertools

import matplotlib
import numpy as np
import pytest

from vae_attn.experiments.anomaly import score_plots
from vae_attn.experiments.disentanglement import latent_figures
from vae_attn.reporting import figures


def lightness(rgb):
    """CIE L* of sRGB in [0, 1]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    return 116 * np.where(y > 0.008856, np.cbrt(y), 7.787 * y + 16 / 116) - 16


# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
DICHROMATS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def test_signed_maps_are_told_apart_by_their_sign():
    images = np.zeros((3, 4, 5, 1), np.uint8)
    images[1], images[2] = 128, 255
    maps = np.zeros((3, 4, 5), np.float32)
    maps[:, 0, 0], maps[:, 1, 1], maps[:, 2, 2], maps[:, 3, 3] = 2.0, -2.0, 1.0, 50.0
    found = figures.signed_overlay(images, maps, 2.0)
    assert found.shape == (3, 4, 5, 3)
    assert 0 <= found.min() <= found.max() <= 1
    red, blue = found[:, 0, 0], found[:, 1, 1]
    assert (red[:, 0] > red[:, 2] + 0.2).all()
    assert (blue[:, 2] > blue[:, 0] + 0.2).all()
    np.testing.assert_array_equal(found[:, 3, 3], red)  # cut at the scale
    calm = found[maps == 0].reshape(3, -1, 3)
    assert np.ptp(calm, axis=2).max() < 1e-6  # grey, the brighter the brighter the image
    assert (np.diff(calm[:, 0, 0]) > 0.1).all()
    contrast = np.abs(lightness(calm[:, 0]) - lightness(red))
    assert contrast.min() > 30  # on black, grey and white


def test_one_scale_for_both_signs_that_colour_blind_people_can_read():
    shares = np.linspace(0.1, 1, 10)
    up, down = figures.signed_colours(shares), figures.signed_colours(-shares)
    assert (np.diff(lightness(up)) < 0).all()
    assert np.abs(lightness(up) - lightness(down)).max() < 10
    assert figures.signed_colours(np.array(0.0)).min() > 0.95
    for matrix in DICHROMATS.values():
        seen = [np.clip(colours[6:] ** 2.2 @ np.transpose(matrix), 0, 1) ** (1 / 2.2)
                for colours in (up, down)]  # fmt: skip
        assert np.abs(seen[0] - seen[1]).max(axis=1).min() > 0.15


def test_maps_from_zero_get_lighter():
    assert (np.diff(lightness(figures.colours(np.linspace(0, 1, 20)))) > 0).all()


def legends(figure):
    return [
        [text.get_text() for text in axis.get_legend().get_texts()] if axis.get_legend() else []
        for axis in figure.axes
    ]


def test_curves_of_the_losses():
    metrics = {
        "loss": ([1, 2], [5.0, 4.0]), "loss/seed_0": ([1, 2], [5.5, 4.5]),
        "loss/seed_1": ([1, 2], [4.5, 3.5]), "validation_loss": ([2], [4.2]),
        "kl": ([1, 2], [0.5, 0.25]), "other": ([1], [9.0]),
    }  # fmt: skip
    figure = figures.curves(metrics)
    assert [axis.get_title() for axis in figure.axes] == ["total loss", "KL"]
    total, kl = ([line.get_ydata().tolist() for line in axis.lines] for axis in figure.axes)
    assert total == [[5.0, 4.0], [5.5, 4.5], [4.5, 3.5], [4.2]]
    assert kl == [[0.5, 0.25]]
    assert legends(figure) == [["training, z sampled", "validation, at z = mean"], []]
    assert {axis.get_ylabel() for axis in figure.axes} == {"nats per image"}


def test_the_price_of_disentanglement_a_point_per_seed():
    runs = {"one": [(40.0, 0.7), (42.0, 0.75)], "two": [(30.0, 0.5)]}
    figure = latent_figures.reconstruction_against_score(runs, score="s", highlighted="two")
    (axis,) = figure.axes
    found = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axis.lines]
    assert found == [([40.0, 42.0], [0.7, 0.75]), ([30.0], [0.5])]
    assert [line.get_linestyle() for line in axis.lines] == ["None", "None"]
    assert axis.lines[1].get_color() == figures.HIGHLIGHT != axis.lines[0].get_color()
    assert [text.get_text() for text in axis.texts] == ["one", "two"]


def test_a_legend_once_and_one_style_that_stays_in_its_figure(tmp_path):
    before = dict(matplotlib.rcParams)
    lines = [figures.Line([0, 1], [0, k], label=f"map {k}") for k in range(2)]
    figure = figures.line_panels({"a": lines, "b": lines[:1]}, x_label="epoch", upright=0.5)
    assert legends(figure) == [["map 0", "map 1"], []]
    assert [len(axis.lines) for axis in figure.axes] == [3, 2]
    figures.save(figure, tmp_path / "a.png")
    for label in itertools.chain(*(axis.get_xticklabels() for axis in figure.axes)):
        assert label.get_size() == figures.STYLE["xtick.labelsize"]
    assert dict(matplotlib.rcParams) == before


def test_many_curves_have_their_legend_beside_them():
    lines = [figures.Line([0], [k], label=f"run {k}") for k in range(30)]
    figure = figures.line_panels({"a": lines, "b": []}, x_label="step", legend_beside=True)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 30
    assert legends(figure) == [[], []]
    box = legend.get_window_extent()
    assert all(axis.get_window_extent().x1 < box.x0 for axis in figure.axes)
    assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_stand_in_rows_and_columns(channels):
    pictures = np.zeros((2, 3, 10, 20, channels), np.uint8)
    pictures += np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * 10
    made = np.asarray(figures.tiled(pictures))
    assert made.shape == (20, 60) if channels == 1 else (20, 60, 3)
    for row, column in itertools.product(range(2), range(3)):
        assert (made[10 * row :, 20 * column :][:10, :20] == 10 * (3 * row + column)).all()
    framed = figures.tiled(pictures, captions=["a", "b", "c"], gap=2)
    assert framed.size == (3 * 22 + 2, 2 * 12 + 2 + 16)


def test_bars_of_the_rows_that_count():
    rows = {f"{style}/conv{n}": n / 10 for style in "abcdefghijkl" for n in range(5)}
    rows |= {"a/fused": 0.05, "error/image": 0.3, "error/image.z": 0.2, "place/image": 0.1}
    metrics = {f"{row}/pixel_auroc": value for row, value in rows.items()}
    metrics |= {"a/fused/pixel_auroc_std": 0.02, "b/conv1/iou": 0.9, "c/conv9/pixel_auroc": np.nan}
    figure = score_plots.bars(metrics, "pixel_auroc", own="a/fused", heading="Where")
    (axis,) = figure.axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    colours = {
        name: matplotlib.colors.to_hex(bar.get_facecolor())
        for name, bar in zip(names, axis.patches, strict=True)
    }
    assert len(names) == 12
    assert {"a/fused", "error/image", "place/image", "a/conv4", "b/conv4"} <= set(names)
    assert "error/image.z" not in names
    assert [bar.get_width() for bar in axis.patches] == sorted(rows[name] for name in names)
    assert axis.get_title() == "Where, 12 of 64 rows"
    grey = matplotlib.colors.to_hex(figures.BASELINE)
    assert {name for name, of in colours.items() if of == grey} == {"error/image", "place/image"}
    assert [name for name, of in colours.items() if of == figures.HIGHLIGHT] == ["a/fused"]
    assert score_plots.bars(metrics, "aupro", own="a/fused", heading="") is None
    few = {key: value for key, value in metrics.items() if key.startswith(("a/fused", "place"))}
    figure = score_plots.bars(few, "pixel_auroc", own="a/fused", heading="Where")
    assert figure.axes[0].get_title() == "Where"
