"""The worked example of docs/, its maps once more by a loop over single gradients."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def example():
    path = pathlib.Path(__file__).resolve().parents[1] / "docs" / "other_models.py"
    spec = importlib.util.spec_from_file_location("other_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alpha_of(mean_of, a, latent):
    """Equation 2 for one image and latent: the gradient, averaged over the pixels."""
    return np.asarray(jax.grad(lambda a: mean_of(a[None])[0, latent])(a)).mean(axis=(0, 1))


def test_plain_functions(example):
    images = example.digits()[:40]
    params, maps = example.explain_plain(images, steps=3)
    assert maps.shape == (5, 4, 8, 8)
    features = example.plain_features(params, images[:5])
    for n in (0, 3):
        for latent in range(4):
            alpha = alpha_of(lambda a: example.plain_head(params, a)[0], features[n], latent)
            expected = np.maximum(np.asarray(features[n]) @ alpha, 0)
            np.testing.assert_allclose(maps[n, latent], expected, rtol=1e-3, atol=1e-6)
    assert np.asarray(maps).max() > 0


def test_nnx(example):
    images = example.digits()[:40]
    method, state, reconstructions, maps = example.explain_nnx(images, steps=3)
    assert maps.shape == (5, 8, 8)
    features, theirs = (method("features")(state, x) for x in (images[:5], reconstructions))
    for n in (1, 4):
        total = np.zeros((4, 4))
        for latent in range(4):
            alpha = alpha_of(lambda a: method("head")(state, a)[0], features[n], latent)
            total += np.abs(np.asarray(features[n] - theirs[n])) @ np.abs(alpha)
        expected = Image.fromarray((total / 4).astype(np.float32)).resize(
            (8, 8), Image.Resampling.BILINEAR
        )
        np.testing.assert_allclose(maps[n], np.asarray(expected), rtol=1e-3, atol=1e-6)
    assert np.asarray(maps).max() > 0


def test_training_explains_the_digits_better(example):
    """The example learns: its maps are of a model that reconstructs, not of noise."""
    images = example.digits()[:200]

    def error(steps):
        _, _, reconstructions, _ = example.explain_nnx(images, steps=steps)
        return float(jnp.abs(reconstructions - images[:5]).mean())

    assert error(60) < 0.8 * error(0)
