"""Maps made comparable: between places of an image, between layers, by what normal images give.

A raw map is higher where even normal images are hard to reconstruct, and every layer has its own
scale. Dividing by what held-out normal images give at a place fixes both, and lets the layers be
fused, so that none has to be picked by a look at the test set.
"""

import dataclasses
import math
import pathlib
import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ml_collections
import numpy as np
from jaxtyping import Array, Float, Float32

from vae_attn import attention, whole_files
from vae_attn.experiments.anomaly import thresholds
from vae_attn.experiments.anomaly.thresholds import Threshold
from vae_attn.experiments.latent_use import ACTIVE_NATS, latent_kl
from vae_attn.experiments.map_functions import IMAGE, LEARNED

KINDS = ("none", "ratio", "upper", "z")
FUSED = "fused"

# Styles that take the run's own head: alone, and averaged with `contrast`.
LEARNED_CONTRAST = "learned_contrast"
LEARNED_STYLES = (LEARNED, LEARNED_CONTRAST)
_PARTS = {LEARNED_CONTRAST: (LEARNED, "contrast")}

# Of the mean over all places, added to a place's own: where normal maps are all but 0, as in the
# corners of a digit's frame, their quotient would be noise.
_FLOOR = 0.1

# Raw maps that vary less than this over all pixels of all normal images carry nothing.
_LEAST_RANGE = 1e-6

NO_ACTIVE_LATENT = (
    f"no latent is active (none has a mean KL over {ACTIVE_NATS} nats on held-out images), so the "
    "maps carry nothing: train longer or with a smaller train.beta"
)

# Also traced ones, as all that is done to a map in use is jitted.
Maps = Float[np.ndarray | Array, "n height width"]

# Raw maps by style and layer.
RawMaps = Mapping[tuple[str, str], Maps]


class MapStatistics(NamedTuple):
    """What the maps of normal images are at every place. A pytree: it may be traced.

    Attributes:
      mean: over the images.
      std: over the images.
      scale: the mean over all places of `mean`, or 1 where that is 0.
    """

    mean: Float[np.ndarray | Array, "height width"]
    std: Float[np.ndarray | Array, "height width"]
    scale: float | np.floating | Float[Array, ""]

    @classmethod
    def of(
        cls, mean: Float[np.ndarray, "height width"], std: Float[np.ndarray, "height width"]
    ) -> "MapStatistics":
        """The statistics with their scale."""
        scale = np.float32(mean.mean())
        return cls(mean, std, scale if scale > 0 else np.float32(1))

    @classmethod
    def measure(cls, maps: Iterable[Float[np.ndarray, "_ height width"]]) -> "MapStatistics":
        """The statistics of maps that come in chunks; at least one map."""
        count, total, squares = 0, np.float64(0), np.float64(0)
        for chunk in maps:
            count += len(chunk)
            total = total + chunk.sum(axis=0, dtype=np.float64)
            squares = squares + np.square(chunk, dtype=np.float64).sum(axis=0)
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0)
        return cls.of(mean.astype(np.float32), np.sqrt(variance).astype(np.float32))

    def calibrate(self, maps: Maps, kind: str) -> Maps:
        """Calibrated maps.

        Args:
          maps: raw.
          kind: `none`: map / g, with g the mean over all places, the layer's scale alone;
            `ratio`: map / (mean + 0.1 g); `upper`: map / (mean + 2 std + 0.1 g), how far the map
            is beyond the upper end of normal; `z`: (map - mean) / (std + 0.1 g).

        Returns:
          The maps, without a unit.
        """
        floor = np.float32(_FLOOR) * self.scale
        if kind == "none":
            return maps / self.scale
        if kind == "ratio":
            return maps / (self.mean + floor)
        if kind == "upper":
            return maps / (self.mean + 2 * self.std + floor)
        return (maps - self.mean) / (self.std + floor)


# By style and layer.
Statistics = dict[tuple[str, str], MapStatistics]


def measure(raw: RawMaps) -> Statistics:
    """Statistics of normal images' raw maps, by style and layer."""
    return {key: MapStatistics.measure([maps]) for key, maps in raw.items()}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to a map: a style, the layers that are fused, and their calibration.

    Attributes:
      style: of the maps: of `attention.STYLES` or `LEARNED_STYLES`, or a baseline.
      layers: whose calibrated maps are averaged. The head has layers of its own.
      calibration: of `KINDS`.
    """

    style: str
    layers: tuple[str, ...]
    calibration: str = "none"

    @property
    def name(self) -> str:
        """`style/layer`, with `fused` for several layers, and `.ratio` and the like appended."""
        layer = self.layers[0] if len(self.layers) == 1 else FUSED
        suffix = "" if self.calibration == "none" else f".{self.calibration}"
        return f"{self.style}/{layer}{suffix}"

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The layers of the raw maps that it takes, by their style."""
        styles = _PARTS.get(self.style, (self.style,))
        return {style: (IMAGE,) if style == LEARNED else self.layers for style in styles}

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Style and layer of those raw maps."""
        return [(style, layer) for style, layers in self.parts.items() for layer in layers]

    @property
    def is_learned(self) -> bool:
        """Whether it takes the run's own head."""
        return self.style in LEARNED_STYLES

    @property
    def needs_counterparts(self) -> bool:
        """Whether its maps compare an image with its normal counterpart."""
        return self.is_learned or attention.needs_counterparts(self.style)

    @property
    def attention_style(self) -> str:
        """Its style, or where that is learned, the one that has maps of single layers."""
        return "contrast" if self.is_learned else self.style

    def maps(self, raw: RawMaps, statistics: Statistics) -> Maps:
        """The mean over the layers of their calibrated maps; over styles, the mean of theirs."""
        parts = []
        for style, layers in self.parts.items():
            keys = [(style, layer) for layer in layers]
            calibrated = [statistics[key].calibrate(raw[key], self.calibration) for key in keys]
            parts.append(sum(calibrated) / len(calibrated))
        return sum(parts) / len(parts)


def normal_thresholds(
    variant: Variant, normal: RawMaps, *, missing: str = "", caveat: str = ""
) -> tuple[Threshold, Threshold]:
    """The thresholds of pixels and of images.

    Args:
      variant: of the maps.
      normal: raw maps of held-out normal images.
      missing: why there can be no thresholds, if so.
      caveat: what makes their promise doubtful (`AnomalyData.caveat`).
    """
    n = len(next(iter(normal.values())))
    if missing := missing or _nothing_in(variant, normal):
        of_pixels = thresholds.none(missing, images=n, share=thresholds.PIXEL_SHARE)
        return of_pixels, thresholds.none(missing, images=n)
    maps = unseen(variant, normal)
    found = thresholds.of_pixels(maps), thresholds.of_images(image_score(maps))
    of_pixels, of_images = (dataclasses.replace(one, caveat=caveat) for one in found)
    return of_pixels, of_images


def _nothing_in(variant: Variant, normal: RawMaps) -> str:
    """Why maps that are the same everywhere decide nothing; "" where they are not."""
    raw = [normal[key] for key in variant.keys]
    if max(float(np.ptp(maps)) for maps in raw) > _LEAST_RANGE:
        return ""
    return f"the maps ({variant.name}) of held-out normal images are the same everywhere"


def active_latents(
    mean: Float[np.ndarray, "n latents"], logvar: Float[np.ndarray, "n latents"]
) -> int:
    """How many latents carry more than `ACTIVE_NATS` on average over the images."""
    return int((latent_kl(mean, logvar) > ACTIVE_NATS).sum())


def image_score(maps: Maps) -> Float[np.ndarray | Array, "n"]:
    """How abnormal images are by their calibrated maps: the maximum."""
    return maps.max(axis=(1, 2))


def unseen(variant: Variant, normal: RawMaps) -> Float32[np.ndarray, "n height width"]:
    """The maps of normal images as those of new images would be: each calibrated by the others.

    Of a single image there are no others; it is calibrated by itself.
    """
    keys = variant.keys
    count = len(normal[keys[0]])
    if count == 1:
        return variant.maps(normal, measure(normal))
    sums = {}
    for key in keys:
        total = normal[key].sum(axis=0, dtype=np.float64)
        sums[key] = total, np.square(normal[key], dtype=np.float64).sum(axis=0)
    maps = np.empty(normal[keys[0]].shape, np.float32)
    for n in range(count):
        statistics = {}
        for key, (total, squares) in sums.items():
            own = normal[key][n].astype(np.float64)
            mean = (total - own) / (count - 1)
            variance = np.maximum((squares - own**2) / (count - 1) - mean**2, 0)
            std = np.sqrt(variance).astype(np.float32)
            statistics[key] = MapStatistics.of(mean.astype(np.float32), std)
        maps[n] = variant.maps({key: normal[key][n : n + 1] for key in keys}, statistics)[0]
    return maps


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What normal images taught about a checkpoint; it is kept beside it.

    Attributes:
      parameters: digest of those to which it belongs (`checkpoints.digest`).
      variant: of the maps that it calibrates.
      projection_steps: of the counterparts that the maps compare with (`counterparts.project`).
      normal_mean: mean of the latents over normal images.
      normal_variance: their variance (`attention.normal_statistics`).
      statistics: of the raw maps of held-out normal images, by style and layer.
      pixels: threshold of the calibrated, fused map.
      images: threshold of an image's score (`image_score`).
      active_latents: how many latents are in use (`active_latents`).
      head: digest of the head that the maps take; "" where they take none.
    """

    parameters: str
    variant: Variant
    projection_steps: int
    normal_mean: Float[np.ndarray, "latents"]
    normal_variance: Float[np.ndarray, "latents"]
    statistics: Statistics
    pixels: Threshold
    images: Threshold
    active_latents: int = 0
    head: str = ""

    @property
    def threshold(self) -> float | None:
        """From which pixels count as abnormal; None where none can be given."""
        return self.pixels.value

    @property
    def image_threshold(self) -> float | None:
        """Above which images count as abnormal; None where none can be given."""
        return self.images.value

    def nothing_from(self, variant: Variant) -> str:
        """Why maps of a variant carry nothing, whatever they look like; "" where they may."""
        of_latents = variant.style in attention.STYLES
        return NO_ACTIVE_LATENT if of_latents and not self.active_latents else ""

    def save(self, path: pathlib.Path) -> None:
        """Writes the calibration, whole or not at all."""
        arrays = {
            "parameters": np.array(self.parameters),
            "style": np.array(self.variant.style),
            "layers": np.array(self.variant.layers),
            "calibration": np.array(self.variant.calibration),
            "projection_steps": np.int64(self.projection_steps),
            "normal_mean": self.normal_mean,
            "normal_variance": self.normal_variance,
            "active_latents": np.int64(self.active_latents),
            "head": np.array(self.head),
        }
        for name, kept in (("pixels", self.pixels), ("images", self.images)):
            value = math.nan if kept.value is None else kept.value
            numbers = (value, kept.rate, kept.images, kept.low, kept.high, kept.share)
            arrays |= {f"{name}_threshold": np.array(numbers, np.float64)}
            arrays |= {f"{name}_missing": np.array(kept.missing)}
            arrays |= {f"{name}_caveat": np.array(kept.caveat)}
        for (style, layer), statistics in self.statistics.items():
            arrays |= {f"{style}/{layer}/mean": statistics.mean}
            arrays |= {f"{style}/{layer}/std": statistics.std}
        with whole_files.writing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: pathlib.Path) -> "Calibration | None":
        """The calibration in a file; None where there is none that is whole."""
        try:
            with warnings.catch_warnings(action="error"):
                found = cls._of_arrays(whole_files.read_arrays(path))
                return found if found._is_whole() else None
        except Exception:  # zipfile and numpy raise, or warn of, nearly everything
            return None

    @classmethod
    def _of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Calibration":
        keys = {tuple(name.split("/")[:2]) for name in arrays if name.endswith("/mean")}
        return cls(
            parameters=str(arrays["parameters"]),
            variant=Variant(
                style=str(arrays["style"]),
                layers=tuple(map(str, arrays["layers"])),
                calibration=str(arrays["calibration"]),
            ),
            projection_steps=int(arrays["projection_steps"]),
            normal_mean=arrays["normal_mean"],
            normal_variance=arrays["normal_variance"],
            pixels=_threshold_of(arrays, "pixels"),
            images=_threshold_of(arrays, "images"),
            active_latents=int(arrays["active_latents"]),
            head=str(arrays["head"]),
            statistics={
                (style, layer): MapStatistics.of(
                    arrays[f"{style}/{layer}/mean"], arrays[f"{style}/{layer}/std"]
                )
                for style, layer in sorted(keys)
            },
        )

    def _is_whole(self) -> bool:
        """Whether all of it fits together, as a hand or another program may have changed it."""
        maps = [one for kept in self.statistics.values() for one in (kept.mean, kept.std)]
        latents = [self.normal_mean, self.normal_variance]
        return (
            self.variant.calibration in KINDS
            and bool(self.variant.layers)
            and all(key in self.statistics for key in self.variant.keys)
            and self.variant.is_learned == bool(self.head)
            and all(one.ndim == 2 and one.shape == maps[0].shape for one in maps)
            and all(one.ndim == 1 and one.shape == latents[0].shape for one in latents)
            and all(one.dtype.kind == "f" and one.size > 0 for one in (*maps, *latents))
            and self.projection_steps >= 0
        )


def _threshold_of(arrays: Mapping[str, np.ndarray], name: str) -> Threshold:
    value, rate, images, low, high, share = map(float, arrays[f"{name}_threshold"])
    missing, caveat = str(arrays[f"{name}_missing"]), str(arrays[f"{name}_caveat"])
    if math.isnan(value) != bool(missing):
        raise ValueError(f"a threshold of {name}, or why there is none, is lacking")
    known = None if missing else value
    return Threshold(known, rate, int(images), low, high, share, missing, caveat)


def variant_of(section: ml_collections.ConfigDict) -> Variant:
    """The variant of a config's `attention`: what its pictures show and its summaries name."""
    layers = tuple(section.layers) or (section.layer,)
    return Variant(section.style, layers, section.calibration)


def raw_styles(*styles: str) -> tuple[str, ...]:
    """The styles of the raw maps that styles take, each once."""
    taken = (part for style in styles for part in _PARTS.get(style, (style,)))
    return tuple(dict.fromkeys(taken))


def fused_layers(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The layers that are averaged: `attention.layers`, or where it has no two, all scored."""
    layers = tuple(config.attention.layers)
    return layers if len(layers) > 1 else tuple(config.evaluate.layers)
