"""Several seeds in one program: each is the run that it would be alone."""

import functools
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_models
from small_data import small_data

from vae_attn import backend
from vae_attn.config import default_config
from vae_attn.data import sampling
from vae_attn.data.augment import Augmentation
from vae_attn.errors import UserError
from vae_attn.models.discriminator import Discriminator
from vae_attn.training import (
    factor,
    loop,
    objectives,
    parallel,
    preemption,
    seeds,
    state,
    steps,
    trunk,
)
from vae_attn.training.checkpoints import Checkpoints, SeedCheckpoints
from vae_attn.training.task import Task
from vae_attn.training.telemetry import read_metrics

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
SEED = 4  # the first of two


def make_task(kind):
    function = small_models.normalized if kind == "batch_norm" else small_models.plain
    model = function(latents=4, image_shape=(8, 8, 3), axis_name=steps.AXIS)
    tx = optax.sgd(1e-3, momentum=0.9)
    loss = steps.make_loss_fn(model=model, combine=steps.beta_elbo(1.0))
    if kind == "ad_factor_vae":
        networks = {
            "model": model,
            "discriminator": Discriminator(units=8, hidden_layers=1),
            "tx": tx,
            "discriminator_tx": optax.adam(1e-3),
        }
        objective = factor.FactorObjective(ad_weight=5.0, ad_layer="conv1")
        update = factor.make_factor_update_fn(
            **networks, objective=objective, pixels_of=steps.to_unit
        )
        create = functools.partial(factor.create, **networks)
        return Task(create, update, loss, factor.two_batches)
    augment = Augmentation(rotation=20.0, mirror_horizontal=True)
    update = steps.make_update_fn(model=model, tx=tx, augment=augment, combine=steps.beta_elbo(1.0))
    create = functools.partial(state.create, model=model, tx=tx)
    return Task(create, update, loss, sampling.batch_indices)


def run_steps(task, seed, mode="pmap", num_devices=1, num_steps=4):
    """The state and the metrics after some steps."""
    devices = jax.devices()[:num_devices]
    update = parallel.parallelize(task.update, mode=mode, batch_size=8, devices=devices)
    train_state, images = parallel.replicate((task.create(seed=seed), IMAGES), devices)
    for step in range(num_steps):
        indices = task.batch_indices(seed=seed, step=step, batch_size=8, num_examples=len(IMAGES))
        train_state, metrics = update(train_state, images, indices)
    return jax.device_get((train_state, metrics))


@functools.cache
def alone(kind):
    """The runs of each seed alone."""
    task = make_task(kind)
    return [run_steps(task, SEED + n) for n in range(2)]


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), found, expected
    )


@pytest.mark.parametrize(
    ("kind", "vectorized", "mode", "num_devices"),
    [
        ("vae", True, "pmap", 1),
        ("batch_norm", True, "shard_map", 2),
        pytest.param("batch_norm", False, "pmap", 2, marks=pytest.mark.slow),
        pytest.param("ad_factor_vae", True, "pmap", 2, marks=pytest.mark.slow),
        pytest.param("ad_factor_vae", False, "pmap", 1, marks=pytest.mark.slow),
    ],
)
def test_each_seed_is_its_single_run(kind, vectorized, mode, num_devices, monkeypatch):
    each_seed = functools.partial(seeds.each_seed, vectorized=vectorized)
    monkeypatch.setattr(seeds, "each_seed", each_seed)
    task = seeds.together(make_task(kind), 2)
    together, metrics = run_steps(task, SEED, mode, num_devices)
    # Another seed's run is another run: what is compared below could tell them apart.
    kernels = together.variables["params"]["mean"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    loss = np.asarray(task.loss(together.variables, IMAGES))
    for n, one in enumerate(seeds.split(together, 2)):
        expected, expected_metrics = alone(kind)[n]
        assert one.variables.keys() == expected.variables.keys()
        assert_close(one, expected)
        assert_close({name: value[n] for name, value in metrics.items()}, expected_metrics)
        by_itself = make_task(kind).loss(expected.variables, IMAGES)
        np.testing.assert_allclose(loss[:, n], by_itself, rtol=1e-3)


@pytest.mark.parametrize("vectorized", [True, False])
def test_convolutions_are_products_under_vmap_alone(vectorized, monkeypatch):
    """In all of a step: its forward pass, gradients, and the gradients of attention's."""
    each_seed = functools.partial(seeds.each_seed, vectorized=vectorized)
    monkeypatch.setattr(seeds, "each_seed", each_seed)
    task = seeds.together(make_task("ad_factor_vae"), 2)
    update = jax.vmap(task.update, in_axes=(None, None, 0), axis_name=steps.AXIS)
    indices = task.batch_indices(seed=SEED, step=0, batch_size=8, num_examples=len(IMAGES))
    jaxpr = jax.make_jaxpr(update)(task.create(seed=SEED), IMAGES, indices[None])
    assert ("conv_general_dilated" in str(jaxpr)) != vectorized
    assert not backend.as_products()


def test_one_seed_has_no_axis_of_seeds():
    task = make_task("vae")
    assert seeds.together(task, 1) is task
    tree = {"x": np.zeros((2, 3))}
    assert seeds.split(tree, 1)[0] is seeds.join([tree]) is tree
    joined = seeds.join(seeds.split(tree, 2))
    np.testing.assert_array_equal(joined["x"], tree["x"])


# The loop


@pytest.fixture
def two_seeds(tmp_path):
    """A config of two seeds of the plain model, and a workdir."""
    config = small_models.use(default_config(), "plain", channels=3)
    config.seed, config.num_seeds = SEED, 2
    config.model.latents = 4
    config.train.batch_size = 16
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.train.steps = 6
    return config, tmp_path / "run"


def train(config, workdir):
    workdir.mkdir(exist_ok=True)
    data = small_data(IMAGES)
    return jax.device_get(loop.train(config, workdir, data))


@pytest.mark.slow
def test_run_of_two_seeds_resumes_and_equals_two_runs(two_seeds):
    config, workdir = two_seeds
    whole = train(config, workdir)
    assert whole.params["mean"]["bias"].shape == (2, 4)
    curves = read_metrics(workdir)
    losses = [curves[f"validation_loss/seed_{n}"][1] for n in (4, 5)]
    np.testing.assert_allclose(curves["validation_loss"][1], np.mean(losses, axis=0))

    # As after a kill in the midst of a save: one seed lacks the newest step.
    other = workdir.with_name("other")
    shutil.copytree(workdir, other)
    shutil.rmtree(other / "seed_5" / "checkpoints" / "6")
    jax.tree.map(np.testing.assert_array_equal, train(config, other), whole)
    assert (other / "metrics.jsonl").read_text(encoding="utf-8") == (
        workdir / "metrics.jsonl"
    ).read_text(encoding="utf-8")
    for seed in (4, 5):
        assert (other / f"seed_{seed}" / "checkpoints" / "6").is_dir()

    # A seed's folder is what a run of that seed alone leaves.
    one, folder = seeds.runs(config, workdir)[1]
    single = workdir.with_name("single")
    assert_close(seeds.split(whole, 2)[1], train(one, single))
    for which in ("latest", "best"):
        found, expected = (loop.restore(one, path, which=which) for path in (folder, single))
        assert found.step == expected.step
        assert_close(jax.device_get(found), jax.device_get(expected))
    for name, (at, values) in read_metrics(single).items():
        assert curves[f"{name}/seed_5"][0] == at
        np.testing.assert_allclose(curves[f"{name}/seed_5"][1], values, rtol=1e-3)


@pytest.mark.slow
def test_stopped_run_of_two_seeds_resumes_bit_for_bit(two_seeds, monkeypatch):
    config, workdir = two_seeds
    whole = train(config, workdir.with_name("whole"))
    batch_indices = sampling.batch_indices

    def signalled(*, seed, step, **options):
        if (seed, step) == (5, 2):
            signal.raise_signal(signal.SIGTERM)
        return batch_indices(seed=seed, step=step, **options)

    monkeypatch.setattr(sampling, "batch_indices", signalled)
    with pytest.raises(preemption.Stopped, match="stopped at step 3 of 6"):
        train(config, workdir)
    for run in seeds.runs(config, workdir):
        steps_of = [int(loop.restore(*run, which=which).step) for which in ("latest", "best")]
        assert steps_of == [3, 2]
    jax.tree.map(np.testing.assert_array_equal, train(config, workdir), whole)


def saved(tmp_path, kept):
    """Checkpoints of two seeds at the steps given for each."""
    folders = [tmp_path / name for name in ("seed_4", "seed_5")]
    for n, (folder, at) in enumerate(zip(folders, kept, strict=True)):
        checkpoints = Checkpoints(folder)
        for step in at:
            tree = {"x": jnp.full(3, 100 * n + step)}
            checkpoints.save(tree, step=step, validation_loss=float(-step))
        checkpoints.close()
    return SeedCheckpoints(folders)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (((), ()), None),
        (((1, 2), (1, 2)), 2),
        (((1, 2), (1,)), 1),  # killed between the saves of a step
        (((1, 2, 3), (2, 3, 4)), 3),
        (((1,), ()), None),  # killed in the first save
    ],
)
def test_newest_step_that_all_seeds_have(tmp_path, kept, expected):
    checkpoints = saved(tmp_path, kept)
    template = {"x": jnp.zeros((2, 3), jnp.int32)}
    found = checkpoints.restore(template)
    if expected is None:
        assert found is None
        expected = 0
    else:
        state, step = found
        assert step == expected
        assert np.asarray(state["x"]).tolist() == [[step] * 3, [100 + step] * 3]
    # What comes next is saved, whatever was there.
    tree = {"x": jnp.full((2, 3), 7)}
    checkpoints.save(tree, step=expected + 1, validation_losses=np.array([1.0, 2.0]))
    state, step = checkpoints.restore(template)
    assert step == expected + 1
    np.testing.assert_array_equal(state["x"], 7)
    checkpoints.close()


def test_seeds_without_a_common_step(tmp_path):
    checkpoints = saved(tmp_path, ((1, 2), ()))
    with pytest.raises(UserError, match=r"have no intact checkpoint of the same step: give"):
        checkpoints.restore({"x": jnp.zeros((2, 3), jnp.int32)})
    checkpoints.close()
    assert (tmp_path / "seed_4" / "checkpoints" / "2").is_dir()


def test_seed_that_blows_up_is_named(two_seeds, monkeypatch):
    config, workdir = two_seeds
    create = state.create

    def spoilt(*, seed, **options):
        made = create(seed=seed, **options)
        params = jax.tree.map(lambda leaf: jnp.where(seed == 5, jnp.nan, leaf), made.params)
        return made.replace(params=params)

    monkeypatch.setattr(state, "create", spoilt)
    with pytest.raises(UserError, match=r"the loss of seed 5 is nan at step 1: lower train.learn"):
        train(config, workdir)
    assert not list(workdir.glob("seed_*/checkpoints/[0-9]*"))


@pytest.mark.slow
def test_every_seed_gets_the_pretrained_trunk(two_seeds, monkeypatch):
    config, workdir = two_seeds
    small_models.use(config, "trunk")
    config.model.pretrained, config.model.freeze_trunk = "weights.safetensors", True
    config.train.steps = 2
    model = objectives.build_model(config)
    made = state.create(model=model, tx=optax.identity(), seed=99).variables
    weights = {
        "params": {name: made["params"]["encoder"][name] for name in ("conv1", "bn1")},
        "batch_stats": {"bn1": made["batch_stats"]["encoder"]["bn1"]},
    }
    weights = jax.tree.map(lambda leaf: leaf + 0.1, weights)
    monkeypatch.setattr(trunk, "load_pretrained", lambda config: weights)
    for one in seeds.split(train(config, workdir), 2):
        for collection, expected in weights.items():
            found = {name: one.variables[collection]["encoder"][name] for name in expected}
            jax.tree.map(np.testing.assert_array_equal, found, expected)
