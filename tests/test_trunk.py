"""The trunk: pretrained weights arrive in it, a frozen one stays, its input is normalised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_models

from vae_attn.config import default_config
from vae_attn.data.augment import Augmentation
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.errors import UserError
from vae_attn.models import pretrained, resnet18_tensors
from vae_attn.models.build import build
from vae_attn.models.layers import BatchNorm, Conv, Dense, Residual, flatten
from vae_attn.models.tables import stack
from vae_attn.training import loop, objectives, parallel, state, steps, trunk

TRUNK = ("conv1", "bn1", "layer1_0")
RESIDUAL = (
    ("conv1", Conv(4, 4, 2, 1, use_bias=False)),
    ("bn1", BatchNorm(steps.AXIS)),
    ("layer1_0", Residual(6, 2, steps.AXIS)),
    ("layer1", jax.nn.identity),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def light(**options):
    return small_models.trunk(latents=3, image_shape=(8, 8, 3), **options)


def split(train_state):
    """Leaves of the trunk, and all others, as numpy arrays."""
    parts = {True: {}, False: {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(train_state.variables)):
        keys = [entry.key for entry in path]
        parts[keys[1] == "encoder" and keys[2] in TRUNK]["/".join(keys)] = leaf
    return parts[True], parts[False]


def test_frozen_trunk_keeps_parameters_and_statistics():
    encoder = stack(
        *RESIDUAL,
        ("flatten", flatten),
        ("fc1", Dense(5)),
        frozen=tuple(name for name, _ in RESIDUAL),
    )
    model = light(axis_name=steps.AXIS).clone(encoder=encoder)
    # The decay would shrink parameters that merely have no gradient.
    tx = trunk.freeze(optax.adamw(1e-2, weight_decay=0.1), model.layers)
    before = state.create(model=model, tx=tx, seed=1)
    trunk_before, rest_before = split(before)
    moments = sum(leaf.size for leaf in jax.tree.leaves(before.opt_state)) - 1  # and a counter
    update = parallel.parallelize(
        steps.make_update_fn(
            model=model, tx=tx, augment=Augmentation(), combine=steps.beta_elbo(1.0)
        ),
        mode="pmap",
        batch_size=16,
        devices=jax.devices()[:2],
    )
    after, images = parallel.replicate((before, IMAGES), jax.devices()[:2])
    for _ in range(2):
        after, _ = update(after, images, np.arange(16, dtype=np.int32))
    trunk_after, rest_after = split(after)
    assert len(trunk_before) == 20
    for name, leaf in trunk_before.items():
        np.testing.assert_array_equal(trunk_after[name], leaf, err_msg=name)
    assert all((rest_before[name] != rest_after[name]).any() for name in rest_before)
    parameters = [leaf.size for name, leaf in rest_before.items() if name.startswith("params")]
    assert moments == 2 * sum(parameters)


def test_frozen_trunk_uses_running_statistics_in_training():
    x = jnp.asarray(IMAGES) / 255
    for freeze in (True, False):
        model = light(freeze_trunk=freeze)
        variables = state.create(model=model, tx=optax.identity(), seed=0).variables

        @jax.jit
        def encode(x, model=model, variables=variables):
            trained, _ = model.apply(variables, x, train=True, method="encode", mutable=True)
            return trained[0], model.apply(variables, x, method="encode")[0]

        assert np.allclose(*encode(x), atol=1e-6) == freeze


def test_normalised_input_equals_dividing_by_hand():
    plain = light()
    normalised = plain.clone(input_mean=MEAN, input_std=STD)
    x = jnp.float32(IMAGES) / 255
    variables = state.create(model=plain, tx=optax.identity(), seed=0).variables
    by_hand = jnp.asarray((np.float64(IMAGES) / 255 - MEAN) / STD, jnp.float32)
    for arguments in ({"method": "encode"}, {"layer": "layer1", "method": "features"}):
        found = normalised.apply(variables, x, **arguments)
        expected = plain.apply(variables, by_hand, **arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
        assert not np.allclose(jax.tree.leaves(found)[0], jax.tree.leaves(
            plain.apply(variables, x, **arguments))[0], atol=1e-2)  # fmt: skip
    # The head takes features, which come after the normalisation: encode = head . features.
    features = normalised.apply(variables, x, "conv1", method="features")
    np.testing.assert_allclose(
        normalised.apply(variables, features, "conv1", method="head")[0],
        normalised.apply(variables, x, method="encode")[0],
        atol=1e-5,
    )
    # The target of the loss is the image as it is.
    mean, logvar = plain.apply(variables, by_hand, method="encode")
    p = jax.nn.sigmoid(plain.apply(variables, mean, method="decode"))
    expected = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum((1, 2, 3))
    expected += 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(1)
    found = steps.make_loss_fn(model=normalised, combine=steps.beta_elbo(1.0))(variables, IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_models_of_a_config_normalise_only_for_pretrained_weights():
    config = default_config()
    config.model.name, config.data.image_size = "mvtec_ad", 64
    assert objectives.build_model(config).input_mean == ()
    config.model.pretrained, config.model.freeze_trunk = "weights", True
    model = objectives.build_model(config)
    assert (model.input_mean, model.input_std) == (MEAN, STD)
    assert model.encoder.frozen == model.layers


def small_data():
    test = LabelledImages(
        images=IMAGES,
        labels=np.zeros(16, np.int64),
        class_names=("normal",),
        names=tuple(map(str, range(16))),
        masks=None,
        has_mask=np.zeros(16, bool),
    )
    return AnomalyData(name="small", train=IMAGES, validation=IMAGES[:5], test=test)


@pytest.fixture
def small_run(monkeypatch, tmp_path):
    """A config of the small model with pretrained weights, those weights, and a workdir."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(
        lambda: light().init(
            jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 3)), train=True
        )
    )
    weights = {
        collection: {
            row: jax.tree.map(lambda x: rng.uniform(0.05, 0.1, x.shape).astype(np.float32), tree)
            for row, tree in shapes[collection]["encoder"].items()
            if row in TRUNK
        }
        for collection in ("params", "batch_stats")
    }
    monkeypatch.setattr(pretrained, "load_resnet18", lambda path: weights)
    config = small_models.use(default_config(), "trunk")
    config.model.latents = 3
    config.model.pretrained = "somewhere/own.safetensors"
    config.model.freeze_trunk = True
    config.train.batch_size = 16
    config.train.steps = 2
    return config, weights, tmp_path


def assert_trunk(train_state, weights):
    for collection, rows in weights.items():
        found = train_state.variables[collection]["encoder"]
        for row, tree in rows.items():
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(found[row]), tree)


def test_pretrained_values_arrive_stay_and_are_needed_once(small_run, monkeypatch):
    config, weights, workdir = small_run
    assert_trunk(loop.train(config, workdir, small_data()), weights)

    def gone(path):
        raise UserError("no ResNet18 weights")

    monkeypatch.setattr(pretrained, "load_resnet18", gone)
    config.train.steps = 4
    resumed = loop.train(config, workdir, small_data())
    assert int(resumed.step) == 4
    assert_trunk(resumed, weights)
    assert_trunk(loop.restore(config, workdir, which="best"), weights)


def test_pretrained_weights_that_are_not_frozen_are_learned_on(small_run):
    config, weights, workdir = small_run
    config.model.freeze_trunk = False
    after = loop.train(config, workdir, small_data())
    with pytest.raises(AssertionError):
        assert_trunk(after, weights)
    kernel = weights["params"]["conv1"]["kernel"]
    moved = np.abs(after.params["encoder"]["conv1"]["kernel"] - kernel).max()
    assert 0 < moved < 3 * config.train.learning_rate


def test_weights_fit_the_resnet_row_by_row():
    """The names that `pretrained` writes are those of the model's rows, and no other."""
    model = build("mvtec_ad", image_size=64, latents=2)
    shapes = jax.eval_shape(lambda: state.create(model=model, tx=optax.adam(1.0), seed=0))
    wanted = {
        path: shape if len(shape) < 4 else (*shape[2:], shape[1], shape[0])
        for shape, path in resnet18_tensors.wanted_tensors().values()
    }
    found = {
        (collection, *(entry.key for entry in path[1:])): leaf.shape
        for collection in ("params", "batch_stats")
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(shapes, collection))
        if path[0].key == "encoder" and path[1].key != "fc1"
    }
    assert found == wanted


def test_where_weights_come_from(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(pretrained, "load_resnet18", lambda path: asked.append(path) or {})
    monkeypatch.setattr(
        pretrained, "download_resnet18", lambda folder: asked.append(folder) or "the file"
    )
    config = default_config()
    config.model.pretrained = "own.safetensors"
    trunk.load_pretrained(config)
    assert asked == ["own.safetensors"]
    config.model.pretrained = "download"
    config.data.cache_dir = str(tmp_path / "cache")
    trunk.load_pretrained(config)
    assert asked[1:] == [str(tmp_path / "cache"), "the file"]
