"""Element-wise attention: what each latent of an encoder looks at, in plain JAX.

Split the encoder at any layer with spatial features A (height h, width w, K channels) into

    features: images -> A              head: A -> (mean, logvar) of q(z | x)

and this module gives one map for every latent z_i (Liu et al., CVPR 2020, section 3.1):

    alpha_ik = mean over (p, q) of d z_i / d A_k[p, q]        (equation 2)
    M_i      = ReLU(sum_k alpha_ik A_k)                       (equation 1)
    M        = (1 / D) sum_i M_i                              (equation 3)

`make_attention_fn` returns a jitted function from parameters and images to maps. The functions
it is made of are pure: jit, vmap and differentiate them again (second-order gradients flow
through alpha). Nothing here knows of any model: `head` is any function whose images do not
interact, such as an evaluation-mode network. For one that begins with a dense layer there is
a shortcut, `DenseMean`.

The published sources disagree about the map, hence the named styles in `STYLES`:

    paper              the formulas above.
    authors_code       the public code: sum_i mean_i, gradients normalised over the batch, no ReLU.
    normal_difference  equation 4: the gradient of a sampled difference to the normal images.
    contrast           ours: |alpha| applied to |A(x) - A(x')|, x' being the model's own normal
                       counterpart of x: what in the image made z_i differ from it.
    contrast_signed    alpha applied to A(x) - A(x'), and the absolute value taken of the sum.
    feature_difference a baseline without any latent: the mean over channels of |A(x) - A(x')|.

Signed maps in pixels that add up to z_i(x) - z_i(x') are in `vae_attn.attributions`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any as PyTree

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Mean = Callable[[Float[Array, "batch h w k"]], Float[Array, "batch latents"]]
Head = Callable[[Float[Array, "batch h w k"]], tuple[Array, Array]]

STYLES = ("paper", "authors_code", "normal_difference",
          "contrast", "contrast_signed", "feature_difference")  # fmt: skip
PER_LATENT_STYLES = ("paper", "contrast", "contrast_signed")


@dataclasses.dataclass(frozen=True)
class DenseMean:
    """A mean that begins with a dense layer: rest(flatten(activation(A)) @ kernel).

    A mean like any other, but its alpha is cheap: raising channel k by 1 in every pixel p moves
    the dense layer by sum_p activation'(A_k[p]) kernel_pk, and z by what the rest makes of it.
    So all latents share one product with the kernel, where gradients take one each.

    Attributes:
      activation: elementwise.
      kernel: of the dense layer; its bias belongs to the rest.
      rest: to the latents. It runs once a channel, so it should be short.
    """

    activation: Callable[[Array], Array]
    kernel: Float[Array, "hwk hidden"]
    rest: Callable[[Float[Array, "batch hidden"]], Float[Array, "batch latents"]]

    def __call__(self, features: Float[Array, "batch h w k"]) -> Float[Array, "batch latents"]:
        """The latents."""
        return self.rest(self.activation(features).reshape(features.shape[0], -1) @ self.kernel)


def channel_weights(
    mean: Mean,
    features: Float[Array, "batch h w k"],
    *,
    chosen: Int[Array, "latents"] | None = None,
    latent_batch_size: int | None = None,
) -> Float[Array, "batch latents k"]:
    """Equation 2: alpha_ik, the spatial mean of d z_i / d A_k, for every latent.

    Args:
      mean: from features to latents, perhaps a `DenseMean`; images must not interact.
      features: A.
      chosen: the latents i that are wanted; None is all.
      latent_batch_size: how many latents are differentiated at once. All, if None; fewer need
        less memory (each takes as much as the features) and more time. A `DenseMean` never
        takes more than one latent's memory.
    """
    if isinstance(mean, DenseMean):
        alpha = _dense_channel_weights(mean, features)
        return alpha if chosen is None else alpha[:, chosen]
    z, pullback = jax.vjp(mean, features)

    def pooled_gradient(one_hot: Float[Array, "latents"]) -> Float[Array, "batch k"]:
        # Images do not interact: one cotangent for the batch gives each image its own gradient.
        (gradient,) = pullback(jnp.broadcast_to(one_hot, z.shape))
        return gradient.mean(axis=(1, 2))

    wanted = jnp.arange(z.shape[1]) if chosen is None else chosen
    basis = jax.nn.one_hot(wanted, z.shape[1], dtype=z.dtype)
    if latent_batch_size is None:
        alpha = jax.vmap(pooled_gradient)(basis)
    else:
        alpha = jax.lax.map(pooled_gradient, basis, batch_size=latent_batch_size)
    return jnp.swapaxes(alpha, 0, 1)


def _dense_channel_weights(mean: DenseMean, features: Array) -> Array:
    batch, height, width, channels = features.shape
    activated, slope = jax.jvp(mean.activation, (features,), (jnp.ones_like(features),))
    _, rest_slope = jax.linearize(mean.rest, activated.reshape(batch, -1) @ mean.kernel)
    slope = jnp.moveaxis(slope.reshape(batch, height * width, channels), 2, 0)
    kernel = mean.kernel.reshape(height * width, channels, -1)

    def weights(k: Int[Array, ""]) -> Float[Array, "batch latents"]:
        return rest_slope(slope[k] @ kernel[:, k]) / (height * width)

    # As many channels at once as need the features' memory: on the CPU, all at once take longer.
    at_once = max(1, len(mean.kernel) // mean.kernel.shape[1])
    return jnp.moveaxis(jax.lax.map(weights, jnp.arange(channels), batch_size=at_once), 0, 2)


def paper_maps(
    mean: Mean,
    features: Float[Array, "batch h w k"],
    *,
    chosen: Int[Array, "latents"] | None = None,
    latent_batch_size: int | None = None,
) -> Float[Array, "batch latents h w"]:
    """Equations 1 and 2: M_i = ReLU(sum_k alpha_ik A_k); arguments as in `channel_weights`."""
    alpha = channel_weights(mean, features, chosen=chosen, latent_batch_size=latent_batch_size)
    return jax.nn.relu(jnp.einsum("bdk,bhwk->bdhw", alpha, features))


def contrast_maps(
    mean: Mean,
    features: Float[Array, "batch h w k"],
    counterpart: Float[Array, "batch h w k"],
    *,
    signed: bool = False,
    chosen: Int[Array, "latents"] | None = None,
    latent_batch_size: int | None = None,
) -> Float[Array, "batch latents h w"]:
    """Attention of the difference between an image and its normal counterpart, per latent.

    Args:
      mean: see `channel_weights`.
      features: A, of the image.
      counterpart: B, of the image's reconstruction, or of any other normal counterpart.
      signed: False gives M_i = sum_k |alpha_ik| |A_k - B_k|; True gives
        M_i = |sum_k alpha_ik (A_k - B_k)|, in which channels may cancel.
      chosen: see `channel_weights`.
      latent_batch_size: likewise.
    """
    alpha = channel_weights(mean, features, chosen=chosen, latent_batch_size=latent_batch_size)
    difference = features - counterpart
    if signed:
        return jnp.abs(jnp.einsum("bdk,bhwk->bdhw", alpha, difference))
    return jnp.einsum("bdk,bhwk->bdhw", jnp.abs(alpha), jnp.abs(difference))


def authors_code_map(
    mean: Mean, features: Float[Array, "batch h w k"], image_size: tuple[int, int]
) -> Float[Array, "batch height width"]:
    """The public code's map: one per image, of s = sum_i mean_i, already resized.

    g = d s / d A is divided by rms(g) + 1e-5, the root mean square running over the whole
    batch, so that (unlike every other style) an image's map depends on what else is in its
    batch, by one common factor. alpha_k = mean of g; the map is |resize(sum_k alpha_k A_k)|.
    """
    z, pullback = jax.vjp(mean, features)
    (gradient,) = pullback(jnp.ones_like(z))
    gradient = gradient / (jnp.sqrt(jnp.mean(gradient**2)) + 1e-5)
    alpha = gradient.mean(axis=(1, 2))
    return jnp.abs(resize(jnp.einsum("bk,bhwk->bhw", alpha, features), image_size))


def normal_difference_map(
    head: Head,
    features: Float[Array, "batch h w k"],
    *,
    normal_mean: Float[Array, "latents"],
    normal_variance: Float[Array, "latents"],
    noise: Float[Array, "samples latents"],
) -> Float[Array, "batch h w"]:
    """Equation 4: attention of the difference u between the image's latents and normal ones.

    u_i ~ N(mean_i - normal_mean_i, exp(logvar_i) + normal_variance_i). The paper leaves open
    how u becomes a map. Here u is reparameterised, u = difference + sqrt(variance) noise; alpha
    is the gradient of sum_i u_i, averaged over the samples of `noise` (which all images share,
    so that a map does not depend on its batch); u keeps its sign; M = ReLU(sum_k alpha_k A_k).
    With many samples, whose noise averages to 0, this tends to the attention of sum_i mean_i.
    """

    def total_difference(a: Float[Array, "batch h w k"]) -> Float[Array, ""]:
        mean, logvar = head(a)
        deviation = jnp.sqrt(jnp.exp(logvar) + normal_variance[None])
        u = (mean - normal_mean[None])[None] + deviation[None] * noise[:, None]
        return u.mean(axis=0).sum()

    alpha = jax.grad(total_difference)(features).mean(axis=(1, 2))
    return jax.nn.relu(jnp.einsum("bk,bhwk->bhw", alpha, features))


def needs_counterparts(style: str) -> bool:
    """Whether a style compares an image with its normal counterpart."""
    return style.startswith("contrast") or style == "feature_difference"


def aggregate(maps: Float[Array, "batch latents h w"]) -> Float[Array, "batch h w"]:
    """Equation 3: the mean of the latents' maps."""
    return maps.mean(axis=1)


def resize(
    maps: Float[Array, "*batch h w"], image_size: tuple[int, int]
) -> Float[Array, "*batch height width"]:
    """Bilinear interpolation to the image's height and width (pixel centres aligned)."""
    return jax.image.resize(maps, (*maps.shape[:-2], *image_size), "bilinear")


def normal_statistics(
    mean: Float[Array, "n latents"], logvar: Float[Array, "n latents"]
) -> tuple[Float[Array, "latents"], Float[Array, "latents"]]:
    """Mean and variance of the latents over normal images, for `normal_difference_map`.

    By the law of total variance: E[mean], and E[exp(logvar)] + Var[mean].
    """
    return mean.mean(axis=0), jnp.exp(logvar).mean(axis=0) + mean.var(axis=0)


def make_attention_fn(
    *,
    features: Callable[[PyTree, Float[Array, "batch height width c"]], Float[Array, "batch h w k"]],
    head: Callable[[PyTree, Float[Array, "batch h w k"]], tuple[Array, Array]],
    style: str,
    dense_mean: Callable[[PyTree], DenseMean] | None = None,
    normal_mean: Float[Array, "latents"] | None = None,
    normal_variance: Float[Array, "latents"] | None = None,
    num_samples: int = 16,
    per_latent: bool = False,
    latent_batch_size: int | None = None,
) -> Callable[..., Float[Array, "batch ..."]]:
    """A jitted function `attend(params, images, counterparts) -> maps` in the images' size.

    Args:
      features: `features(params, images)` gives A, of any layer.
      head: `head(params, A)` gives mean and logvar.
      style: one of `STYLES`.
      dense_mean: `dense_mean(params)` is head's mean as a `DenseMean`: the same maps, sooner.
      normal_mean: for `normal_difference`; see `normal_statistics`.
      normal_variance: likewise.
      num_samples: for `normal_difference`, over how many fixed samples it averages.
      per_latent: one map for every latent, (batch, latents, height, width), not one per image,
        (batch, height, width); for `PER_LATENT_STYLES`.
      latent_batch_size: see `channel_weights`.

    Returns:
      The function. `counterparts` are the images' normal counterparts x', for instance their
      reconstructions; only some styles need them (`needs_counterparts`).

    Raises:
      ValueError: for an unknown style, or where an argument that the style needs is missing.
    """
    if style not in STYLES:
        raise ValueError(f"unknown attention style {style!r}; choose one of {', '.join(STYLES)}.")
    if style == "normal_difference" and (normal_mean is None or normal_variance is None):
        raise ValueError(f"attention style {style!r} needs `normal_mean` and `normal_variance`.")
    if per_latent and style not in PER_LATENT_STYLES:
        raise ValueError(f"attention style {style!r} has one map per image, none per latent.")

    def attend(
        params: PyTree,
        images: Float[Array, "batch height width c"],
        counterparts: Float[Array, "batch height width c"] | None = None,
    ) -> Array:
        if needs_counterparts(style) and counterparts is None:
            raise ValueError(f"attention style {style!r} needs counterparts of the images.")
        a = features(params, images)
        mean = dense_mean(params) if dense_mean else lambda a: head(params, a)[0]
        match style:
            case "authors_code":
                return authors_code_map(mean, a, images.shape[1:3])
            case "normal_difference":
                noise_shape = (num_samples, len(normal_mean))
                maps = normal_difference_map(
                    lambda a: head(params, a),
                    a,
                    normal_mean=normal_mean,
                    normal_variance=normal_variance,
                    noise=jax.random.normal(jax.random.key(0), noise_shape, normal_mean.dtype),
                )
            case "feature_difference":
                maps = jnp.abs(a - features(params, counterparts)).mean(axis=3)
            case "paper":
                maps = paper_maps(mean, a, latent_batch_size=latent_batch_size)
            case _:
                b, signed = features(params, counterparts), style == "contrast_signed"
                maps = contrast_maps(mean, a, b, signed=signed, latent_batch_size=latent_batch_size)
        maps = maps if per_latent or maps.ndim == 3 else aggregate(maps)
        return resize(maps, images.shape[1:3])

    return jax.jit(attend)
