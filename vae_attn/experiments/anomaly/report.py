"""What the page of a run on normal images shows."""

import dataclasses
import pathlib
from collections.abc import Mapping
from functools import partial

import ml_collections
import numpy as np

from vae_attn import whole_files
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.experiments import faithful, titles
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.anomaly import (
    curves,
    evaluation,
    explorer,
    map_figures,
    score_plots,
    summary,
)
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.experiments.latent_use import ACTIVE_NATS
from vae_attn.experiments.map_functions import DEEPLIFT, IMAGE
from vae_attn.experiments.protocol import Content
from vae_attn.reporting import figures, page
from vae_attn.workdir_scores import EVALUATION

EXAMPLES = "examples.npz"  # in the workdir
_LATENTS_SHOWN = 8


def content(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    explainer: Explainer,
    data: AnomalyData,
    scores: Mapping[str, float],
    seed_folder: pathlib.Path,
) -> Content:
    """The figures, the explorer (`report/images`) and the curves of a run's page.

    Of a category it writes `examples.npz`, for its group's page.

    Args:
      config: the run's.
      workdir: the run's.
      explainer: of the trained model, the first seed's.
      data: what it explains.
      scores: of the run; empty where it was not evaluated.
      seed_folder: workdir of the explainer's seed.
    """
    test_images = len(data.test)
    whole = data
    if not test_images:  # held-out normal images are shown instead
        data = dataclasses.replace(data, test=data.held_out(evaluation.sample_validation(data)))
    painter = map_figures.Painter(config, explainer, data)
    drawn: dict = {}
    if test_images:
        drawn["classes"] = partial(map_figures.classes, config, painter, data)
    if (located := _located(config, data)) is not None:
        drawn["defects"] = partial(map_figures.defects, config, painter, data, located)
        drawn["layers"] = partial(map_figures.layers, config, painter, data, located)
        if config.data.category:
            shown = map_figures.examples(config, painter, located)
            with whole_files.writing(workdir / EXAMPLES) as temporary:
                np.savez_compressed(temporary, **shown)
    if (data.test.labels == 0).any():
        drawn["normal"] = partial(map_figures.normal, config, painter, data)
    drawn["latents"] = partial(_latents, config, explainer, data, scores)
    for name, score, heading in (
        ("localisation", "pixel_auroc", "Where: pixel AUROC"),
        ("detection", "image_auroc", "Which: image AUROC"),
    ):
        figure = score_plots.bars(scores, score, own=explainer.variant.name, heading=heading)
        if figure is not None:
            caption = "The run's own maps in the strong colour, baselines without attention in "
            caption += "grey. Of each style the row that scores best here; the table has all rows. "
            caption += "The dotted line is chance."
            caption += titles.all_seeds(config, "their mean and one standard deviation each way")
            drawn[name] = (figure, heading, caption)
    # Those of other scores are of another model.
    scored = curves.Curves.load(seed_folder / EVALUATION / "curves.json") if scores else None
    images = explorer.Explorer(config, explainer, whole, scale=painter.scale, scores=scores)
    shown = images.write(workdir / "report")
    return Content(
        summary=f"A variational autoencoder learned from {len(data.train)} normal images. Its maps "
        f"({explainer.variant.name}) show where an image is abnormal; signed maps of single "
        "latents show why: which pixels make up what each latent says.",
        drawn=drawn,
        facts=[
            *_facts(explainer.variant.name, scores, scored),
            *_sureness(explainer),
        ],
        explorer=shown | {"note": titles.first_seed(config)},
        plots=_plots(config, scored, explainer, shown["images"]),
    )


def _facts(name: str, metrics: dict[str, float], scored: curves.Curves | None) -> list[page.Fact]:
    """The scores of the run's own maps that stand on top, and of how many images they are."""
    of_images = of_places = ""
    if scored:
        of_places = f"{scored.num_located} images with true masks"
        of_images = f"{scored.num_images} test images"
        if scored.histogram:
            of_images += f", {sum(scored.histogram.normal)} of them normal"
    columns = {
        "image_auroc_max": ("Image AUROC", "which images are abnormal, by the map's maximum"),
        "pixel_auroc": ("Pixel AUROC", "where; 0.5 is chance"),
        "average_precision": ("Pixel AP", "average precision; chance is the share of such pixels"),
        "aupro": ("AUPRO", "where, each defect counting alike"),
        "iou": ("IoU", "of all images together, at the threshold that normal images give"),
        "share_missed": ("Looks elsewhere", "share of maps that peak outside of the defect"),
    }
    return [
        page.Fact(
            heading,
            scores_lib.cell(metrics, f"{name}/{metric}"),
            meaning,
            of_images if metric.startswith("image") else of_places,
        )
        for metric, (heading, meaning) in columns.items()
        if f"{name}/{metric}" in metrics
    ]


def _sureness(explainer: Explainer) -> list[page.Fact]:
    """The latents in use, and what the decisions can promise."""
    calibration, latents = explainer.calibration, explainer.model.latents
    active, found = calibration.active_latents, calibration.images
    meaning = f"carry more than {ACTIVE_NATS:g} nats each on held-out images"
    if active < 2 < latents:
        meaning = summary.few_latents(active, latents)
    of = f"{found.images} held-out normal images"
    if found.value is None:
        decided = page.Fact("Decision threshold", "none", f"{found.missing}", of)
    else:
        promise = f"at most {found.rate:.0%} of normal images are expected above it; 95% interval "
        promise += f"{found.low:.1%} to {found.high:.1%}"
        promise += f"; {found.caveat}" if found.caveat else ""
        decided = page.Fact("Decision threshold", f"{found.value:.3g}", promise, of)
    return [page.Fact("Active latents", f"{active} of {latents}", meaning, of), decided]


def _plots(config, drawn: curves.Curves | None, explainer: Explainer, records: list[dict]):
    """Curves over all images that were scored; without scores, over those on the page."""
    if drawn:
        note = f"Over {drawn.num_images} test images, as the tables are."
    else:
        test = [record for record in records if record["split"] == "test"]
        scores = np.array([record["score"] for record in test])
        abnormal = np.array([record["abnormal"] for record in test], bool)
        roc = curves.roc(scores=scores, abnormal=abnormal) if len(test) else None
        name = explainer.variant.name
        drawn = curves.Curves(
            num_images=len(test),
            roc={name: roc} if roc else {},
            pro={},
            histogram=curves.histogram(scores=scores, abnormal=abnormal),
        )
        note = f"Over the {len(test)} test images of this page."
    return score_plots.of_run(
        drawn, explainer.calibration.image_threshold, note=note, seed=titles.first_seed(config)
    )


def _located(config: ml_collections.ConfigDict, data: AnomalyData) -> LabelledImages | None:
    """Abnormal images whose anomalous pixels are known, or drawn; None where there are none."""
    known = data.test.has_mask & (data.test.labels > 0)
    if known.any():
        return data.test.take(known)
    return evaluation.defects(data, 0, config.seed) if data.needs_drawn_defects else None


def _latents(
    config, explainer: Explainer, data: AnomalyData, scores: Mapping[str, float]
) -> page.Drawn:
    """Why the most deviating latents of one normal and several abnormal images deviate."""
    rng = np.random.default_rng(config.seed + 1)
    labels = sorted(set(data.test.labels.tolist()))
    abnormal = rng.permutation([label for label in labels if label])[:4].tolist()
    labels = [0, *abnormal] if 0 in labels else abnormal
    chosen = [int(rng.choice(np.flatnonzero(data.test.labels == label))) for label in labels]
    shown = data.test.take(np.array(chosen))
    found = explainer.deviating_latents(shown.images, count=_LATENTS_SHOWN)
    counterparts = explainer.counterparts(shown.images)
    exact = explainer.exact_maps(shown.images, counterparts, found.latents)
    scale = map_figures.quantile(np.abs(exact.maps))
    rows, marks = {}, {}
    for n, label in enumerate(shown.labels):
        image, maps = shown.images[n : n + 1], exact.maps[n]
        overlays = figures.signed_overlay(np.repeat(image, len(maps), axis=0), maps, scale)
        originals = np.concatenate([image / 255, counterparts[n : n + 1]])
        originals = np.broadcast_to(originals, (2, *overlays.shape[1:]))
        name = shown.class_names[label]
        rows[name] = np.concatenate([originals, overlays])
        marks[name] = [name, "counterpart", *map_figures.latent_captions(found, exact, n)]
    title = f"{data.name}: which pixels make the most deviating latents deviate"
    columns = [""] * (2 + found.latents.shape[1])
    truth = faithful.truth_of(scores, f"{DEEPLIFT}/{IMAGE}").sentence
    note = (
        "sd: the latent's deviation from normal images. Sum of the map = change of the latent from "
        f"the counterpart to the image. {truth}"
    )
    figure = figures.grid(rows, columns, title=title, labels=marks, note=note)
    figures.add_signed_scale(figure, scale, ("pushes z down", "pushes z up"))
    caption = (
        "For each image the latents that deviate most from the normal images' (in standard "
        "deviations, sd), and which pixels push each up (red) or down (blue) against the image's "
        "normal counterpart. The sum of a map is the change of z from the counterpart to the "
        f"image; both numbers stand over it. One colour scale for all. {truth}"
    )
    caption += titles.first_seed(config)
    return figure, "Why single latents deviate", caption
