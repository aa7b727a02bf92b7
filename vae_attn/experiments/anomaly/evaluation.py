"""Scores a one-class VAE: which images are abnormal, and where."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.experiments.anomaly.own_size import Truth
from vae_attn.experiments.anomaly.pixel_counts import Regions
from vae_attn.experiments.anomaly.scores import (
    CLIPS,
    IMAGE_SCORES,
    MAP_SCORES,
    ImageScores,
    Located,
)
from vae_attn.experiments.anomaly.simple_baselines import SIMPLE, SimpleBaselines
from vae_attn.experiments.anomaly.thresholds import Threshold
from vae_attn.experiments.map_functions import BASELINES, IMAGE, RECONSTRUCTION_ERROR
from vae_attn.progress import Progress

# The key of the number of latents in use, beside the scores.
ACTIVE = f"active_latents/{IMAGE}/count"

# Masks as large as their files, to which maps are enlarged; or shrunk to the model's size, which
# loses small defects and was done before.
OWN, MODEL = MASK_SIZES = ("own", "model")

_VALIDATION_PIXELS = 2**22  # of the validation images whose maps are in memory at once

_MASK_PIXELS = 2**24  # of masks at their own size: with more in memory no further one is read

_MOST_THREADS = 8  # each holds the maps of one variant, of a chunk of images

Maps = Float[np.ndarray, "n height width"]
Mask = Bool[np.ndarray, "_height _width"]
Add = Callable[["Collected", Maps, "_Masks"], None]


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
      mask_size: of `MASK_SIZES`: at which size places are scored.
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
                for part, masks in _parts(images, chunk, size):
                    raw_part = {key: maps[part] for key, maps in raw.items()}
                    _each(collected, add, raw_part, statistics, masks)
                progress.add(chunk.stop - chunk.start)

    give("scoring test images", test, mask_size, Collected.add_test)
    if data.needs_drawn_defects:
        located = defects(data, max_images, seed)
        give("scoring drawn defects", located, MODEL, Collected.add_located)
    with _threads() as pool:
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


def _each(
    collected: dict[Variant, "Collected"],
    add: Add,
    raw: calibration.RawMaps,
    statistics: calibration.Statistics,
    masks: "_Masks",
) -> None:
    """Gives every variant its maps of a chunk of images, several variants at once."""

    def give(item: tuple[Variant, Collected]) -> None:
        variant, one = item
        add(one, variant.maps(raw, statistics), masks)

    with _threads() as pool:
        list(pool.map(give, collected.items()))


def _threads() -> concurrent.futures.ThreadPoolExecutor:
    """Threads, and not processes: numpy sorts and adds outside of Python's lock."""
    return concurrent.futures.ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))


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


@dataclasses.dataclass(frozen=True, eq=False)
class _Masks:
    """The masks of some images, read once for all variants.

    Attributes:
      known: which of the images have one.
      masks: of those, at the model's size; None where they are scored at their own.
      truths: of those, at their own size.
    """

    known: Bool[np.ndarray, "n"]
    masks: Bool[np.ndarray, "m height width"] | None
    truths: tuple[Truth, ...] = ()

    @functools.cached_property
    def regions(self) -> Regions:
        """The regions of `masks`, found once for all variants."""
        return Regions.of(self.masks)

    @classmethod
    def at_own_size(
        cls, known: Bool[np.ndarray, "n"], full: Sequence[Mask], shape: tuple[int, int]
    ) -> "_Masks":
        """Masks as large as their files; where they have the model's size, in one array."""
        if full and all(mask.shape == shape for mask in full):
            return cls(known, np.stack(full))
        return cls(known, None, tuple(map(Truth.of, full)))


def _parts(images: LabelledImages, chunk: slice, mask_size: str) -> Iterator[tuple[slice, _Masks]]:
    """Parts of a chunk of images with their masks, of which few large ones are in memory at once.

    Args:
      images: all of them.
      chunk: of the images.
      mask_size: see `evaluate`.

    Yields:
      Which of the chunk's images, and their masks.
    """
    known = images.has_mask[chunk]
    if images.masks is None or not known.any():
        yield slice(0, len(known)), _Masks(known, None)
        return
    if mask_size == MODEL or images.read_full_mask is None:
        yield slice(0, len(known)), _Masks(known, images.masks[chunk][known])
        return
    shape, start, pixels, full = images.masks.shape[1:], 0, 0, []
    for n in range(len(known)):
        if not known[n]:
            continue
        if pixels >= _MASK_PIXELS:
            yield slice(start, n), _Masks.at_own_size(known[start:n], full, shape)
            start, pixels, full = n, 0, []
        full.append(images.full_mask(chunk.start + n))
        pixels += full[-1].size
    yield slice(start, len(known)), _Masks.at_own_size(known[start:], full, shape)


class Collected:
    """What one variant's maps leave behind as they stream past, for its scores.

    Attributes:
      located: the pixels of the images whose anomalous pixels are known.
    """

    def __init__(self, *, pixels: Threshold, images: Threshold) -> None:
        self.located: Located = Located(threshold=pixels.value)
        self._threshold = images.value
        self._mass: list[np.ndarray] = [np.zeros(0, np.float32)]
        self._peak: list[np.ndarray] = [np.zeros(0, np.float32)]

    def add_test(self, maps: Maps, masks: _Masks) -> None:
        """Maps of test images, with their masks."""
        self._mass.append(maps.mean(axis=(1, 2)))
        self._peak.append(calibration.image_score(maps))
        self.add_located(maps, masks)

    def add_located(self, maps: Maps, masks: _Masks) -> None:
        """Maps of images of which only those with a mask count."""
        if masks.masks is not None:
            self.located = self.located.add(maps[masks.known], masks.masks, masks.regions)
        elif masks.truths:
            self.located = self.located.add_enlarged(maps[masks.known], masks.truths)

    @property
    def peaks(self) -> Float[np.ndarray, "n"]:
        """The test images' scores, by which they are decided."""
        return np.concatenate(self._peak)

    def scores(
        self,
        abnormal: Bool[np.ndarray, "n"],
        smooth: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> dict[str, float]:
        """All scores; those of places only if any image has anomalous pixels.

        Args:
          abnormal: which test images are.
          smooth: what smooths scores of frames over time, if they are wanted so too.
        """
        mass = np.concatenate(self._mass)
        images = ImageScores(mass, self.peaks, abnormal, self._threshold)
        records = {"labels": lambda _: images}
        if smooth is not None:
            frames = ImageScores(smooth(mass), smooth(self.peaks), abnormal)
            records[CLIPS] = lambda _: frames
        if self.located.pixels.positives.any():
            records["masks"] = lambda _: self.located
        return scores_lib.compute(MAP_SCORES, records)


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
