"""Maps, codes and pictures of a trained VAE, in batches: `map_functions` bound to its variables."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from typing import Any as PyTree

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vae_attn import attention, faithfulness
from vae_attn.batching import map_batches
from vae_attn.experiments import learned, map_functions
from vae_attn.experiments.counterpart_cache import CounterpartCache
from vae_attn.experiments.map_functions import (
    DEEPLIFT,
    IMAGE,
    INTEGRATED_GRADIENTS,
    INTEGRATION_STEPS,
    LEARNED,
    PROJECTION_ERROR,
    RECONSTRUCTION_ERROR,
    NormalLatents,
)
from vae_attn.models.model import Model
from vae_attn.progress import Progress

_CHUNK_PIXELS = 2**20  # of the images whose maps are in memory at once

Images = UInt8[np.ndarray, "n height width channels"]
Counterparts = Float[np.ndarray, "n height width channels"]

# Raw maps by style and layer.
RawMaps = dict[tuple[str, str], Float[np.ndarray, "n height width"]]


class Deviations(NamedTuple):
    """The latents of images that deviate most from those of normal images.

    Attributes:
      latents: which, the most deviating first.
      deviations: (mean - normal_mean) / sqrt(variance + normal_variance), in their order.
    """

    latents: Int[np.ndarray, "n count"]
    deviations: Float[np.ndarray, "n count"]


class ExactMaps(NamedTuple):
    """Signed maps of single latents (`attributions`), and what they add up to.

    Attributes:
      latents: which, of each image.
      maps: summed over channels; the sum of each is z - z_counterpart.
      z: the latents' means for the image.
      z_counterpart: their means for its normal counterpart.
    """

    latents: Int[np.ndarray, "n count"]
    maps: Float[np.ndarray, "n count height width"]
    z: Float[np.ndarray, "n count"]
    z_counterpart: Float[np.ndarray, "n count"]

    @property
    def sums(self) -> Float[np.ndarray, "n count"]:
        """Of the maps."""
        return self.maps.sum(axis=(2, 3), dtype=np.float64).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Mapper:
    """Raw maps, codes and pictures of a trained VAE, in batches of one size.

    Attributes:
      model: the VAE.
      variables: its parameters and batch statistics.
      normal: the latents of normal images; None where no map or score needs them.
      projection_steps: of the counterparts (`counterparts.project`).
      batch_size: images at once.
      latent_batch_size: latents differentiated at once; None is all.
      counterpart_cache: counterparts of these very parameters and steps; None keeps none.
      head: of the learned contrast; None where the run has none.
    """

    model: Model
    variables: PyTree
    normal: NormalLatents | None = None
    projection_steps: int = 0
    batch_size: int = 64
    latent_batch_size: int | None = None
    counterpart_cache: CounterpartCache | None = None
    head: learned.Head | None = None

    def encode(
        self, images: Images
    ) -> tuple[Float[np.ndarray, "n latents"], Float[np.ndarray, "n latents"]]:
        """Mean and log variance of every image's latents."""
        return self._batched(map_functions.encode, images)

    def normal_latents(self, normal_images: Images) -> NormalLatents:
        """The latents of normal images, for `normal`."""
        codes = map(jnp.asarray, self.encode(normal_images))
        return NormalLatents(*map(np.asarray, attention.normal_statistics(*codes)))

    def decode(
        self, z: Float[np.ndarray, "n latents"]
    ) -> Float[np.ndarray, "n height width channels"]:
        """The images that latents stand for, in [0, 1]."""
        return self._batched(map_functions.decode, z)

    def reconstruct(self, images: Images) -> Counterparts:
        """Reconstructions from the latents' means, in [0, 1]."""
        return self._batched(map_functions.project_stored, images, steps=0)

    def counterparts(self, images: Images) -> Counterparts:
        """Normal counterparts: projections, or reconstructions if `projection_steps` is 0."""

        def compute(images: Images) -> Counterparts:
            return self._batched(map_functions.project_stored, images, steps=self.projection_steps)

        keeps = self.counterpart_cache is not None and self.projection_steps > 0
        return self.counterpart_cache.get(images, compute) if keeps else compute(images)

    def maps(
        self,
        images: Images,
        *,
        styles: tuple[str, ...],
        layers: tuple[str, ...],
        counterparts: Counterparts | None = None,
    ) -> RawMaps:
        """Raw anomaly maps of several styles and layers; higher is more anomalous.

        Args:
          images: to explain.
          styles: of `attention.STYLES`, and `LEARNED` where there is a head; the baselines come on
            their own (`baseline_maps`).
          layers: of the encoder.
          counterparts: of the images, where they are at hand; otherwise they are computed.

        Returns:
          One map per image, by style and layer; of `LEARNED` by `IMAGE`.
        """
        counterparts = self._needed_counterparts(images, styles, counterparts)
        maps = {}
        if LEARNED in styles:
            maps[LEARNED, IMAGE] = self._learned(images, counterparts)
            styles = tuple(style for style in styles if style != LEARNED)
        for layer in layers if styles else ():
            options = {"styles": styles, "layer": layer, "per_latent": False}
            of_layer = self._attend(
                map_functions.layer_maps_of_stored, images, counterparts, **options
            )
            maps |= {(style, layer): of_layer[style] for style in styles}
        return maps

    def latent_maps(
        self,
        images: Images,
        *,
        style: str,
        layer: str,
        counterparts: Counterparts | None = None,
    ) -> Float[np.ndarray, "n latents height width"]:
        """One raw map for every latent of every image; see `maps`."""
        counterparts = self._needed_counterparts(images, (style,), counterparts)
        options = {"styles": (style,), "layer": layer, "per_latent": True}
        return self._attend(map_functions.layer_maps_of_stored, images, counterparts, **options)[
            style
        ]

    def baseline_maps(self, images: Images, counterparts: Counterparts) -> RawMaps:
        """The mean over channels of |x - x'|, for the reconstruction and for the counterpart."""
        return {
            (RECONSTRUCTION_ERROR, IMAGE): _error(images, self.reconstruct(images)),
            (PROJECTION_ERROR, IMAGE): _error(images, counterparts),
        }

    def chunks(
        self,
        images: Images,
        *,
        styles: tuple[str, ...],
        layers: tuple[str, ...],
        baselines: bool = True,
    ) -> Iterator[tuple[RawMaps, Counterparts | None, slice]]:
        """Raw maps of many images a chunk at a time, so that memory does not grow with them.

        Args:
          images: to explain.
          styles: see `maps`.
          layers: likewise.
          baselines: whether `baseline_maps` are among them; if not, the counterparts are
            only computed for styles that need them.

        Yields:
          The maps of every style and layer, the counterparts, and which images they are of.
        """
        size = max(1, _CHUNK_PIXELS // (images.shape[1] * images.shape[2]))
        for start in range(0, len(images), size):
            chunk = slice(start, min(start + size, len(images)))
            needed = baselines or _needs_counterparts(styles)
            counterparts = self.counterparts(images[chunk]) if needed else None
            raw = self.maps(images[chunk], styles=styles, layers=layers, counterparts=counterparts)
            if baselines:
                raw |= self.baseline_maps(images[chunk], counterparts)
            yield raw, counterparts, chunk

    def all_maps(self, images: Images, **options: Any) -> RawMaps:
        """The maps that `chunks` yields with these options, of all images at once."""
        parts = []
        with Progress("maps of normal images", total=len(images)) as progress:
            for raw, _, chunk in self.chunks(images, **options):
                parts.append(raw)
                progress.add(chunk.stop - chunk.start)
        return {key: np.concatenate([raw[key] for raw in parts]) for key in parts[0]}

    def chosen_latent_maps(
        self,
        images: Images,
        counterparts: Counterparts,
        chosen: Int[np.ndarray, "chosen"],
        *,
        styles: tuple[str, ...],
        layer: str,
    ) -> dict[str, Float[np.ndarray, "n chosen height width"]]:
        """`latent_maps` of several styles at once, of the same few latents for all images."""

        def attend(batch: tuple) -> dict[str, Array]:
            options = {"styles": styles, "layer": layer}
            options["latent_batch_size"] = self.latent_batch_size
            return map_functions.chosen_latent_maps(
                self.model, self.variables, *batch, chosen, **options
            )

        return map_batches(attend, (images, counterparts), self.batch_size)

    def deviating_latents(self, images: Images, *, count: int) -> Deviations:
        """The latents of each image that deviate most from those of normal images.

        Args:
          images: to explain.
          count: how many; all of the model's if it has fewer.
        """
        deviation = np.asarray(
            map_functions.deviation(self.normal, *map(jnp.asarray, self.encode(images)))
        )
        latents = np.argsort(-np.abs(deviation), axis=1, kind="stable")[:, :count]
        return Deviations(latents, np.take_along_axis(deviation, latents, axis=1))

    def exact_maps(
        self,
        images: Images,
        counterparts: Counterparts,
        latents: Int[np.ndarray, "n count"],
        *,
        style: str = DEEPLIFT,
    ) -> ExactMaps:
        """Signed maps of single latents in pixels, which add up to z - z_counterpart.

        Args:
          images: to explain.
          counterparts: of the images.
          latents: which of them, of each image.
          style: of `attributions.ATTRIBUTIONS`. DeepLIFT's are exact; of a model with an operation
            for which it has no rule they are integrated gradients of `INTEGRATION_STEPS`.
        """
        maps, z, z_counterpart = self._attribute(images, counterparts, latents, style)
        return ExactMaps(latents, maps, z, z_counterpart)

    def deviation_maps(
        self, images: Images, counterparts: Counterparts
    ) -> Float[np.ndarray, "n height width"]:
        """Signed maps of `image_scores`' standardised deviation: the pixels that make it up.

        Args:
          images: to explain.
          counterparts: of the images, over whose deviation the image's rises by the map's sum.
        """
        return self._attribute(images, counterparts, None, DEEPLIFT)[0][:, 0]

    def replacing(
        self,
        images: Images,
        counterparts: Counterparts,
        exact: ExactMaps,
        *,
        shares: Sequence[float],
    ) -> tuple[Int[np.ndarray, "n count height width"], Float[np.ndarray, "n count shares"]]:
        """What becomes of latents as the pixels that their maps rank highest are replaced.

        Args:
          images: to explain.
          counterparts: of the images, whose pixels take the place.
          exact: of both.
          shares: of the pixels that are replaced, from 0 to 1.

        Returns:
          The order in which each map has pixels replaced (`faithfulness.deletion_order`); and the
          latents' means after each share.
        """
        counts = replaced_counts(shares, images.shape[1:3])

        def replace(batch: tuple) -> tuple[Array, Array]:
            images, counterparts, latents, maps = batch
            order = faithfulness.deletion_order(jnp.asarray(maps))
            inputs = (self.model, self.variables, images, counterparts, order, latents)
            z = [
                jnp.stack([map_functions.replaced(*inputs, place, count) for count in counts])
                for place in range(maps.shape[1])
            ]
            return order, jnp.moveaxis(jnp.stack(z), 2, 0)

        inputs = (images, counterparts, exact.latents, exact.maps)
        return map_batches(replace, inputs, self.batch_size)

    def image_scores(self, images: Images) -> dict[str, Float[np.ndarray, "n"]]:
        """How abnormal each image is, apart from any attention.

        Returns:
          `reconstruction_error`: the Bernoulli loss in nats; `kl`: in nats;
          `standardised_deviation`: sum_i (mean - normal_mean)_i^2 / (variance + normal_variance)_i.
        """

        def scores(batch: np.ndarray) -> dict[str, Array]:
            return map_functions.image_scores(self.model, self.variables, self.normal, batch)

        return map_batches(scores, images, self.batch_size)

    def _needed_counterparts(
        self, images: Images, styles: tuple[str, ...], counterparts: Counterparts | None
    ) -> Counterparts | None:
        needed = counterparts is None and _needs_counterparts(styles)
        return self.counterparts(images) if needed else counterparts

    def _learned(self, images: Images, counterparts: np.ndarray) -> np.ndarray:
        def learned_maps(batch: tuple) -> Array:
            return map_functions.learned_maps(self.model, self.variables, self.head, *batch)

        return map_batches(learned_maps, (images, counterparts), self.batch_size)

    def _attend(self, fn, images: Images, counterparts: np.ndarray | None, **options) -> PyTree:
        options["latent_batch_size"] = self.latent_batch_size

        def attend(batch: tuple) -> PyTree:
            images, *found = batch
            counterparts = found[0] if found else None
            return fn(self.model, self.variables, self.normal, images, counterparts, **options)

        inputs = (images,) if counterparts is None else (images, counterparts)
        return map_batches(attend, inputs, self.batch_size)

    def _attribute(
        self,
        images: Images,
        counterparts: Counterparts,
        latents: np.ndarray | None,
        style: str,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`map_functions.attributed` in batches, all of its steps."""
        exact = style == DEEPLIFT and map_functions.has_deeplift(self.model)
        options = {"style": DEEPLIFT if exact else INTEGRATED_GRADIENTS}
        options["latent_batch_size"] = self.latent_batch_size

        def attribute(batch: tuple) -> tuple[Array, Array, Array]:
            images, counterparts, *chosen = batch
            inputs = (self.model, self.variables, self.normal, images, counterparts)
            parts = [
                map_functions.attributed(*inputs, chosen[0] if chosen else None, step, **options)
                for step in range(1 if exact else INTEGRATION_STEPS)
            ]
            _, z, z_counterpart = parts[0]
            return sum(maps for maps, *_ in parts), z, z_counterpart

        inputs = (images, counterparts) if latents is None else (images, counterparts, latents)
        return map_batches(attribute, inputs, self.batch_size)

    def _batched(self, fn, inputs: np.ndarray, **options) -> PyTree:
        return map_batches(
            lambda x: fn(self.model, self.variables, x, **options), inputs, self.batch_size
        )


def _needs_counterparts(styles: tuple[str, ...]) -> bool:
    return LEARNED in styles or any(map(attention.needs_counterparts, styles))


def replaced_counts(shares: Sequence[float], size: tuple[int, int]) -> list[int]:
    """How many pixels of an image of a height and width each share is."""
    return [round(share * size[0] * size[1]) for share in shares]


def _error(images: Images, decoded: np.ndarray) -> np.ndarray:
    return np.abs(decoded - images / np.float32(255)).mean(axis=3)
