"""Draws a run's figures and writes its page."""

import json
import pathlib

import ml_collections
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vae_attn import attention
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.evaluation import anomaly
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
    drawn = {
        "classes": _classes(config, explainer, data),
        "defects": _defects(config, explainer, data),
        "latents": _latents(config, explainer, data),
    }
    if curves := read_metrics(workdir):
        caption = "Losses of the training steps (means between two points) and of the validation "
        drawn["training"] = (figures.curves(curves), "Training", caption + "images.")
    metrics_path = workdir / "evaluation" / "metrics.json"
    metrics = json.loads(metrics_path.read_text()) if metrics_path.exists() else {}
    if metrics:
        for name, metric, heading in (
            ("localisation", "pixel_auroc", "Where: pixel AUROC"),
            ("detection", "image_auroc", "Which: image AUROC"),
        ):
            figure = figures.bars(metrics, metric, title=heading, chance=0.5)
            caption = "Baselines without attention in grey; the dotted line is a coin."
            drawn[name] = (figure, heading, caption)
    style, layer = config.attention.style, config.attention.layer
    return page.write(
        config,
        workdir,
        title=data.name,
        summary=f"A variational autoencoder learned from {len(data.train)} normal images. Maps in "
        f"the style {style} at layer {layer} show what in an image made its latents abnormal.",
        drawn=drawn,
        table=anomaly.table(metrics) if metrics else None,
        table_note=anomaly.TABLE_NOTE,
    )


def _classes(config, explainer: Explainer, data: AnomalyData) -> tuple[Figure, str, str]:
    """The report's Figure 1: a random image of every class, not a chosen one."""
    rng = np.random.default_rng(config.seed)
    classes = sorted(set(data.test.labels.tolist()))
    chosen = [int(rng.choice(np.flatnonzero(data.test.labels == label))) for label in classes]
    shown = anomaly.take(data.test, np.array(chosen))
    rows = {"input": shown.images, "reconstruction": explainer.reconstruct(shown.images)}
    rows |= _overlay_rows(config, explainer, data, shown)
    title = f"{data.name}: one random test image of every class"
    columns = [data.test.class_names[label] for label in classes]
    note = _scale_note()
    return (
        figures.grid(rows, columns, title=title, note=note),
        "What looks abnormal in each class",
        "Random test images (not chosen ones), their reconstructions and the maps over them. "
        + note,
    )


def _defects(config, explainer: Explainer, data: AnomalyData) -> tuple[Figure, str, str]:
    """Maps beside the truth, on random images with masks."""
    located = anomaly.located_images(data, 0, config.seed)
    rng = np.random.default_rng(config.seed)
    labels = [label for label in sorted(set(located.labels.tolist())) if label > 0]
    count = max(1, 10 // len(labels))
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(located.labels == label))[:count] for label in labels]
    )
    shown = anomaly.take(located, chosen)
    rows = {"defect": shown.images, "counterpart": explainer.counterparts(shown.images)}
    rows |= _overlay_rows(config, explainer, data, shown)
    columns = [shown.class_names[label] for label in shown.labels]
    note = f"Green: the defect's true outline. {_scale_note()}"
    figure = figures.grid(
        rows,
        columns,
        title=f"{data.name}: defects whose place is known, random images",
        masks=dict.fromkeys(rows, shown.masks),
        note=note,
    )
    return figure, "Where the defect is", f"Random images with known defects. {note}"


def _latents(config, explainer: Explainer, data: AnomalyData) -> tuple[Figure, str, str]:
    """What the most deviating latents of one normal and several abnormal images look at."""
    style = config.attention.style
    style = style if style in attention.PER_LATENT_STYLES else "paper"
    rng = np.random.default_rng(config.seed + 1)
    labels = sorted(set(data.test.labels.tolist()))
    labels = [0, *rng.permutation([label for label in labels if label])[:4].tolist()]
    chosen = [int(rng.choice(np.flatnonzero(data.test.labels == label))) for label in labels]
    shown = anomaly.take(data.test, np.array(chosen))
    maps = explainer.latent_maps(shown.images, style=style, layer=config.attention.layer)
    mean, logvar = explainer.encode(shown.images)
    deviation = (mean - explainer.normal_mean) / np.sqrt(np.exp(logvar) + explainer.normal_variance)
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
    return figure, "What single latents look at", caption


def _overlay_rows(config, explainer, data, shown: LabelledImages) -> dict[str, np.ndarray]:
    """Overlays in the config's style, and in the paper's beside it."""
    rows = {}
    for style in dict.fromkeys((config.attention.style, "paper")):
        layer = config.attention.layer
        scale = _colour_scale(config, explainer, data, style)
        maps = explainer.maps(shown.images, style=style, layer=layer)
        rows[f"{style}\n({layer})"] = figures.overlay(shown.images, maps, scale)
    return rows


def _colour_scale(config, explainer: Explainer, data: AnomalyData, style: str) -> float:
    """A high quantile of the maps over the data set, so that normal images look calm."""
    sample = anomaly.subsample(data.test, _SCALE_IMAGES, config.seed)
    maps = explainer.maps(sample.images, style=style, layer=config.attention.layer)
    return _quantile(maps)


def _quantile(maps: Float[np.ndarray, "*shape"]) -> float:
    return float(np.quantile(maps, _SCALE_QUANTILE)) or 1.0


def _scale_note() -> str:
    return (
        f"Full colour is the {_SCALE_QUANTILE:.1%} quantile of the maps of the test set, the same "
        "for all images."
    )
