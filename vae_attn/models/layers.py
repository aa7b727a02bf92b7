"""Convolutions with gradients that are fast on the CPU too, and the layers made of them.

A strided convolution and a transposed one are each other's adjoint. XLA's CPU backend is slow
where it dilates its input (the input gradient of a strided convolution, the forward pass and
the kernel gradient of a transposed one), so both are written here in terms of two operations
that it does well: a strided convolution, and stride^2 interleaved stride-1 convolutions. On other
backends the latter is XLA's own dilated convolution.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vae_attn import backend

Initializer = Callable[..., Array]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _strided(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )


def _adjoint(x: Array, kernel: Array, stride: int, padding: int, size: tuple) -> Array:
    """Adjoint of `_strided` in its input, by what is faster on this backend."""
    adjoint = _interleaved if backend.dilates_slowly() else _dilated
    return adjoint(x, kernel, stride, padding, size)


def _dilated(x: Array, kernel: Array, stride: int, padding: int, size: tuple) -> Array:
    """The adjoint by its definition: a convolution of the input with zeros in between."""
    side = kernel.shape[0]
    before = side - 1 - padding
    behind = [
        wanted - (have - 1) * stride - 1 + side - 1 - before
        for wanted, have in zip(size, x.shape[1:3], strict=True)
    ]
    return lax.conv_general_dilated(
        x,
        jnp.swapaxes(kernel[::-1, ::-1], 2, 3),
        (1, 1),
        [(before, one) for one in behind],
        lhs_dilation=(stride, stride),
        dimension_numbers=_DIMENSIONS,
    )


def _interleaved(x: Array, kernel: Array, stride: int, padding: int, size: tuple) -> Array:
    """The adjoint as one stride-1 convolution, then a pixel shuffle.

    Output row o gathers x[i] W[t] with o + padding = stride i + t. With t = stride j + r this is
    stride (i + j) + r, so phase r of the output is a stride-1 convolution with W[r::stride].
    """
    side, channels = kernel.shape[0], kernel.shape[2]
    taps = -(-side // stride)
    full = jnp.pad(kernel, [(0, taps * stride - side)] * 2 + [(0, 0)] * 2)
    phases = full.reshape(taps, stride, taps, stride, channels, -1).transpose(0, 2, 5, 1, 3, 4)
    phases = phases.reshape(taps, taps, -1, stride * stride * channels)
    convolve = _scattered if channels == 1 else _gathered
    y = convolve(x, phases)
    batch, height, width, _ = y.shape
    y = y.reshape(batch, height, width, stride, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, height * stride, width * stride, channels)
    # Rows that no window of the strided convolution reached get no gradient.
    missing = [max(0, padding + n - have) for n, have in zip(size, y.shape[1:3], strict=True)]
    y = jnp.pad(y, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])
    return y[:, padding : padding + size[0], padding : padding + size[1]]


def _gathered(x: Array, phases: Array) -> Array:
    """Output row o is the sum over taps t of x[o - t] W[t]: a convolution with the flipped W."""
    return _strided(x, phases[::-1, ::-1], 1, len(phases) - 1)


def _scattered(x: Array, phases: Array) -> Array:
    """The same, every tap's product with all of x shifted to its place.

    Where the output has few channels this is one product with a small result, and sooner on the
    CPU than the convolution, whose kernel would have few columns.
    """
    taps = range(len(phases))
    products = jnp.einsum("bhwi,tuio->bhwtuo", x, phases)
    last = len(phases) - 1
    return sum(
        jnp.pad(products[:, :, :, t, u], [(0, 0), (t, last - t), (u, last - u), (0, 0)])
        for t in taps
        for u in taps
    )


def _kernel_gradient(x: Array, g: Array, kernel: Array, stride: int, padding: int) -> Array:
    (gradient,) = jax.vjp(lambda k: _strided(x, k, stride, padding), kernel)[1](g)
    return gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "side side in out"],
    stride: int,
    padding: int,
) -> Float[Array, "batch new_height new_width out"]:
    """PyTorch's Conv2d without bias: symmetric zero padding, output size rounded down."""
    return _strided(x, kernel, stride, padding)


def _conv_forward(x, kernel, stride, padding):
    return conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, g):
    x, kernel = residuals
    return (
        conv_transpose(g, kernel, stride, padding, x.shape[1:3]),
        _kernel_gradient(x, g, kernel, stride, padding),
    )


conv.defvjp(_conv_forward, _conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv_transpose(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "side side out in"],
    stride: int,
    padding: int,
    size: tuple[int, int],
) -> Float[Array, "batch new_height new_width out"]:
    """PyTorch's ConvTranspose2d without bias, written as the adjoint of `conv`.

    Args:
      x: the input.
      kernel: of the strided convolution whose adjoint this is, so (out, in) swap places.
      stride: of that convolution.
      padding: of that convolution.
      size: height and width of the output, (n - 1) stride - 2 padding + side in PyTorch.

    Returns:
      The output; pixels that no input reaches are 0.
    """
    return _adjoint(x, kernel, stride, padding, size)


def _conv_transpose_forward(x, kernel, stride, padding, size):
    return conv_transpose(x, kernel, stride, padding, size), (x, kernel)


def _conv_transpose_backward(stride, padding, size, residuals, g):
    x, kernel = residuals
    return conv(g, kernel, stride, padding), _kernel_gradient(g, x, kernel, stride, padding)


conv_transpose.defvjp(_conv_transpose_forward, _conv_transpose_backward)


def _row_sums(x: Array) -> Array:
    """Sums over all axes but the last, by a product with ones: see `add_bias`."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.ones(rows.shape[:1], rows.dtype) @ rows


@jax.custom_vjp
def add_bias(x: Float[Array, "*batch channels"], bias: Float[Array, "channels"]) -> Array:
    """Adds a bias, with a bias gradient that is a product: XLA's CPU backend sums slowly."""
    return x + bias


def _add_bias_backward(_, g):
    return g, _row_sums(g)


add_bias.defvjp(lambda x, bias: (x + bias, None), _add_bias_backward)


@jax.custom_vjp
def normalize(
    x: Float[Array, "*batch channels"],
    mean: Float[Array, "channels"],
    scale: Float[Array, "channels"],
    bias: Float[Array, "channels"],
) -> Array:
    """Gives (x - mean) scale + bias, with the channels' gradients as products, as in `add_bias`."""
    return (x - mean) * scale + bias


def _normalize_backward(residuals, g):
    x, mean, scale = residuals
    total = _row_sums(g)
    return g * scale, -scale * total, _row_sums(g * (x - mean)), total


normalize.defvjp(
    lambda x, mean, scale, bias: ((x - mean) * scale + bias, (x, mean, scale)),
    _normalize_backward,
)


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
        return nn.initializers.normal(0.02), nn.initializers.zeros
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
        running_mean = self.variable(stats, "mean", jnp.zeros, shape)
        running_var = self.variable(stats, "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        wide = x.astype(jnp.float32)
        if use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            mean = self._mean(wide)
            var = self._mean((wide - mean) ** 2)  # not E[x^2] - E[x]^2, which loses digits
            if not self.is_initializing():
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * var
        scale = scale * lax.rsqrt(var + 1e-5)
        return normalize(wide, mean, scale, bias).astype(x.dtype)

    def _mean(self, x: Array) -> Array:
        """The mean of each channel over the batch of all devices."""
        mean = _row_sums(x) / math.prod(x.shape[:-1])
        if self.axis_name is None or self.is_initializing():
            return mean
        return lax.pmean(mean, self.axis_name)
