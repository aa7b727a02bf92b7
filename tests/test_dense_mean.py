"""Attention of our models by the dense layer's shortcut, against the plain gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_attn import attention
from vae_attn.experiments.anomaly.calibration import Variant
from vae_attn.experiments.anomaly.explainer import calibrate
from vae_attn.models import build as registry
from vae_attn.models import convnets, resnet, tables
from vae_attn.models.vae import VAE, Architecture

LATENTS = 4
DECODER = (
    tables.Linear("fc1", 64),
    tables.Unflatten(4, 4, 4),
    tables.ConvTranspose("convtr1", 1, 4, 2, 1),
)
CONVNET = Architecture(
    name="small_convnet",
    image_shape=(8, 8, 1),
    encoder=(
        tables.Conv("conv1", 6, 4, 2, 1),
        tables.ReLU("conv1_relu"),
        tables.Conv("conv2", 12, 3, 1, 1),
        tables.ReLU("conv2_relu"),
        tables.Flatten(),
        tables.Linear("fc1", 10),
        tables.ReLU("fc1_relu"),
        tables.Linear("fc2", 7),
    ),
    decoder=DECODER,
    initialization="torch",
)
RESNET = Architecture(
    name="small_resnet",
    image_shape=(8, 8, 1),
    encoder=(
        tables.Conv("conv1", 4, 3, 2, 1, use_bias=False),
        tables.BatchNorm("bn1"),
        tables.ReLU("conv1_relu"),
        tables.Residual("layer4_0", 6, 1),
        tables.Mark("layer4"),
        tables.Flatten(),
        tables.Linear("fc1", 10),
    ),
    decoder=DECODER,
    initialization="torch",
)
CASES = [(CONVNET, "conv2"), (CONVNET, "conv2_relu"), (RESNET, "layer4")]
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)


def model_of(architecture):
    """A model, its variables drawn at random (no initialiser to compile), and three images."""
    model, rng = VAE(architecture, LATENTS), np.random.default_rng(1)
    x = jnp.asarray(rng.uniform(size=(3, *architecture.image_shape)), jnp.float32)
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


@pytest.mark.parametrize(("architecture", "layer"), CASES)
def test_a_dense_mean_has_the_latents_and_weights_of_the_head(architecture, layer):
    model, variables, x = model_of(architecture)
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


@pytest.mark.parametrize(("architecture", "layer"), CASES)
def test_second_order_gradients_are_the_same(architecture, layer):
    model, variables, x = model_of(architecture)
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
    mnist, dsprites = VAE(convnets.MNIST), VAE(convnets.DSPRITES)
    layers = mnist.architecture.attention_layers()
    assert [mnist.dense_mean(layer) is not None for layer in layers] == [False, False, True, True]
    assert not any(map(dsprites.dense_mean, dsprites.architecture.attention_layers()))
    mvtec = VAE(resnet.mvtec_ad(64))
    assert mvtec.dense_mean("layer4")
    assert not mvtec.dense_mean("layer3")
    ped1 = registry.build("ucsd_ped1", image_size=100, latents=32)
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
