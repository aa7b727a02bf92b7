"""Draws a run's figures and writes its page."""

import json
import pathlib

import ml_collections
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vae_attn import attention
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.evaluation import anomaly, tables
from vae_attn.evaluation.explainer import Explainer
from vae_attn.reporting import figures, page
from vae_attn.training.telemetry import read_metrics

_LATENTS_SHOWN = 8
_SCALE_IMAGES = 400  # over which the colour scale is measured
_SCALE_QUANTILE = 0.995


def write(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    explainer: Explainer,
    data: AnomalyData,
) -> pathlib.Path:
    """Writes `figures/*.png` and `report/index.html`.

    Args:
      config: the run's.
      workdir: the run's; scores are shown if `evaluation/metrics.json` is there.
      explainer: the trained model.
      data: what it explains.

    Returns:
      Path of the page.
    """
    painter = _Painter(config, explainer, data)
    drawn = {"classes": _classes(config, painter, data)}
    if data.test.masks is not None:
        drawn["defects"] = _defects(config, painter, data, data.test.take(data.test.has_mask))
    elif data.draws_defects:
        drawn["defects"] = _defects(config, painter, data, anomaly.defects(data, 0, config.seed))
    drawn["latents"] = _latents(config, explainer, data)
    if curves := read_metrics(workdir):
        caption = "Losses of the training steps (means between two points) and of the validation "
        caption += "images." + page.all_seeds(config, "the mean, and each of them pale")
        drawn["training"] = (figures.curves(curves), "Training", caption)
    metrics_path = workdir / "evaluation" / "metrics.json"
    metrics = json.loads(metrics_path.read_text()) if metrics_path.exists() else {}
    if metrics:
        for name, metric, heading in (
            ("localisation", "pixel_auroc", "Where: pixel AUROC"),
            ("detection", "image_auroc", "Which: image AUROC"),
        ):
            if not any(np.isfinite(v) for k, v in metrics.items() if k.endswith(f"/{metric}")):
                continue
            figure = figures.bars(metrics, metric, title=heading, chance=0.5)
            caption = "Baselines without attention in grey; the dotted line is a coin."
            caption += page.all_seeds(config, "their mean and one standard deviation each way")
            drawn[name] = (figure, heading, caption)
    return page.write(
        config,
        workdir,
        title=data.name,
        summary=f"A variational autoencoder learned from {len(data.train)} normal images. Maps "
        f"({explainer.variant.name}) show what in an image made its latents abnormal.",
        drawn=drawn,
        table=tables.table(metrics) if metrics else None,
        table_note=tables.TABLE_NOTE,
    )


def _classes(config, painter: "_Painter", data: AnomalyData) -> tuple[Figure, str, str]:
    """The report's Figure 1: a random image of every class, not a chosen one."""
    rng = np.random.default_rng(config.seed)
    classes = sorted(set(data.test.labels.tolist()))
    chosen = [int(rng.choice(np.flatnonzero(data.test.labels == label))) for label in classes]
    shown = data.test.take(np.array(chosen))
    rows = {"input": shown.images, "reconstruction": painter.explainer.reconstruct(shown.images)}
    rows |= painter.rows(shown.images)
    title = f"{data.name}: one random test image of every class"
    columns = [data.test.class_names[label] for label in classes]
    note = _scale_note()
    return (
        figures.grid(rows, columns, title=title, note=note),
        "What looks abnormal in each class",
        "Random test images (not chosen ones), their reconstructions and the maps over them. "
        + note
        + page.first_seed(config),
    )


def _defects(
    config, painter: "_Painter", data: AnomalyData, located: LabelledImages
) -> tuple[Figure, str, str]:
    """Maps beside the truth, on random images with masks."""
    rng = np.random.default_rng(config.seed)
    labels = [label for label in sorted(set(located.labels.tolist())) if label > 0]
    count = max(1, 10 // len(labels))
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(located.labels == label))[:count] for label in labels]
    )
    shown = located.take(chosen)
    rows = {"defect": shown.images, "counterpart": painter.explainer.counterparts(shown.images)}
    rows |= painter.rows(shown.images)
    columns = [shown.class_names[label] for label in shown.labels]
    note = f"Green: the defect's true outline. {_scale_note()}"
    figure = figures.grid(
        rows,
        columns,
        title=f"{data.name}: defects whose place is known, random images",
        masks=dict.fromkeys(rows, shown.masks),
        note=note,
    )
    caption = f"Random images with known defects. {note}{page.first_seed(config)}"
    return figure, "Where the defect is", caption


def _latents(config, explainer: Explainer, data: AnomalyData) -> tuple[Figure, str, str]:
    """What the most deviating latents of one normal and several abnormal images look at."""
    style = config.attention.style
    style = style if style in attention.PER_LATENT_STYLES else "paper"
    rng = np.random.default_rng(config.seed + 1)
    labels = sorted(set(data.test.labels.tolist()))
    abnormal = rng.permutation([label for label in labels if label])[:4].tolist()
    labels = [0, *abnormal] if 0 in labels else abnormal
    chosen = [int(rng.choice(np.flatnonzero(data.test.labels == label))) for label in labels]
    shown = data.test.take(np.array(chosen))
    maps = explainer.latent_maps(shown.images, style=style, layer=config.attention.layer)
    mean, logvar = explainer.encode(shown.images)
    normal = explainer.calibration
    deviation = (mean - normal.normal_mean) / np.sqrt(np.exp(logvar) + normal.normal_variance)
    order = np.argsort(-np.abs(deviation), axis=1)[:, :_LATENTS_SHOWN]
    maps = np.take_along_axis(maps, order[..., None, None], axis=1)
    scale = _quantile(maps)
    rows, marks = {}, {}
    for image, image_maps, latents, deviations, label in zip(
        shown.images, maps, order, deviation, shown.labels, strict=True
    ):
        overlays = figures.overlay(np.repeat(image[None], len(latents), axis=0), image_maps, scale)
        original = np.broadcast_to(image[None] / 255, (1, *overlays.shape[1:]))
        name = shown.class_names[label]
        rows[name] = np.concatenate([original, overlays])
        marks[name] = [name, *(f"z{k} {deviations[k]:+.1f} sd" for k in latents)]
    title = f"{data.name}: maps of single latents, {style} at {config.attention.layer}"
    columns = [""] * (1 + order.shape[1])
    figure = figures.grid(rows, columns, title=title, labels=marks)
    caption = (
        "For each image the latents that deviate most from the normal images' (in standard "
        "deviations, sd), and what each of them looks at. One colour scale for all."
    )
    caption += page.first_seed(config)
    return figure, "What single latents look at", caption


class _Painter:
    """Overlays of the config's maps and of the paper's, on one colour scale for all images."""

    def __init__(
        self, config: ml_collections.ConfigDict, explainer: Explainer, data: AnomalyData
    ) -> None:
        self.explainer = explainer
        self._layer = config.attention.layer
        sample = data.test.sample(_SCALE_IMAGES, config.seed)
        self._scales = {name: _quantile(maps) for name, maps in self._maps(sample.images).items()}

    def _maps(self, images: np.ndarray) -> dict[str, Float[np.ndarray, "n h w"]]:
        layer = self._layer
        raw = self.explainer.maps(images, styles=("paper",), layers=(layer,))
        variant = self.explainer.variant.name.replace("/", "\n")
        return {
            variant: self.explainer.anomaly_maps(images),
            f"paper\n{layer}": raw["paper", layer],
        }

    def rows(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """One row of overlays a map."""
        return {
            name: figures.overlay(images, maps, self._scales[name])
            for name, maps in self._maps(images).items()
        }


def _quantile(maps: Float[np.ndarray, "*shape"]) -> float:
    return float(np.quantile(maps, _SCALE_QUANTILE)) or 1.0


def _scale_note() -> str:
    return (
        f"Full colour is the {_SCALE_QUANTILE:.1%} quantile of the maps of up to {_SCALE_IMAGES} "
        "test images, the same for all images."
    )
