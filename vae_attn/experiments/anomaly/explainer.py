"""A trained VAE as an explainer: maps and scores of uint8 images, jitted and batched."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt8

from vae_attn import attention, backend, losses
from vae_attn import counterparts as counterparts_lib
from vae_attn.batching import map_batches
from vae_attn.data.images import fit_images
from vae_attn.errors import UserError
from vae_attn.experiments.anomaly.calibration import Calibration, image_score
from vae_attn.models.model import Model
from vae_attn.training.steps import to_unit

# The baselines beside the attention styles, |x - x'| for the two kinds of counterpart x'; they
# have no layer, and "image" stands in its place.
RECONSTRUCTION_ERROR = "reconstruction_error"
PROJECTION_ERROR = "projection_error"
BASELINES = (RECONSTRUCTION_ERROR, PROJECTION_ERROR)
IMAGE = "image"

Images = UInt8[np.ndarray, "n height width channels"]


class Explainer:
    """Explains images by a trained VAE: `maps, scores = explainer(images)`.

    Attributes:
      model: the VAE.
      variables: its parameters and batch statistics.
      calibration: what normal images taught (`calibrating.calibrate` measures it).
      variant: of the maps of images, which the calibration tells.
      batch_size: images at once.
    """

    def __init__(
        self,
        model: Model,
        variables: PyTree,
        calibration: Calibration,
        *,
        batch_size: int = 64,
        latent_batch_size: int | None = None,
    ) -> None:
        """An explainer; the calibration says with which maps and which counterparts.

        Args:
          model: the VAE.
          variables: its parameters and batch statistics.
          calibration: of this model and these parameters.
          batch_size: images at once.
          latent_batch_size: latents differentiated at once; None is all.
        """
        self.model = model
        self.variables = variables
        self.calibration = calibration
        self.variant = calibration.variant
        self.batch_size = batch_size
        self._latent_batch_size = latent_batch_size
        self._functions: dict[tuple, Callable] = {}
        self._encode = backend.jit(lambda v, x: model.apply(v, to_unit(x), method="encode"))
        self._decode = backend.jit(lambda v, z: model.apply(v, z, method="reconstruct"))
        steps = calibration.projection_steps
        self._decoded = {
            steps: backend.jit(lambda v, x, steps=steps: decoded(model, v, to_unit(x), steps))
            for steps in (0, steps)
        }
        self._explain = backend.jit(self.explain)

    def __call__(
        self,
        images: Shaped[np.ndarray | Array, "n height width channels"],
        counterparts: Float[np.ndarray, "n h w channels_of_model"] | None = None,
    ) -> tuple[Float[np.ndarray, "n h w"], Float[np.ndarray, "n"]]:
        """One calibrated, fused map an image, in this explainer's `variant`, and its score.

        Any number of images runs in batches of one size, and so compiles once.

        Args:
          images: of any size, grey or RGB; those that the model does not take as they are get
            resized and converted as the images of a data set are (`data.images.fit_images`).
          counterparts: of the fitted images, where they are at hand; otherwise they are computed.

        Returns:
          Maps of the model's image size, and the scores, the maps' maxima.

        Raises:
          UserError: for images that are not uint8 of 1 or 3 channels.
        """
        shape = self.model.image_shape
        images = fit_images(images, shape)
        if not len(images):
            return np.zeros((0, *shape[:2]), np.float32), np.zeros(0, np.float32)
        return self._attend(self._explain, images, counterparts)

    def explain(
        self,
        variables: PyTree,
        images: UInt8[Array, "n height width channels"],
        counterparts: Float[Array, "n height width channels"] | None = None,
    ) -> tuple[Float[Array, "n height width"], Float[Array, "n"]]:
        """What a call does with a batch, as a pure function: jit, export or transform it."""
        x, calibration, variant = to_unit(images), self.calibration, self.variant
        if counterparts is None and attention.needs_counterparts(variant.style):
            counterparts = decoded(self.model, variables, x, calibration.projection_steps)
        raw = {}
        for layer in variant.layers:
            of_layer = self._layer_maps(variables, x, counterparts, (variant.style,), layer)
            raw[variant.style, layer] = of_layer[variant.style]
        maps = variant.maps(raw, calibration.statistics)
        return maps, image_score(maps)

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
        return self._batched(self._decoded[self.calibration.projection_steps], images)

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

    @property
    def latent_style(self) -> str:
        """Style of the maps of single latents: the variant's, where it has such maps."""
        style = self.variant.style
        return style if style in attention.PER_LATENT_STYLES else "paper"

    def deviating_latents(
        self,
        images: Images,
        *,
        count: int,
        layer: str,
        counterparts: Float[np.ndarray, "n height width channels"] | None = None,
    ) -> tuple[
        Int[np.ndarray, "n count"],
        Float[np.ndarray, "n count"],
        Float[np.ndarray, "n count height width"],
    ]:
        """The latents of each image that deviate most from those of normal images.

        Args:
          images: to explain.
          count: how many; at most the model's.
          layer: of the encoder.
          counterparts: see `maps`.

        Returns:
          Which, the most deviating first; their deviations, (mean - normal_mean) /
          sqrt(variance + normal_variance); their raw maps in `latent_style`.
        """
        style, normal = self.latent_style, self.calibration
        if counterparts is None and attention.needs_counterparts(style):
            counterparts = self.counterparts(images)

        def deviating(v: PyTree, x: Array, counterparts: Array | None = None) -> tuple:
            x = to_unit(x)
            mean, logvar = self.model.apply(v, x, method="encode")
            spread = jnp.sqrt(jnp.exp(logvar) + normal.normal_variance)
            deviation = (mean - normal.normal_mean) / spread
            _, chosen = jax.lax.top_k(jnp.abs(deviation), min(count, self.model.latents))
            maps = self._layer_maps(v, x, counterparts, (style,), layer, per_latent=True)[style]
            return (
                chosen,
                jnp.take_along_axis(deviation, chosen, axis=1),
                jnp.take_along_axis(maps, chosen[..., None, None], axis=1),
            )

        function = self._functions.setdefault((count, layer), backend.jit(deviating))
        return self._attend(function, images, counterparts)

    def _attend(self, attend: Callable, images: Images, counterparts: np.ndarray | None) -> PyTree:
        if counterparts is None:
            return self._batched(attend, images)
        return map_batches(
            lambda batch: attend(self.variables, *batch), (images, counterparts), self.batch_size
        )

    def _map_function(
        self, styles: tuple[str, ...], layer: str, *, per_latent: bool = False
    ) -> Callable[..., dict[str, Float[Array, "n ..."]]]:
        """`_layer_maps` of uint8 images, jitted."""

        def attend(v: PyTree, x: Array, counterparts: Array | None = None) -> dict[str, Array]:
            return self._layer_maps(
                v, to_unit(x), counterparts, styles, layer, per_latent=per_latent
            )

        return self._functions.setdefault((styles, layer, per_latent), backend.jit(attend))

    def _layer_maps(
        self,
        variables: PyTree,
        x: Float[Array, "n height width channels"],
        counterparts: Array | None,
        styles: tuple[str, ...],
        layer: str,
        *,
        per_latent: bool = False,
    ) -> dict[str, Float[Array, "n ..."]]:
        """Raw maps of several styles, to be jitted together.

        So the compiler computes only once what they share: features and, above all, alpha.
        """
        model, known = self.model, self.model.layers
        if known and layer not in known:
            raise UserError(
                f"layer {layer!r} is not one of the model's; choose from {', '.join(known)} "
                "(attention.layer, evaluate.layers)."
            )
        return {
            style: attention.make_attention_fn(
                features=lambda v, x: model.apply(v, x, layer, method="features"),
                head=lambda v, a: model.apply(v, a, layer, method="head"),
                style=style,
                dense_mean=model.dense_mean(layer),
                normal_mean=jnp.asarray(self.calibration.normal_mean),
                normal_variance=jnp.asarray(self.calibration.normal_variance),
                per_latent=per_latent,
                latent_batch_size=self._latent_batch_size,
            )(variables, x, counterparts)
            for style in styles
        }

    def image_scores(self, images: Images) -> dict[str, Float[np.ndarray, "n"]]:
        """How abnormal each image is, apart from any attention.

        Returns:
          `reconstruction_error`: the Bernoulli loss in nats; `kl`: in nats;
          `standardised_deviation`: sum_i (mean - normal_mean)_i^2 / (variance + normal_variance)_i.
        """

        @backend.jit
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
        return map_batches(lambda x: fn(self.variables, x), inputs, self.batch_size)


def decoded(
    model: Model, variables: PyTree, x: Float[Array, "n h w c"], steps: int
) -> Float[Array, "n h w c"]:
    """Normal counterparts of images in [0, 1]; with 0 steps their reconstructions."""

    def decode(z: Array) -> Array:
        return model.apply(variables, z, method="reconstruct")

    mean, _ = model.apply(variables, x, method="encode")
    return decode(counterparts_lib.project(decode, x, mean, steps=steps))


def _error(images: Images, decoded: np.ndarray) -> np.ndarray:
    return np.abs(decoded - images / np.float32(255)).mean(axis=3)
