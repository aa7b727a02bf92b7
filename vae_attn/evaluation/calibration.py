"""Maps made comparable: between places of an image, between layers, by what normal images give.

A raw map is higher where even normal images are hard to reconstruct, and every layer has its own
scale. Dividing by what held-out normal images give at a place mends both, and lets the layers be
fused, so that none has to be picked by a look at the test set.
"""

import dataclasses
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


def variant_of(attention: ml_collections.ConfigDict) -> Variant:
    """The variant of a config's `attention`: what its pictures show and its summaries tell."""
    layers = tuple(attention.layers) or (attention.layer,)
    return Variant(attention.style, layers, attention.calibration)
