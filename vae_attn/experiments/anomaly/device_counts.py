"""Counts the pixels of maps by score where the maps are made: `pixel_counts` for accelerators.

The maps stay on the device. Pooled counts add up there; of each image come back a histogram, a
few sums, and the bins of its anomalous pixels. Counts are exactly those of `pixel_counts`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Float64, Int32, UInt32

from vae_attn import backend
from vae_attn.experiments.anomaly import score_histogram
from vae_attn.experiments.anomaly.pixel_counts import Counted, Regions
from vae_attn.experiments.anomaly.score_histogram import (
    BIN_BITS,
    DROPPED_BITS,
    MAX_COARSE_BINS,
    NUM_BINS,
    ImageHistogram,
)

MOST_PIXELS = 2**20  # of an image: with more, sums would not fit into 32 bits

_POOLED_PIXELS = 2**30  # after so many the pooled counts, of 32 bits, are fetched
_LIMB_BITS = 12  # of the pairs that an AUROC counts; the higher bits are summed apart


class _Counts(NamedTuple):
    """Of each image of a chunk, on the device.

    Attributes:
      shift: of the image's own bins, as `ImageHistogram.shift`.
      occupied: how many of them hold a pixel; the rest of the next three is 0.
      bins: these bins.
      negatives: normal pixels in each.
      positives: anomalous pixels in each.
      pairs: twice the ordered (normal, anomalous) pairs, ties once: low bits and high bits.
      at_top: pixels with the highest score, and the anomalous among them.
      inside: fine bins of the anomalous pixels, in order; then those of the first pixel.
      non_finite: pixels without an order.
    """

    shift: Int32[Array, "n"]
    occupied: Int32[Array, "n"]
    bins: Int32[Array, "n coarse"]
    negatives: Int32[Array, "n coarse"]
    positives: Int32[Array, "n coarse"]
    pairs: UInt32[Array, "n 2"]
    at_top: Int32[Array, "n 2"]
    inside: Int32[Array, "n most"]
    non_finite: Int32[Array, "n"]


class DeviceCounts:
    """What maps leave behind as they stream past, on the device until `fetch`."""

    def __init__(self) -> None:
        self._pooled = np.zeros((2, NUM_BINS), np.int64)
        self._on_device: Any = None
        self._pixels = 0  # that are counted on the device
        self._chunks: list[tuple[_Counts, np.ndarray, Regions]] = []

    def add(
        self,
        maps: Float[Array, "n height width"],
        masks: Bool[np.ndarray, "n height width"],
        regions: Regions,
    ) -> None:
        """Counts the pixels of images; does not wait for the device.

        Args:
          maps: anomaly maps, of at most MOST_PIXELS.
          masks: True on anomalous pixels.
          regions: of the masks.
        """
        if not len(masks):
            return
        if self._pixels + masks.size > _POOLED_PIXELS:
            self._take_pooled()
        if self._on_device is None:
            self._on_device = jnp.zeros((2, NUM_BINS), jnp.int32)
        counts = masks.sum(axis=(1, 2))
        self._on_device, found = _count(self._on_device, maps, masks, _places(masks, counts))
        self._pixels += masks.size
        self._chunks.append((found, counts, regions))

    def fetch(self) -> tuple[Counted, Float64[np.ndarray, "n"]]:
        """The counts of all images, and their hits of the pointing game.

        Returns:
          `pixel_counts.count` and `localization.pointing_game` of the same maps; but that the bins
          are those of all images together, ascending, and that sums of regions' weights are
          rounded otherwise.

        Raises:
          UserError: a score is NaN or infinite.
        """
        self._take_pooled()
        overlap = np.zeros(NUM_BINS)
        images, aurocs, hits = [], [np.zeros(0)], [np.zeros(0)]
        for on_device, counts, regions in self._chunks:
            found = jax.device_get(on_device)
            pixels = int((found.negatives + found.positives).sum())
            score_histogram.refuse(int(found.non_finite.sum()), of=pixels, name="scores")
            inside = np.concatenate([row[:k] for row, k in zip(found.inside, counts, strict=True)])
            np.add.at(overlap, inside, regions.weights)
            images += _histograms(found, counts, inside, regions)
            negatives = found.negatives.sum(axis=1, dtype=np.int64)
            low, high = found.pairs.astype(np.int64).T
            with np.errstate(invalid="ignore"):
                aurocs.append((low + (high << _LIMB_BITS)) / (2 * counts * negatives))
                hits.append(np.where(counts, found.at_top[:, 1] / found.at_top[:, 0], np.nan))
        negatives, positives = self._pooled
        bins = np.flatnonzero(negatives + positives)
        counted = Counted(
            bins=bins.astype(np.int32),
            negatives=negatives[bins],
            positives=positives[bins],
            region_overlap=overlap[bins],
            images=tuple(images),
            aurocs=np.concatenate(aurocs),
        )
        return counted, np.concatenate(hits)

    def _take_pooled(self) -> None:
        if self._on_device is not None:
            self._pooled += np.asarray(self._on_device)
        self._on_device, self._pixels = None, 0


def _places(
    masks: Bool[np.ndarray, "n height width"], counts: np.ndarray
) -> Int32[np.ndarray, "n most"]:
    """Of each mask its anomalous pixels, row after row, then 0; few different lengths."""
    most = 1 << int(counts.max() - 1).bit_length() if counts.any() else 1
    places = np.zeros((len(masks), most), np.int32)
    _, found = np.nonzero(masks.reshape(len(masks), -1))
    places[np.arange(most) < counts[:, None]] = found
    return places


def _histograms(
    found: _Counts, counts: np.ndarray, inside: np.ndarray, regions: Regions
) -> list[ImageHistogram]:
    ends = np.concatenate([[0], counts.cumsum()])
    histograms = []
    for n, (shift, occupied) in enumerate(zip(found.shift, found.occupied, strict=True)):
        part = slice(ends[n], ends[n + 1])
        bins = found.bins[n, :occupied]
        slots = np.searchsorted(bins, inside[part] >> shift)
        histograms.append(
            ImageHistogram(
                shift=int(shift),
                bins=bins,
                negatives=found.negatives[n, :occupied],
                positives=found.positives[n, :occupied],
                region_overlap=np.bincount(slots, regions.weights[part], occupied).astype(float),
                num_regions=int(regions.counts[n]),
            )
        )
    return histograms


def _order_of(scores: Float32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """`score_histogram.order_of`."""
    bits = lax.bitcast_convert_type(scores, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    bits = jnp.where(bits == sign, 0, bits)  # -0.0 is 0.0; compared as integers, so exactly
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _counts(
    pooled: Int32[Array, "2 bins"],
    maps: Float32[Array, "n height width"],
    masks: Bool[Array, "n height width"],
    places: Int32[Array, "n most"],
) -> tuple[Int32[Array, "2 bins"], _Counts]:
    """Adds images' pixels to `pooled`, normal and anomalous; and what each image leaves."""
    n = len(maps)
    order, masks = _order_of(maps.reshape(n, -1)), masks.reshape(n, -1)
    inside = (jnp.take_along_axis(order, places, axis=1) >> DROPPED_BITS).astype(jnp.int32)
    at_top = order == order.max(axis=1, keepdims=True)
    order, positive = lax.sort((order, masks.astype(jnp.int32)), dimension=1, num_keys=1)
    negative = 1 - positive
    bins = (order >> DROPPED_BITS).astype(jnp.int32)
    pooled = pooled.at[positive, bins].add(1)
    # Two neighbours fall together when all bits in which they differ are shifted out.
    apart = 32 - lax.clz(bins[:, 1:] ^ bins[:, :-1])
    apart = jnp.pad(apart, ((0, 0), (1, 0)), constant_values=BIN_BITS + 1)
    occupied = jnp.stack([(apart > s).sum(axis=1) for s in range(BIN_BITS + 1)], axis=1)
    shift = (occupied > MAX_COARSE_BINS).sum(axis=1)
    starts = apart > shift[:, None]
    slots = jnp.cumsum(starts, axis=1) - 1
    rows = jnp.arange(n)[:, None]
    empty = jnp.zeros((n, MAX_COARSE_BINS), jnp.int32)
    found = _Counts(
        shift=shift,
        occupied=slots[:, -1] + 1,
        bins=empty.at[rows, slots].set(bins >> shift[:, None]),
        negatives=empty.at[rows, slots].add(negative),
        positives=empty.at[rows, slots].add(positive),
        pairs=_pairs(order, negative),
        at_top=jnp.stack([at_top.sum(axis=1), (at_top & masks).sum(axis=1)], axis=1),
        inside=inside,
        non_finite=(~jnp.isfinite(maps)).sum(axis=(1, 2)),
    )
    return pooled, found


_count = backend.jit(_counts, donate_argnums=0)


def _pairs(
    order: UInt32[Array, "n sorted"], negative: Int32[Array, "n sorted"]
) -> UInt32[Array, "n 2"]:
    """Of each anomalous pixel the normal ones below it, and those not above it; all summed."""
    upto = jnp.cumsum(negative, axis=1)
    changes = order[:, 1:] != order[:, :-1]
    starts = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    ends = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    below = lax.cummax(jnp.where(starts, upto - negative, 0), axis=1)
    not_above = lax.cummin(jnp.where(ends, upto, order.shape[1]), axis=1, reverse=True)
    twice = ((below + not_above) * (1 - negative)).astype(jnp.uint32)
    low = (twice & (2**_LIMB_BITS - 1)).sum(axis=1)
    high = (twice >> _LIMB_BITS).sum(axis=1)
    return jnp.stack([low, high], axis=1)
