"""Signed maps that add up: which pixels make up what a latent says of an image.

A map of this module takes the difference between a function's value at an image x and at a
baseline x' apart into the image's pixels:

    z_i(x) - z_i(x') = sum over pixels p of map_i[p]

so it is an account of latent i, where `attention`'s maps are a view of the layer that i looks at.
The baseline is best the model's own normal counterpart of x, such as its reconstruction: then the
map shows which pixels make z_i abnormal, and in which direction each pulls. Any other image will
do. There are two ways, both for any function whose images do not interact:

    deeplift               exact, to rounding, in one backward pass per latent.
    integrated_gradients   to the error of a sum over steps, each a backward pass per latent.

The functions are pure: jit, vmap and differentiate them again. Outside of `jax.jit` they run
operation by operation, so jit what calls them, or use `make_attribution_fn`.
"""

from collections.abc import Callable
from typing import Any as PyTree

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vae_attn.secants import secant_vjp

Latents = Callable[[Float[Array, "batch *shape"]], Float[Array, "batch latents"]]

ATTRIBUTIONS = ("deeplift", "integrated_gradients")


def integrated_gradients(
    fn: Callable[[Array], Array],
    images: Float[Array, "batch *shape"],
    baselines: Float[Array, "batch *shape"],
    *,
    steps: int = 1,
    chosen: Int[Array, "latents"] | None = None,
    latent_batch_size: int | None = None,
) -> Float[Array, "batch latents *shape"]:
    """Integrated gradients (Sundararajan et al., ICML 2017), on the straight path, per latent.

    map_i = (x - x') times the mean over the path of d z_i / d x (their equation 1), the mean by the
    midpoint rule: at the points x' + (k + 1/2) / steps (x - x'), k = 0 .. steps - 1.

    Args:
      fn: from images to latents, (batch, latents); the mean, the log variance, or anything else of
        that shape. For a layer's features, it is the head above. Images must not interact.
      images: x, or features of it.
      baselines: x', likewise.
      steps: gradients along the path. One, at its midpoint, is already useful.
      chosen: the latents i that are wanted; None is all.
      latent_batch_size: how many latents are differentiated at once. All, if None; fewer need
        less memory and more time.

    Returns:
      The maps, which add up to z(x) - z(x') as steps grow.

    Raises:
      ValueError: for no step, for baselines that are not one per image, or if fn does not return
        (batch, latents).
    """
    _check_baselines(images, baselines)
    if steps < 1:
        raise ValueError(f"steps={steps} must be 1 or more.")
    difference = images - baselines
    total = jnp.zeros((), images.dtype)
    # Not lax.scan: in a loop XLA's CPU backend runs convolutions about ten times slower.
    for k in range(steps):
        z, pullback = jax.vjp(fn, baselines + (k + 0.5) / steps * difference)
        total += _per_latent(lambda g, p=pullback: p(g)[0], z, chosen, latent_batch_size)
    return total / steps * difference[:, None]


def deeplift(
    fn: Callable[[Array], Array],
    images: Float[Array, "batch *shape"],
    baselines: Float[Array, "batch *shape"],
    *,
    chosen: Int[Array, "latents"] | None = None,
    latent_batch_size: int | None = None,
) -> Float[Array, "batch latents *shape"]:
    """DeepLIFT's rescale rule (Shrikumar et al., ICML 2017), per latent, of any JAX function.

    Every operation gets the slope between what it sees in the baseline and in the image, in place
    of its derivative; `vae_attn.secants` has the rules. The maps then add up to z(x) - z(x')
    exactly, to rounding. Costs two passes forward and one backward per latent.

    Args:
      fn: see `integrated_gradients`; of operations for which `secants` has a rule.
      images: x, or features of it.
      baselines: x', likewise.
      chosen: the latents i that are wanted; None is all.
      latent_batch_size: see `integrated_gradients`.

    Returns:
      The maps.

    Raises:
      NotImplementedError: for an operation without a rule, by its name.
      ValueError: for baselines that are not one per image, or if fn does not return
        (batch, latents).
    """
    _check_baselines(images, baselines)
    z, _, pullback = secant_vjp(fn, images, baselines)
    multipliers = _per_latent(pullback, z, chosen, latent_batch_size)
    return multipliers * (images - baselines)[:, None]


def _check_baselines(images: Array, baselines: Array) -> None:
    if images.shape != baselines.shape:
        raise ValueError(
            f"baselines of shape {baselines.shape} do not fit images of shape {images.shape}: "
            "give one for each image."
        )


def _per_latent(
    pullback: Callable[[Array], Array],
    z: Array,
    chosen: Array | None,
    latent_batch_size: int | None,
) -> Array:
    """The pullback of each latent's one-hot vector, as (batch, latents, *shape)."""
    if z.ndim != 2:
        raise ValueError(f"the function must return (batch, latents), and returned {z.shape}.")

    def pulled(one_hot: Float[Array, "latents"]) -> Array:
        # Images do not interact: one cotangent for the batch gives each image its own.
        return pullback(jnp.broadcast_to(one_hot, z.shape))

    wanted = jnp.arange(z.shape[1]) if chosen is None else chosen
    basis = jax.nn.one_hot(wanted, z.shape[1], dtype=z.dtype)
    if latent_batch_size is None:
        return jax.vmap(pulled, out_axes=1)(basis)
    return jnp.moveaxis(jax.lax.map(pulled, basis, batch_size=latent_batch_size), 0, 1)


def explain_score(
    score_fn: Callable[[Array], Array],
    images: Float[Array, "batch *shape"],
    baselines: Float[Array, "batch *shape"],
    *,
    style: str = "deeplift",
    steps: int = 1,
) -> Float[Array, "batch *shape"]:
    """Which pixels make up a score's rise from the counterpart to the image.

    Args:
      score_fn: from images to one value each, (batch,): the KL divergence, the error of the
        reconstruction, a deviation in standard deviations. Images must not interact.
      images: x.
      baselines: x'.
      style: one of `ATTRIBUTIONS`.
      steps: of integrated gradients.

    Returns:
      One signed map per image, whose sum is score(x) - score(x').

    Raises:
      NotImplementedError: as `deeplift`.
      ValueError: for an unknown style, for baselines that are not one per image, or if score_fn
        does not return (batch,).
    """
    attribute = _attribution(style, steps)

    def scores(x: Array) -> Array:
        score = score_fn(x)
        if score.ndim != 1:
            raise ValueError(f"the score must be one value per image, and was {score.shape}.")
        return score[:, None]

    return attribute(scores, images, baselines)[:, 0]


def _attribution(style: str, steps: int) -> Callable[..., Array]:
    match style:
        case "deeplift":
            return deeplift
        case "integrated_gradients":
            return lambda *args, **kwargs: integrated_gradients(*args, steps=steps, **kwargs)
    raise ValueError(f"unknown attribution {style!r}; choose one of {', '.join(ATTRIBUTIONS)}.")


def make_attribution_fn(
    *,
    latents: Callable[[PyTree, Array], Array],
    style: str = "deeplift",
    features: Callable[[PyTree, Array], Array] | None = None,
    steps: int = 1,
    latent_batch_size: int | None = None,
) -> Callable[..., Float[Array, "batch latents h w"]]:
    """A jitted function `attribute(params, images, counterparts, chosen=None) -> maps`.

    Args:
      latents: `latents(params, images)` gives the means (or the log variances), (batch, latents).
      style: one of `ATTRIBUTIONS`.
      features: to explain the latents at a layer in place of the pixels: `features(params, images)`
        gives A, and `latents(params, A)` continues from there.
      steps: of integrated gradients.
      latent_batch_size: see `integrated_gradients`.

    Returns:
      The function. Maps are summed over channels and signed; each adds up to z_i(x) - z_i(x').
      They have the images' size, or the layer's (resizing would change the sum).

    Raises:
      ValueError: for an unknown style.
    """
    attribution = _attribution(style, steps)

    def attribute(
        params: PyTree,
        images: Float[Array, "batch height width c"],
        counterparts: Float[Array, "batch height width c"],
        chosen: Int[Array, "latents"] | None = None,
    ) -> Float[Array, "batch latents h w"]:
        x, baseline = images, counterparts
        if features is not None:
            x, baseline = features(params, images), features(params, counterparts)
        return attribution(
            lambda a: latents(params, a),
            x,
            baseline,
            chosen=chosen,
            latent_batch_size=latent_batch_size,
        ).sum(axis=-1)

    return jax.jit(attribute)
