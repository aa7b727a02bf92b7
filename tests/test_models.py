"""The four VAEs against the report's tables, and the split of their encoders."""

import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_attn.errors import UserError
from vae_attn.models import build, layers, tables
from vae_attn.training import state

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
    model = build.build(name, image_size=image_size, latents=32)
    images = jnp.zeros((1, *model.image_shape))
    variables = jax.eval_shape(
        lambda key: model.init(key, images, jnp.zeros((1, 32)), train=True), jax.random.key(0)
    )
    return model, images, variables


@pytest.fixture(scope="module")
def small():
    """An initialised MNIST VAE with four latents, and two images."""
    model = build.build("mnist", image_size=28, latents=4)
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
    model = build.build(name, image_size=size, latents=4)
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
        build.build(name, image_size=size, latents=32)


def fingerprint(leaves):
    """A number in which a few values of every leaf count, each differently."""
    total = 0.0
    for name in sorted(leaves):
        values = np.asarray(leaves[name]).ravel()
        values = values[:: max(1, values.size // 1000)].astype(np.float64)
        total += float(values @ np.cos(np.arange(values.size) + len(name)))
    return total


# Places in the variables whose initial values are checked: few, so that few are drawn.
SOME = (
    "['encoder']['conv1']",
    "['encoder']['layer2_0']",
    "['decoder']['convtr2']",
    "['decoder']['bn1']",
    "['params']['mean']",
)


@pytest.mark.parametrize(
    ("name", "size", "names", "values"),
    [
        ("mnist", 28, "5a460d69dd7cf44d", 3.5943933830888906),
        ("dsprites", 64, "58dc247c9eda8d71", 0.6670233702024702),
        ("ucsd_ped1", 100, "e78b2fdffe1ffd78", 1.0008662608619237),
        ("convnet", 32, "bc16bffa23e5f166", 5.050847045125692),
        ("mvtec_ad", 64, "b78a7cd1a1a78cfa", 6.733979011010036),
    ],
)
def test_a_seed_gives_the_parameters_that_it_always_gave(name, size, names, values):
    """Names, shapes and initial values as of the first edition, to the bit on one machine."""
    model = build.build(name, image_size=size, latents=4)

    def leaves():
        made = state.create(model=model, tx=optax.identity(), seed=3)
        return {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(made.variables)
        }

    def some():
        return {n: leaf for n, leaf in leaves().items() if any(one in n for one in SOME)}

    listed = "\n".join(sorted(f"{n}{leaf.shape}" for n, leaf in jax.eval_shape(leaves).items()))
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == names
    assert fingerprint(jax.jit(some)()) == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize(("name", "size"), [("convnet", 32), ("mvtec_ad", 64)])
def test_grey_images_have_models_of_one_channel(name, size):
    model = build.build(name, image_size=size, channels=1, latents=4)
    images = jnp.zeros((1, size, size, 1))
    shapes = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, jnp.zeros((1, 4)))
    )
    (logits, *_), variables = shapes
    assert logits.shape == images.shape
    colour = build.build(name, image_size=size, latents=4)
    assert colour.image_shape == (size, size, 3)
    wide = jax.eval_shape(
        lambda: colour.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.zeros((1, 4)))
    )
    pairs = zip(jax.tree.leaves(variables), jax.tree.leaves(wide), strict=True)
    assert sum(one.shape != three.shape for one, three in pairs) == 3  # two kernels and a bias


def test_a_table_runs_any_module_or_function_between_two_names():
    """Also a layer of Flax itself; the parameters of each stand under its row's name."""
    table = tables.stack(
        ("double", lambda x: 2 * x),
        ("dense", nn.Dense(3)),
        ("norm", layers.BatchNorm()),
        ("minus", lambda x: -x),
        frozen=("norm",),
    )
    x = jax.random.normal(jax.random.key(1), (5, 2))
    variables = table.init(jax.random.key(0), x)
    assert set(variables["params"]) == {"dense", "norm"}
    dense = variables["params"]["dense"]
    expected = 2 * x @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(table.apply(variables, x, until="dense"), expected, rtol=1e-5)
    rest, updated = table.apply(
        variables, expected, after="dense", train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(rest, -expected / np.sqrt(1 + 1e-5), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
    with pytest.raises(ValueError, match="not in tuple"):
        table.apply(variables, x, until="conv9")
