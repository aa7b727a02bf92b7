"""L_AD: the likeness of two latents' maps in each form, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factor_model import IMAGES, MODEL, PIXELS, vae_params

from vae_attn import attention, losses
from vae_attn.errors import UserError
from vae_attn.models.vae import VAE
from vae_attn.training import attention_loss

OTHERS = PIXELS[::-1]


def overlap(first, second):
    first, second = (jnp.asarray(x, jnp.float32) for x in (first, second))
    return losses.attention_disentanglement(first=first, second=second)


def cosine(first, second):
    first, second = (jnp.asarray(x, jnp.float32) for x in (first, second))
    return losses.squared_cosine(first=first, second=second)


def random_maps(seed, shape=(5, 4, 3)):
    return np.maximum(np.random.default_rng(seed).normal(size=(2, *shape)), 0).astype(np.float32)


# Likeness


def test_overlap_by_hand():
    first = [[[1, 0], [2, 3]], [[1, 2], [3, 4]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]]
    second = [[[0, 5], [4, 1]], [[1, 2], [3, 4]], [[0, 2], [0, 0]], [[0, 0], [0, 0]]]
    # 2 (0 + 0 + 2 + 1) / (6 + 10); equal maps; disjoint maps; empty maps.
    np.testing.assert_allclose(overlap(first, second), [6 / 16, 1, 0, 0], rtol=1e-6)


def test_cosine_by_hand():
    first = [[[1, 0], [2, 3]], [[1, -2], [3, 4]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]]
    second = [[[0, 5], [4, -1]], [[-2, 4], [-6, -8]], [[2, -2], [7, 0]], [[1, 0], [0, 0]]]
    # (8 - 3)^2 / (14 * 42); opposite maps; signs that cancel; an empty map.
    np.testing.assert_allclose(cosine(first, second), [25 / 588, 1, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("likeness", [overlap, cosine])
def test_likeness_is_symmetric_bounded_and_free_of_scale(likeness):
    for seed in range(20):
        first, second = random_maps(seed)
        value = np.asarray(likeness(first, second))
        assert (value >= 0).all()
        assert (value <= 1 + 1e-6).all()
        np.testing.assert_allclose(value, likeness(second, first), rtol=1e-6)
        np.testing.assert_allclose(value, likeness(1e-12 * first, 1e-12 * second), rtol=1e-4)


@pytest.mark.parametrize(
    ("likeness", "reference"),
    [
        (overlap, lambda a, b: 2 * np.minimum(a, b).sum() / (a + b).sum()),
        (cosine, lambda a, b: (a * b).sum() ** 2 / ((a * a).sum() * (b * b).sum())),
    ],
)
def test_gradient_of_likeness_against_finite_differences(likeness, reference):
    first, second = random_maps(3)

    def total(first):
        return sum(reference(a, b) for a, b in zip(first, second, strict=True))

    found = jax.grad(lambda x: likeness(x, second).sum())(jnp.asarray(first))
    positive = np.argwhere(first > 0)
    for place in positive[::3]:
        step = np.zeros(first.shape)
        step[tuple(place)] = 1e-6
        expected = (total(first + step) - total(first - step)) / 2e-6
        np.testing.assert_allclose(found[tuple(place)], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("likeness", [overlap, cosine])
def test_empty_maps_have_a_finite_gradient(likeness):
    gradient = jax.grad(lambda x: likeness(x, x).sum())(jnp.zeros((2, 3, 3)))
    assert np.isfinite(gradient).all()


# Forms


def seen_of(params, images, others, layer="conv2"):
    variables = {"params": params}
    features = MODEL.apply(variables, images, layer, method="features")
    return attention_loss.Seen(MODEL, variables, layer, images, features, others)


def loss_of(form, params, pairs, images=PIXELS, others=OTHERS):
    seen = seen_of(params, images, others)
    return attention_loss.attention_loss(form, seen, jnp.asarray(pairs))[0].mean()


def test_chosen_latents_have_the_weights_they_have_among_all():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 6)), jnp.float32)

    def mean(a):
        return MODEL.apply({"params": vae_params()}, a, "conv2", method="head")[0]

    every = attention.channel_weights(mean, features)
    chosen = attention.channel_weights(mean, features, chosen=jnp.array([2, 0]))
    np.testing.assert_allclose(chosen, every[:, [2, 0]], rtol=1e-5, atol=1e-8)


def test_exact_maps_account_for_their_latents():
    seen, chosen = seen_of(vae_params(), PIXELS, OTHERS), jnp.array([3, 1])
    maps = jax.jit(lambda: attention_loss.FORMS["exact_cosine"].maps(seen, chosen))()
    difference = (seen.mean(PIXELS) - seen.mean(OTHERS))[:, [3, 1]]
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), difference, rtol=1e-4, atol=1e-6)


def test_a_model_without_exact_maps_is_told():
    """Its encoder sorts, for which there is no rule."""

    class Sorted(VAE):
        def apply(self, variables, images, method):
            return jnp.sort(images.reshape(len(images), -1), axis=1)[:, :2], None

    model = Sorted(image_shape=(8, 8, 1), latents=2, encoder=MODEL.encoder, decoder=MODEL.decoder)
    seen = attention_loss.Seen(model, {}, "conv2", PIXELS, PIXELS, OTHERS)
    message = r"cannot give \(.*sort.*\): set factor.ad_form=jacobian_cosine or paper"
    with pytest.raises(UserError, match=message):
        attention_loss.attention_loss("exact_cosine", seen, jnp.array([[0, 1]]))


def test_jacobian_rows_are_the_changes_of_their_latents():
    rng, chosen = np.random.default_rng(0), [2, 0]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), float), vae_params())
        x = jnp.asarray(IMAGES[:3] / 255.0)
        seen = seen_of(params, x, x)
        rows = attention_loss.FORMS["jacobian_cosine"].maps(seen, jnp.asarray(chosen))
        step = 1e-6 * rng.normal(size=x.shape)
        change = (seen.mean(x + step) - seen.mean(x - step))[:, chosen] / 2
    found = (np.asarray(rows) * step[:, None]).sum(axis=(2, 3, 4))
    np.testing.assert_allclose(found, change, rtol=1e-4)


def test_share_of_empty_maps():
    """Weights of the mean that are 0 leave the maps of that latent empty."""
    params = jax.tree.map(np.array, vae_params())
    params["mean"]["kernel"][:, 1] = 0
    params = jax.tree.map(jnp.asarray, params)
    for form in attention_loss.FORMS:
        seen = seen_of(params, PIXELS, OTHERS)
        loss = jax.jit(lambda pairs, s=seen, f=form: attention_loss.attention_loss(f, s, pairs))
        value, empty = loss(jnp.array([[0, 1], [2, 3]]))
        published = attention_loss.FORMS["paper"].maps(seen, jnp.array([0, 1, 2, 3]))
        expected = (np.asarray(published).max(axis=(2, 3)) == 0).mean(axis=1)
        np.testing.assert_allclose(empty, expected if form == "paper" else 0.25, rtol=1e-6)
        np.testing.assert_allclose(loss(jnp.array([[1, 0]]))[0], 0, atol=1e-7)
        assert 0 < value.mean() <= 0.5


def test_published_loss_reaches_every_encoder_layer():
    """Below the target through its features, above it through alpha: a second-order gradient."""
    slope = jax.jit(jax.grad(lambda p: loss_of("paper", p, [[0, 2]])))
    gradient = slope(vae_params())
    norms = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(jnp.abs(leaf).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    reached = ["encoder/conv1/kernel", "encoder/conv1/bias", "encoder/conv2/kernel"]
    reached += ["encoder/conv2/bias", "encoder/conv3/kernel", "encoder/fc1/kernel", "mean/kernel"]
    assert all(norms[name] > 1e-6 for name in reached), norms
    others = [name for name in norms if name.startswith(("decoder", "logvar"))]
    assert others
    assert all(norms[name] == 0 for name in others)


@pytest.mark.parametrize("form", attention_loss.FORMS)
def test_gradient_against_finite_differences(form):
    """In double precision, along a random direction of every parameter."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), vae_params())
    with jax.enable_x64(True):
        images = jnp.asarray(IMAGES[:12] / 255.0)
        pairs = [[1, 3], [2, 0]]
        loss = jax.jit(lambda p: loss_of(form, p, pairs, images[:6], images[6:]))
        gradient = jax.jit(jax.grad(loss))(params)
        leaves, structure = jax.tree.flatten(params)
        rng = np.random.default_rng(0)
        for number, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
            direction = rng.normal(size=leaf.shape)

            def moved(t, number=number, direction=direction):
                changed = [x + t * direction if n == number else x for n, x in enumerate(leaves)]
                return float(loss(jax.tree.unflatten(structure, changed)))

            expected = (moved(1e-7) - moved(-1e-7)) / 2e-7
            np.testing.assert_allclose(np.vdot(slope, direction), expected, rtol=1e-4, atol=1e-7)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-4
