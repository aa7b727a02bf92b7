"""The total correlation: its estimates against closed forms, whatever the latents' scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from factor_model import IMAGES, LATENTS, MODEL, PIXELS, vae_params
from jax import lax
from ml_collections import ConfigDict

from benchmarks import discriminator
from vae_attn import losses
from vae_attn.config import default_config
from vae_attn.errors import UserError
from vae_attn.experiments.disentanglement import diagnosis
from vae_attn.models.discriminator import Discriminator
from vae_attn.training import discriminator_input, loop, objectives, parallel, state, steps
from vae_attn.training.discriminator_input import INPUTS

COVARIANCE = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 1.0]])
TRUE = -0.5 * np.linalg.slogdet(COVARIANCE)[1]  # as each variance is 1


def codes(num, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return scale * rng.multivariate_normal(np.zeros(3), COVARIANCE, num).astype(np.float32)


# The discriminator


def on_devices(function, z, num_devices):
    shares = z.reshape(num_devices, -1, z.shape[1])
    mapped = jax.pmap(function, axis_name=steps.AXIS, devices=jax.devices()[:num_devices])
    return np.asarray(mapped(shares)).reshape(z.shape)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_standardized_codes(num_devices):
    z = codes(64) * np.float32([1e-2, 1, 30]) + np.float32([0, 5, -1])
    expected = scipy.stats.zscore(z.astype(np.float64))
    for seen in (INPUTS["standardized"], INPUTS["standardized_fixed"]):
        np.testing.assert_allclose(on_devices(seen, z, num_devices), expected, atol=2e-4)
    np.testing.assert_array_equal(on_devices(INPUTS["codes"], z, num_devices), z)
    constant = on_devices(discriminator_input.standardized, np.ones_like(z), num_devices)
    np.testing.assert_array_equal(constant, 0)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_shrinking_a_latent_does_not_lower_the_estimate(num_devices):
    """The gradient along z of one latent is 0 where it goes through the deviation, alone there."""
    psi = Discriminator(units=8, hidden_layers=2, initialization="glorot")
    params = psi.init(jax.random.key(0), jnp.zeros((1, 3)))
    z = codes(32) * np.float32([0.1, 1, 10])

    def slope(name, z):
        def estimate(z):
            logits = psi.apply(params, INPUTS[name](z))
            return losses.total_correlation(logits=logits).mean()

        return jax.grad(estimate)(z)

    along = {
        name: (on_devices(functools.partial(slope, name), z, num_devices) * z).sum(axis=0)
        for name in INPUTS
    }
    np.testing.assert_allclose(along["standardized"], 0, atol=1e-4)
    assert np.abs(along["codes"]).max() > 1e-2
    assert np.abs(along["standardized_fixed"]).max() > 1e-2


def trained_estimate(scale, *, seen, initialization, num_steps=400):
    """The estimate of a discriminator that has learned from Gaussian codes."""
    psi = Discriminator(units=64, hidden_layers=3, initialization=initialization)
    params = psi.init(jax.random.key(0), jnp.zeros((1, 3)))
    tx = optax.adam(2e-3, b1=0.5, b2=0.9)
    lower = jnp.asarray(np.linalg.cholesky(COVARIANCE), jnp.float32)

    def draw(key):
        return scale * jax.random.normal(key, (512, 3)) @ lower.T

    def step(carry, key):
        params, opt_state = carry
        first, second, permuting = jax.random.split(key, 3)
        z, other = draw(first), draw(second)
        permuted = jax.random.permutation(permuting, other, axis=0, independent=True)

        def loss(params):
            judged = [psi.apply(params, INPUTS[seen](x)) for x in (z, permuted)]
            return losses.discriminator_loss(
                joint_logits=judged[0], permuted_logits=judged[1]
            ).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def run(key):
        keys = jax.random.split(key, num_steps)
        (trained, _), _ = lax.scan(step, (params, tx.init(params)), keys)
        z = draw(jax.random.fold_in(key, num_steps))
        logits = psi.apply(trained, INPUTS[seen](z))
        return losses.total_correlation(logits=logits).mean()

    return float(jax.vmap(run, axis_name=steps.AXIS)(jax.random.split(jax.random.key(1), 1))[0])


@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_discriminator_finds_the_total_correlation_at_any_scale(scale):
    found = trained_estimate(scale, seen="standardized", initialization="glorot")
    assert found == pytest.approx(TRUE, rel=0.15)


def test_published_discriminator_is_blind_to_small_codes():
    found = trained_estimate(0.02, seen="codes", initialization="normal")
    assert abs(found) < TRUE / 4


def test_codes_of_the_benchmark_have_the_total_correlation_that_it_names():
    z = np.asarray(discriminator.draw(jax.random.key(0), 0.05, 20_000), np.float64)
    np.testing.assert_allclose(z.std(axis=0), 0.05, rtol=0.02)
    found = diagnosis.gaussian_total_correlation(covariance=np.cov(z.T))
    assert found == pytest.approx(discriminator.TRUE, rel=0.02)


# beta-TCVAE


def gaussian_posterior(num, seed=0):
    """Means and log variances whose aggregate is N(0, COVARIANCE), and samples of it."""
    rng = np.random.default_rng(seed)
    noise = np.array([0.1, 0.05, 0.2])
    mean = rng.multivariate_normal(np.zeros(3), COVARIANCE - np.diag(noise), num)
    z = mean + np.sqrt(noise) * rng.normal(size=(num, 3))
    logvar = np.tile(np.log(noise), (num, 1))
    return tuple(jnp.asarray(x, jnp.float32) for x in (z, mean, logvar))


def test_parts_of_the_kl_against_closed_forms():
    z, mean, logvar = gaussian_posterior(6000)
    parts = losses.kl_decomposition(
        z=z[:3000], mean=mean[:3000], logvar=logvar[:3000], all_mean=mean, all_logvar=logvar
    )
    found = {name: float(part.mean()) for name, part in parts.items()}
    noise = float(np.exp(logvar[0]).prod())
    assert found["total_correlation"] == pytest.approx(TRUE, abs=0.03)
    information = 0.5 * np.log(np.linalg.det(COVARIANCE) / noise)
    assert found["mutual_information"] == pytest.approx(information, abs=0.05)
    assert found["dimension_wise_kl"] == pytest.approx(0, abs=0.03)  # N(0, 1) each


def test_parts_of_the_kl_by_hand():
    z, mean, logvar = (np.asarray(x, np.float64) for x in gaussian_posterior(7, seed=1))
    logvar = logvar + np.linspace(-1, 1, 7)[:, None]
    arrays = {"z": z, "mean": mean, "logvar": logvar, "all_mean": mean, "all_logvar": logvar}
    found = losses.kl_decomposition(**{k: jnp.asarray(v, jnp.float32) for k, v in arrays.items()})
    for n in range(7):
        density = scipy.stats.norm(mean, np.exp(logvar / 2)).pdf(z[n])  # (7, latents)
        joint = np.log(density.prod(axis=1).mean())
        marginals = np.log(density.mean(axis=0)).sum()
        expected = {
            "mutual_information": np.log(density[n].prod()) - joint,
            "total_correlation": joint - marginals,
            "dimension_wise_kl": marginals - scipy.stats.norm.logpdf(z[n]).sum(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][n], value, rtol=1e-4, atol=1e-4, err_msg=name)


def beta_tc_config() -> ConfigDict:
    config = default_config()
    config.train.objective, config.train.beta = "beta_tc_vae", 5.0
    config.model.name, config.model.latents = "factor_model:model", LATENTS
    config.data.image_size, config.data.channels = 8, 1
    return config


def test_beta_tc_vae_of_eight_devices_by_hand(monkeypatch):
    """Its loss and its step, with the total correlation over the batch of all devices."""
    monkeypatch.setattr(objectives, "_optimizer", lambda config, model: optax.sgd(0.05))
    task = objectives.make_task(beta_tc_config(), steps.to_unit)
    before = state.create(model=MODEL, tx=optax.sgd(0.05), seed=1)
    params = jax.tree.map(jnp.copy, vae_params())  # whose codes vary, unlike those of a new model
    params["mean"]["kernel"] *= 100
    params["logvar"]["bias"] -= 2
    before = before.replace(params=params)
    update = parallel.parallelize(task.update, mode="pmap", batch_size=16)
    indices = np.arange(16).astype(np.int32)
    after, metrics = update(*parallel.replicate((before, IMAGES)), indices)

    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), n) for n in range(16)]
    noise = jnp.stack([jax.random.normal(jax.random.split(k)[0], (LATENTS,)) for k in keys])
    x = PIXELS[:16]

    def loss(params):
        logits, mean, logvar = MODEL.apply({"params": params}, x, noise)
        z = mean + jnp.exp(logvar / 2) * noise
        p = jax.nn.sigmoid(logits)
        cross_entropy = -(x * jnp.log(p) + (1 - x) * jnp.log(1 - p)).sum() / 16
        kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar).sum() / 16
        density = jax.scipy.stats.norm.pdf(z[:, None], mean, jnp.exp(logvar / 2))
        joint = jnp.log(density.prod(axis=2).mean(axis=1))
        tc = (joint - jnp.log(density.mean(axis=1)).sum(axis=1)).mean()
        return cross_entropy + kl + 4 * tc, tc

    (value, tc), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert float(tc) > 0.01
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["total_correlation"], tc, rtol=1e-2)
    expected = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        jax.device_get(after.params),
        expected,
    )
    # Without total correlation, as FactorVAE's.
    plain = steps.make_loss_fn(model=MODEL, combine=steps.beta_elbo(1.0))
    np.testing.assert_allclose(
        task.loss({"params": params}, IMAGES), plain({"params": params}, IMAGES)
    )


def test_gradient_of_the_parts_against_finite_differences():
    with jax.enable_x64(True):
        z, mean, logvar = (jnp.asarray(x, jnp.float64) for x in gaussian_posterior(9, seed=2))
        noise = (z - mean) / jnp.exp(logvar / 2)

        def parts(mean, logvar):
            z = mean + jnp.exp(logvar / 2) * noise
            found = losses.kl_decomposition(
                z=z, mean=mean, logvar=logvar, all_mean=mean, all_logvar=logvar
            )
            return jnp.stack([part.mean() for part in found.values()])

        slopes = jax.jacrev(parts, argnums=(0, 1))(mean, logvar)
        rng = np.random.default_rng(0)
        directions = [rng.normal(size=mean.shape) for _ in range(2)]
        ahead, back = (
            parts(*(x + t * d for x, d in zip((mean, logvar), directions, strict=True)))
            for t in (1e-6, -1e-6)
        )
        expected = (ahead - back) / 2e-6
        found = sum((s * d).sum(axis=(1, 2)) for s, d in zip(slopes, directions, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_one_image_has_no_total_correlation():
    config = beta_tc_config()
    config.train.batch_size = 1
    with pytest.raises(UserError, match=r"train.batch_size=1 must be at least 2"):
        loop.validate(config)
