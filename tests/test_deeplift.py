"""DeepLIFT's rules: chords by closed forms, completeness of whatever people build models from."""

import ast
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vae_attn import backend, secants
from vae_attn.models.operations import windows


@pytest.fixture(autouse=True)
def _strict_and_exact():
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        yield


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


X, BASELINE = normal(0, 6, 8), normal(1, 6, 8)
MATRIX = normal(2, 8, 5)


def multipliers(fn, x, baseline):
    """Of the sum of fn's output."""

    def of_sum(x, baseline):
        y, _, pullback = secants.secant_vjp(fn, x, baseline)
        return pullback(jnp.ones_like(y))

    return np.asarray(jax.jit(of_sum)(x, baseline))


ELEMENTWISE = {
    name: getattr(jax.nn, name)
    for name in (
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "softplus"),
        *("hard_tanh", "hard_sigmoid", "hard_swish", "sigmoid", "log_sigmoid", "mish"),
        *("soft_sign", "squareplus", "tanh", "sparse_plus"),
    )
} | {
    "exact gelu": functools.partial(jax.nn.gelu, approximate=False),
    "abs": jnp.abs,
    "sign": jnp.sign,
    "round": jnp.round,
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "square": jnp.square,
    "cube": lambda x: x**3,
    "real power": lambda x: jnp.abs(x) ** 1.7,
    "power of itself": lambda x: jnp.exp(x) ** x,
    "reciprocal": lambda x: 1 / (2 + jnp.cos(x)),
    "root": lambda x: jnp.sqrt(1 + x * x),
    "log": lambda x: jnp.log(1 + jnp.exp(x)),
    "erf": lax.erf,
    "arctan2": lambda x: jnp.arctan2(x, 1 + x * x),
    "remainder": lambda x: x % 0.3,
    "step": lambda x: (x > 0.1).astype(x.dtype),
    "both steps": lambda x: jnp.where((x > 0) & ~(x > 1), 1.0, -1.0),
    "choice": lambda x: jnp.where(x > 0.1, jnp.sin(x), x * x + 1),
    "choice among maxima": lambda x: jnp.maximum(jnp.minimum(x, x * x), -x / 2),
    "checkpointed": jax.checkpoint(lambda x: jnp.sin(x) * x),
    "stopped": lambda x: lax.stop_gradient(x) * x,
    "by platform": lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos),
    "by option": lambda x: lax.cond(jnp.asarray(True), jnp.sin, jnp.cos, x),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_function_of_one_number_gets_its_chord(name):
    """However it is composed: with one input there is one complete multiplier."""
    fn = ELEMENTWISE[name]
    expected = (np.asarray(fn(X)) - np.asarray(fn(BASELINE))) / (X - BASELINE)
    np.testing.assert_allclose(multipliers(fn, X, BASELINE), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "silu", "square", "root", "choice"])
def test_where_both_agree_it_gets_the_derivative(name):
    fn = ELEMENTWISE[name]
    slope = jax.grad(lambda x: fn(x).sum())(jnp.asarray(X))
    for distance in (0.0, 1e-12):
        found = multipliers(fn, X, X + distance)
        np.testing.assert_allclose(found, slope, rtol=1e-7, atol=1e-9)


def test_the_root_of_nothing_is_no_trouble():
    x = np.array([0.0, 4.0, 0.0])
    found = multipliers(jnp.sqrt, x, np.array([0.0, 1.0, 1.0]))
    np.testing.assert_allclose(found[1:], [1 / 3, 1.0])
    assert np.isfinite(found).all()


def attention_layer(x):
    tokens = x.reshape(-1, 4, 2)
    scores = jnp.einsum("bik,bjk->bij", tokens, tokens)
    return jnp.einsum("bij,bjk->bik", jax.nn.softmax(scores), tokens).reshape(x.shape[0], -1)


def layer_norm(x):
    centered = x - x.mean(axis=1, keepdims=True)
    return centered / (centered.std(axis=1, keepdims=True) + 0.1)


def convolved_by_itself(x):
    images = x.reshape(1, *x.shape, 1)
    kernel = x[:2, :2].reshape(2, 2, 1, 1)
    out = lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out.reshape(x.shape)


MIXING = {
    "softmax": jax.nn.softmax,
    "log softmax": jax.nn.log_softmax,
    "log sum exp": lambda x: jax.nn.logsumexp(x, axis=1),
    "attention": attention_layer,
    "layer norm": layer_norm,
    "glu": jax.nn.glu,
    "norm": lambda x: jnp.linalg.norm(x, axis=1),
    "variance": lambda x: x.var(axis=1),
    "maximum": lambda x: x.max(axis=1),
    "minimum of all": lambda x: x.min(keepdims=True),
    "product": lambda x: x[:, :4] * x[:, 4:],
    "quotient": lambda x: x[:, :4] / (2 + x[:, 4:] ** 2),
    "power": lambda x: jnp.exp(x[:, :4]) ** x[:, 4:],
    "clamp": lambda x: lax.clamp(-jnp.abs(x[:, :4]), x[:, 4:], jnp.abs(x[:, 2:6])),
    "convolved by itself": convolved_by_itself,
    "cumulative sum": lambda x: jnp.cumsum(x, axis=1) @ MATRIX,
    "resized": lambda x: jax.image.resize(x, (6, 3), "bilinear"),
    "taken": lambda x: x[:, jnp.array([3, 1, 1])] * x[:, 2:5],
    "put": lambda x: x.at[:, 2:4].set(x[:, :2] ** 2).at[:, 0].add(x[:, 1]),
    "sliced": lambda x: lax.dynamic_slice(jnp.sin(x), (1, 2), (3, 4)),
    "chosen by another": lambda x: jnp.where(x[:, :4] > 0, x[:, 4:], x[:, 2:6] ** 2),
    "truth moved about": lambda x: jnp.where(
        jnp.concatenate([x[:, ::-1] > 0, jnp.ones((6, 1), bool)], axis=1), 2.0, 0.5
    ),
    "truth taken": lambda x: jnp.where((x > 0)[:, jnp.array([3, 1, 1])], 2.0, x[:, :3]),
    "rounded": lambda x: (x * 3).astype(int).astype(x.dtype) * x,
    "split, joined": lambda x: jnp.concatenate(jnp.split(x**2, 2, axis=1)[::-1], axis=1) @ MATRIX,
    "average pool": lambda x: lax.reduce_window(x**2, 0.0, lax.add, (2, 2), (2, 2), "VALID"),
    "minimum pool": lambda x: lax.reduce_window(x, jnp.inf, lax.min, (2, 3), (1, 2), "SAME"),
    "single precision inside": lambda x: (x.astype(jnp.float32) * 2).astype(x.dtype),
}


@pytest.mark.parametrize("name", MIXING)
def test_completeness(name):
    fn = MIXING[name]
    weights = normal(3, *jax.eval_shape(fn, X).shape)

    @jax.jit
    def both(x, baseline):
        y, y_baseline, pullback = secants.secant_vjp(fn, x, baseline)
        return (y, y_baseline), (fn(x), fn(baseline)), pullback(jnp.asarray(weights))

    (y, y_baseline), expected, found = both(X, BASELINE)
    np.testing.assert_allclose(y, expected[0], rtol=1e-6)
    np.testing.assert_allclose(y_baseline, expected[1], rtol=1e-6)
    total = np.sum(found * (X - BASELINE))
    digits = 1e-6 if "single" in name else 1e-9
    np.testing.assert_allclose(total, np.sum(weights * (y - y_baseline)), rtol=digits)


def test_a_linear_function_keeps_its_matrix():
    def fn(x):
        return jnp.flip(x, 1).T.T @ MATRIX * 2 - 3 + normal(4, 6, 5)

    expected = np.broadcast_to(MATRIX[::-1].sum(axis=1) * 2, X.shape)
    np.testing.assert_allclose(multipliers(fn, X, BASELINE), expected, rtol=1e-12)


def test_a_product_is_shared_by_the_midpoints():
    found = multipliers(lambda x: x[:, 0] * x[:, 1], X, BASELINE)
    middle = (X + BASELINE) / 2
    np.testing.assert_allclose(found[:, 0], middle[:, 1])
    np.testing.assert_allclose(found[:, 1], middle[:, 0])


def pooled_by_the_rule(x, baseline, side, stride):
    """Multipliers of the sum: rises go to the image's maximum, falls to the baseline's."""
    found = np.zeros_like(x)
    for row in range(0, x.shape[0] - side + 1, stride):
        for column in range(0, x.shape[1] - side + 1, stride):
            window = (slice(row, row + side), slice(column, column + side))
            rise = x[window].max() - baseline[window].max()
            of = (x if rise >= 0 else baseline)[window]
            place = np.unravel_index(of.argmax(), of.shape)
            found[window][place] += rise / (x - baseline)[window][place]
    return found


def pooled_by_xla(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (3, 3), (2, 2), "VALID")


def pooled_by_us(x):
    return windows.max_pool(x[None, ..., None], 3, 2, 0)[0, ..., 0]


@pytest.mark.parametrize("pool", [pooled_by_xla, pooled_by_us])
def test_maximum_pooling_by_its_rule(pool, monkeypatch):
    monkeypatch.setattr(backend, "slow_windows", lambda: True)  # a chain of maxima, as on the CPU
    x, baseline = normal(5, 7, 9), normal(6, 7, 9)
    expected = pooled_by_the_rule(x, baseline, 3, 2)
    np.testing.assert_allclose(multipliers(pool, x, baseline), expected, rtol=1e-9)


def test_padded_and_dilated_pools_are_complete():
    def pool(x):
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (2, 3), (2, 1), ((1, 0), (2, 1)), (1, 2), (2, 1)
        )

    x, baseline = normal(5, 7, 9), normal(6, 7, 9)
    total = np.sum(multipliers(pool, x, baseline) * (x - baseline))
    np.testing.assert_allclose(total, np.sum(pool(x) - pool(baseline)), rtol=1e-9)


def test_maxima_of_a_row_by_the_rule():
    found = multipliers(lambda x: x.max(axis=1), X, BASELINE)
    expected = np.concatenate(
        [
            pooled_by_the_rule(np.stack([x] * 8), np.stack([b] * 8), 8, 8).sum(0, keepdims=True)
            for x, b in zip(X, BASELINE, strict=True)
        ]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@jax.custom_vjp
def reversed_gradient(x):
    return x * 1.0


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


def test_a_reversed_gradient_does_not_matter():
    found = multipliers(lambda x: reversed_gradient(x) ** 2, X, BASELINE)
    np.testing.assert_allclose(found, X + BASELINE, rtol=1e-9)


def test_a_products_own_backward_pass_is_used():
    """Ours of convolutions are fast on the CPU; this one tells that it was called."""
    called = []

    @jax.custom_vjp
    def product(x, matrix):
        return x @ matrix + 1.0

    def backward(matrix, g):
        called.append(g.shape)
        return g @ matrix.T, jnp.zeros_like(matrix)

    product.defvjp(lambda x, matrix: (product(x, matrix), matrix), backward)
    found = multipliers(lambda x: product(x, jnp.asarray(MATRIX)), X, BASELINE)
    np.testing.assert_allclose(found, np.broadcast_to(MATRIX.sum(axis=1), X.shape), rtol=1e-9)
    assert called == [(6, 5)]
    # Not where the function is linear in neither operand alone.
    total = np.sum(multipliers(lambda x: product(x, x.T), X, BASELINE) * (X - BASELINE))
    np.testing.assert_allclose(total, np.sum(X @ X.T - BASELINE @ BASELINE.T), rtol=1e-9)
    assert len(called) == 1


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (lambda x: jnp.sort(x, axis=1), "sort"),
        (lambda x: lax.cumlogsumexp(x, axis=1), "cumlogsumexp"),
        (lambda x: lax.scan(lambda c, row: (c + row, c), x[0], x)[0], "scan"),
        (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), "cond"),
        (lambda x: x[:, jnp.argmax(x[0])], "argmax"),
        (lambda x: lax.dynamic_slice(x, (x[0, 0].astype(int), 0), (2, 2)), "add"),
        (lambda x: lax.select_n(x.astype(int), x, x, x), "select_n"),
        (lambda x: x.prod(axis=1), "reduce_prod"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(fn, name):
    with pytest.raises(NotImplementedError, match=f"no rule for the operation '{name}'"):
        multipliers(fn, X, BASELINE)


def test_what_does_not_depend_on_the_input_needs_no_rule():
    def fn(x):
        return x * jnp.sort(jnp.asarray(MATRIX).reshape(-1))[0] + lax.fori_loop(
            0, 3, lambda i, s: s + i, 0.0
        )

    np.testing.assert_allclose(multipliers(fn, X, BASELINE), np.full(X.shape, MATRIX.min()))
    assert not multipliers(lambda x: jnp.ones(3), X, BASELINE).any()


def curved(matrix, x):
    return jnp.tanh(jax.nn.relu(x @ matrix) * jnp.sin(x[:, :5]))


def squared_multipliers(matrix, x, baseline):
    y, _, pullback = secants.secant_vjp(lambda x: curved(matrix, x), x, baseline)
    return jnp.sum(pullback(jnp.ones_like(y)) ** 2)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_differentiable_again(argument):
    arguments = [jnp.asarray(a) for a in (MATRIX, X, BASELINE)]
    direction = jnp.asarray(normal(7, *arguments[argument].shape))

    def along(t):
        moved = [a + t * direction if n == argument else a for n, a in enumerate(arguments)]
        return squared_multipliers(*moved)

    step = 1e-6
    expected = (along(step) - along(-step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(along))(0.0), expected, rtol=1e-6)


def test_jitted_and_mapped_over_models():
    two = jnp.stack([jnp.asarray(MATRIX), 0.5 * jnp.asarray(MATRIX)])
    found = jax.jit(jax.vmap(squared_multipliers, (0, None, None)))(two, X, BASELINE)
    expected = [squared_multipliers(m, jnp.asarray(X), jnp.asarray(BASELINE)) for m in two]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_walker_imports_jax_alone():
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(inspect.getsource(secants)))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    standard = {"collections", "dataclasses", "functools", "itertools", "math"}
    assert imported == standard | {"jax", "jaxtyping", "typing"}
