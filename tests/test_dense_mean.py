"""Attention of our models by the dense layer's shortcut, against the plain gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_attn import attention
from vae_attn.experiments.anomaly.calibration import Variant
from vae_attn.experiments.anomaly.explainer import calibrate
from vae_attn.models.build import build
from vae_attn.models.layers import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Residual,
    Unflatten,
    flatten,
)
from vae_attn.models.tables import stack
from vae_attn.models.vae import VAE

LATENTS = 4
DECODER = (
    ("fc1", Dense(64)),
    ("unflatten", Unflatten(4, 4, 4)),
    ("convtr1", ConvTranspose(1, 4, 2, 1)),
)
CONVNET = (
    ("conv1", Conv(6, 4, 2, 1)),
    ("conv1_relu", nn.relu),
    ("conv2", Conv(12, 3, 1, 1)),
    ("conv2_relu", nn.relu),
    ("flatten", flatten),
    ("fc1", Dense(10)),
    ("fc1_relu", nn.relu),
    ("fc2", Dense(7)),
)
RESNET = (
    ("conv1", Conv(4, 3, 2, 1, use_bias=False)),
    ("bn1", BatchNorm()),
    ("conv1_relu", nn.relu),
    ("layer4_0", Residual(6, 1)),
    ("layer4", jax.nn.identity),
    ("flatten", flatten),
    ("fc1", Dense(10)),
)
CASES = [(CONVNET, "conv2"), (CONVNET, "conv2_relu"), (RESNET, "layer4")]
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)


def model_of(encoder):
    """A model, its variables drawn at random (no initialiser to compile), and three images."""
    model, rng = VAE((8, 8, 1), LATENTS, stack(*encoder), stack(*DECODER)), np.random.default_rng(1)
    x = jnp.asarray(rng.uniform(size=(3, *model.image_shape)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros((3, LATENTS)))
    low = {"params": -0.5, "batch_stats": 0.5}
    variables = {
        name: jax.tree.map(
            lambda leaf, low=low[name]: np.float32(rng.uniform(low, low + 1, leaf.shape)), tree
        )
        for name, tree in shapes.items()
    }
    return model, variables, x


def plain_mean(model, layer):
    return lambda variables: lambda a: model.apply(variables, a, layer, method="head")[0]


def check(found, expected):
    """Equal to float rounding, measured by the largest entry."""
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 * scale)


@pytest.mark.parametrize(("encoder", "layer"), CASES)
def test_a_dense_mean_has_the_latents_and_weights_of_the_head(encoder, layer):
    model, variables, x = model_of(encoder)
    chosen = jnp.array([2, 0])

    @jax.jit
    def both(variables, x):
        a = model.apply(variables, x, layer, method="features")
        dense, plain = model.dense_mean(layer)(variables), plain_mean(model, layer)(variables)
        some = attention.channel_weights(dense, a, chosen=chosen)
        return [(mean(a), attention.channel_weights(mean, a)) for mean in (dense, plain)], some

    ((z, alpha), (expected_z, expected)), some = both(variables, x)
    check(z, expected_z)
    check(alpha, expected)
    check(some, expected[:, chosen])


@pytest.mark.parametrize(("encoder", "layer"), CASES)
def test_second_order_gradients_are_the_same(encoder, layer):
    model, variables, x = model_of(encoder)
    weights = jax.random.normal(jax.random.key(2), (3, LATENTS, 4, 4))

    def slope(mean):
        def total(params):
            v = variables | {"params": params}
            a = model.apply(v, x, layer, method="features")
            return jnp.sum(weights * attention.paper_maps(mean(v), a))

        return jax.jit(jax.grad(total))(variables["params"])

    found, expected = slope(model.dense_mean(layer)), slope(plain_mean(model, layer))
    reached = 0
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(other).max()
        reached += scale > 1e-4
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * scale + 1e-8)
    assert reached >= 5  # convolutions below, and the linear layers' kernels through alpha


def test_only_where_a_dense_layer_comes_next():
    mnist = build("mnist", image_size=28, latents=32)
    assert [bool(mnist.dense_mean(layer)) for layer in mnist.layers] == [False, False, True, True]
    dsprites = build("dsprites", image_size=64, latents=32)
    assert not any(map(dsprites.dense_mean, dsprites.layers))
    mvtec = build("mvtec_ad", image_size=64, latents=32)
    assert mvtec.dense_mean("layer4")
    assert not mvtec.dense_mean("layer3")
    ped1 = build("ucsd_ped1", image_size=100, latents=32)
    assert ped1.dense_mean("conv3")
    assert not ped1.dense_mean("conv2")


def test_weights_of_a_linear_head_do_without_the_encoder():
    """They depend on no image, so the compiler drops the trunk."""
    model, variables, x = model_of(RESNET)

    def flops(function):
        return jax.jit(function).lower(variables, x).compile().cost_analysis()["flops"]

    def weights(variables, x):
        a = model.apply(variables, x, "layer4", method="features")
        return attention.channel_weights(model.dense_mean("layer4")(variables), a)

    trunk = flops(lambda v, x: model.apply(v, x, "layer4", method="features"))
    assert flops(weights) < trunk / 2


def test_the_explainer_takes_the_shortcut(monkeypatch):
    """At the layer that has one, and with the maps that the others would give."""
    model, variables, _ = model_of(CONVNET)
    taken = []
    shortcut = attention._dense_channel_weights
    monkeypatch.setattr(
        attention, "_dense_channel_weights", lambda *args: taken.append(1) or shortcut(*args)
    )

    def maps(layer):
        explainer = calibrate(
            model, variables, IMAGES, IMAGES, variant=Variant("contrast", (layer,), "none")
        )
        return explainer.latent_maps(IMAGES, style="paper", layer=layer)

    maps("conv1")
    assert not taken
    found = maps("conv2")
    assert taken
    monkeypatch.setattr(VAE, "dense_mean", lambda self, layer: None)
    check(found, maps("conv2"))
