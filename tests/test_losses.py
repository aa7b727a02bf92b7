"""Losses against scipy's and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from vae_attn import losses


def reconstruction(logits, images):
    return losses.reconstruction_loss(logits=jnp.asarray(logits), images=jnp.asarray(images))


def kl(mean, logvar):
    return losses.kl_divergence(mean=jnp.asarray(mean), logvar=jnp.asarray(logvar))


def test_reconstruction_is_the_bernoulli_likelihood():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(4, 5, 6, 2)).astype(np.float32)
    bits = rng.integers(0, 2, size=logits.shape).astype(np.float32)
    expected = -scipy.stats.bernoulli.logpmf(bits, scipy.special.expit(logits.astype(np.float64)))
    np.testing.assert_allclose(
        reconstruction(logits, bits), expected.sum(axis=(1, 2, 3)), rtol=1e-5
    )


def test_reconstruction_of_grey_values_is_the_cross_entropy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 4, 1)).astype(np.float32)
    grey = rng.uniform(size=logits.shape).astype(np.float32)
    p = scipy.special.expit(logits.astype(np.float64))
    expected = -(grey * np.log(p) + (1 - grey) * np.log1p(-p)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(reconstruction(logits, grey), expected, rtol=1e-5)


def test_reconstruction_does_not_overflow():
    logits = np.array([-1e4, 1e4], np.float32).reshape(1, 2, 1, 1)
    wrong, right = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    assert reconstruction(logits, wrong.reshape(1, 2, 1, 1)) == 2e4
    assert reconstruction(logits, right.reshape(1, 2, 1, 1)) == 0


def test_kl_against_numerical_integration():
    mean, logvar = np.float32([[0.3, -1.2]]), np.float32([[-0.5, 0.7]])
    found = kl(mean, logvar)
    grid = np.linspace(-15, 15, 200_001)
    for i in range(2):
        q = scipy.stats.norm(mean[0, i], np.exp(logvar[0, i] / 2))
        integrand = q.pdf(grid) * (q.logpdf(grid) - scipy.stats.norm.logpdf(grid))
        np.testing.assert_allclose(found[0, i], np.trapezoid(integrand, grid), rtol=1e-4)


def test_gradients_are_the_closed_forms():
    keys = jax.random.split(jax.random.key(0), 4)
    logits = jax.random.normal(keys[0], (2, 3, 3, 1))
    images = jax.random.uniform(keys[1], (2, 3, 3, 1))
    gradient = jax.grad(lambda x: reconstruction(x, images).sum())(logits)
    expected = scipy.special.expit(np.asarray(logits)) - np.asarray(images)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    mean, logvar = jax.random.normal(keys[2], (2, 3)), jax.random.normal(keys[3], (2, 3))
    by_mean, by_logvar = jax.grad(lambda m, v: kl(m, v).sum(), argnums=(0, 1))(mean, logvar)
    np.testing.assert_allclose(by_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(by_logvar, 0.5 * np.expm1(np.asarray(logvar)), rtol=1e-4, atol=1e-6)
