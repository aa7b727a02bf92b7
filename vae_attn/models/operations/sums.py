"""Sums over a batch: adding a bias, and batch normalisation, with gradients fast on the CPU."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

EPSILON = 1e-5  # of batch normalisation, as in PyTorch


def _row_sums(x: Array) -> Array:
    """Sums over all axes but the last, by a product with ones: see `add_bias`.

    Up to 128 pixels lie side by side, which makes for fewer and wider rows: a shorter sum, so one
    with more digits, and a faster one.
    """
    channels = x.shape[-1]
    abreast = math.gcd(math.prod(x.shape[1:-1]), 128)
    rows = x.reshape(-1, abreast * channels)
    ones = jnp.ones(rows.shape[:1], rows.dtype)
    # With all digits on accelerators too.
    return jnp.dot(ones, rows, precision="highest").reshape(abreast, channels).sum(axis=0)


@jax.custom_vjp
def add_bias(x: Float[Array, "*batch channels"], bias: Float[Array, "channels"]) -> Array:
    """Adds a bias, with a bias gradient that is a product: XLA's CPU backend sums slowly."""
    return x + bias


def _add_bias_backward(_, g):
    return g, _row_sums(g)


add_bias.defvjp(lambda x, bias: (x + bias, None), _add_bias_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: Float[Array, "*batch channels"],
    scale: Float[Array, "channels"],
    bias: Float[Array, "channels"],
    axis_name: str | None,
) -> tuple[Float[Array, "*batch channels"], Float[Array, "channels"], Float[Array, "channels"]]:
    """Normalises by the statistics of the batch (Ioffe & Szegedy 2015, algorithm 1).

    Args:
      x: what to normalise.
      scale: the normalised values' standard deviations.
      bias: their means.
      axis_name: device axis over which the statistics are averaged; None for one device.

    Returns:
      The normalised values; the mean and the variance, through which no gradient flows.
    """
    return _batch_norm(x, scale, bias, axis_name)


def _batch_norm(x: Array, scale: Array, bias: Array, axis_name: str | None) -> tuple:
    mean, var = _moments(x, axis_name)
    return (x - mean) * (scale * lax.rsqrt(var + EPSILON)) + bias, mean, var


def _batch_norm_forward(x, scale, bias, axis_name):
    # Not by `batch_norm`, which keeps the gradients of gradients from the statistics.
    y, mean, var = _batch_norm(x, scale, bias, axis_name)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_backward(axis_name, residuals, cotangents):
    """Two sums over the batch, as in the paper's section 3."""
    x, scale, mean, var = residuals
    g, *_ = cotangents
    inverse = lax.rsqrt(var + EPSILON)
    normalized = (x - mean) * inverse
    bias_gradient, scale_gradient = _row_sums(g), _row_sums(g * normalized)
    mean_g, mean_product = (
        _over_devices(total / math.prod(x.shape[:-1]), axis_name)
        for total in (bias_gradient, scale_gradient)
    )
    x_gradient = (g - mean_g - normalized * mean_product) * (scale * inverse)
    return x_gradient, scale_gradient, bias_gradient


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _moments(x: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Mean and variance over the batch of all devices, which meet once for both.

    Not by E[x^2] - E[x]^2, which loses digits: each device has a mean and a variance of its own.
    """

    def batch_mean(x: Array) -> Array:
        return _row_sums(x) / math.prod(x.shape[:-1])

    mean = batch_mean(x)
    var = batch_mean((x - mean) ** 2)
    if axis_name is None:
        return mean, var
    means, variances = jnp.moveaxis(lax.all_gather(jnp.stack([mean, var]), axis_name), 1, 0)
    mean = means.mean(axis=0)
    return mean, (variances + (means - mean) ** 2).mean(axis=0)


def _over_devices(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else lax.pmean(x, axis_name)
