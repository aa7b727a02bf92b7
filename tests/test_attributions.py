"""Signed maps that add up: closed forms, our architectures, and models that are not ours."""

import ast
import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vae_attn import attributions, losses
from vae_attn.models import convnets, operations, resnet

BATCH, LATENTS = 3, 4


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    """But not where layers of models do promote."""
    promotes = "model" in request.node.name or "architecture" in request.node.name
    ranks, types = ("allow", "standard") if promotes else ("raise", "strict")
    with jax.numpy_rank_promotion(ranks), jax.numpy_dtype_promotion(types):
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


IMAGES, BASELINES = normal(0, BATCH, 4, 5, 2), normal(1, BATCH, 4, 5, 2)
MATRIX, OTHER = normal(2, 40, LATENTS), normal(3, 40, LATENTS)


def linear(x):
    return x.reshape(x.shape[0], -1) @ MATRIX


def curved(x):
    return jnp.tanh(0.3 * linear(x)) * (x.reshape(x.shape[0], -1) @ OTHER)


def assert_complete(maps, fn, images=IMAGES, baselines=BASELINES):
    """For every image and latent, relative to its own change, up to the latents' own rounding."""
    fn = jax.jit(fn)
    z, z_baseline = np.asarray(fn(images)), np.asarray(fn(baselines))
    total = np.asarray(maps).sum(axis=tuple(range(2, maps.ndim)))
    assert np.abs(z - z_baseline).min() > 1e-4
    np.testing.assert_allclose(total, z - z_baseline, rtol=1e-4, atol=1e-5 * np.abs(z).max())


@pytest.mark.parametrize("style", attributions.ATTRIBUTIONS)
@pytest.mark.parametrize("latent_batch_size", [None, 1, 3])
def test_a_linear_function_by_its_closed_form(style, latent_batch_size):
    attribute = getattr(attributions, style)
    found = attribute(linear, IMAGES, BASELINES, latent_batch_size=latent_batch_size)
    expected = np.einsum("bp,pd->bdp", np.asarray(IMAGES - BASELINES).reshape(BATCH, -1), MATRIX)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-6)
    chosen = attribute(
        linear, IMAGES, BASELINES, chosen=jnp.array([2, 0]), latent_batch_size=latent_batch_size
    )
    np.testing.assert_allclose(chosen, found[:, jnp.array([2, 0])], rtol=1e-6)


def test_one_step_is_exact_for_squares_and_more_steps_for_all():
    def square(x):
        return linear(x**2)

    assert_complete(attributions.integrated_gradients(square, IMAGES, BASELINES), square)

    @functools.partial(jax.jit, static_argnums=0)
    def error(steps):
        maps = attributions.integrated_gradients(curved, IMAGES, BASELINES, steps=steps)
        change = curved(IMAGES) - curved(BASELINES)
        return jnp.abs(maps.sum(axis=(2, 3, 4)) - change).max()

    # The midpoint rule's error falls with the square of the steps.
    assert error(32) < error(8) / 10 < error(2) / 20


def test_integrated_gradients_are_the_integral_of_the_gradients():
    maps = attributions.integrated_gradients(curved, IMAGES, BASELINES, steps=3)
    total = np.zeros(maps.shape)
    for alpha in (1 / 6, 1 / 2, 5 / 6):
        point = BASELINES + alpha * (IMAGES - BASELINES)
        for b in range(BATCH):
            jacobian = jax.jacobian(lambda x: curved(x[None])[0])(point[b])
            total[b] += np.asarray(jacobian * (IMAGES - BASELINES)[b, None]) / 3
    np.testing.assert_allclose(maps, total, rtol=1e-3, atol=1e-4)


def test_images_do_not_interact():
    attribute = jax.jit(lambda x, b: attributions.deeplift(curved, x, b))
    both, alone = attribute(IMAGES, BASELINES), attribute(IMAGES[1:2], BASELINES[1:2])
    np.testing.assert_allclose(both[1:2], alone, rtol=1e-4, atol=1e-5)
    assert_complete(both, curved)


ARCHITECTURES = [
    (convnets.mnist, (28, 28, 1)),
    (convnets.ucsd_ped1, (100, 100, 1)),
    (convnets.dsprites, (64, 64, 1)),
    (convnets.convnet, (32, 32, 3)),
    (resnet.mvtec_ad, (64, 64, 3)),
]


def encoder(build, image_shape, latents=2):
    """The model's variables, images and baselines; batch normalisation as if it had learnt."""
    vae = build(latents=latents, image_shape=image_shape)
    rng = np.random.default_rng(0)
    images, baselines = (
        jnp.asarray(rng.uniform(size=(2, *image_shape)), jnp.float32) for _ in range(2)
    )
    shapes = jax.eval_shape(
        lambda: vae.init(jax.random.key(0), images, jnp.zeros((2, latents)), train=False)
    )

    def weights(path, leaf):
        name = path[-1].key
        if name == "kernel":
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * np.float32(scale))
        low = 0.5 if name in ("scale", "var") else -0.1
        return jnp.asarray(rng.uniform(low, low + 0.5, leaf.shape), jnp.float32)

    del shapes["params"]["decoder"]
    return vae, jax.tree_util.tree_map_with_path(weights, shapes), images, baselines


@pytest.mark.parametrize(("build", "image_shape"), ARCHITECTURES)
def test_deeplift_is_complete_on_our_architectures(build, image_shape):
    vae, variables, images, baselines = encoder(build, image_shape)

    def both(v, x):  # means and log variances
        return jnp.concatenate(vae.apply(v, x, method="encode"), axis=1)

    attribute = attributions.make_attribution_fn(latents=both)
    maps = attribute(variables, images, baselines)
    assert maps.shape == (2, 4, *image_shape[:2])
    assert_complete(maps, lambda x: both(variables, x), images, baselines)


@pytest.mark.parametrize("layer", ["conv1", "conv2_relu"])
def test_at_a_layer_of_a_model(layer):
    vae, variables, images, baselines = encoder(convnets.convnet, (32, 32, 3))

    def features(v, x):
        return vae.apply(v, x, layer, method="features")

    def latents(v, a):
        return vae.apply(v, a, layer, method="head")[0]

    found = {
        style: attributions.make_attribution_fn(
            latents=latents, features=features, style=style, steps=2
        )(variables, images, baselines)
        for style in attributions.ATTRIBUTIONS
    }
    size = (16, 16) if layer == "conv1" else (8, 8)
    assert all(maps.shape == (2, 2, *size) for maps in found.values())
    assert_complete(
        found["deeplift"],
        lambda x: vae.apply(variables, x, method="encode")[0],
        images,
        baselines,
    )

    @jax.jit
    def expected(v, x, b):
        a, b = features(v, x), features(v, b)
        return attributions.integrated_gradients(lambda a: latents(v, a), a, b, steps=2)

    expected = expected(variables, images, baselines)
    np.testing.assert_allclose(
        found["integrated_gradients"], expected.sum(axis=-1), rtol=1e-3, atol=1e-5
    )


class NnxEncoder(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.mean = nnx.Linear(12, LATENTS, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.gelu(self.norm(self.conv(x))), (2, 2), (2, 3))
        return self.mean(x.reshape(x.shape[0], -1))


class EquinoxEncoder(eqx.Module):
    conv: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    mean: eqx.nn.MLP

    def __init__(self, key):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(2, 3, 3, key=keys[0])
        self.pool = eqx.nn.MaxPool2d(2, 1)
        self.mean = eqx.nn.MLP(6, LATENTS, 8, 1, activation=jax.nn.silu, key=keys[1])

    def __call__(self, x):  # one image, height x width x channels
        x = self.pool(jax.nn.softplus(self.conv(jnp.moveaxis(x, -1, 0))))
        return self.mean(x.reshape(-1))


def test_nnx_and_equinox_models():
    models = [NnxEncoder(nnx.Rngs(0)), jax.vmap(EquinoxEncoder(jax.random.key(0)))]
    for model in models:
        maps = jax.jit(lambda x, b, model=model: attributions.deeplift(model, x, b))
        assert_complete(maps(IMAGES, BASELINES), model)


def test_scores_by_closed_forms_and_completeness():
    def kl(x):
        return losses.kl_divergence(mean=linear(x), logvar=jnp.zeros_like(linear(x))).sum(axis=1)

    found = jax.jit(lambda x, b: attributions.explain_score(kl, x, b))(IMAGES, BASELINES)
    middle = np.asarray(linear(IMAGES) + linear(BASELINES)) / 2  # of mean^2 / 2
    expected = (middle @ np.asarray(MATRIX).T).reshape(IMAGES.shape) * (IMAGES - BASELINES)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def error(x):  # of a reconstruction of the same image
        logits = (jnp.tanh(0.1 * linear(x)) @ OTHER.T).reshape(x.shape)
        return losses.reconstruction_loss(logits=logits, images=jax.nn.sigmoid(x))

    rise = np.asarray(error(IMAGES) - error(BASELINES))
    for style, steps, rtol in (("deeplift", 1, 1e-4), ("integrated_gradients", 16, 1e-2)):
        options = {"style": style, "steps": steps}
        explain = jax.jit(lambda x, b, o=options: attributions.explain_score(error, x, b, **o))
        maps = explain(IMAGES, BASELINES)
        assert maps.shape == IMAGES.shape
        np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), rise, rtol=rtol)


def test_maps_are_differentiable_in_the_parameters():
    """Through our convolution, whose backward pass is its own."""
    kernel, direction = normal(4, 4, 4, 2, 3), normal(5, 4, 4, 2, 3)

    def latents(params, x):
        return jnp.tanh(operations.conv(x, params, 2, 1)).reshape(x.shape[0], -1)

    attribute = attributions.make_attribution_fn(latents=latents)

    def along(t):
        return jnp.sum(attribute(kernel + t * direction, IMAGES, BASELINES) ** 2)

    step = 1e-2
    expected = (along(step) - along(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(along)(0.0), expected, rtol=1e-2)


def test_chosen_latents_of_a_model():
    attribute = attributions.make_attribution_fn(latents=lambda _, x: curved(x))
    found = attribute(None, IMAGES, BASELINES, jnp.array([3]))
    np.testing.assert_allclose(found, attribute(None, IMAGES, BASELINES)[:, 3:], rtol=1e-5)


def test_mistakes():
    with pytest.raises(ValueError, match="unknown attribution 'gradcam'; choose one of deeplift"):
        attributions.make_attribution_fn(latents=lambda _, x: linear(x), style="gradcam")
    for attribute in (attributions.deeplift, attributions.integrated_gradients):
        with pytest.raises(ValueError, match=r"must return \(batch, latents\), and returned \(3,"):
            attribute(lambda x: x, IMAGES, BASELINES)
        with pytest.raises(
            ValueError, match=r"baselines of shape \(3, 4, 5, 1\) do not fit images"
        ):
            inspect.unwrap(attribute)(linear, IMAGES, BASELINES[..., :1])  # unchecked, as outside
    with pytest.raises(ValueError, match="steps=0 must be 1 or more"):
        attributions.integrated_gradients(linear, IMAGES, BASELINES, steps=0)
    with pytest.raises(ValueError, match=r"one value per image, and was \(3, 4\)"):
        attributions.explain_score(linear, IMAGES, BASELINES)


def test_attributions_import_jax_and_the_walker_alone():
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(inspect.getsource(attributions)))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    own = {"vae_attn.secants"}
    assert imported == {"collections.abc", "jax", "jax.numpy", "jaxtyping", "typing"} | own
