"""Sliding windows: convolutions and maximum pooling, with gradients that are fast on the CPU too.

A strided convolution and a transposed one are each other's adjoint. XLA's CPU backend is slow
where it dilates its input (the input gradient of a strided convolution, the forward pass and
the kernel gradient of a transposed one), so both are written here in terms of two operations
that it does well: a strided convolution, and stride^2 interleaved stride-1 convolutions. On other
backends the latter is XLA's own dilated convolution; for several seeds all are patches times a
matrix there (`backend.as_products`).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vae_attn import backend

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _strided(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    if backend.as_products():
        matrix = kernel.reshape(-1, kernel.shape[-1])
        return _patches(x, kernel.shape[0], stride, padding) @ matrix
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )


def _patches(x: Array, side: int, stride: int, padding: int) -> Array:
    """What lies under each window, in the order of a kernel's entries, along the last axis."""
    return jnp.concatenate(_taps(x, side, stride, padding, outside=0.0), axis=-1)


def _adjoint(x: Array, kernel: Array, stride: int, padding: int, size: tuple) -> Array:
    """Adjoint of `_strided` in its input, by what is faster on this backend."""
    interleaves = backend.slow_windows() or backend.as_products()
    adjoint = _interleaved if interleaves else _dilated
    return adjoint(x, kernel, stride, padding, size)


def _dilated(x: Array, kernel: Array, stride: int, padding: int, size: tuple) -> Array:
    """The adjoint by its definition: a convolution of the input with zeros in between."""
    side = kernel.shape[0]
    before = side - 1 - padding
    after = [
        wanted - (have - 1) * stride - 1 + side - 1 - before
        for wanted, have in zip(size, x.shape[1:3], strict=True)
    ]
    return lax.conv_general_dilated(
        x,
        jnp.swapaxes(kernel[::-1, ::-1], 2, 3),
        (1, 1),
        [(before, one) for one in after],
        lhs_dilation=(stride, stride),
        dimension_numbers=_DIMENSIONS,
    )


def _interleaved(x: Array, kernel: Array, stride: int, padding: int, size: tuple) -> Array:
    """The adjoint as one stride-1 convolution, then a pixel shuffle.

    Output row o gathers x[i] W[t] with o + padding = stride i + t. With t = stride j + r this is
    stride (i + j) + r, so phase r of the output is a stride-1 convolution with W[r::stride].
    """
    side, _, channels, inputs = kernel.shape
    taps = -(-side // stride)
    full = jnp.pad(kernel, [(0, taps * stride - side)] * 2 + [(0, 0)] * 2)
    phases = full.reshape(taps, stride, taps, stride, channels, inputs)
    # For so few pixels the products of all taps, at a batch of 8, are no larger than the kernel,
    # which `_gathered` transposes; for one channel they are the few columns that a convolution is
    # slow at. The batch itself has no say, so that an image gets the same output in any.
    few = 8 * x.shape[1] * x.shape[2] <= inputs
    scatter = few or channels == 1
    return _shuffle((_scattered if scatter else _gathered)(x, phases), padding, size)


def _gathered(x: Array, phases: Array) -> Array:
    """Output row o is the sum over taps t of x[o - t] W[t]: a convolution with the flipped W."""
    taps, stride, _, _, channels, _ = phases.shape
    flipped = backend.transpose(phases[::-1, :, ::-1], (0, 2, 5, 1, 3, 4))
    y = _strided(x, flipped.reshape(taps, taps, -1, stride * stride * channels), 1, taps - 1)
    return y.reshape(*y.shape[:3], stride, stride, channels)


def _scattered(x: Array, phases: Array) -> Array:
    """The same, every tap's product with all of x shifted to its place."""
    # As a product of matrices: XLA would transpose a kernel of more axes first.
    rows, kernel = (a.reshape(-1, a.shape[-1]) for a in (x, phases))
    products = lax.dot_general(rows, kernel, (((1,), (1,)), ((), ())))
    products = products.reshape(*x.shape[:3], *phases.shape[:-1])
    taps = range(len(phases))
    last = len(phases) - 1
    return sum(
        jnp.pad(
            products[:, :, :, t, :, u],
            [(0, 0), (t, last - t), (u, last - u), (0, 0), (0, 0), (0, 0)],
        )
        for t in taps
        for u in taps
    )


def _shuffle(phases: Array, padding: int, size: tuple) -> Array:
    """Interleaves (batch, height, width, stride, stride, channels), and cuts the padding off.

    Rows that no window reached are added: they get no gradient.
    """
    batch, height, width, stride, _, channels = phases.shape
    y = phases.transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, height * stride, width * stride, channels)
    missing = [max(0, padding + n - have) for n, have in zip(size, y.shape[1:3], strict=True)]
    y = jnp.pad(y, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])
    return y[:, padding : padding + size[0], padding : padding + size[1]]


def _kernel_gradient(x: Array, g: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Gradient of `_strided` in its kernel: entry t is the sum over i of x[stride i + t] g[i]."""
    if backend.as_products():
        patches = _patches(x, kernel.shape[0], stride, padding)
        rows, columns = (a.reshape(-1, a.shape[-1]) for a in (patches, g))
        return (rows.T @ columns).reshape(kernel.shape)
    if not backend.slow_windows():
        return jax.vjp(lambda k: _strided(x, k, stride, padding), kernel)[1](g)[0]
    # As XLA has it, a convolution that sums over the batch, with transpositions that are fast.
    gradient = lax.conv_general_dilated(
        backend.transpose(x, (3, 1, 2, 0)),
        backend.transpose(g, (1, 2, 0, 3)),
        (1, 1),
        [(padding, padding)] * 2,
        rhs_dilation=(stride, stride),
        dimension_numbers=_DIMENSIONS,
    )
    # Where the windows leave a rest of the input, taps beyond the kernel follow.
    return gradient.transpose(1, 2, 0, 3)[: kernel.shape[0], : kernel.shape[1]]


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


def max_pool(
    x: Float[Array, "batch height width channels"], side: int, stride: int, padding: int
) -> Float[Array, "batch new_height new_width channels"]:
    """PyTorch's MaxPool2d: the gradient goes to the first maximum of each window."""
    if not backend.slow_windows():
        return nn.max_pool(x, (side, side), (stride, stride), [(padding, padding)] * 2)
    return _max_pool(x, side, stride, padding, x.shape[1:3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x: Array, side: int, stride: int, padding: int, size: tuple) -> Array:
    return functools.reduce(jnp.maximum, _taps(x, side, stride, padding))


def _taps(
    x: Array, side: int, stride: int, padding: int, *, outside: float = -jnp.inf
) -> list[Array]:
    """What lies under each place of the window, row after row; `outside` is beyond the edges."""
    edges = [(0, 0), *[(padding, padding)] * 2, (0, 0)]
    x = jnp.pad(x, edges, constant_values=outside)
    batch, *size, channels = x.shape
    rows, columns = ((n - side) // stride * stride + 1 for n in size)
    return [
        lax.slice(x, (0, t, u, 0), (batch, t + rows, u + columns, channels), (1, stride, stride, 1))
        for t in range(side)
        for u in range(side)
    ]


def _max_pool_forward(x, side, stride, padding, size):
    taps = _taps(x, side, stride, padding)
    maximum = functools.reduce(jnp.maximum, taps)
    first = functools.reduce(
        lambda later, n: jnp.where(taps[n] == maximum, jnp.int16(n), later),
        reversed(range(len(taps))),
        jnp.zeros(maximum.shape, jnp.int16),
    )
    return maximum, first


def _max_pool_backward(side, stride, padding, size, first, g):
    """As in `_interleaved`: tap t = stride j + r of window i is row i + j of phase r."""
    last = -(-side // stride) - 1

    def placed(t: int, u: int) -> Array:
        """The gradient of the windows whose maximum is under that tap."""
        edges = [(0, 0), *((n // stride, last - n // stride) for n in (t, u)), (0, 0)]
        return jnp.pad(jnp.where(first == t * side + u, g, 0.0), edges)

    def phase(row: int, column: int) -> Array:
        rows, columns = (range(n, side, stride) for n in (row, column))
        if not rows or not columns:  # between windows
            return jnp.zeros_like(placed(0, 0))
        return sum(placed(t, u) for t in rows for u in columns)

    phases = [[phase(row, column) for column in range(stride)] for row in range(stride)]
    return (_shuffle(jnp.stack([jnp.stack(row, 3) for row in phases], 3), padding, size),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
