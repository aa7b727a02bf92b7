"""Attention against finite differences, closed forms, and on models that are not ours."""

import ast
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_attn import attention

BATCH, SIDE, CHANNELS, LATENTS = 3, 4, 5, 6


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


MEAN_MATRIX = normal(1, SIDE * SIDE * CHANNELS, LATENTS)
LOGVAR_MATRIX = normal(2, SIDE * SIDE * CHANNELS, LATENTS) * 0.1
FEATURES = normal(0, BATCH, SIDE, SIDE, CHANNELS)


def linear_head(a):
    """Mean and log variance by one matrix each: their gradients are the matrices' rows."""
    flat = a.reshape(a.shape[0], -1)
    return flat @ MEAN_MATRIX, flat @ LOGVAR_MATRIX


def curved_head(a):
    mean, logvar = linear_head(jnp.tanh(a))
    return jnp.sin(mean), logvar


def linear_mean(a):
    return linear_head(a)[0]


def curved_mean(a):
    return curved_head(a)[0]


# The same function, in the form from which `channel_weights` has a shortcut.
DENSE_MEAN = attention.DenseMean(jnp.tanh, MEAN_MATRIX, jnp.sin)


def alpha_by_finite_differences(function, step=1e-2):
    """d f / d (a constant added to channel k), divided by the number of pixels."""
    columns = []
    for k in range(CHANNELS):
        bump = jnp.zeros(CHANNELS).at[k].set(step).reshape(1, 1, 1, -1)
        up, down = function(FEATURES + bump), function(FEATURES - bump)
        difference = np.asarray(up, np.float64) - np.asarray(down, np.float64)
        columns.append(difference / (2 * step * SIDE * SIDE))
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("mean", [curved_mean, DENSE_MEAN], ids=["plain", "dense"])
def test_channel_weights_by_finite_differences(mean):
    found = attention.channel_weights(mean, FEATURES)
    expected = alpha_by_finite_differences(curved_mean)
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3)


def test_channel_weights_of_a_linear_head_are_its_pooled_matrix():
    pooled = np.asarray(MEAN_MATRIX).reshape(SIDE * SIDE, CHANNELS, LATENTS).mean(axis=0).T
    found = attention.channel_weights(linear_mean, FEATURES)
    np.testing.assert_allclose(found, np.broadcast_to(pooled, found.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mean", [curved_mean, DENSE_MEAN], ids=["plain", "dense"])
@pytest.mark.parametrize("latent_batch_size", [1, 4, 10])
def test_memory_knob_changes_nothing(mean, latent_batch_size):
    whole = attention.paper_maps(curved_mean, FEATURES)
    parts = attention.paper_maps(mean, FEATURES, latent_batch_size=latent_batch_size)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mean", [curved_mean, DENSE_MEAN], ids=["plain", "dense"])
def test_chosen_latents_are_those_of_all(mean):
    chosen, counterpart = jnp.array([LATENTS - 1, 0]), normal(3, *FEATURES.shape)
    for maps in (
        attention.paper_maps,
        lambda *args, **kw: attention.contrast_maps(*args, counterpart, **kw),
    ):
        found = maps(mean, FEATURES, chosen=chosen)
        np.testing.assert_allclose(found, maps(mean, FEATURES)[:, chosen], rtol=1e-5, atol=1e-6)


def test_paper_maps_and_aggregate_by_their_formulas():
    alpha = alpha_by_finite_differences(curved_mean)
    expected = np.zeros((BATCH, LATENTS, SIDE, SIDE))
    for b in range(BATCH):
        for i in range(LATENTS):
            expected[b, i] = np.maximum((alpha[b, i] * np.asarray(FEATURES[b])).sum(-1), 0)
    found = attention.paper_maps(curved_mean, FEATURES)
    np.testing.assert_allclose(found, expected, rtol=3e-2, atol=1e-2)
    np.testing.assert_allclose(
        attention.aggregate(found), np.asarray(found).sum(axis=1) / LATENTS, rtol=1e-5
    )


@pytest.mark.parametrize("signed", [False, True])
def test_contrast_by_its_formula(signed):
    alpha = alpha_by_finite_differences(curved_mean)
    counterpart = normal(3, *FEATURES.shape)
    difference = np.asarray(FEATURES - counterpart)
    found = attention.contrast_maps(curved_mean, FEATURES, counterpart, signed=signed)
    if signed:
        expected = np.abs(np.einsum("bdk,bhwk->bdhw", alpha, difference))
    else:
        expected = np.einsum("bdk,bhwk->bdhw", np.abs(alpha), np.abs(difference))
    np.testing.assert_allclose(found, expected, rtol=3e-2, atol=2e-2)
    same = attention.contrast_maps(curved_mean, FEATURES, FEATURES, signed=signed)
    assert not same.any()


def test_authors_code_by_its_closed_form():
    matrix = np.asarray(MEAN_MATRIX, np.float64)
    gradient = np.broadcast_to(
        matrix.sum(axis=1).reshape(SIDE, SIDE, CHANNELS), FEATURES.shape
    )  # of sum_i mean_i; the same for all images
    gradient = gradient / (np.sqrt((gradient**2).mean()) + 1e-5)
    raw = np.einsum("bk,bhwk->bhw", gradient.mean(axis=(1, 2)), np.asarray(FEATURES))
    found = attention.authors_code_map(linear_mean, FEATURES, (SIDE, SIDE))
    np.testing.assert_allclose(found, np.abs(raw), rtol=1e-4, atol=1e-5)
    # Interpolation comes before the absolute value: opposite neighbours cancel half way.
    larger = attention.authors_code_map(linear_mean, FEATURES, (2 * SIDE, 2 * SIDE))
    np.testing.assert_allclose(larger, np.abs(bilinear(raw)), rtol=1e-4, atol=1e-5)


def bilinear(maps):
    """Twice the size with pixel centres aligned: weights 3/4 and 1/4, edges repeated."""
    for axis in (1, 2):
        rows = np.moveaxis(maps, axis, 0)
        before = np.concatenate([rows[:1], rows[:-1]])
        after = np.concatenate([rows[1:], rows[-1:]])
        both = np.stack([0.75 * rows + 0.25 * before, 0.75 * rows + 0.25 * after], axis=1)
        maps = np.moveaxis(both.reshape(-1, *rows.shape[1:]), 0, axis)
    return maps


def test_resize_is_bilinear():
    maps = np.asarray(normal(5, 2, 4, 5))
    found = attention.resize(jnp.asarray(maps), (8, 10))
    np.testing.assert_allclose(found, bilinear(maps), rtol=1e-5, atol=1e-6)


def test_normal_difference_by_finite_differences():
    normal_mean, normal_variance = normal(6, LATENTS), jnp.exp(normal(7, LATENTS))
    noise = normal(8, 4, LATENTS)

    def mean_u(features):  # over the samples, of sum_i u_i; in float64 apart from the head
        mean, logvar = (np.asarray(x, np.float64) for x in curved_head(features))
        scale = np.sqrt(np.exp(logvar) + np.asarray(normal_variance))
        samples = (mean - np.asarray(normal_mean))[None] + scale[None] * np.asarray(noise)[:, None]
        return samples.sum(axis=-1).mean(axis=0)

    alpha = alpha_by_finite_differences(mean_u)
    expected = np.maximum(np.einsum("bk,bhwk->bhw", alpha, np.asarray(FEATURES)), 0)
    found = attention.normal_difference_map(
        curved_head,
        FEATURES,
        normal_mean=normal_mean,
        normal_variance=normal_variance,
        noise=noise,
    )
    np.testing.assert_allclose(found, expected, rtol=3e-2, atol=2e-2)


def test_normal_statistics_are_those_of_samples():
    mean, logvar = normal(1, 50, 3), normal(2, 50, 3)
    found_mean, found_variance = attention.normal_statistics(mean, logvar)
    rng = np.random.default_rng(0)
    z = np.asarray(mean) + np.exp(np.asarray(logvar) / 2) * rng.normal(size=(20_000, 50, 3))
    np.testing.assert_allclose(found_mean, z.mean(axis=(0, 1)), atol=0.01)
    np.testing.assert_allclose(found_variance, z.var(axis=(0, 1)), rtol=0.01)


# A model that is none of ours: plain functions on a dict of matrices, no Flax, no convolution.
PARAMS = {"patch": normal(10, 4, CHANNELS), "out": normal(11, CHANNELS * 9, 2 * LATENTS) * 0.3}
IMAGES = normal(12, 4, 6, 6, 1)


def patch_features(params, images):
    batch = images.shape[0]
    patches = images.reshape(batch, 3, 2, 3, 2).transpose(0, 1, 3, 2, 4).reshape(batch, 3, 3, 4)
    return jnp.tanh(patches @ params["patch"])


def patch_head(params, a):
    out = jnp.tanh(a.reshape(a.shape[0], -1) @ params["out"])
    return out[:, :LATENTS], out[:, LATENTS:]


def patch_dense_mean(params):
    return attention.DenseMean(jax.nn.identity, params["out"][:, :LATENTS], jnp.tanh)


STYLES_AND_MEANS = [(style, None) for style in attention.STYLES]
STYLES_AND_MEANS += [(style, patch_dense_mean) for style in attention.PER_LATENT_STYLES]


def patch_attention(style, dtype=jnp.float32, **options):
    attend = attention.make_attention_fn(
        features=patch_features,
        head=patch_head,
        style=style,
        normal_mean=jnp.zeros(LATENTS, dtype),
        normal_variance=jnp.ones(LATENTS, dtype),
        **options,
    )
    return lambda params, images: attend(params, images, images**2)


@pytest.mark.parametrize("style", attention.STYLES)
def test_every_style_works_on_a_foreign_model(style):
    attend = patch_attention(style)
    maps = attend(PARAMS, IMAGES)
    assert maps.shape == (4, 6, 6)
    assert (maps >= 0).all()
    assert (maps > 0).any()
    alone = attend(PARAMS, IMAGES[:1])[0]
    if style != "authors_code":  # no map depends on its batch
        np.testing.assert_allclose(maps[0], alone, rtol=1e-4, atol=1e-6)
    else:  # but this one, by one factor
        ratio = np.asarray(maps[0] / alone)
        assert abs(ratio.mean() - 1) > 0.01
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)


@pytest.mark.parametrize("style", attention.PER_LATENT_STYLES)
def test_aggregate_is_the_mean_of_the_latents_maps(style):
    per_latent = patch_attention(style, per_latent=True)(PARAMS, IMAGES)
    assert per_latent.shape == (4, LATENTS, 6, 6)
    np.testing.assert_allclose(
        per_latent.mean(axis=1), patch_attention(style)(PARAMS, IMAGES), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("style", "dense_mean"), STYLES_AND_MEANS)
def test_styles_vmap_over_models(style, dense_mean):
    attend = patch_attention(style, dense_mean=dense_mean)
    two = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), PARAMS)
    found = jax.vmap(attend, in_axes=(0, None))(two, IMAGES)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], two)
        np.testing.assert_allclose(found[i], attend(one, IMAGES), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("style", "dense_mean"), STYLES_AND_MEANS)
def test_maps_are_differentiable_through_alpha(style, dense_mean):
    """Slope of a map along a direction of the parameters, by finite differences."""
    with jax.enable_x64(True):
        direction = {name: normal(14, *x.shape) for name, x in PARAMS.items()}
        params, images, weights, direction = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), (PARAMS, IMAGES, normal(13, 4, 6, 6), direction)
        )
        attend = patch_attention(style, jnp.float64, dense_mean=dense_mean)

        def along(t):
            moved = jax.tree.map(lambda p, d: p + t * d, params, direction)
            return jnp.sum(attend(moved, images) * weights)

        step = 1e-6
        expected = (along(step) - along(-step)) / (2 * step)
        np.testing.assert_allclose(jax.grad(along)(0.0), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "gradcam"}, "unknown attention style 'gradcam'; choose one of paper"),
        ({"style": "normal_difference"}, "needs `normal_mean` and `normal_variance`"),
        ({"style": "authors_code", "per_latent": True}, "one map per image, none per latent"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        attention.make_attention_fn(features=patch_features, head=patch_head, **options)


def test_contrast_without_counterparts():
    attend = attention.make_attention_fn(features=patch_features, head=patch_head, style="contrast")
    with pytest.raises(ValueError, match="'contrast' needs counterparts"):
        attend(PARAMS, IMAGES)


def test_the_core_imports_nothing_of_ours():
    tree = ast.parse(inspect.getsource(attention))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"collections", "dataclasses", "jax", "jaxtyping", "typing"}
