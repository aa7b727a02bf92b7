"""Figures of anomaly maps over random images: those of the report, none of them hand-picked."""

import textwrap

import ml_collections
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure

from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.experiments import titles
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.experiments.maps import Deviations, ExactMaps
from vae_attn.progress import Progress
from vae_attn.reporting import figures, page

Rows = dict[str, np.ndarray]

INPUT, TRUTH = "input", "ground truth"
_COLUMNS = 10
_NORMAL_COLUMNS = 6
_EXAMPLES = 4  # defects that a group's sheet shows of each category, as in the report's Figure 4
_SCALE_IMAGES = 400  # over which the colour scale is measured
_HEADING_WIDTH = 15  # characters in a line over an image


class Painter:
    """Overlays of maps, each kind of map on one colour scale for all images.

    Attributes:
      explainer: of the model.
      scale: value of the config's maps that gets the full colour.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, explainer: Explainer, data: AnomalyData
    ) -> None:
        self.explainer = explainer
        self._layer = config.attention.layer
        self._layers = tuple(config.evaluate.layers)
        most = min(_SCALE_IMAGES, config.report.max_images or _SCALE_IMAGES)
        self._sample = data.test.sample(most, config.seed).images
        parts, size = [], config.evaluate.batch_size
        with Progress("measuring the colour scale", total=len(self._sample)) as progress:
            for start in range(0, len(self._sample), size):
                parts.append(self._maps(self._sample[start : start + size]))
                progress.add(len(self._sample[start : start + size]))
        self._scales = {
            name: quantile(np.concatenate([part[name] for part in parts])) for name in parts[0]
        }
        self.scale: float = next(iter(self._scales.values()))

    def _maps(self, images: np.ndarray) -> dict[str, Float[np.ndarray, "n h w"]]:
        layer = self._layer
        raw = self.explainer.maps(images, styles=("paper",), layers=(layer,))
        variant = self.explainer.variant.name.replace("/", "\n")
        return {
            variant: self.explainer(images)[0],
            f"paper\n{layer}": raw["paper", layer],
        }

    def rows(self, images: UInt8[np.ndarray, "n height width channels"]) -> Rows:
        """Overlays of the config's maps and of the paper's, one row each."""
        return {
            name: figures.overlay(images, maps, self._scales[name])
            for name, maps in self._maps(images).items()
        }

    def layer_rows(self, images: UInt8[np.ndarray, "n height width channels"]) -> Rows:
        """Overlays of the paper's raw maps and of those of the config's style, a row per layer."""
        styles = tuple(dict.fromkeys(("paper", self.explainer.variant.attention_style)))
        rows = {f"{style}\n{layer}": None for style in styles for layer in self._layers}
        for layer in self._layers:  # one at a time, for the memory of the sample's maps
            sample = self.explainer.maps(self._sample, styles=styles, layers=(layer,))
            maps = self.explainer.maps(images, styles=styles, layers=(layer,))
            for style in styles:
                scale = quantile(sample[style, layer])
                rows[f"{style}\n{layer}"] = figures.overlay(images, maps[style, layer], scale)
        return rows


def classes(config: ml_collections.ConfigDict, painter: Painter, data: AnomalyData) -> page.Drawn:
    """The report's Figure 1: a random image of every class."""
    rng = np.random.default_rng(config.seed)
    labels = sorted(set(data.test.labels.tolist()))
    chosen = [int(rng.choice(np.flatnonzero(data.test.labels == label))) for label in labels]
    shown = data.test.take(np.array(chosen))
    rows = {INPUT: shown.images, "reconstruction": painter.explainer.reconstruct(shown.images)}
    figure = figures.grid(
        rows | painter.rows(shown.images),
        [data.test.class_names[label] for label in labels],
        title=f"{data.name}: one random test image of every class",
        note=_scale_note(),
    )
    caption = "Random test images (not chosen ones), their reconstructions and the maps over them. "
    caption += _scale_note() + titles.first_seed(config)
    return figure, "What looks abnormal in each class", caption


def defects(
    config: ml_collections.ConfigDict, painter: Painter, data: AnomalyData, located: LabelledImages
) -> page.Drawn:
    """The report's Figure 4: maps beside the truth, on random images whose defects are known."""
    shown = _some_defects(config, located, _COLUMNS)
    rows = _truth_rows(shown) | {"counterpart": painter.explainer.counterparts(shown.images)}
    rows |= painter.rows(shown.images)
    title = f"{data.name}: random images whose defects are known"
    figure, note = _with_outlines(rows, shown, title)
    caption = (
        f"Random images (not chosen ones) with known defects. {note}{titles.first_seed(config)}"
    )
    return figure, "Where the defect is", caption


def layers(
    config: ml_collections.ConfigDict, painter: Painter, data: AnomalyData, located: LabelledImages
) -> page.Drawn:
    """The report's Figure 2, for every layer: the images, the truth, the maps."""
    shown = _some_defects(config, located, _COLUMNS)
    rows = _truth_rows(shown) | painter.layer_rows(shown.images)
    title = f"{data.name}: maps of each layer on random images whose defects are known"
    figure, note = _with_outlines(rows, shown, title)
    caption = "Random images (not chosen ones) and the maps of single layers, neither calibrated "
    return (
        figure,
        "What each layer sees",
        f"{caption}nor averaged. {note}{titles.first_seed(config)}",
    )


def normal(config: ml_collections.ConfigDict, painter: Painter, data: AnomalyData) -> page.Drawn:
    """The report's Figure 3: random images without anything abnormal."""
    shown = _pick(data.test, data.test.labels == 0, _NORMAL_COLUMNS, config.seed)
    rows = {INPUT: shown.images, "counterpart": painter.explainer.counterparts(shown.images)}
    figure = figures.grid(
        rows | painter.rows(shown.images),
        _headings(shown),
        title=f"{data.name}: random normal images",
        note=_scale_note(),
    )
    caption = "Nothing in these random images is abnormal: a map that is right is dark. "
    return figure, "Normal images", f"{caption}{_scale_note()}{titles.first_seed(config)}"


def examples(config: ml_collections.ConfigDict, painter: Painter, located: LabelledImages) -> Rows:
    """What a group's sheet shows of one data set: rows of RGB images, and their `names`."""
    shown = _some_defects(config, located, _EXAMPLES)
    rows = _truth_rows(shown) | painter.rows(shown.images)
    return {"names": np.array(_headings(shown))} | {
        name: np.broadcast_to(figures.to_uint8(images), (*images.shape[:3], 3))
        for name, images in rows.items()
    }


def sheet(config: ml_collections.ConfigDict, categories: dict[str, Rows]) -> page.Drawn:
    """The report's Figure 4 over several categories: a row per category, from their `examples`."""
    rows, labels = {}, {}
    for category, shown in categories.items():
        kinds = [name for name in shown if name != "names"]
        blank = np.full_like(shown[INPUT][0], 255)
        rows[category], labels[category] = [], []
        for n in range(_EXAMPLES):
            if n < len(shown["names"]):
                rows[category] += [shown[kind][n] for kind in kinds]
                labels[category] += [str(shown["names"][n]), *kinds[1:]]
            else:
                rows[category] += [blank] * len(kinds)
                labels[category] += [""] * len(kinds)
        rows[category] = np.stack(rows[category])
    columns = [""] * len(next(iter(rows.values())))
    title = "Random images whose defects are known: image, ground truth, maps"
    figure = figures.grid(rows, columns, title=title, labels=labels, note=_scale_note())
    caption = (
        f"Up to {_EXAMPLES} random defects (not chosen ones) of each category, each with its true "
        f"place and the maps over it. {_scale_note()}{titles.first_seed(config)}"
    )
    return figure, "Where the defects are", caption


def latent_captions(deviating: Deviations, exact: ExactMaps, n: int) -> list[str]:
    """Of an image's latents: how far each deviates, and its map's sum beside its change."""

    def signed(value: float | np.floating, digits: int) -> str:
        return f"{round(float(value), digits) + 0.0:+.{digits}f}"  # a 0 is not negative

    change = exact.z[n] - exact.z_counterpart[n]
    return [
        f"z{latent}: {signed(deviation, 1)} sd\nsum {signed(total, 2)} = {signed(moved, 2)}"
        for latent, deviation, total, moved in zip(
            exact.latents[n], deviating.deviations[n], exact.sums[n], change, strict=True
        )
    ]


def quantile(maps: Float[np.ndarray, "*shape"]) -> float:
    """The value that gets the full colour."""
    return float(np.quantile(maps, figures.FULL_COLOUR_QUANTILE)) or 1.0


def _with_outlines(rows: Rows, shown: LabelledImages, title: str) -> tuple[Figure, str]:
    note = f"Green: the defect's true outline. {_scale_note()}"
    outlined = dict.fromkeys(rows.keys() - {INPUT, TRUTH}, shown.masks)
    figure = figures.grid(rows, _headings(shown), title=title, masks=outlined, note=note)
    return figure, note


def _some_defects(config, located: LabelledImages, count: int) -> LabelledImages:
    """Random images with defects, as many of each class as of any other where there are enough."""
    abnormal = np.flatnonzero(located.labels > 0)
    order = np.random.default_rng(config.seed).permutation(abnormal)
    classes = located.labels[order]
    # How many of its class come before it in this order.
    turn = np.array([np.sum(classes[:n] == label) for n, label in enumerate(classes)])
    chosen = order[np.argsort(turn, kind="stable")[:count]]
    return located.take(chosen[np.argsort(located.labels[chosen], kind="stable")])


def _pick(images: LabelledImages, of: Bool[np.ndarray, "n"], count: int, seed: int):
    return images.take(np.random.default_rng(seed).permutation(np.flatnonzero(of))[:count])


def _truth_rows(shown: LabelledImages) -> Rows:
    return {INPUT: shown.images, TRUTH: figures.to_uint8(shown.masks[..., None].astype(np.float32))}


def _headings(shown: LabelledImages) -> list[str]:
    """The images' names, which name the defect or the clip, in short lines."""
    return [
        "\n".join(
            line
            for part in name.split("/")
            for line in textwrap.wrap(part.replace("_", " "), _HEADING_WIDTH)
        )
        for name in shown.names
    ]


def _scale_note() -> str:
    return (
        f"Full colour is the {figures.FULL_COLOUR_QUANTILE:.1%} quantile of the maps of up to "
        f"{_SCALE_IMAGES} test images, the same for all images."
    )
