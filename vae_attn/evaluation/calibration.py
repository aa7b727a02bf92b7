"""Maps made comparable: between places of an image, between layers, by what normal images give.

A raw map is higher where even normal images are hard to reconstruct, and every layer has its own
scale. Dividing by what held-out normal images give at a place mends both, and lets the layers be
fused, so that none has to be picked by a look at the test set.
"""

import dataclasses
import pathlib
import zipfile
from collections.abc import Iterable, Mapping

import ml_collections
import numpy as np
from jaxtyping import Float

KINDS = ("none", "ratio", "z")
FUSED = "fused"

# Of the mean over all places, added to a place's own: where normal maps are all but 0, as in the
# corners of a digit's frame, their quotient would be noise.
_FLOOR = 0.1

# Raw maps by style and layer.
RawMaps = Mapping[tuple[str, str], Float[np.ndarray, "n height width"]]


@dataclasses.dataclass(frozen=True)
class MapStatistics:
    """What the maps of normal images are at every place.

    Attributes:
      mean: over the images.
      std: over the images.
    """

    mean: Float[np.ndarray, "height width"]
    std: Float[np.ndarray, "height width"]

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
        return cls(mean=mean.astype(np.float32), std=np.sqrt(variance).astype(np.float32))

    def calibrate(
        self, maps: Float[np.ndarray, "n height width"], kind: str
    ) -> Float[np.ndarray, "n height width"]:
        """Calibrated maps.

        Args:
          maps: raw.
          kind: `none`: map / g, with g the mean over all places, the layer's scale alone;
            `ratio`: map / (mean + 0.1 g); `z`: (map - mean) / (std + 0.1 g).

        Returns:
          The maps, without a unit.
        """
        scale = float(self.mean.mean())
        scale = scale if scale > 0 else 1.0
        if kind == "none":
            return maps / np.float32(scale)
        if kind == "ratio":
            return maps / (self.mean + np.float32(_FLOOR * scale))
        return (maps - self.mean) / (self.std + np.float32(_FLOOR * scale))


def measure(raw: RawMaps) -> dict[tuple[str, str], MapStatistics]:
    """Statistics of normal images' raw maps, by style and layer."""
    return {key: MapStatistics.measure([maps]) for key, maps in raw.items()}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to a map: a style, the layers that are fused, and their calibration.

    Attributes:
      style: of the maps.
      layers: whose calibrated maps are averaged.
      calibration: of `KINDS`.
    """

    style: str
    layers: tuple[str, ...]
    calibration: str = "none"

    @property
    def name(self) -> str:
        """`style/layer`, with `fused` for several layers, and `.ratio` or `.z` appended."""
        layer = self.layers[0] if len(self.layers) == 1 else FUSED
        suffix = "" if self.calibration == "none" else f".{self.calibration}"
        return f"{self.style}/{layer}{suffix}"

    def maps(
        self, raw: RawMaps, statistics: Mapping[tuple[str, str], MapStatistics]
    ) -> Float[np.ndarray, "n height width"]:
        """The mean over the layers of their calibrated maps."""
        keys = [(self.style, layer) for layer in self.layers]
        calibrated = [statistics[key].calibrate(raw[key], self.calibration) for key in keys]
        return np.mean(calibrated, axis=0)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What normal images taught about a checkpoint; it is kept beside it.

    Attributes:
      normal_mean: mean of the latents over normal images.
      normal_variance: their variance (`attention.normal_statistics`).
      statistics: of the raw maps of held-out normal images, by style and layer.
    """

    normal_mean: Float[np.ndarray, "latents"]
    normal_variance: Float[np.ndarray, "latents"]
    statistics: dict[tuple[str, str], MapStatistics]

    def save(self, path: pathlib.Path, *, of: str) -> None:
        """Writes the calibration, whole or not at all; `of` says to what it belongs."""
        arrays = {"normal_mean": self.normal_mean, "normal_variance": self.normal_variance}
        for (style, layer), statistics in self.statistics.items():
            arrays |= {f"{style}/{layer}/mean": statistics.mean}
            arrays |= {f"{style}/{layer}/std": statistics.std}
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, of=np.array(of), **arrays)
        temporary.replace(path)

    @classmethod
    def load(cls, path: pathlib.Path, *, of: str) -> "Calibration | None":
        """The calibration in a file; None where there is none, or one of something else."""
        try:
            # Opened here: np.load leaves a file open that it finds broken.
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, zipfile.BadZipFile, EOFError):
            return None
        if str(arrays.pop("of", "")) != of:
            return None
        keys = {tuple(name.split("/")[:2]) for name in arrays if name.endswith("/mean")}
        return cls(
            normal_mean=arrays["normal_mean"],
            normal_variance=arrays["normal_variance"],
            statistics={
                (style, layer): MapStatistics(
                    mean=arrays[f"{style}/{layer}/mean"], std=arrays[f"{style}/{layer}/std"]
                )
                for style, layer in sorted(keys)
            },
        )


def variant_of(attention: ml_collections.ConfigDict) -> Variant:
    """The variant of a config's `attention`: what its pictures show and its summaries tell."""
    layers = tuple(attention.layers) or (attention.layer,)
    return Variant(attention.style, layers, attention.calibration)


def fused_layers(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The layers that are averaged: `attention.layers`, or where it has no two, all scored."""
    layers = tuple(config.attention.layers)
    return layers if len(layers) > 1 else tuple(config.evaluate.layers)
