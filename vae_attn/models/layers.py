"""The layers that tables are made of, with PyTorch's conventions and initial weights."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vae_attn.models import operations

Initializer = Callable[..., Array]


class Conv(nn.Module):
    """A 2D convolution, side x side; `stride` and `padding` as in PyTorch."""

    features: int
    side: int
    stride: int
    padding: int
    use_bias: bool = True
    initialization: str = "torch"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch new_height new_width out"]:
        """Convolves."""
        kernel_init, bias_init = _initializers(self.initialization, self.side**2 * x.shape[-1])
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init, shape)
        y = operations.conv(x, kernel, self.stride, self.padding)
        if not self.use_bias:
            return y
        return operations.add_bias(y, self.param("bias", bias_init, (self.features,)))


class ConvTranspose(nn.Module):
    """A transposed 2D convolution, side x side; `stride` and `padding` as in PyTorch."""

    features: int
    side: int
    stride: int
    padding: int
    initialization: str = "torch"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch new_height new_width out"]:
        """Convolves."""
        kernel_init, bias_init = _initializers(self.initialization, self.side**2 * self.features)
        shape = (self.side, self.side, self.features, x.shape[-1])
        kernel = self.param("kernel", kernel_init, shape)
        size = tuple((n - 1) * self.stride - 2 * self.padding + self.side for n in x.shape[1:3])
        y = operations.conv_transpose(x, kernel, self.stride, self.padding, size)
        return operations.add_bias(y, self.param("bias", bias_init, (self.features,)))


class Dense(nn.Module):
    """A linear layer."""

    features: int
    initialization: str = "torch"

    @nn.compact
    def __call__(self, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        """Multiplies and adds."""
        kernel_init, bias_init = _initializers(self.initialization, x.shape[-1])
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features))
        return x @ kernel + self.param("bias", bias_init, (self.features,))


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015).

    With PyTorch's constants: eps 1e-5, momentum 0.1, which Flax writes 0.9.

    Attributes:
      axis_name: device axis over which batch statistics are averaged in training.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch channels"], *, train: bool = False
    ) -> Float[Array, "*batch channels"]:
        """Normalises by the running statistics; in training by the batch's, which they follow."""
        shape, stats = x.shape[-1:], "batch_stats"
        running_mean = self.variable(stats, "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable(stats, "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        wide, scale, bias = (a.astype(jnp.float32) for a in (x, scale, bias))
        if not train:
            inverse = lax.rsqrt(running_var.value + operations.EPSILON)
            return ((wide - running_mean.value) * (scale * inverse) + bias).astype(x.dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, var = operations.batch_norm(wide, scale, bias, axis_name)
        if not self.is_initializing():
            running_mean.value = 0.9 * running_mean.value + 0.1 * mean
            running_var.value = 0.9 * running_var.value + 0.1 * var
        return y.astype(x.dtype)


class Residual(nn.Module):
    """ResNet's basic block (He et al. 2016, Figure 5 left), as torchvision's BasicBlock.

    Two 3x3 convolutions, the first one strided, and a shortcut.
    """

    features: int
    stride: int
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], *, train: bool = False
    ) -> Float[Array, "batch new_height new_width out"]:
        """Adds the block's output to its (where needed strided) input."""

        def conv(name: str, side: int, stride: int, padding: int) -> Conv:
            return Conv(self.features, side, stride, padding, use_bias=False, name=name)

        def norm(name: str, y: Array) -> Array:
            return BatchNorm(self.axis_name, name=name)(y, train=train)

        y = nn.relu(norm("bn1", conv("conv1", 3, self.stride, 1)(x)))
        y = norm("bn2", conv("conv2", 3, 1, 1)(y))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = norm("downsample_bn", conv("downsample_conv", 1, self.stride, 0)(x))
        return nn.relu(x + y)


class MaxPool(nn.Module):
    """The maximum over side x side windows; `stride` and `padding` as in PyTorch."""

    side: int
    stride: int
    padding: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width channels"]:
        """Takes the maxima."""
        return operations.max_pool(x, self.side, self.stride, self.padding)


class Unflatten(nn.Module):
    """(batch, features) to (batch, height, width, channels)."""

    height: int
    width: int
    channels: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"]
    ) -> Float[Array, "batch height width channels"]:
        """Reshapes."""
        return x.reshape(x.shape[0], self.height, self.width, self.channels)


def flatten(x: Float[Array, "batch ..."]) -> Float[Array, "batch features"]:
    """(batch, height, width, channels) to (batch, height * width * channels)."""
    return x.reshape(x.shape[0], -1)


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
    """The initialisers of a kernel and of a bias, by the name of their scheme."""
    if scheme == "torch":
        return torch_uniform(fan_in), torch_uniform(fan_in)
    if scheme == "normal":  # FactorVAE's public code: N(0, 0.02), zero bias
        return nn.initializers.normal(0.02, jnp.float32), nn.initializers.constant(0.0, jnp.float32)
    if scheme == "glorot":  # disentanglement_lib's, TensorFlow's default: Glorot & Bengio (2010)
        return nn.initializers.glorot_uniform(), nn.initializers.constant(0.0, jnp.float32)
    raise ValueError(f"unknown initialisation {scheme!r}")
