"""What the maps of many images leave behind as they stream past, of all variants at once."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from vae_attn.data.dataset import LabelledImages
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.anomaly import calibration
from vae_attn.experiments.anomaly.calibration import Variant
from vae_attn.experiments.anomaly.own_size import Truth
from vae_attn.experiments.anomaly.pixel_counts import Regions
from vae_attn.experiments.anomaly.scores import CLIPS, MAP_SCORES, ImageScores, Located
from vae_attn.experiments.anomaly.thresholds import Threshold

# Masks as large as their files, to which maps are enlarged; or shrunk to the model's size, which
# loses small defects and was done before.
OWN, MODEL = MASK_SIZES = ("own", "model")

_MASK_PIXELS = 2**24  # of masks at their own size: with more in memory no further one is read

_MOST_THREADS = 8  # each holds the maps of one variant, of a chunk of images

Maps = Float[np.ndarray, "n height width"]
Mask = Bool[np.ndarray, "_height _width"]
Add = Callable[["Collected", Maps, "Masks"], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
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
    ) -> "Masks":
        """Masks as large as their files; where they have the model's size, in one array."""
        if full and all(mask.shape == shape for mask in full):
            return cls(known, np.stack(full))
        return cls(known, None, tuple(map(Truth.of, full)))


def parts(images: LabelledImages, chunk: slice, mask_size: str) -> Iterator[tuple[slice, Masks]]:
    """Parts of a chunk of images with their masks, of which few large ones are in memory at once.

    Args:
      images: all of them.
      chunk: of the images.
      mask_size: of `MASK_SIZES`.

    Yields:
      Which of the chunk's images, and their masks.
    """
    known = images.has_mask[chunk]
    if images.masks is None or not known.any():
        yield slice(0, len(known)), Masks(known, None)
        return
    if mask_size == MODEL or images.read_full_mask is None:
        yield slice(0, len(known)), Masks(known, images.masks[chunk][known])
        return
    shape, start, pixels, full = images.masks.shape[1:], 0, 0, []
    for n in range(len(known)):
        if not known[n]:
            continue
        if pixels >= _MASK_PIXELS:
            yield slice(start, n), Masks.at_own_size(known[start:n], full, shape)
            start, pixels, full = n, 0, []
        full.append(images.full_mask(chunk.start + n))
        pixels += full[-1].size
    yield slice(start, len(known)), Masks.at_own_size(known[start:], full, shape)


class Collected:
    """What one variant's maps leave behind, for its scores.

    Attributes:
      located: the pixels of the images whose anomalous pixels are known.
    """

    def __init__(self, *, pixels: Threshold, images: Threshold) -> None:
        self.located: Located = Located(threshold=pixels.value)
        self._threshold = images.value
        self._mass: list[np.ndarray] = [np.zeros(0, np.float32)]
        self._peak: list[np.ndarray] = [np.zeros(0, np.float32)]

    def add_test(self, maps: Maps, masks: Masks) -> None:
        """Maps of test images, with their masks."""
        self._mass.append(maps.mean(axis=(1, 2)))
        self._peak.append(calibration.image_score(maps))
        self.add_located(maps, masks)

    def add_located(self, maps: Maps, masks: Masks) -> None:
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


def add_to_each(
    collected: Mapping[Variant, Collected],
    add: Add,
    raw: calibration.RawMaps,
    statistics: calibration.Statistics,
    masks: Masks,
) -> None:
    """Gives every variant its maps of a chunk of images, several variants at once.

    Args:
      collected: what gets them, by variant.
      add: `Collected.add_test` or `Collected.add_located`.
      raw: maps of the images.
      statistics: of the raw maps of normal images.
      masks: of the images.
    """

    def one(item: tuple[Variant, Collected]) -> None:
        variant, of_variant = item
        add(of_variant, variant.maps(raw, statistics), masks)

    with threads() as pool:
        list(pool.map(one, collected.items()))


def threads() -> concurrent.futures.ThreadPoolExecutor:
    """Threads, and not processes: numpy sorts and adds outside of Python's lock."""
    return concurrent.futures.ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
