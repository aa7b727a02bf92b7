"""Convolutions, pools and layers against XLA's and Flax's own; gradients by finite differences."""

import contextlib

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from vae_attn import backend
from vae_attn.models import layers, operations

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
CASES = [  # side, stride, padding, height, width: all that the four tables use, and odd sizes
    (4, 2, 1, 14, 14),
    (4, 2, 1, 25, 25),
    (5, 2, 1, 12, 12),
    (4, 1, 0, 4, 4),
    (7, 2, 3, 21, 16),
    (3, 1, 1, 6, 5),
    (1, 2, 0, 8, 7),
    (3, 3, 0, 11, 11),
]


@pytest.fixture(params=["cpu", "gpu", "gpu, several seeds"])
def chosen(request, monkeypatch):
    """What is chosen for a backend, on this machine's."""
    monkeypatch.setattr(backend, "slow_windows", lambda: request.param == "cpu")
    with backend.products() if "seeds" in request.param else contextlib.nullcontext():
        yield


def random_arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def assert_same_with_gradients(fast, plain, x, kernel):
    def values(fn):
        out, pullback = jax.vjp(fn, x, kernel)
        return out, *pullback(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    for found, expected in zip(jax.jit(values, static_argnums=0)(fast), values(plain), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def assert_conv_equals_plain_xla(x, kernel, stride, padding):
    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=DIMENSIONS
        )

    assert_same_with_gradients(
        lambda x, k: operations.conv(x, k, stride, padding), plain, x, kernel
    )


@pytest.mark.parametrize(("side", "stride", "padding", "height", "width"), CASES)
@pytest.mark.usefixtures("chosen")
def test_conv_and_its_gradients_equal_plain_xla(side, stride, padding, height, width):
    x, kernel = random_arrays((2, height, width, 3), (side, side, 3, 5))
    assert_conv_equals_plain_xla(x, kernel, stride, padding)


@pytest.mark.parametrize("channels", [5, 1])  # a single one takes another way
@pytest.mark.parametrize(("side", "stride", "padding", "height", "width"), CASES)
@pytest.mark.usefixtures("chosen")
def test_conv_transpose_equals_a_dilated_convolution(
    side, stride, padding, height, width, channels
):
    """The definition: zeros between the inputs, then a convolution with the flipped kernel."""
    size = tuple((n - 1) * stride - 2 * padding + side for n in (height, width))
    x, kernel = random_arrays((2, height, width, 3), (side, side, channels, 3))

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x,
            jnp.swapaxes(kernel[::-1, ::-1], 2, 3),
            (1, 1),
            [(side - 1 - padding,) * 2] * 2,
            lhs_dilation=(stride, stride),
            dimension_numbers=DIMENSIONS,
        )

    def fast(x, kernel):
        return operations.conv_transpose(x, kernel, stride, padding, size)

    assert_same_with_gradients(fast, plain, x, kernel)


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("channels", [32, 31])  # just enough for so few pixels, and too few
@pytest.mark.parametrize(("side", "stride", "padding"), [(4, 2, 1), (3, 1, 1), (3, 2, 1)])
def test_conv_of_few_pixels(side, stride, padding, channels):
    """Its input gradient takes another way."""
    size = 2 * stride
    x, kernel = random_arrays((3, size, size, 5), (side, side, 5, channels))
    assert_conv_equals_plain_xla(x, kernel, stride, padding)


@pytest.mark.parametrize(
    ("side", "stride", "padding", "height", "width"),
    [
        (3, 2, 1, 8, 7),
        (3, 2, 1, 5, 6),
        (2, 2, 0, 7, 4),
        (3, 1, 1, 4, 5),
        (3, 3, 0, 8, 9),
        (1, 2, 0, 8, 7),
        (2, 3, 0, 8, 9),
    ],
)
@pytest.mark.usefixtures("chosen")
def test_max_pool_and_its_gradient_equal_flax(side, stride, padding, height, width):
    """Many pixels are equal: the first maximum of a window is the one that gets its gradient."""
    (x,) = random_arrays((2, height, width, 3))
    x = jnp.round(x)

    def values(pool):
        out, pullback = jax.vjp(pool, x)
        return out, pullback(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    def plain(x):
        return nn.max_pool(x, (side, side), (stride, stride), [(padding, padding)] * 2)

    def ours(x):
        return operations.max_pool(x, side, stride, padding)

    expected = values(plain)
    one_by_one = jax.vmap(lambda x: ours(x[None])[0])
    for pool in (ours, jax.jit(ours), one_by_one):
        for a, b in zip(jax.jit(lambda: values(pool))(), expected, strict=True):  # noqa: B023
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_max_pool_of_bfloat16_and_of_any_batch():
    (x,) = random_arrays((2, 6, 6, 3))
    x = x.astype(jnp.bfloat16)
    pool = jax.jit(lambda x: operations.max_pool(x, 3, 2, 1))
    gradient = jax.grad(lambda x: pool(x).sum())(x)
    assert pool(x).dtype == gradient.dtype == jnp.bfloat16
    shape = (jax.export.symbolic_shape("batch")[0], *x.shape[1:])
    exported = jax.export.export(pool)(jax.ShapeDtypeStruct(shape, x.dtype))
    assert "gather" not in exported.mlir_module()
    np.testing.assert_array_equal(exported.call(x), pool(x))


@pytest.mark.usefixtures("chosen")
def test_second_order_gradients_by_finite_differences():
    x, kernel = random_arrays((1, 6, 6, 2), (4, 4, 2, 2))

    def curved(x, kernel):
        return jnp.sin(operations.conv(jnp.sin(x), jnp.asarray(kernel), 2, 1)).sum()

    check_grads(curved, (x, kernel), order=2, modes=["rev"], rtol=2e-2, atol=2e-2, eps=1e-2)


def test_bias_and_its_gradients_equal_a_plain_sum():
    x, bias = random_arrays((2, 3, 4, 5), (5,))
    assert_same_with_gradients(operations.add_bias, lambda x, bias: x + bias, x, bias)

    def curved(x, bias):
        return jnp.sin(operations.add_bias(jnp.sin(x), jnp.asarray(bias))).sum()

    check_grads(curved, (x, bias), order=2, modes=["rev"], rtol=2e-2, atol=2e-2, eps=1e-2)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_and_its_gradients_equal_flax(train):
    (x,) = random_arrays((4, 3, 3, 5))
    x = x * jnp.arange(1.0, 6.0) + 2.0
    plain = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
    ours = layers.BatchNorm()
    variables = plain.init(jax.random.key(0), x)
    variables["params"] = jax.tree.map(lambda p: p + jnp.arange(5.0), variables["params"])
    variables["batch_stats"]["mean"] += 0.5

    def values(apply):
        def loss(x, params):
            y, updated = apply({"params": params, "batch_stats": variables["batch_stats"]}, x)
            return jnp.sin(y).sum(), (y, updated)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, variables["params"])

    found = values(lambda v, x: ours.apply(v, x, train=train, mutable=["batch_stats"]))
    expected = values(lambda v, x: plain.apply(v, x, mutable=["batch_stats"]))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_statistics_of_bfloat16_are_in_float32():
    """Far from 0, where bfloat16 would keep nothing of the variance."""
    (noise,) = random_arrays((16, 5, 5, 3))
    x = (20 + noise).astype(jnp.bfloat16)
    module = layers.BatchNorm()
    variables = module.init(jax.random.key(0), x)
    y, updated = module.apply(variables, x, train=True, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(10 * stats["mean"], exact.mean(axis=(0, 1, 2)), rtol=1e-5)
    var = 10 * (stats["var"] - 0.9)
    np.testing.assert_allclose(var, exact.var(axis=(0, 1, 2)), rtol=1e-4)
    assert (y.dtype, stats["var"].dtype) == (jnp.bfloat16, jnp.float32)


def test_second_order_gradients_of_batch_norm():
    x, scale, bias = random_arrays((2, 2, 2, 2), (2,), (2,))

    def curved(x, scale, bias):
        parameters = jnp.asarray(scale), jnp.asarray(bias)
        return jnp.sin(operations.batch_norm(jnp.sin(x), *parameters, None)[0]).sum()

    arguments = (x, scale, bias)
    check_grads(curved, arguments, order=2, modes=["rev"], rtol=2e-2, atol=2e-2, eps=1e-2)


def test_batch_norm_over_devices_equals_one_of_the_whole_batch():
    (x,) = random_arrays((8, 3, 3, 5))
    scale, bias = jnp.arange(1.0, 6.0), jnp.arange(5.0)

    def values(x, axis_name):
        def loss(x, scale, bias):
            y, mean, var = operations.batch_norm(x, scale, bias, axis_name)
            return jnp.sin(y).sum(), (y, mean, var)

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, scale, bias)

    (x_g, scale_g, bias_g), (y, mean, var) = jax.vmap(
        lambda x: values(x, "devices"), axis_name="devices"
    )(x.reshape(4, 2, 3, 3, 5))
    gradients, (whole_y, whole_mean, whole_var) = values(x, None)
    whole = (*gradients, whole_y, whole_mean, whole_var)
    parts = (x_g.reshape(x.shape), scale_g.sum(0), bias_g.sum(0), y.reshape(x.shape), *mean, *var)
    for a, b in zip(parts, (*whole[:4], *[whole_mean] * 4, *[whole_var] * 4), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_torch_initialisation_fills_its_interval():
    module = layers.ConvTranspose(features=8, side=4, stride=2, padding=1, initialization="torch")
    params = module.init(jax.random.key(0), jnp.zeros((1, 5, 5, 64)))["params"]
    bound = 1 / np.sqrt(8 * 4 * 4)  # PyTorch counts the output channels of this layer
    kernel = np.asarray(params["kernel"])
    assert np.abs(kernel).max() <= bound
    assert np.abs(kernel).max() > 0.99 * bound
    assert abs(kernel.std() - bound / np.sqrt(3)) < 0.02 * bound
    assert np.abs(params["bias"]).max() <= bound
