"""Layers whose gradients are fast on the CPU too; the windows' are in `models.windows`."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vae_attn.models.windows import conv, conv_transpose

Initializer = Callable[..., Array]

_EPSILON = 1e-5  # of batch normalisation, as in PyTorch


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
    mean = _batch_mean(x, axis_name)
    var = _batch_mean((x - mean) ** 2, axis_name)  # not E[x^2] - E[x]^2, which loses digits
    return (x - mean) * (scale * lax.rsqrt(var + _EPSILON)) + bias, mean, var


def _batch_norm_forward(x, scale, bias, axis_name):
    # Not by `batch_norm`, which keeps the gradients of gradients from the statistics.
    y, mean, var = _batch_norm(x, scale, bias, axis_name)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_backward(axis_name, residuals, cotangents):
    """Two sums over the batch, as in the paper's section 3."""
    x, scale, mean, var = residuals
    g, *_ = cotangents
    inverse = lax.rsqrt(var + _EPSILON)
    normalized = (x - mean) * inverse
    bias_gradient, scale_gradient = _row_sums(g), _row_sums(g * normalized)
    mean_g, mean_product = (
        _over_devices(total / math.prod(x.shape[:-1]), axis_name)
        for total in (bias_gradient, scale_gradient)
    )
    x_gradient = (g - mean_g - normalized * mean_product) * (scale * inverse)
    return x_gradient, scale_gradient, bias_gradient


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _batch_mean(x: Array, axis_name: str | None) -> Array:
    return _over_devices(_row_sums(x) / math.prod(x.shape[:-1]), axis_name)


def _over_devices(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else lax.pmean(x, axis_name)


def torch_uniform(fan_in: int) -> Initializer:
    """PyTorch's default for weights and biases: U(-b, b) with b = 1 / sqrt(fan_in).

    That is Kaiming's uniform with a = sqrt(5). For a transposed convolution PyTorch counts
    the kernel's output channels as fan-in; so do the layers here.
    """
    bound = 1.0 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def _initializers(scheme: str, fan_in: int) -> tuple[Initializer, Initializer]:
    """Kernel's and bias' initialisers of a named scheme."""
    if scheme == "torch":
        return torch_uniform(fan_in), torch_uniform(fan_in)
    if scheme == "normal":  # FactorVAE's public code: N(0, 0.02), zero bias
        return nn.initializers.normal(0.02, jnp.float32), nn.initializers.constant(0.0, jnp.float32)
    raise ValueError(f"unknown initialisation {scheme!r}")


class Conv(nn.Module):
    """A convolution; `stride` and `padding` as in PyTorch."""

    features: int
    side: int
    stride: int
    padding: int
    initialization: str
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch new_height new_width out"]:
        """Convolves."""
        kernel_init, bias_init = _initializers(self.initialization, self.side**2 * x.shape[-1])
        shape = (self.side, self.side, x.shape[-1], self.features)
        y = conv(x, self.param("kernel", kernel_init, shape), self.stride, self.padding)
        if not self.use_bias:
            return y
        return add_bias(y, self.param("bias", bias_init, (self.features,)))


class ConvTranspose(nn.Module):
    """A transposed convolution; `stride` and `padding` as in PyTorch."""

    features: int
    side: int
    stride: int
    padding: int
    initialization: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch new_height new_width out"]:
        """Convolves."""
        kernel_init, bias_init = _initializers(self.initialization, self.side**2 * self.features)
        shape = (self.side, self.side, self.features, x.shape[-1])
        kernel = self.param("kernel", kernel_init, shape)
        size = tuple((n - 1) * self.stride - 2 * self.padding + self.side for n in x.shape[1:3])
        y = conv_transpose(x, kernel, self.stride, self.padding, size)
        return add_bias(y, self.param("bias", bias_init, (self.features,)))


class Dense(nn.Module):
    """A linear layer."""

    features: int
    initialization: str

    @nn.compact
    def __call__(self, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        """Multiplies and adds."""
        kernel_init, bias_init = _initializers(self.initialization, x.shape[-1])
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features))
        return x @ kernel + self.param("bias", bias_init, (self.features,))


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015), as Flax has it.

    With PyTorch's constants: eps 1e-5, momentum 0.1, which Flax writes 0.9. Flax's own sums are
    XLA's, and slow on the CPU: see `add_bias`.

    Attributes:
      axis_name: device axis over which batch statistics are averaged in training.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], *, use_running_average: bool
    ) -> Float[Array, "*batch channels"]:
        """Normalises by the running statistics, or by the batch's, which they then follow."""
        shape, stats = x.shape[-1:], "batch_stats"
        running_mean = self.variable(stats, "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable(stats, "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        wide, scale, bias = (a.astype(jnp.float32) for a in (x, scale, bias))
        if use_running_average:
            inverse = lax.rsqrt(running_var.value + _EPSILON)
            return ((wide - running_mean.value) * (scale * inverse) + bias).astype(x.dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, var = batch_norm(wide, scale, bias, axis_name)
        if not self.is_initializing():
            running_mean.value = 0.9 * running_mean.value + 0.1 * mean
            running_var.value = 0.9 * running_var.value + 0.1 * var
        return y.astype(x.dtype)
