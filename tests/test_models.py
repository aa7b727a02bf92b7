"""The four VAEs against the report's tables, and the split of their encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_attn.errors import UserError
from vae_attn.models import build as registry

MODELS = {"mnist": 28, "ucsd_ped1": 100, "dsprites": 64, "mvtec_ad": 256}

# Figure 5 of the report: height, width, channels behind the named rows.
ENCODER_SHAPES = {
    "mnist": {"conv1": (14, 14, 64), "conv2": (7, 7, 128), "flatten": (6272,), "fc1": (1024,)},
    "ucsd_ped1": {
        "conv1": (50, 50, 64),
        "conv2": (25, 25, 128),
        "conv3": (12, 12, 256),
        "flatten": (36864,),
        "fc1": (1024,),
    },
    "dsprites": {
        "conv1": (32, 32, 32),
        "conv2": (16, 16, 32),
        "conv3": (8, 8, 64),
        "conv4": (4, 4, 64),
        "conv5": (1, 1, 128),
    },
    "mvtec_ad": {
        "layer1": (64, 64, 64),
        "layer2": (32, 32, 128),
        "layer3": (16, 16, 256),
        "layer4": (8, 8, 512),
        "flatten": (32768,),
        "fc1": (1024,),
    },
}
DECODER_SHAPES = {
    "mnist": {"fc1": (1024,), "fc2": (6272,), "convtr1": (14, 14, 64), "convtr2": (28, 28, 1)},
    "ucsd_ped1": {
        "fc1": (1024,),
        "fc2": (36864,),
        "unflatten": (12, 12, 256),
        "convtr1": (25, 25, 128),
        "convtr2": (50, 50, 64),
        "convtr3": (100, 100, 1),
    },
    "dsprites": {
        "fc1": (128,),
        "convtr1": (4, 4, 64),
        "convtr2": (8, 8, 64),
        "convtr3": (16, 16, 32),
        "convtr4": (32, 32, 32),
        "convtr5": (64, 64, 1),
    },
    "mvtec_ad": {
        "fc1": (1024,),
        "fc2": (16384,),
        "unflatten": (4, 4, 1024),
        "convtr1": (8, 8, 512),
        "convtr2": (16, 16, 256),
        "convtr3": (32, 32, 128),
        "convtr4": (64, 64, 64),
        "convtr5": (128, 128, 32),
        "convtr6": (256, 256, 3),
    },
}


def shapes_of(name, image_size):
    """The model, and its variables as shapes only: nothing is computed."""
    model = registry.build(name, image_size=image_size, latents=32)
    images = jnp.zeros((1, *model.image_shape))
    variables = jax.eval_shape(
        lambda key: model.init(key, images, jnp.zeros((1, 32)), train=True), jax.random.key(0)
    )
    return model, images, variables


@pytest.fixture(scope="module")
def small():
    """An initialised MNIST VAE with four latents, and two images."""
    model = registry.build("mnist", image_size=28, latents=4)
    images = jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    variables = jax.jit(model.init)(jax.random.key(0), images, jnp.zeros((2, 4)))
    return model, variables, images


@pytest.mark.parametrize(
    ("name", "count"),
    [("mnist", 13_216_193), ("ucsd_ped1", 77_243_073), ("mvtec_ad", 72_803_363)],
)
def test_parameter_counts_of_table_1(name, count):
    _, _, variables = shapes_of(name, MODELS[name])
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_parts_of_the_mvtec_count():
    _, _, variables = shapes_of("mvtec_ad", 256)
    sizes = jax.tree.map(lambda leaf: leaf.size, variables["params"])
    count = {name: sum(jax.tree.leaves(tree)) for name, tree in sizes.items()}
    fc1 = sum(sizes["encoder"]["fc1"].values())
    assert count["encoder"] - fc1 == 11_176_512
    assert fc1 == 33_555_456
    assert count["mean"] + count["logvar"] == 65_600
    assert count["decoder"] == 28_005_795


@pytest.mark.parametrize("name", MODELS)
def test_output_shapes_of_figure_5(name):
    model, images, variables = shapes_of(name, MODELS[name])

    def run(module, x, until):
        return jax.eval_shape(
            lambda v, x: model.apply(
                v, x, method=lambda vae, x: getattr(vae, module)(x, until=until)
            ),
            variables,
            x,
        ).shape[1:]

    for row, shape in ENCODER_SHAPES[name].items():
        assert run("encoder", images, row) == shape, row
    for row, shape in DECODER_SHAPES[name].items():
        assert run("decoder", jnp.zeros((1, 32)), row) == shape, row


def test_mvtec_at_224_has_the_reports_7_by_7_features():
    model, images, variables = shapes_of("mvtec_ad", 224)
    features = jax.eval_shape(
        lambda v: model.apply(v, images, "layer4", method="features"), variables
    )
    logits = jax.eval_shape(lambda v: model.apply(v, images, jnp.zeros((1, 32)))[0], variables)
    assert features.shape == (1, 7, 7, 512)
    assert logits.shape == (1, 224, 224, 3)


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("mnist", 28, ("conv1", "conv1_relu", "conv2", "conv2_relu")),
        ("dsprites", 64, ("conv1", "conv5_relu")),
        ("mvtec_ad", 64, ("conv1", "layer1", "layer4")),
    ],
)
def test_encode_is_head_after_features(name, size, layers):
    model = registry.build(name, image_size=size, latents=4)
    images = jax.random.uniform(jax.random.key(1), (2, *model.image_shape))

    @jax.jit
    def split(images):
        variables = model.init(jax.random.key(0), images, jnp.zeros((2, 4)))
        parts = [
            model.apply(variables, model.apply(variables, images, x, method="features"), x,
                        method="head")
            for x in layers
        ]  # fmt: skip
        return model.apply(variables, images, method="encode"), parts

    expected, parts = split(images)
    for mean, logvar in parts:
        np.testing.assert_allclose(mean, expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logvar, expected[1], rtol=1e-4, atol=1e-5)


def test_relu_layer_is_the_relu_of_the_convolution(small):
    model, variables, images = small
    before = model.apply(variables, images, "conv2", method="features")
    after = model.apply(variables, images, "conv2_relu", method="features")
    assert (before < 0).any()
    np.testing.assert_array_equal(after, np.maximum(before, 0))


def test_sample_is_reparameterised(small):
    model, variables, images = small
    noise = jax.random.normal(jax.random.key(2), (2, 4))
    logits, mean, logvar = model.apply(variables, images, noise)
    z = mean + np.exp(logvar) ** 0.5 * noise
    expected = model.apply(variables, jnp.asarray(z), method="decode")
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet", 28, "model.name='resnet' is unknown; choose one of mnist"),
        ("mnist", 32, "set data.image_size=28"),
        ("ucsd_ped1", 64, "set data.image_size=100"),
        ("dsprites", 32, "set data.image_size=64"),
        ("mvtec_ad", 100, "set data.image_size=256"),
    ],
)
def test_wrong_names_and_sizes(name, size, message):
    with pytest.raises(UserError, match=message):
        registry.build(name, image_size=size, latents=32)
