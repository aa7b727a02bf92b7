"""FactorVAE and AD-FactorVAE: losses and their gradients, one update by hand, devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import sklearn.metrics
from factor_model import IMAGES, LATENTS, MODEL, PIXELS

from vae_attn import losses
from vae_attn.models.discriminator import Discriminator
from vae_attn.training import discriminator_input, factor, parallel, steps

DISCRIMINATOR = Discriminator(units=8, hidden_layers=2)
INDICES = np.random.default_rng(1).integers(0, 20, (16, 2)).astype(np.int32)


# Losses


def test_total_correlation_and_discriminator_loss():
    joint, permuted = np.random.default_rng(0).normal(scale=3, size=(2, 50, 2)).astype(np.float32)
    probability = scipy.special.softmax(joint.astype(np.float64), axis=1)[:, 0]
    np.testing.assert_allclose(
        losses.total_correlation(logits=jnp.asarray(joint)),
        scipy.special.logit(probability),
        rtol=1e-4,
        atol=1e-5,
    )
    found = losses.discriminator_loss(
        joint_logits=jnp.asarray(joint), permuted_logits=jnp.asarray(permuted)
    )
    assert found.shape == (50,)
    probabilities = scipy.special.softmax(np.concatenate([joint, permuted]).astype(float), axis=1)
    expected = sklearn.metrics.log_loss([0] * 50 + [1] * 50, probabilities)
    np.testing.assert_allclose(found.mean(), expected, rtol=1e-5)


def test_discriminator():
    variables = jax.eval_shape(Discriminator().init, jax.random.key(0), jnp.zeros((1, 32)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 5_040_002
    kernel = Discriminator().init(jax.random.key(0), jnp.zeros((1, 32)))["params"]["fc2"]["kernel"]
    assert kernel.std() == pytest.approx(0.02, rel=0.01)
    glorot = Discriminator(initialization="glorot").init(jax.random.key(0), jnp.zeros((1, 32)))
    kernel = glorot["params"]["fc2"]["kernel"]
    assert np.abs(kernel).max() == pytest.approx(np.sqrt(6 / 2000), rel=0.01)
    z = jax.random.normal(jax.random.key(0), (3, LATENTS))
    variables = DISCRIMINATOR.init(jax.random.key(0), z)
    variables = jax.tree.map(lambda leaf: 20 * leaf + 0.1, variables)
    y = z
    for name in ("fc1", "fc2"):
        y = y @ variables["params"][name]["kernel"] + variables["params"][name]["bias"]
        y = np.where(y > 0, y, 0.2 * y)
    y = y @ variables["params"]["logits"]["kernel"] + variables["params"]["logits"]["bias"]
    np.testing.assert_allclose(DISCRIMINATOR.apply(variables, z), y, rtol=1e-5, atol=1e-5)


def test_drawn_latents_are_distinct_and_every_pair_occurs():
    keys = jax.random.split(jax.random.key(0), 300)
    draw = functools.partial(factor.draw_pairs, latents=LATENTS, pairs=1)
    pairs = np.asarray(jax.vmap(draw)(keys)).reshape(-1, 2)
    assert {tuple(pair) for pair in pairs} == {(i, j) for i in range(4) for j in range(4) if i != j}
    both = jax.vmap(functools.partial(factor.draw_pairs, latents=LATENTS, pairs=2))(keys)
    assert both.shape == (300, 2, 2)
    assert (np.sort(both.reshape(300, 4), axis=1) == np.arange(4)).all()


# The permutation


def permuted(z, num_devices, key=0):
    function = jax.pmap(
        discriminator_input.permute_latents,
        axis_name=steps.AXIS,
        in_axes=(None, 0),
        devices=jax.devices()[:num_devices],
    )
    shares = z.reshape(num_devices, -1, z.shape[1])
    return np.asarray(function(jax.random.key(key), shares)).reshape(z.shape)


def test_each_latent_is_permuted_by_itself_over_the_whole_batch():
    z = np.arange(16 * 6, dtype=np.float32).reshape(16, 6)
    found = permuted(z, 8)
    np.testing.assert_array_equal(np.sort(found, axis=0), z)
    source = (found // 6).astype(int)  # which code each latent came from
    assert len({tuple(column) for column in source.T}) == 6
    assert (np.abs(source - np.arange(16)[:, None]) >= 2).any()  # from other devices too
    np.testing.assert_array_equal(found, permuted(z, 1))
    assert (found != permuted(z, 8, key=1)).any()


def test_two_batches_are_independent():
    options = {"seed": 0, "step": 3, "batch_size": 8, "num_examples": 100}
    first, second = factor.two_batches(**options).T
    assert (first != second).any()
    whole = [factor.two_batches(**options | {"step": step}) for step in range(25)]
    counts = [np.bincount(np.concatenate(whole)[:, n], minlength=100) for n in (0, 1)]
    np.testing.assert_array_equal(counts, 2)  # 25 x 8 are two epochs of 100, of either batch


# The update


@functools.cache  # compiling takes most of the time
def make_update(objective, num_devices):
    devices = jax.devices()[:num_devices]
    networks = {
        "model": MODEL,
        "discriminator": DISCRIMINATOR,
        "tx": optax.sgd(0.05),
        "discriminator_tx": optax.sgd(0.1),
    }
    update = parallel.parallelize(
        factor.make_factor_update_fn(**networks, objective=objective, pixels_of=steps.to_unit),
        mode="pmap",
        batch_size=16,
        devices=devices,
    )
    state = factor.create(**networks, seed=1)
    # The real initialisation makes the discriminator of so few units almost constant.
    state = state.replace(discriminator=jax.tree.map(lambda x: 20 * x, state.discriminator))
    return update, state, lambda tree: parallel.replicate(tree, devices)


def run_update(objective, num_devices, num_steps=1, change=lambda state: state):
    update, state, replicate = make_update(objective, num_devices)
    # A copy, since the update donates the state.
    state, images = replicate((jax.tree.map(jnp.copy, change(state)), IMAGES))
    for step in range(num_steps):
        state, metrics = update(state, images, np.roll(INDICES, step, axis=0))
    return jax.device_get(state), {name: float(value) for name, value in metrics.items()}


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, expected
    )


OBJECTIVE = factor.FactorObjective(
    beta=2.0, gamma=5.0, ad_weight=30.0, ad_layer="conv2", ad_pairs=2
)


def maps_by_hand(params, x, latent):
    """Of one latent, ReLU(sum_k alpha_k A_k), alpha from the gradient of this latent alone."""
    a = MODEL.apply({"params": params}, x, "conv2", method="features")

    def total(a):
        return MODEL.apply({"params": params}, a, "conv2", method="head")[0][:, latent].sum()

    alpha = jax.grad(total)(a).mean(axis=(1, 2), keepdims=True)
    return jnp.maximum((alpha * a).sum(axis=3), 0)


@pytest.mark.parametrize("seen", [pytest.param("codes", marks=pytest.mark.slow), "standardized"])
def test_one_update_by_hand(seen):
    """Each network's gradient is of its own loss alone: what leaked into the other would show."""
    objective = dataclasses.replace(OBJECTIVE, discriminator_input=seen)
    _, before, _ = make_update(objective, 1)
    after, metrics = run_update(objective, 8)

    step_key = jax.random.fold_in(jax.random.key(1), 0)
    keys = [jax.random.split(jax.random.fold_in(step_key, place)) for place in range(16)]
    noise, other_noise = (
        jnp.stack([jax.random.normal(pair[n], (LATENTS,)) for pair in keys]) for n in (0, 1)
    )
    pairs_key, permutation_key = jax.random.split(jax.random.fold_in(step_key, 2**32 - 1))
    (i, j), (k, m) = factor.draw_pairs(pairs_key, latents=LATENTS, pairs=2)
    x, other = PIXELS[INDICES[:, 0]], PIXELS[INDICES[:, 1]]
    psi = before.discriminator

    def log_probabilities(psi, z):
        if seen == "standardized":
            z = (z - z.mean(axis=0)) / jnp.sqrt(z.var(axis=0) + 1e-8)
        return jax.nn.log_softmax(DISCRIMINATOR.apply({"params": psi}, z))

    def vae_loss(params):
        logits, mean, logvar = MODEL.apply({"params": params}, x, noise)
        z = mean + jnp.exp(logvar / 2) * noise
        p = jax.nn.sigmoid(logits)
        cross_entropy = -(x * jnp.log(p) + (1 - x) * jnp.log(1 - p)).sum() / 16
        kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar).sum() / 16
        tc = (log_probabilities(psi, z)[:, 0] - log_probabilities(psi, z)[:, 1]).sum() / 16
        ad = 0.0
        for one, two in ((i, j), (k, m)):
            a, b = maps_by_hand(params, x, one), maps_by_hand(params, x, two)
            both, shared = (a + b).sum(axis=(1, 2)), jnp.minimum(a, b).sum(axis=(1, 2))
            ad += (2 * shared / jnp.where(both > 0, both, 1)).sum() / (2 * 16)
        return cross_entropy + 2 * kl + 5 * tc + 30 * ad, (tc, ad, z)

    by_hand = jax.jit(jax.value_and_grad(vae_loss, has_aux=True))
    (total, (tc, ad, z)), gradient = by_hand(before.vae.params)
    params = jax.tree.map(lambda p, g: p - 0.05 * g, before.vae.params, gradient)
    mean, logvar = MODEL.apply({"params": params}, other, method="encode")
    codes = mean + jnp.exp(logvar / 2) * other_noise
    shuffled = jax.random.permutation(permutation_key, codes, axis=0, independent=True)

    def discriminator_loss(psi):
        right = (
            log_probabilities(psi, z)[:, 0].mean() + log_probabilities(psi, shuffled)[:, 1].mean()
        )
        return -right / 2

    value, gradient = jax.value_and_grad(discriminator_loss)(psi)
    right = [log_probabilities(psi, z)[:, 0], log_probabilities(psi, shuffled)[:, 1]]
    expected = {
        "loss": total,
        "total_correlation": tc,
        "attention_disentanglement": ad,
        "discriminator_loss": value,
        "discriminator_accuracy": (jnp.stack(right) > np.log(0.5)).mean(),
    }
    assert float(ad) > 0.05
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert_close(after.vae.params, params)
    assert_close(after.discriminator, jax.tree.map(lambda p, g: p - 0.1 * g, psi, gradient))
    assert after.vae.step == 1


def test_eight_devices_equal_one():
    one, metrics = run_update(OBJECTIVE, 1, num_steps=3)
    eight, others = run_update(OBJECTIVE, 8, num_steps=3)
    assert_close(eight, one)
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_discriminator_loss_does_not_reach_the_vae():
    """Without the total correlation's weight the VAE learns the same beside any discriminator."""
    objective = factor.FactorObjective(gamma=0.0, ad_layer="conv2")
    plain, metrics = run_update(objective, 1)
    other, other_metrics = run_update(
        objective,
        1,
        change=lambda s: s.replace(discriminator=jax.tree.map(lambda x: 3 - x, s.discriminator)),
    )
    assert metrics["discriminator_loss"] != pytest.approx(other_metrics["discriminator_loss"])
    jax.tree.map(np.testing.assert_array_equal, other.vae.params, plain.vae.params)
