"""The explorer of a run's images: what its page shows of each, and the files beside the page."""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Bool, Float, UInt8

from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.experiments import faithful
from vae_attn.experiments.anomaly import evaluation, localization
from vae_attn.experiments.anomaly.calibration import (
    FUSED,
    Calibration,
    Statistics,
    Variant,
    fused_layers,
    image_score,
    measure,
    normal_thresholds,
    raw_styles,
)
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.experiments.anomaly.thresholds import Threshold
from vae_attn.experiments.map_functions import DEEPLIFT, IMAGE, RECONSTRUCTION_ERROR
from vae_attn.experiments.maps import replaced_counts
from vae_attn.progress import Progress
from vae_attn.reporting import figures
from vae_attn.reporting.explorer import files as explorer_files

_LOG = logging.getLogger("vae_attn")

_VALIDATION_IMAGES = 32
_LATENTS = 8  # of an image, whose maps are shown
_TILE = 32  # pixels: the longest side of a single latent's map
# Of an image's pixels: what the page's slider replaces by the counterpart's.
_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
_SCALE_PIXELS = 256  # of each image, over which a colour scale is measured
_UNITS = {
    "none": "times the mean of normal maps",
    "ratio": "times normal at that place",
    "upper": "times the upper end of normal",
    "z": "deviations above normal",
}


@dataclasses.dataclass(frozen=True)
class Shown:
    """One kind of map on the page.

    Attributes:
      variant: of the maps.
      statistics: of normal images' raw maps, by which it is calibrated.
      pixels: the threshold from which its pixels count as anomalous.
    """

    variant: Variant
    statistics: Statistics
    pixels: Threshold

    @property
    def threshold(self) -> float | None:
        """Its value; None where normal images can give none."""
        return self.pixels.value


@dataclasses.dataclass(frozen=True)
class Part:
    """Images of one split.

    Attributes:
      split: its name on the page.
      images: of the split.
    """

    split: str
    images: LabelledImages


class Explorer:
    """Writes the images of a run, and gathers what the page itself has to know of them."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        explainer: Explainer,
        data: AnomalyData,
        *,
        scale: float,
        scores: Mapping[str, float],
    ) -> None:
        """Measures the thresholds of all kinds of maps.

        Args:
          config: the run's.
          explainer: of the model.
          data: what is shown, `config.report.max_images` of each kind.
          scale: the value of the explainer's own maps that gets the full colour.
          scores: of the run, from which the page says what was measured of each kind of map.
        """
        self._scores = scores
        self._config, self._explainer, self._data = config, explainer, data
        self._scale = scale
        own = explainer.variant
        # The very styles of `map_figures.Painter`, so that nothing is compiled twice.
        self._styles = raw_styles("paper", own.style, own.attention_style)
        self._layers = tuple(dict.fromkeys((*config.evaluate.layers, *own.layers)))
        self.shown: list[Shown] = self._measure()

    def write(self, folder: pathlib.Path) -> dict[str, Any]:
        """Writes the images' files into a new folder in `folder`.

        Args:
          folder: of the page, which is to be written next (`page.write`).

        Returns:
          What the page has to know, for JSON: the kinds of maps, and a record of each image.
        """
        records: list[dict] = []
        values = {shown.variant: [] for shown in self.shown}
        whole, latents = [np.zeros(0)], [np.zeros(0)]  # pixels of maps
        parts = self.parts()
        total = sum(len(part.images) for part in parts)
        with (
            explorer_files.new_folder(folder) as target,
            Progress("writing the explorer", total=total) as progress,
        ):
            for part in parts:
                for images in _chunks(part.images, self._config.evaluate.batch_size):
                    written = self._write_images(images, part.split, target, len(records))
                    records += written.records
                    whole.append(written.whole)
                    latents.append(written.latents)
                    for variant, sample in written.values.items():
                        values[variant].append(sample)
                    progress.add(len(images))
        _LOG.info("%d images written for the page's explorer", total)
        return {
            "height": self._data.train.shape[1],
            "width": self._data.train.shape[2],
            "suffix": explorer_files.suffix_of(self._data.train[0]),
            "folder": target.name,
            "colours": explorer_files.colour_table(),
            "signedColours": explorer_files.signed_colour_table(),
            "maps": [self._describe(shown, values[shown.variant]) for shown in self.shown],
            "decision": {
                "threshold": self._explainer.calibration.image_threshold,
                "text": decision(self._explainer.calibration),
            },
            "latents": {
                "shares": _SHARES,
                "truth": faithful.truth_of(self._scores, f"{DEEPLIFT}/{IMAGE}").sentence,
                # Of the image's deviation, and of single latents.
                "scales": [_quantile(np.concatenate(pixels)) for pixels in (whole, latents)],
            },
            "images": records,
        }

    def parts(self) -> list[Part]:
        """What is shown: test images, held-out normal ones, and drawn defects where there are."""
        most, seed = self._config.report.max_images, self._config.seed
        data = self._data
        parts = [
            Part("test", data.test.sample(most, seed)),
            Part("validation", _validation(data, most)),
        ]
        if data.needs_drawn_defects:
            drawn = evaluation.defects(data, most, seed)
            names = tuple(f"drawn: {name}" for name in drawn.class_names)
            parts.append(Part("drawn defects", dataclasses.replace(drawn, class_names=names)))
        return [part for part in parts if len(part.images)]

    def _measure(self) -> list[Shown]:
        """The kinds of maps: the explainer's own first, then each style's and each layer's."""
        explainer, own = self._explainer, self._explainer.variant
        validation = evaluation.sample_validation(self._data, self._config.evaluate.max_images)
        normal = explainer.all_maps(validation, styles=self._styles, layers=self._layers)
        statistics = measure(normal)
        calibration = explainer.calibration
        calibrated = Shown(own, calibration.statistics, calibration.pixels)
        others = [Variant(own.attention_style, (layer,)) for layer in self._layers]
        others += [Variant("paper", fused_layers(self._config))]
        others += [Variant("paper", (layer,)) for layer in self._layers]
        others += [Variant(RECONSTRUCTION_ERROR, (IMAGE,))]
        shown = [calibrated]
        for variant in dict.fromkeys(others):
            if variant != own:
                missing = calibration.nothing_from(variant)
                reasons = {"missing": missing, "caveat": self._data.caveat}
                pixels, _ = normal_thresholds(variant, normal, **reasons)
                shown.append(Shown(variant, statistics, pixels))
        return shown

    def _write_images(
        self, images: LabelledImages, split: str, target: pathlib.Path, first: int
    ) -> "_Written":
        """Writes the files of some images, numbered from `first`."""
        counterparts = self._explainer.counterparts(images.images)
        raw = self._explainer.maps(
            images.images, styles=self._styles, layers=self._layers, counterparts=counterparts
        )
        raw |= self._explainer.baseline_maps(images.images, counterparts)
        maps = {s.variant: s.variant.maps(raw, s.statistics) for s in self.shown}
        own = maps[self.shown[0].variant]
        overlays = figures.overlay(images.images, own, self._scale)
        latents = self._latents(images.images, counterparts)
        decoded = figures.to_uint8(self._explainer.reconstruct(images.images))
        normal = figures.to_uint8(counterparts)
        written = _Written(
            values={v: _sample_pixels(of) for v, of in maps.items()},
            whole=np.concatenate([_sample_pixels(one.tiles[:1]) for one in latents]),
            latents=np.concatenate([_sample_pixels(one.tiles[1:2]) for one in latents]),
        )
        for n in range(len(images)):
            identifier = f"{first + n:05d}"
            mask = images.masks[n] if images.has_mask[n] else None
            kinds = [(maps[s.variant][n], s.threshold) for s in self.shown]
            script = _script(kinds, mask, latents[n])
            script["image"] = explorer_files.picture(images.images[n])
            script["reconstruction"] = explorer_files.picture(decoded[n], exact=False)
            script["counterpart"] = explorer_files.picture(normal[n], exact=False)
            explorer_files.save_script(identifier, script, target)
            explorer_files.save_thumbnail(images.images[n], overlays[n], target / identifier)
            record = self._record(images, n, own[n : n + 1], mask)
            written.records.append({"id": identifier, "split": split, **record})
        return written

    def _latents(
        self,
        images: UInt8[np.ndarray, "n height width channels"],
        counterparts: Float[np.ndarray, "n height width channels"],
    ) -> list["_Latents"]:
        """Why each image's most deviating latents deviate, and the image as a whole."""
        explainer = self._explainer
        found = explainer.deviating_latents(images, count=_LATENTS)
        exact = explainer.exact_maps(images, counterparts, found.latents)
        order, z = explainer.replacing(images, counterparts, exact, shares=_SHARES)
        # The place of the first share at which a pixel is replaced.
        counts = replaced_counts(_SHARES, images.shape[1:3])
        levels = np.searchsorted(counts, order, side="right").astype(np.uint8)
        whole = explainer.deviation_maps(images, counterparts)
        deviation = explainer.image_scores(images)["standardised_deviation"]
        return [
            _Latents(
                tiles=explorer_files.shrink(
                    np.concatenate([whole[n : n + 1], exact.maps[n]]), _TILE
                ),
                levels=levels[n],
                record={
                    # First the whole image, which is no latent.
                    "order": [None, *found.latents[n].tolist()],
                    "deviations": _rounded(np.append(deviation[n], found.deviations[n])),
                    "sums": _rounded(np.append(whole[n].sum(), exact.sums[n])),
                    "z": [None, *map(_rounded, z[n])],
                },
            )
            for n in range(len(images))
        ]

    def _record(
        self,
        images: LabelledImages,
        n: int,
        maps: Float[np.ndarray, "1 height width"],
        mask: Bool[np.ndarray, "height width"] | None,
    ) -> dict:
        """What the gallery knows of an image."""
        score = float(image_score(maps)[0])
        decided, of_pixels = self._explainer.calibration.image_threshold, self.shown[0].threshold
        record = {
            "name": images.names[n],
            "class": images.class_names[images.labels[n]],
            "abnormal": bool(images.labels[n] > 0),
            "flagged": None if decided is None else score > decided,
            "score": float(f"{score:.6g}"),
        }
        if mask is not None and mask.any():
            if of_pixels is not None:
                found = maps[0] >= of_pixels
                record["iou"] = round(float((found & mask).sum() / (found | mask).sum()), 4)
            hit = localization.pointing_game(scores=maps, masks=mask[None])[0]
            record["elsewhere"] = bool(hit < 0.5)
        return record

    def _describe(self, shown: Shown, values: list[np.ndarray]) -> dict:
        """A kind of map, for the page's switch."""
        variant, pixels = shown.variant, np.concatenate(values)
        own = variant == self._explainer.variant
        scale = self._scale if own else _quantile(pixels)
        layer = variant.layers[0] if len(variant.layers) == 1 else FUSED
        truth = faithful.truth_of(self._scores, f"{variant.style}/{layer}")
        return {
            "style": variant.style,
            "layer": layer if variant.calibration == "none" else f"{layer}.{variant.calibration}",
            "own": own,
            "unit": _UNITS[variant.calibration],
            "truth": truth.sentence,
            "truthInShort": truth.short,
            "threshold": shown.threshold,
            "promise": _promise(shown.pixels),
            "scale": scale,
            # End of the threshold's slider: far enough for all but the wildest maps.
            "limit": 2 * max(scale, shown.threshold or 0.0),
        }


def decision(calibration: Calibration) -> str:
    """In a sentence or two: above which score an image counts as abnormal, and how sure that is."""
    found = calibration.images
    if found.value is None:
        return f"No image is called abnormal or not: {found.missing}."
    return f"An image counts as abnormal above {found.described()}."


def _promise(pixels: Threshold) -> str:
    """What the threshold of a map's pixels promises, or why there is none."""
    if pixels.value is None:
        return f"No threshold from normal images: {pixels.missing}."
    return f"The threshold from normal images: {pixels.described()}."


@dataclasses.dataclass
class _Written:
    """What is kept of images that were written."""

    values: dict[Variant, np.ndarray]
    whole: np.ndarray
    latents: np.ndarray
    records: list[dict] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Latents:
    """Of one image.

    Attributes:
      tiles: signed maps, shrunk: of the image's deviation, and of the latents that deviate most.
      levels: of those latents, the first of `_SHARES` at which each pixel is replaced.
      record: their names and numbers.
    """

    tiles: Float[np.ndarray, "tiles tile_height tile_width"]
    levels: UInt8[np.ndarray, "latents height width"]
    record: dict


def _script(
    kinds: list[tuple[np.ndarray, float | None]],
    mask: np.ndarray | None,
    latents: _Latents,
) -> dict:
    """The record of an image's own script: all its maps, its mask, its latents."""
    planes, steps, peaks = [], [], []
    for values, threshold in kinds:
        plane, step = explorer_files.quantise(values, threshold or 0.0)
        planes.append(plane)
        steps.append(step)
        y, x = np.unravel_index(int(values.argmax()), values.shape)
        peaks.append([int(x), int(y)])
    if mask is not None:
        planes.append(mask.astype(np.uint8))
    tiles = [explorer_files.quantise_signed(tile) for tile in latents.tiles]
    return {
        "steps": steps,
        "peaks": peaks,
        "mask": mask is not None,
        "latents": {
            "steps": [step for _, step in tiles],
            "height": latents.tiles.shape[1],
            "width": latents.tiles.shape[2],
            **latents.record,
        },
        "planes": explorer_files.pack([*planes, *latents.levels, *(tile for tile, _ in tiles)]),
    }


def _chunks(images: LabelledImages, size: int) -> Iterator[LabelledImages]:
    for start in range(0, len(images), size):
        yield images.take(np.arange(start, min(start + size, len(images))))


def _validation(data: AnomalyData, most: int) -> LabelledImages:
    """Some of the held-out normal images by which maps are calibrated."""
    count = min(most or _VALIDATION_IMAGES, _VALIDATION_IMAGES)
    images = evaluation.sample_validation(data)[:count]
    return data.held_out(images)


def _sample_pixels(maps: Float[np.ndarray, "n height width"]) -> Float[np.ndarray, "pixels"]:
    """Pixels spread over the maps, enough for a quantile of many images."""
    flat = maps.reshape(len(maps), -1)
    # An odd step, so that it does not stay in a few columns.
    return flat[:, :: flat.shape[1] // _SCALE_PIXELS | 1].ravel()


def _quantile(values: Float[np.ndarray, "pixels"]) -> float:
    if not len(values):
        return 1.0
    return float(np.quantile(np.abs(values), figures.FULL_COLOUR_QUANTILE)) or 1.0


def _rounded(values: Float[np.ndarray, "n"]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
