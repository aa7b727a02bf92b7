"""The maps of a trained VAE as pure functions of its variables, compiled once per model.

The functions take the model as a static argument: another checkpoint of the same model compiles
nothing anew. Images are uint8, as they are stored, unless a function says otherwise.
"""

import functools
import logging
from typing import Any, NamedTuple
from typing import Any as PyTree

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vae_attn import attention, attributions, backend
from vae_attn import counterparts as counterparts_lib
from vae_attn.data.dataset import to_unit
from vae_attn.errors import UserError
from vae_attn.experiments import learned
from vae_attn.models.model import Model
from vae_attn.training.steps import at_mean

# The baselines beside the attention styles, |x - x'| for the two kinds of counterpart x'; they
# have no layer, and "image" stands in its place.
RECONSTRUCTION_ERROR = "reconstruction_error"
PROJECTION_ERROR = "projection_error"
BASELINES = (RECONSTRUCTION_ERROR, PROJECTION_ERROR)
IMAGE = learned.IMAGE

# The style of a run's own head, which has no layer either: it takes several at once.
LEARNED = "learned"

DEEPLIFT, INTEGRATED_GRADIENTS = attributions.ATTRIBUTIONS
_LOG = logging.getLogger("vae_attn")
INTEGRATION_STEPS = 8  # their sums are then within some 2% of the latents' change

Stored = UInt8[np.ndarray | Array, "n height width channels"]


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

    Raises:
      UserError: for a layer that the model does not have.
    """
    if model.layers and layer not in model.layers:
        raise UserError(
            f"layer {layer!r} is not one of the model's; choose from {', '.join(model.layers)} "
            "(attention.layer, evaluate.layers)."
        )
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


def deviation(
    normal: NormalLatents, mean: Float[Array, "n latents"], logvar: Float[Array, "n latents"]
) -> Float[Array, "n latents"]:
    """Of each latent, in standard deviations of its own and of the normal images' together."""
    return (mean - normal.mean) / jnp.sqrt(jnp.exp(logvar) + normal.variance)


@functools.partial(backend.jit, static_argnames=("model",))
def encode(
    model: Model, variables: PyTree, images: Stored
) -> tuple[Float[Array, "n latents"], Float[Array, "n latents"]]:
    """Means and log variances of stored images."""
    return model.apply(variables, to_unit(images), method="encode")


@functools.partial(backend.jit, static_argnames=("model",))
def decode(
    model: Model, variables: PyTree, z: Float[Array, "n latents"]
) -> Float[Array, "n height width channels"]:
    """Images in [0, 1] of latents."""
    return model.apply(variables, z, method="reconstruct")


@functools.partial(backend.jit, static_argnames=("model", "steps"))
def project_stored(
    model: Model, variables: PyTree, images: Stored, *, steps: int
) -> Float[Array, "n height width channels"]:
    """`project` of stored images."""
    return project(model, variables, to_unit(images), steps)


@functools.partial(
    backend.jit, static_argnames=("model", "styles", "layer", "per_latent", "latent_batch_size")
)
def layer_maps_of_stored(
    model: Model,
    variables: PyTree,
    normal: NormalLatents | None,
    images: Stored,
    counterparts: Float[Array, "n height width channels"] | None,
    **options: Any,
) -> dict[str, Float[Array, "n ..."]]:
    """`layer_maps` of stored images, with its options."""
    return layer_maps(model, variables, normal, to_unit(images), counterparts, **options)


@functools.partial(backend.jit, static_argnames=("model", "styles", "layer", "latent_batch_size"))
def chosen_latent_maps(
    model: Model,
    variables: PyTree,
    images: Stored,
    counterparts: Float[Array, "n height width channels"] | None,
    chosen: Int[Array, "chosen"],
    **options: Any,
) -> dict[str, Float[Array, "n chosen height width"]]:
    """`layer_maps` of stored images, with its options, of some latents alone."""
    x = to_unit(images)
    maps = layer_maps(model, variables, None, x, counterparts, per_latent=True, **options)
    return {style: of[:, chosen] for style, of in maps.items()}


@functools.partial(backend.jit, static_argnames=("model",))
def learned_maps(
    model: Model,
    variables: PyTree,
    head: learned.Head,
    images: Stored,
    counterparts: Float[Array, "n height width channels"],
) -> Float[Array, "n height width"]:
    """`learned.maps` of stored images."""
    return learned.maps(model, variables, head, to_unit(images), counterparts)


@functools.partial(backend.jit, static_argnames=("model", "style", "latent_batch_size"))
def attributed(
    model: Model,
    variables: PyTree,
    normal: NormalLatents | None,
    images: Stored,
    counterparts: Float[Array, "n height width channels"],
    latents: Int[Array, "n chosen"] | None,
    step: Int[Array, ""] | int,
    *,
    style: str,
    latent_batch_size: int | None,
) -> tuple[
    Float[Array, "n chosen height width"], Float[Array, "n chosen"], Float[Array, "n chosen"]
]:
    """Signed maps of the latents chosen for each image; for None, of the image's deviation.

    With integrated gradients it gives the part of one step, and the caller adds the parts up: all
    of them in one program would take long to compile.
    """
    x = to_unit(images)

    def values(x: Array) -> Array:
        mean, logvar = model.apply(variables, x, method="encode")
        if latents is None:
            return (deviation(normal, mean, logvar) ** 2).sum(axis=1, keepdims=True)
        return jnp.take_along_axis(mean, latents, axis=1)

    options = {"latent_batch_size": latent_batch_size}
    if style == DEEPLIFT:
        maps = attributions.deeplift(values, x, counterparts, **options)
    else:
        part = (x - counterparts) / INTEGRATION_STEPS
        start = counterparts + step * part
        maps = attributions.integrated_gradients(values, start + part, start, **options)
    return maps.sum(axis=4), values(x), values(counterparts)


@functools.cache
def has_deeplift(model: Model) -> bool:
    """Whether DeepLIFT has a rule for every operation of the model; warns once if it has not.

    The encoder is traced; nothing is computed.
    """
    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    z = jax.ShapeDtypeStruct((1, model.latents), jnp.float32)

    def attribute(x: Array, z: Array) -> Array:
        variables = model.init(jax.random.key(0), x, z)

        def mean(x: Array) -> Array:
            return model.apply(variables, x, method="encode")[0]

        return attributions.deeplift(mean, x, jnp.zeros_like(x))

    try:
        jax.eval_shape(attribute, image, z)
    except NotImplementedError as error:
        _LOG.warning("%s Maps of single latents use integrated gradients instead.", error)
        return False
    return True


@functools.partial(backend.jit, static_argnames=("model",))
def replaced(
    model: Model,
    variables: PyTree,
    images: Stored,
    counterparts: Float[Array, "n height width channels"],
    order: Int[Array, "n chosen height width"],
    latents: Int[Array, "n chosen"],
    place: Int[Array, ""] | int,
    count: Int[Array, ""] | int,
) -> Float[Array, "n"]:
    """A latent's mean when the first `count` pixels in its order are those of the counterpart.

    Which latent: the one at `place` of each image's own choice.
    """
    gone = order[:, place, :, :, None] < count
    mean, _ = model.apply(
        variables, jnp.where(gone, counterparts, to_unit(images)), method="encode"
    )
    return jnp.take_along_axis(mean, latents[:, place, None], axis=1)[:, 0]


@functools.partial(backend.jit, static_argnames=("model",))
def image_scores(
    model: Model, variables: PyTree, normal: NormalLatents, images: Stored
) -> dict[str, Float[Array, "n"]]:
    """Reconstruction error, KL and squared deviation of each stored image, at z = mean."""
    found = at_mean(model, variables, to_unit(images))
    deviations = deviation(normal, found.mean, found.logvar)
    return {
        RECONSTRUCTION_ERROR: found.reconstruction,
        "kl": found.kl,
        "standardised_deviation": (deviations**2).sum(axis=1),
    }
