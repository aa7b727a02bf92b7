"""Draws a run's figures and writes its page."""

import json
import pathlib

import ml_collections
import numpy as np

from vae_attn import attention, whole_files
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.evaluation import anomaly, summary
from vae_attn.evaluation.explainer import Explainer
from vae_attn.reporting import figures, map_figures, page
from vae_attn.training.telemetry import read_metrics

EXAMPLES = "examples.npz"  # in the workdir
_LATENTS_SHOWN = 8


def write(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    explainer: Explainer,
    data: AnomalyData,
) -> pathlib.Path:
    """Writes `figures/*.png` and `report/index.html`; of a category, `examples.npz` for its group.

    Args:
      config: the run's.
      workdir: the run's; scores are shown if `evaluation/metrics.json` is there.
      explainer: the trained model.
      data: what it explains.

    Returns:
      Path of the page.
    """
    painter = map_figures.Painter(config, explainer, data)
    drawn = {"classes": map_figures.classes(config, painter, data)}
    if (located := _located(config, data)) is not None:
        drawn["defects"] = map_figures.defects(config, painter, data, located)
        drawn["layers"] = map_figures.layers(config, painter, data, located)
        if config.data.category:
            shown = map_figures.examples(config, painter, located)
            with whole_files.writing(workdir / EXAMPLES) as temporary:
                np.savez_compressed(temporary, **shown)
    if (data.test.labels == 0).any():
        drawn["normal"] = map_figures.normal(config, painter, data)
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
        tables=summary.of_run(config, metrics, data) if metrics else [],
    )


def _located(config: ml_collections.ConfigDict, data: AnomalyData) -> LabelledImages | None:
    """Abnormal images whose anomalous pixels are known, or drawn; None where there are none."""
    known = data.test.has_mask & (data.test.labels > 0)
    if known.any():
        return data.test.take(known)
    return anomaly.defects(data, 0, config.seed) if data.draws_defects else None


def _latents(config, explainer: Explainer, data: AnomalyData) -> page.Drawn:
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
    scale = map_figures.quantile(maps)
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
