"""Scores a one-class VAE: which images are abnormal, and where."""

import functools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.defects import draw_defects
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.anomaly import calibration, curves, frame_scores
from vae_attn.experiments.anomaly.calibration import (
    KINDS,
    LEARNED_STYLES,
    Variant,
    raw_styles,
)
from vae_attn.experiments.anomaly.collected import (
    MODEL,
    OWN,
    Add,
    Collected,
    add_to_each,
    parts,
    threads,
)
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.experiments.anomaly.scores import IMAGE_SCORES, ImageScores
from vae_attn.experiments.anomaly.simple_baselines import SIMPLE, SimpleBaselines
from vae_attn.experiments.map_functions import BASELINES, IMAGE, RECONSTRUCTION_ERROR
from vae_attn.progress import Progress

# The key of the number of latents in use, beside the scores.
ACTIVE = f"active_latents/{IMAGE}/count"

_VALIDATION_PIXELS = 2**22  # of the validation images whose maps are in memory at once


def evaluate(
    explainer: Explainer,
    data: AnomalyData,
    *,
    styles: tuple[str, ...],
    layers: tuple[str, ...],
    fused: tuple[str, ...],
    curves_of: tuple[str, ...] = (),
    max_images: int = 0,
    seed: int = 0,
    mask_size: str = OWN,
    smooth_frames: float = 0.0,
) -> tuple[dict[str, float], curves.Curves]:
    """Scores every style and layer, and the reconstruction error beside.

    Localisation is scored on the test images that have masks; where the data has none, on
    defects drawn on its normal test images (`data.defects`).

    Args:
      explainer: the trained model.
      data: its `validation` and `test` images are used.
      styles: to score, beside the explainer's own, and those of its head where it has one.
      layers: to score each alone, beside the explainer's own.
      fused: layers whose maps are also averaged.
      curves_of: names of variants (`Variant.name`) whose curves are wanted beside the own one's.
      max_images: of each kind to score, drawn at random, and to calibrate by; 0 is all.
      seed: of that choice, and of drawn defects.
      mask_size: of `collected.MASK_SIZES`: at which size places are scored.
      smooth_frames: of a video, over how many frames scores of frames are also smoothed; 0: none.

    Returns:
      Flat keys `style/layer/score` with the scores of `scores.MAP_SCORES`; the layer is `fused`
      for the mean over all layers, with the calibration (`.ratio` and the like) appended where
      maps are calibrated. Keys `score/image/...` for scores that have no map. Ends of bootstrap
      intervals, where there is one, have `_low` and `_high` appended. Beside the scores: curves.
    """
    test = data.test.sample(max_images, seed)
    abnormal = test.labels > 0
    image_scores = explainer.image_scores(test.images)
    metrics = _without_maps(image_scores, abnormal)
    smooth = None
    if smooth_frames:
        smooth = functools.partial(
            frame_scores.smoothed, names=test.names, sigma=float(smooth_frames)
        )
    metrics[ACTIVE] = float(explainer.calibration.active_latents)
    own = explainer.variant
    styles = (*styles, own.style, *(LEARNED_STYLES if explainer.head is not None else ()))
    styles = tuple(dict.fromkeys(styles))
    of = {
        "styles": raw_styles(*styles),
        "layers": tuple(dict.fromkeys((*layers, *fused, *own.layers))),
    }
    validation = sample_validation(data, max_images)
    simple = SimpleBaselines.of(data.train, validation)
    normal = explainer.all_maps(validation, **of) | simple.maps(validation)
    statistics = calibration.measure(normal)
    collected = {}
    for variant in dict.fromkeys((*variants(styles, layers, fused), own)):
        missing = explainer.calibration.nothing_from(variant)
        of_pixels, of_images = calibration.normal_thresholds(variant, normal, missing=missing)
        collected[variant] = Collected(pixels=of_pixels, images=of_images)

    def give(title: str, images: LabelledImages, size: str, add: Add) -> None:
        with Progress(title, total=len(images)) as progress:
            for raw, _, chunk in explainer.chunks(images.images, **of):
                raw |= simple.maps(images.images[chunk])
                for part, masks in parts(images, chunk, size):
                    raw_part = {key: maps[part] for key, maps in raw.items()}
                    add_to_each(collected, add, raw_part, statistics, masks)
                progress.add(chunk.stop - chunk.start)

    give("scoring test images", test, mask_size, Collected.add_test)
    if data.needs_drawn_defects:
        located = defects(data, max_images, seed)
        give("scoring drawn defects", located, MODEL, Collected.add_located)
    with threads() as pool:
        every = list(pool.map(lambda one: one.scores(abnormal, smooth), collected.values()))
    for variant, found in zip(collected, every, strict=True):
        if variant.style == RECONSTRUCTION_ERROR:  # whose image score is the likelihood above
            found = {key: v for key, v in found.items() if key not in _LIKELIHOOD_KEYS}
        metrics |= {f"{variant.name}/{name}": value for name, value in found.items()}
    named = {variant.name: one for variant, one in collected.items()}
    order = dict.fromkeys((own.name, *curves_of))  # the run's own first
    likelihood = {f"{RECONSTRUCTION_ERROR}/{IMAGE}": image_scores[RECONSTRUCTION_ERROR]}
    shown = {name: named[name] for name in order if name in named}
    return metrics, _curves(shown, likelihood, abnormal, own.name)


def _without_maps(
    image_scores: Mapping[str, Float[np.ndarray, "n"]], abnormal: Bool[np.ndarray, "n"]
) -> dict[str, float]:
    """Scores of what every image has without a map, such as its likelihood."""
    metrics = {}
    for name, values in image_scores.items():
        record = ImageScores(mass=values, peak=values, abnormal=abnormal)
        found = scores_lib.compute(IMAGE_SCORES, {"labels": lambda _, record=record: record})
        metrics |= {f"{name}/{IMAGE}/{key}": value for key, value in found.items()}
    return metrics


_LIKELIHOOD_KEYS = [
    f"{row.name}{end}" for row in IMAGE_SCORES for end in ("", scores_lib.LOW, scores_lib.HIGH)
]


def sample_validation(data: AnomalyData, max_images: int = 0) -> np.ndarray:
    """Validation images, evenly thinned out where they are too many to hold all their maps.

    Args:
      data: whose images.
      max_images: at most so many; 0 sets no limit of its own.
    """
    images = data.validation
    most = max(16, _VALIDATION_PIXELS // (images.shape[1] * images.shape[2]))
    images = images[:: -(-len(images) // most)]
    if max_images and len(images) > max_images:
        images = images[np.arange(max_images) * len(images) // max_images]
    return images


def defects(data: AnomalyData, max_images: int, seed: int) -> LabelledImages:
    """Defects drawn on the normal test images of data that has no masks."""
    normal = data.test.take(data.test.labels == 0).sample(max_images, seed)
    return draw_defects(normal.images, seed=seed).sample(max_images, seed)


def variants(
    styles: tuple[str, ...], layers: tuple[str, ...], fused: tuple[str, ...]
) -> list[Variant]:
    """What is scored: the baselines, each layer as it is, and layers fused.

    The baselines and the fused layers with every calibration; but of `authors_code`, whose maps
    depend on their batch by a factor, there is nothing to calibrate by. Of learned styles there are
    no single layers.
    """
    scored = [Variant(style, (IMAGE,), kind) for style in BASELINES for kind in KINDS]
    scored += [Variant(style, (IMAGE,)) for style in SIMPLE]
    for style in styles:
        scored += [Variant(style, (layer,)) for layer in layers if style not in LEARNED_STYLES]
        kinds = ("none",) if style == "authors_code" else KINDS
        scored += [Variant(style, fused, kind) for kind in kinds]
    return list(dict.fromkeys(scored))


def candidates(
    explainer: Explainer,
    *,
    styles: tuple[str, ...],
    layers: tuple[str, ...],
    fused: tuple[str, ...],
    **_: object,
) -> list[Variant]:
    """Of what `evaluate` scores with the same options, the maps that a run may have as its own."""
    styles = (*styles, *(LEARNED_STYLES if explainer.head is not None else ()))
    scored = variants(tuple(dict.fromkeys(styles)), layers, fused)
    return [variant for variant in scored if variant.style in styles]


def _curves(
    collected: dict[str, Collected],
    likelihood: dict[str, Float[np.ndarray, "n"]],
    abnormal: Bool[np.ndarray, "n"],
    own: str,
) -> curves.Curves:
    """Of the variants' peaks and places; but of `likelihood`, by that."""
    scores = {name: one.peaks for name, one in collected.items()} | likelihood
    rocs = {name: curves.roc(scores=of, abnormal=abnormal) for name, of in scores.items()}
    pros = {name: curves.pro(one.located.pixels) for name, one in collected.items()}
    return curves.Curves(
        num_images=len(abnormal),
        roc={name: curve for name, curve in rocs.items() if curve},
        pro={name: curve for name, curve in pros.items() if curve},
        histogram=curves.histogram(scores=collected[own].peaks, abnormal=abnormal),
        num_located=len(collected[own].located.hits),
    )
