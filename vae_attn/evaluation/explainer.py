"""A trained VAE as an explainer: maps and scores of uint8 images, jitted and batched."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from vae_attn import attention, losses
from vae_attn import counterparts as counterparts_lib
from vae_attn.errors import UserError
from vae_attn.evaluation.batching import map_batches
from vae_attn.evaluation.calibration import (
    Calibration,
    Variant,
    measure,
    normal_image_threshold,
    normal_threshold,
)
from vae_attn.models.vae import VAE
from vae_attn.training.steps import to_unit

# The baselines beside the attention styles, |x - x'| for the two kinds of counterpart x'; they
# have no layer, and "image" stands in its place.
RECONSTRUCTION_ERROR = "reconstruction_error"
PROJECTION_ERROR = "projection_error"
BASELINES = (RECONSTRUCTION_ERROR, PROJECTION_ERROR)
IMAGE = "image"

Images = UInt8[np.ndarray, "n height width channels"]


class Explainer:
    """Explains images by a trained VAE.

    Attributes:
      model: the VAE.
      variables: its parameters and batch statistics.
      variant: of `anomaly_maps`.
      calibration: what normal images taught.
    """

    def __init__(
        self,
        model: VAE,
        variables: PyTree,
        normal_images: UInt8[np.ndarray, "n_normal height width channels"],
        validation: UInt8[np.ndarray, "n_validation height width channels"],
        *,
        variant: Variant,
        projection_steps: int = 0,
        batch_size: int = 64,
        latent_batch_size: int | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Measures the calibration, unless there is one.

        Args:
          model: the VAE.
          variables: its parameters and batch statistics.
          normal_images: what it was trained on (equation 4's x).
          validation: held-out normal images, by which maps are calibrated.
          variant: of `anomaly_maps`.
          projection_steps: of `counterparts.project`; 0 takes the reconstruction.
          batch_size: images at once.
          latent_batch_size: latents differentiated at once; None is all.
          calibration: of this model and variant, measured before.
        """
        self.model = model
        self.variant = variant
        self.variables = variables
        self._batch_size = batch_size
        self._latent_batch_size = latent_batch_size
        self._map_functions: dict[tuple[tuple[str, ...], str, bool], Callable] = {}
        self._encode = jax.jit(lambda v, x: model.apply(v, to_unit(x), method="encode"))
        self._decode = jax.jit(lambda v, z: model.apply(v, z, method="reconstruct"))
        self._decoded = {
            steps: jax.jit(lambda v, x, steps=steps: _decoded(model, v, to_unit(x), steps))
            for steps in (0, projection_steps)
        }
        self._projection_steps = projection_steps
        if calibration is not None:
            self.calibration = calibration
            return
        mean, variance = attention.normal_statistics(
            *(jnp.asarray(x) for x in self.encode(normal_images))
        )
        self.calibration = Calibration(
            np.asarray(mean), np.asarray(variance), {}, math.nan, math.nan
        )
        raw = self.maps(validation, styles=(variant.style,), layers=variant.layers)
        self.calibration = dataclasses.replace(
            self.calibration,
            statistics=measure(raw),
            threshold=normal_threshold(variant, raw),
            image_threshold=normal_image_threshold(variant, raw),
        )

    def encode(
        self, images: Images
    ) -> tuple[Float[np.ndarray, "n latents"], Float[np.ndarray, "n latents"]]:
        """Mean and log variance of every image's latents."""
        return self._batched(self._encode, images)

    def decode(
        self, z: Float[np.ndarray, "n latents"]
    ) -> Float[np.ndarray, "n height width channels"]:
        """The images that latents stand for, in [0, 1]."""
        return self._batched(self._decode, z)

    def reconstruct(self, images: Images) -> Float[np.ndarray, "n height width channels"]:
        """Reconstructions from the latents' means, in [0, 1]."""
        return self._batched(self._decoded[0], images)

    def counterparts(self, images: Images) -> Float[np.ndarray, "n height width channels"]:
        """Normal counterparts: projections, or reconstructions if `projection_steps` is 0."""
        return self._batched(self._decoded[self._projection_steps], images)

    def maps(
        self,
        images: Images,
        *,
        styles: tuple[str, ...],
        layers: tuple[str, ...],
        counterparts: Float[np.ndarray, "n height width channels"] | None = None,
    ) -> dict[tuple[str, str], Float[np.ndarray, "n height width"]]:
        """Raw anomaly maps of several styles and layers; higher is more anomalous.

        Args:
          images: to explain.
          styles: of `attention.STYLES`; the baselines come on their own (`baseline_maps`).
          layers: of the encoder.
          counterparts: of the images, where they are at hand; otherwise they are computed.

        Returns:
          One map an image, by style and layer.

        Raises:
          UserError: for a layer that the model does not have.
        """
        if counterparts is None and any(map(attention.needs_counterparts, styles)):
            counterparts = self.counterparts(images)
        maps = {}
        for layer in layers:
            of_layer = self._attend(self._map_function(styles, layer), images, counterparts)
            maps |= {(style, layer): of_layer[style] for style in styles}
        return maps

    def baseline_maps(
        self, images: Images, counterparts: Float[np.ndarray, "n height width channels"]
    ) -> dict[tuple[str, str], Float[np.ndarray, "n height width"]]:
        """The mean over channels of |x - x'|, for the reconstruction and for the counterpart."""
        return {
            (RECONSTRUCTION_ERROR, IMAGE): _error(images, self.reconstruct(images)),
            (PROJECTION_ERROR, IMAGE): _error(images, counterparts),
        }

    def latent_maps(
        self, images: Images, *, style: str, layer: str
    ) -> Float[np.ndarray, "n latents height width"]:
        """One raw map for every latent of every image; see `maps`."""
        counterparts = self.counterparts(images) if attention.needs_counterparts(style) else None
        attend = self._map_function((style,), layer, per_latent=True)
        return self._attend(attend, images, counterparts)[style]

    def anomaly_maps(
        self,
        images: Images,
        counterparts: Float[np.ndarray, "n height width channels"] | None = None,
    ) -> Float[np.ndarray, "n height width"]:
        """One calibrated, fused map an image, in this explainer's `variant`."""
        variant = self.variant
        raw = self.maps(
            images, styles=(variant.style,), layers=variant.layers, counterparts=counterparts
        )
        return variant.maps(raw, self.calibration.statistics)

    def _attend(
        self, attend: Callable, images: Images, counterparts: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        if counterparts is None:
            return self._batched(attend, images)
        return map_batches(
            lambda batch: attend(self.variables, *batch), (images, counterparts), self._batch_size
        )

    def _map_function(
        self, styles: tuple[str, ...], layer: str, *, per_latent: bool = False
    ) -> Callable[..., dict[str, Float[Array, "n ..."]]]:
        """`attend(variables, images, counterparts)`, all styles in one jitted function.

        So the compiler computes only once what they share: features and, above all, alpha.
        """
        known = self.model.architecture.attention_layers()
        if layer not in known:
            raise UserError(
                f"layer {layer!r} is not one of model {self.model.architecture.name!r}; choose "
                f"from {', '.join(known)} (attention.layer, evaluate.layers)."
            )
        key = (styles, layer, per_latent)
        if key not in self._map_functions:
            model = self.model
            attend = {
                style: attention.make_attention_fn(
                    features=lambda v, x: model.apply(v, x, layer, method="features"),
                    head=lambda v, a: model.apply(v, a, layer, method="head"),
                    style=style,
                    dense_mean=model.dense_mean(layer),
                    normal_mean=jnp.asarray(self.calibration.normal_mean),
                    normal_variance=jnp.asarray(self.calibration.normal_variance),
                    per_latent=per_latent,
                    latent_batch_size=self._latent_batch_size,
                )
                for style in styles
            }
            self._map_functions[key] = jax.jit(
                lambda v, x, *counterparts: {
                    style: attend[style](v, to_unit(x), *counterparts) for style in styles
                }
            )
        return self._map_functions[key]

    def image_scores(self, images: Images) -> dict[str, Float[np.ndarray, "n"]]:
        """How abnormal each image is, apart from any attention.

        Returns:
          `reconstruction_error`: the Bernoulli loss in nats; `kl`: in nats;
          `standardised_deviation`: sum_i (mean - normal_mean)_i^2 / (variance + normal_variance)_i.
        """

        @jax.jit
        def scores(v: PyTree, x: UInt8[Array, "batch h w c"]) -> dict[str, Array]:
            x = to_unit(x)
            mean, logvar = self.model.apply(v, x, method="encode")
            logits = self.model.apply(v, mean, method="decode")
            variance = jnp.exp(logvar) + self.calibration.normal_variance
            return {
                RECONSTRUCTION_ERROR: losses.reconstruction_loss(logits=logits, images=x),
                "kl": losses.kl_divergence(mean=mean, logvar=logvar).sum(axis=1),
                "standardised_deviation": (
                    (mean - self.calibration.normal_mean) ** 2 / variance
                ).sum(axis=1),
            }

        return self._batched(scores, images)

    def _batched(self, fn: Callable, inputs: np.ndarray) -> PyTree:
        return map_batches(lambda x: fn(self.variables, x), inputs, self._batch_size)


def _decoded(model: VAE, variables: PyTree, x: Float[Array, "n h w c"], steps: int) -> Array:
    def decode(z: Array) -> Array:
        return model.apply(variables, z, method="reconstruct")

    mean, _ = model.apply(variables, x, method="encode")
    return decode(counterparts_lib.project(decode, x, mean, steps=steps))


def _error(images: Images, decoded: np.ndarray) -> np.ndarray:
    return np.abs(decoded - images / np.float32(255)).mean(axis=3)
