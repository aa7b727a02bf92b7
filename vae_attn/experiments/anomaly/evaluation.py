"""Scores a one-class VAE: which images are abnormal, and where."""

import logging
from collections.abc import Iterator

import ml_collections
import numpy as np
from jaxtyping import Bool, Float

from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.defects import draw_defects
from vae_attn.experiments.anomaly import bootstrap, curves, localization
from vae_attn.experiments.anomaly.calibration import (
    KINDS,
    RawMaps,
    Variant,
    fused_layers,
    image_score,
    measure,
    normal_threshold,
)
from vae_attn.experiments.anomaly.comparison import compared
from vae_attn.experiments.anomaly.explainer import BASELINES, IMAGE, RECONSTRUCTION_ERROR, Explainer
from vae_attn.reporting.tables import HIGH, LOW

_LOG = logging.getLogger("vae_attn")
_CHUNK_PIXELS = 2**20  # of the images whose maps are in memory at once
_VALIDATION_PIXELS = 2**22  # of the validation images whose maps are

Maps = Float[np.ndarray, "n height width"]


def evaluate(
    config: ml_collections.ConfigDict, explainer: Explainer, data: AnomalyData
) -> tuple[dict[str, float], curves.Curves]:
    """Scores every style and layer of `config.evaluate`, and the reconstruction error beside.

    Localisation is scored on the test images that have masks; where the data has none, on
    defects drawn on its normal test images (`data.defects`).

    Args:
      config: see `vae_attn.config.default_config`.
      explainer: the trained model.
      data: its `validation` and `test` images are used.

    Returns:
      Flat keys `style/layer/metric`; the layer is `fused` for the mean over all layers, with
      the calibration (`.ratio` and the like) appended where maps are calibrated. Localisation:
      those of `LocalizationState.compute`, `iou` at the threshold that 1% of the pixels of normal
      validation images exceed, `pointing_game`, `share_missed`, the share of maps whose peak lies
      outside of the defect (1 - pointing game), and `share_below_chance`, of maps whose own pixel
      AUROC is under 0.5. Images, normal against the rest of the test set: `image_auroc` by the
      map's mean, `image_auroc_max` by its maximum; keys `score/image/...` for scores that have no
      map. Ends of bootstrap intervals, where there is one, have `_low` and `_high` appended.
      Beside the scores: curves of what `comparison.compared` names.
    """
    test = data.test.sample(config.evaluate.max_images, config.seed)
    image_scores = explainer.image_scores(test.images)
    metrics = {
        f"{name}/{IMAGE}/{key}": value
        for name, scores in image_scores.items()
        for key, value in _image_auroc("image_auroc", scores, test.labels > 0).items()
    }
    own = explainer.variant
    styles = tuple(dict.fromkeys((*config.evaluate.styles, own.style)))
    layers = tuple(dict.fromkeys((*config.evaluate.layers, *own.layers)))
    source = MapSource(explainer, styles, layers)
    normal = source.all(sample_validation(data))
    statistics = measure(normal)
    scored = [*variants(styles, tuple(config.evaluate.layers), fused_layers(config)), own]
    collected = {
        variant: VariantScores(threshold=normal_threshold(variant, normal)) for variant in scored
    }
    for raw, chunk in source.chunks(test.images):
        masks = None if test.masks is None else (test.masks[chunk], test.has_mask[chunk])
        for variant, scores in collected.items():
            scores.add_test(variant.maps(raw, statistics), masks)
        _LOG.info("scored %d of %d test images", chunk.stop, len(test))
    if test.masks is None and data.draws_defects:
        located = defects(data, config.evaluate.max_images, config.seed)
        for raw, chunk in source.chunks(located.images):
            for variant, scores in collected.items():
                scores.add_located(variant.maps(raw, statistics), located.masks[chunk])
            _LOG.info("scored %d of %d drawn defects", chunk.stop, len(located))
    for variant, scores in collected.items():
        found = scores.compute(test.labels > 0)
        if variant.style == RECONSTRUCTION_ERROR:  # whose image score is the likelihood above
            for key in ("image_auroc", f"image_auroc{LOW}", f"image_auroc{HIGH}"):
                found.pop(key, None)
        metrics |= {f"{variant.name}/{name}": value for name, value in found.items()}
    named = {variant.name: scores for variant, scores in collected.items()}
    order = dict.fromkeys((own.name, *compared(config)))  # the run's own first
    drawn_of = {name: named[name] for name in order if name in named}
    likelihood = {f"{RECONSTRUCTION_ERROR}/{IMAGE}": image_scores[RECONSTRUCTION_ERROR]}
    drawn = _curves(drawn_of, likelihood, test.labels > 0, own.name)
    # A score is undefined where the sample has images of one kind only.
    return {name: value for name, value in metrics.items() if np.isfinite(value)}, drawn


def sample_validation(data: AnomalyData) -> np.ndarray:
    """Validation images, evenly thinned out where they are too many to hold all their maps."""
    images = data.validation
    most = max(16, _VALIDATION_PIXELS // (images.shape[1] * images.shape[2]))
    return images[:: -(-len(images) // most)]


def defects(data: AnomalyData, max_images: int, seed: int) -> LabelledImages:
    """Defects drawn on the normal test images of data that has no masks."""
    normal = data.test.take(data.test.labels == 0).sample(max_images, seed)
    return draw_defects(normal.images, seed=seed).sample(max_images, seed)


def variants(
    styles: tuple[str, ...], layers: tuple[str, ...], fused: tuple[str, ...]
) -> list[Variant]:
    """What is scored: the baselines, each layer as it is, and layers fused.

    The baselines and the fused layers with every calibration; but of `authors_code`, whose maps
    depend on their batch by a factor, there is nothing to calibrate by (`config.validate` refuses
    it too).
    """
    scored = [Variant(style, (IMAGE,), kind) for style in BASELINES for kind in KINDS]
    for style in styles:
        scored += [Variant(style, (layer,)) for layer in layers]
        kinds = ("none",) if style == "authors_code" else KINDS
        scored += [Variant(style, fused, kind) for kind in kinds]
    return list(dict.fromkeys(scored))


class MapSource:
    """The raw maps of many images, a chunk at a time, so that memory does not grow with them."""

    def __init__(
        self, explainer: Explainer, styles: tuple[str, ...], layers: tuple[str, ...]
    ) -> None:
        self._explainer = explainer
        self._styles = styles
        self._layers = layers

    def chunks(self, images: np.ndarray) -> Iterator[tuple[RawMaps, slice]]:
        """The maps of the baselines and of every style and layer, and whose they are."""
        size = max(1, _CHUNK_PIXELS // (images.shape[1] * images.shape[2]))
        for start in range(0, len(images), size):
            chunk = slice(start, min(start + size, len(images)))
            counterparts = self._explainer.counterparts(images[chunk])
            raw = self._explainer.maps(
                images[chunk], styles=self._styles, layers=self._layers, counterparts=counterparts
            )
            yield raw | self._explainer.baseline_maps(images[chunk], counterparts), chunk

    def all(self, images: np.ndarray) -> RawMaps:
        """The maps of all images at once."""
        parts = [raw for raw, _ in self.chunks(images)]
        return {key: np.concatenate([raw[key] for raw in parts]) for key in parts[0]}


class VariantScores:
    """Collects the scores of one variant's maps.

    Attributes:
      located: the pixels of the images whose anomalous pixels are known.
    """

    def __init__(self, *, threshold: float) -> None:
        self._threshold = threshold
        self.located = localization.LocalizationState.empty()
        self._aurocs: list[np.ndarray] = []
        self._pointing: list[np.ndarray] = []
        self._mass: list[np.ndarray] = []
        self._peak: list[np.ndarray] = []

    def add_test(self, maps: Maps, masks: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Maps of test images; with masks and which of them are known, if there are any."""
        self._mass.append(maps.mean(axis=(1, 2)))
        self._peak.append(image_score(maps))
        if masks is not None and masks[1].any():
            self.add_located(maps[masks[1]], masks[0][masks[1]])

    def add_located(self, maps: Maps, masks: Bool[np.ndarray, "n height width"]) -> None:
        """Maps of images whose anomalous pixels are known."""
        self.located = self.located.add(scores=maps, masks=masks)
        self._aurocs.append(localization.per_image_auroc(scores=maps, masks=masks))
        self._pointing.append(localization.pointing_game(scores=maps, masks=masks))

    @property
    def peaks(self) -> Float[np.ndarray, "n"]:
        """The test images' scores, by which they are decided."""
        return np.concatenate(self._peak)

    @property
    def num_located(self) -> int:
        """Images whose anomalous pixels are known."""
        return sum(map(len, self._aurocs))

    def compute(self, abnormal: Bool[np.ndarray, "n"]) -> dict[str, float]:
        """All scores; those of places only if any image has anomalous pixels."""
        found = _image_auroc("image_auroc", np.concatenate(self._mass), abnormal)
        found |= _image_auroc("image_auroc_max", self.peaks, abnormal)
        if not self.located.positives.any():
            return found
        found |= self.located.compute()
        for name, interval in bootstrap.bootstrap_pixel_scores(self.located).items():
            found |= {name + LOW: interval.low, name + HIGH: interval.high}
        hits = np.concatenate(self._pointing)
        return found | {
            "iou": self.located.iou(threshold=self._threshold),
            "pointing_game": float(np.nanmean(hits)),
            "share_missed": localization.share_missed(hits),
            "share_below_chance": localization.share_below_chance(np.concatenate(self._aurocs)),
        }


def _curves(
    collected: dict[str, VariantScores],
    likelihood: dict[str, Float[np.ndarray, "n"]],
    abnormal: Bool[np.ndarray, "n"],
    own: str,
) -> curves.Curves:
    """Of the variants' peaks and places; but of `likelihood`, by that."""
    scores = {name: one.peaks for name, one in collected.items()} | likelihood
    rocs = {name: curves.roc(scores=of, abnormal=abnormal) for name, of in scores.items()}
    pros = {name: curves.pro(one.located) for name, one in collected.items()}
    return curves.Curves(
        num_images=len(abnormal),
        roc={name: curve for name, curve in rocs.items() if curve},
        pro={name: curve for name, curve in pros.items() if curve},
        histogram=curves.histogram(scores=collected[own].peaks, abnormal=abnormal),
        num_located=collected[own].num_located,
    )


def _image_auroc(
    name: str, scores: Float[np.ndarray, "n"], abnormal: Bool[np.ndarray, "n"]
) -> dict[str, float]:
    """The score and its interval; nothing where only one kind of image is."""
    value = localization.image_auroc(scores=scores, labels=abnormal)
    if value is None:
        return {}
    interval = bootstrap.bootstrap_image_auroc(scores=scores, labels=abnormal)
    return {name: value, name + LOW: interval.low, name + HIGH: interval.high}
