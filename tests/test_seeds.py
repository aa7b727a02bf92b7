"""Several seeds in one program: each is the run that it would be alone."""

import functools
import json
import shutil
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_attn import config as config_lib
from vae_attn import experiment
from vae_attn.config import default_config
from vae_attn.data import sampling
from vae_attn.data.augment import Augmentation
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.errors import UserError
from vae_attn.evaluation import summary, tables
from vae_attn.models import registry
from vae_attn.models import tables as rows
from vae_attn.models.discriminator import Discriminator
from vae_attn.models.vae import VAE, Architecture
from vae_attn.training import factor, loop, parallel, seeds, state, steps, trunk
from vae_attn.training.task import Task
from vae_attn.training.telemetry import read_metrics

PLAIN = Architecture(
    name="plain",
    image_shape=(8, 8, 3),
    encoder=(rows.Conv("conv1", 4, 4, 2, 1), rows.ReLU("conv1_relu"), rows.Flatten()),
    decoder=(
        rows.Linear("fc1", 16),
        rows.Unflatten(4, 4, 1),
        rows.ConvTranspose("convtr1", 3, 4, 2, 1),
    ),
    initialization="torch",
)
NORMALIZED = Architecture(
    name="normalized",
    image_shape=(8, 8, 3),
    encoder=(rows.Conv("conv1", 4, 4, 2, 1), rows.BatchNorm("bn1"), rows.Flatten()),
    decoder=PLAIN.decoder,
    initialization="torch",
)
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
SEED = 4  # the first of two


def make_task(kind):
    architecture = NORMALIZED if kind == "batch_norm" else PLAIN
    model, tx = VAE(architecture, latents=4, axis_name=steps.AXIS), optax.sgd(1e-3, momentum=0.9)
    loss = steps.make_loss_fn(model=model, beta=1.0)
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
    update = steps.make_update_fn(model=model, tx=tx, augment=augment, beta=1.0)
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
def alone(kind, seed):
    return run_steps(make_task(kind), seed)


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), found, expected
    )


@pytest.mark.parametrize(
    ("kind", "vectorized", "mode", "num_devices"),
    [
        ("vae", True, "pmap", 1),
        ("vae", False, "shard_map", 2),
        ("batch_norm", True, "shard_map", 2),
        ("batch_norm", False, "pmap", 2),
        ("ad_factor_vae", True, "pmap", 2),
        ("ad_factor_vae", False, "pmap", 1),
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
        expected, expected_metrics = alone(kind, SEED + n)
        assert one.variables.keys() == expected.variables.keys()
        assert_close(one, expected)
        assert_close({name: value[n] for name, value in metrics.items()}, expected_metrics)
        by_itself = make_task(kind).loss(expected.variables, IMAGES)
        np.testing.assert_allclose(loss[:, n], by_itself, rtol=1e-3)


def test_states_begin_alike_bit_for_bit():
    task = make_task("ad_factor_vae")
    found = seeds.split(seeds.together(task, 2).create(seed=SEED), 2)
    for n, one in enumerate(found):
        jax.tree.map(np.testing.assert_array_equal, one, task.create(seed=SEED + n))


def test_one_seed_has_no_axis_of_seeds():
    task = make_task("vae")
    assert seeds.together(task, 1) is task
    tree = {"x": np.zeros((2, 3))}
    assert seeds.split(tree, 1)[0] is seeds.join([tree]) is tree
    joined = seeds.join(seeds.split(tree, 2))
    np.testing.assert_array_equal(joined["x"], tree["x"])


# The loop


@pytest.fixture
def two_seeds(monkeypatch, tmp_path):
    """A config of two seeds of the plain model, and a workdir."""
    monkeypatch.setattr(registry, "architecture", lambda name, image_size: PLAIN)
    config = default_config()
    config.seed, config.num_seeds = SEED, 2
    config.model.latents = 4
    config.train.batch_size = 16
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.train.steps = 6
    return config, tmp_path / "run"


def train(config, workdir):
    workdir.mkdir(exist_ok=True)
    test = LabelledImages(
        images=IMAGES,
        labels=np.zeros(len(IMAGES), np.int64),
        class_names=("normal",),
        names=tuple(map(str, range(len(IMAGES)))),
        masks=None,
        has_mask=np.zeros(len(IMAGES), bool),
    )
    data = AnomalyData(name="small", train=IMAGES, validation=IMAGES[:5], test=test)
    return jax.device_get(loop.train(config, workdir, data))


def assert_equal_runs(found, expected, workdirs):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    first, second = [(workdir / "metrics.jsonl").read_text() for workdir in workdirs]
    assert first == second


def test_run_of_two_seeds_resumes_and_equals_two_runs(two_seeds):
    config, workdir = two_seeds
    whole = train(config, workdir)
    assert whole.params["mean"]["bias"].shape == (2, 4)
    curves = read_metrics(workdir)

    # A kill between two steps, then one in the midst of a save: one seed lacks the newest step.
    other = workdir.with_name("other")
    config.train.steps = 4
    train(config, other)
    config.train.steps = 6
    assert_equal_runs(train(config, other), whole, (workdir, other))
    shutil.rmtree(other / "seed_5" / "checkpoints" / "6")
    assert_equal_runs(train(config, other), whole, (workdir, other))
    kept = sorted(path.name for path in (other / "seed_4" / "checkpoints").glob("[0-9]*"))
    assert kept[-2:] == ["4", "6"]

    # Alone; and a seed's folder is what is left of a run alone.
    for one, folder in seeds.runs(config, workdir):
        single = workdir.with_name(f"alone_{one.seed}")
        expected = train(one, single)
        assert_close(seeds.split(whole, 2)[one.seed - SEED], expected)
        for which in ("latest", "best"):
            found, alike = (loop.restore(one, path, which=which) for path in (folder, single))
            assert found.step == alike.step
            assert_close(jax.device_get(found), jax.device_get(alike))
        for name, (at, values) in read_metrics(single).items():
            assert curves[f"{name}/seed_{one.seed}"][0] == at
            np.testing.assert_allclose(curves[f"{name}/seed_{one.seed}"][1], values, rtol=1e-3)
    pairs = zip(*(curves[f"validation_loss/seed_{n}"][1] for n in (4, 5)), strict=True)
    np.testing.assert_allclose(curves["validation_loss"][1], [(a + b) / 2 for a, b in pairs])


def test_kill_in_the_first_save_begins_anew(two_seeds):
    config, workdir = two_seeds
    config.train.steps = 2
    whole = train(config, workdir)
    shutil.rmtree(workdir / "seed_5" / "checkpoints" / "2")
    other = workdir.with_name("other")
    shutil.copytree(workdir, other)
    assert_equal_runs(train(config, other), whole, (workdir, other))


def test_seeds_without_a_common_step(two_seeds):
    config, workdir = two_seeds
    train(config, workdir)
    shutil.rmtree(workdir / "seed_5" / "checkpoints")
    with pytest.raises(UserError, match="run have no intact checkpoint of the same step: give"):
        train(config, workdir)
    assert (workdir / "seed_4" / "checkpoints" / "6").is_dir()


def test_seed_that_blows_up_is_named(two_seeds, monkeypatch):
    config, workdir = two_seeds
    create = state.create

    def spoilt(*, seed, **options):
        made = create(seed=seed, **options)
        params = jax.tree.map(lambda leaf: jnp.where(seed == 5, jnp.nan, leaf), made.params)
        return made.replace(params=params)

    monkeypatch.setattr(state, "create", spoilt)
    with pytest.raises(UserError, match="the loss of seed 5 is nan at step 1: lower train.learn"):
        train(config, workdir)
    assert not list(workdir.glob("seed_*/checkpoints/[0-9]*"))


def test_every_seed_gets_the_pretrained_trunk(two_seeds, monkeypatch):
    config, workdir = two_seeds
    monkeypatch.setattr(registry, "architecture", lambda name, image_size: NORMALIZED)
    config.model.pretrained, config.model.freeze_trunk = "weights.pth", True
    config.train.steps = 2
    model = loop.build_model(config)
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


# Whole runs


DIGITS = Architecture(
    name="mnist",
    image_shape=(28, 28, 1),
    encoder=(rows.Conv("conv1", 4, 4, 4, 0), rows.ReLU("conv1_relu"), rows.Flatten()),
    decoder=(
        rows.Linear("fc1", 49),
        rows.Unflatten(7, 7, 1),
        rows.ConvTranspose("convtr1", 1, 4, 4, 0),
    ),
    initialization="torch",
)


def read(folder):
    return json.loads((folder / "evaluation" / "metrics.json").read_text())


def test_whole_run(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "architecture", lambda name, image_size: DIGITS)
    config = default_config()
    config.num_seeds = 2
    config.model.latents = 2
    config.train.batch_size = 16
    config.train.steps = config.train.checkpoint_every = 3
    config.attention.projection_steps = 0
    config.evaluate.styles, config.evaluate.layers = ("contrast",), ("conv1",)
    config.evaluate.max_images = 40
    workdir = tmp_path / "run"
    experiment.run(config, workdir, mode="all")
    metrics, (first, second) = read(workdir), [read(workdir / f"seed_{n}") for n in (0, 1)]
    name = "contrast/conv1/pixel_auroc"
    assert first[name] != second[name]
    mean, deviation = (
        statistics.mean((first[name], second[name])),
        statistics.stdev((first[name], second[name])),
    )
    assert metrics[name] == pytest.approx(mean)
    assert metrics[f"{name}_std"] == pytest.approx(deviation)
    table = (workdir / "evaluation" / "table.md").read_text()
    assert f"{mean:.3f} ± {deviation:.3f}" in table
    assert "mean ± standard deviation of seeds 0 to 1" in table
    page = (workdir / "report" / "index.html").read_text()
    assert page.count("<figcaption>") == 6
    assert page.count("Seed 0, the first of 2.</figcaption>") == 3
    assert page.count("2 seeds: the mean, and each of them pale.</figcaption>") == 1
    assert page.count("2 seeds: their mean and one standard deviation each way.</figcaption>") == 2
    for n in (0, 1):
        assert (workdir / f"seed_{n}" / "calibration.npz").stat().st_size > 0

    # A seed's folder is a workdir of that seed alone; the whole workdir is not.
    one = seeds.runs(config, workdir)[1][0]
    experiment.run(one, workdir / "seed_1", mode="train")
    with pytest.raises(UserError, match=r"another config: num_seeds \(there 2, now 3\)"):
        config.num_seeds = 3
        experiment.run(config, workdir, mode="train")


def test_mean_and_deviation_over_seeds():
    found = summary.over_seeds(
        [{"a/b/x": 1.0, "a/b/x_low": 0.5, "a/b/y": 2.0}, {"a/b/x": 4.0, "a/b/x_low": 3.0}]
    )
    assert found == {"a/b/x": 2.5, "a/b/x_std": pytest.approx(statistics.stdev([1, 4]))}
    assert tables.cell(found, "a/b/x") == "2.500 ± 2.121"
    assert tables.cell({"a/b/x": 1.0}, "a/b/x") == "1.000"
    assert tables.cell(found, "a/b/y") == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 0}, "--config.num_seeds=0 must be greater than 0"),
        ({"num_seeds": 3, "seed": 2**31 - 2}, "num_seeds=3 must be so small that all seeds are"),
        ({"data.split_seed": -1}, "data.split_seed=-1 must be 0 or more"),
    ],
)
def test_config_values_that_cannot_be(changes, message):
    config = default_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        config_lib.validate(config)
