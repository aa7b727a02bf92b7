"""The maps of a trained VAE as pure functions of its variables, compiled once per model.

The functions take the model as a static argument: another checkpoint of the same model compiles
nothing anew. `Mapper` binds them to variables and runs them in batches.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from vae_attn import attention, backend
from vae_attn import counterparts as counterparts_lib
from vae_attn.batching import map_batches
from vae_attn.data.dataset import to_unit
from vae_attn.experiments.counterpart_cache import CounterpartCache
from vae_attn.models.model import Model
from vae_attn.progress import Progress
from vae_attn.training.steps import at_mean

# The baselines beside the attention styles, |x - x'| for the two kinds of counterpart x'; they
# have no layer, and "image" stands in its place.
RECONSTRUCTION_ERROR = "reconstruction_error"
PROJECTION_ERROR = "projection_error"
BASELINES = (RECONSTRUCTION_ERROR, PROJECTION_ERROR)
IMAGE = "image"

_CHUNK_PIXELS = 2**20  # of the images whose maps are in memory at once

Images = UInt8[np.ndarray, "n height width channels"]
Counterparts = Float[np.ndarray, "n height width channels"]

# Raw maps by style and layer.
RawMaps = dict[tuple[str, str], Float[np.ndarray, "n height width"]]


class NormalLatents(NamedTuple):
    """The latents of normal images (`attention.normal_statistics`).

    Attributes:
      mean: over the images.
      variance: over the images and q(z | x).
    """

    mean: Float[np.ndarray | Array, "latents"]
    variance: Float[np.ndarray | Array, "latents"]


def project(
    model: Model, variables: PyTree, x: Float[Array, "n h w c"], steps: int
) -> Float[Array, "n h w c"]:
    """Normal counterparts of images in [0, 1]; with 0 steps their reconstructions."""

    def decode(z: Array) -> Array:
        return model.apply(variables, z, method="reconstruct")

    mean, _ = model.apply(variables, x, method="encode")
    return decode(counterparts_lib.project(decode, x, mean, steps=steps))


def layer_maps(
    model: Model,
    variables: PyTree,
    normal: NormalLatents | None,
    x: Float[Array, "n height width channels"],
    counterparts: Float[Array, "n height width channels"] | None,
    *,
    styles: tuple[str, ...],
    layer: str,
    per_latent: bool = False,
    latent_batch_size: int | None = None,
) -> dict[str, Float[Array, "n ..."]]:
    """Raw maps of several styles at one layer, by style.

    Jitted together, the compiler computes what they share only once: features and, above all,
    alpha.

    Args:
      model: the VAE.
      variables: its parameters and batch statistics.
      normal: for `normal_difference`.
      x: images in [0, 1].
      counterparts: of the images; for styles that `attention.needs_counterparts`.
      styles: of `attention.STYLES`.
      layer: of the encoder.
      per_latent: one map per latent instead of one per image.
      latent_batch_size: see `attention.channel_weights`.
    """
    return {
        style: attention.make_attention_fn(
            features=lambda v, x: model.apply(v, x, layer, method="features"),
            head=lambda v, a: model.apply(v, a, layer, method="head"),
            style=style,
            dense_mean=model.dense_mean(layer),
            normal_mean=normal and jnp.asarray(normal.mean),
            normal_variance=normal and jnp.asarray(normal.variance),
            per_latent=per_latent,
            latent_batch_size=latent_batch_size,
        )(variables, x, counterparts)
        for style in styles
    }


def _jit(fn, *static: str):
    return backend.jit(fn, static_argnames=("model", *static))


@dataclasses.dataclass(frozen=True)
class Deviations:
    """The latents of images that deviate most from those of normal images.

    Attributes:
      latents: which, the most deviating first.
      deviations: (mean - normal_mean) / sqrt(variance + normal_variance), in their order.
      maps: their raw maps, in their order.
    """

    latents: Int[np.ndarray, "n count"]
    deviations: Float[np.ndarray, "n count"]
    maps: Float[np.ndarray, "n count height width"]


def _encode(model: Model, variables: PyTree, images: Array) -> tuple[Array, Array]:
    return model.apply(variables, to_unit(images), method="encode")


def _decode(model: Model, variables: PyTree, z: Array) -> Array:
    return model.apply(variables, z, method="reconstruct")


def _project(model: Model, variables: PyTree, images: Array, *, steps: int) -> Array:
    return project(model, variables, to_unit(images), steps)


def _layer_maps(model, variables, normal, images, counterparts, **options):
    return layer_maps(model, variables, normal, to_unit(images), counterparts, **options)


def _deviating(
    model, variables, normal, images, counterparts, *, style, layer, count, latent_batch_size
):
    x = to_unit(images)
    mean, logvar = model.apply(variables, x, method="encode")
    deviation = (mean - normal.mean) / jnp.sqrt(jnp.exp(logvar) + normal.variance)
    _, chosen = jax.lax.top_k(jnp.abs(deviation), count)
    options = {"styles": (style,), "layer": layer, "latent_batch_size": latent_batch_size}
    maps = layer_maps(model, variables, normal, x, counterparts, per_latent=True, **options)[style]
    return (
        chosen,
        jnp.take_along_axis(deviation, chosen, axis=1),
        jnp.take_along_axis(maps, chosen[..., None, None], axis=1),
    )


def _image_scores(
    model: Model, variables: PyTree, normal: NormalLatents, images: Array
) -> dict[str, Array]:
    found = at_mean(model, variables, to_unit(images))
    variance = jnp.exp(found.logvar) + normal.variance
    return {
        RECONSTRUCTION_ERROR: found.reconstruction,
        "kl": found.kl,
        "standardised_deviation": ((found.mean - normal.mean) ** 2 / variance).sum(axis=1),
    }


_encode_jit = _jit(_encode)
_decode_jit = _jit(_decode)
_project_jit = _jit(_project, "steps")
_layer_maps_jit = _jit(_layer_maps, "styles", "layer", "per_latent", "latent_batch_size")
_deviating_jit = _jit(_deviating, "style", "layer", "count", "latent_batch_size")
_image_scores_jit = _jit(_image_scores)


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
      known: counterparts of these very parameters and steps; None keeps none.
    """

    model: Model
    variables: PyTree
    normal: NormalLatents | None = None
    projection_steps: int = 0
    batch_size: int = 64
    latent_batch_size: int | None = None
    known: CounterpartCache | None = None

    def encode(
        self, images: Images
    ) -> tuple[Float[np.ndarray, "n latents"], Float[np.ndarray, "n latents"]]:
        """Mean and log variance of every image's latents."""
        return self._batched(_encode_jit, images)

    def normal_latents(self, normal_images: Images) -> NormalLatents:
        """The latents of normal images, for `normal`."""
        codes = map(jnp.asarray, self.encode(normal_images))
        return NormalLatents(*map(np.asarray, attention.normal_statistics(*codes)))

    def decode(
        self, z: Float[np.ndarray, "n latents"]
    ) -> Float[np.ndarray, "n height width channels"]:
        """The images that latents stand for, in [0, 1]."""
        return self._batched(_decode_jit, z)

    def reconstruct(self, images: Images) -> Counterparts:
        """Reconstructions from the latents' means, in [0, 1]."""
        return self._batched(_project_jit, images, steps=0)

    def counterparts(self, images: Images) -> Counterparts:
        """Normal counterparts: projections, or reconstructions if `projection_steps` is 0."""

        def compute(images: Images) -> Counterparts:
            return self._batched(_project_jit, images, steps=self.projection_steps)

        keeps = self.known is not None and self.projection_steps > 0
        return self.known.get(images, compute) if keeps else compute(images)

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
          styles: of `attention.STYLES`; the baselines come on their own (`baseline_maps`).
          layers: of the encoder.
          counterparts: of the images, where they are at hand; otherwise they are computed.

        Returns:
          One map per image, by style and layer.
        """
        counterparts = self._needed_counterparts(images, styles, counterparts)
        maps = {}
        for layer in layers:
            options = {"styles": styles, "layer": layer, "per_latent": False}
            of_layer = self._attend(_layer_maps_jit, images, counterparts, **options)
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
        return self._attend(_layer_maps_jit, images, counterparts, **options)[style]

    def baseline_maps(self, images: Images, counterparts: Counterparts) -> RawMaps:
        """The mean over channels of |x - x'|, for the reconstruction and for the counterpart."""
        return {
            (RECONSTRUCTION_ERROR, IMAGE): _error(images, self.reconstruct(images)),
            (PROJECTION_ERROR, IMAGE): _error(images, counterparts),
        }

    def chunks(
        self, images: Images, *, styles: tuple[str, ...], layers: tuple[str, ...]
    ) -> Iterator[tuple[RawMaps, Counterparts, slice]]:
        """Raw maps of many images a chunk at a time, so that memory does not grow with them.

        Yields:
          The maps of the baselines and of every style and layer, the counterparts, and which
          images they are of.
        """
        size = max(1, _CHUNK_PIXELS // (images.shape[1] * images.shape[2]))
        for start in range(0, len(images), size):
            chunk = slice(start, min(start + size, len(images)))
            counterparts = self.counterparts(images[chunk])
            raw = self.maps(images[chunk], styles=styles, layers=layers, counterparts=counterparts)
            yield raw | self.baseline_maps(images[chunk], counterparts), counterparts, chunk

    def all_maps(
        self, images: Images, *, styles: tuple[str, ...], layers: tuple[str, ...]
    ) -> RawMaps:
        """What `chunks` yields, of all images at once."""
        parts = []
        with Progress("maps of normal images", total=len(images)) as progress:
            for raw, _, chunk in self.chunks(images, styles=styles, layers=layers):
                parts.append(raw)
                progress.add(chunk.stop - chunk.start)
        return {key: np.concatenate([raw[key] for raw in parts]) for key in parts[0]}

    def deviating_latents(
        self,
        images: Images,
        *,
        style: str,
        layer: str,
        count: int,
        counterparts: Counterparts | None = None,
    ) -> Deviations:
        """The latents of each image that deviate most from those of normal images.

        Args:
          images: to explain.
          style: of the latents' maps.
          layer: of the encoder.
          count: how many; all of the model's if it has fewer.
          counterparts: see `maps`.
        """
        counterparts = self._needed_counterparts(images, (style,), counterparts)
        options = {"style": style, "layer": layer, "count": min(count, self.model.latents)}
        return Deviations(*self._attend(_deviating_jit, images, counterparts, **options))

    def image_scores(self, images: Images) -> dict[str, Float[np.ndarray, "n"]]:
        """How abnormal each image is, apart from any attention.

        Returns:
          `reconstruction_error`: the Bernoulli loss in nats; `kl`: in nats;
          `standardised_deviation`: sum_i (mean - normal_mean)_i^2 / (variance + normal_variance)_i.
        """

        def scores(batch: np.ndarray) -> dict[str, Array]:
            return _image_scores_jit(self.model, self.variables, self.normal, batch)

        return map_batches(scores, images, self.batch_size)

    def _needed_counterparts(
        self, images: Images, styles: tuple[str, ...], counterparts: Counterparts | None
    ) -> Counterparts | None:
        needed = any(map(attention.needs_counterparts, styles))
        return self.counterparts(images) if needed and counterparts is None else counterparts

    def _attend(self, fn, images: Images, counterparts: np.ndarray | None, **options) -> PyTree:
        options["latent_batch_size"] = self.latent_batch_size

        def attend(batch: tuple) -> PyTree:
            images, *found = batch
            counterparts = found[0] if found else None
            return fn(self.model, self.variables, self.normal, images, counterparts, **options)

        inputs = (images,) if counterparts is None else (images, counterparts)
        return map_batches(attend, inputs, self.batch_size)

    def _batched(self, fn, inputs: np.ndarray, **options) -> PyTree:
        return map_batches(
            lambda x: fn(self.model, self.variables, x, **options), inputs, self.batch_size
        )


def _error(images: Images, decoded: np.ndarray) -> np.ndarray:
    return np.abs(decoded - images / np.float32(255)).mean(axis=3)
