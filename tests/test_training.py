"""Updates on one and on many devices, checkpoints, and what stops a run."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_models
from small_data import small_data

from vae_attn.data.augment import Augmentation
from vae_attn.errors import UserError
from vae_attn.training import loop, parallel, state, steps
from vae_attn.training.checkpoints import Checkpoints
from vae_attn.training.telemetry import Telemetry, read_metrics

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)


def small_model(axis_name=steps.AXIS):
    return small_models.residual(latents=3, image_shape=(8, 8, 1), axis_name=axis_name)


def run_updates(mode, num_devices, num_steps=3):
    """Losses and final variables of a few steps with batch normalisation and augmentation."""
    # Not Adam: it makes steps of full size out of the rounding errors of a bias in front of a batch
    # normalisation, whose true gradient is 0.
    model, tx = small_model(), optax.sgd(1e-3, momentum=0.9)
    devices = jax.devices()[:num_devices]
    update = parallel.parallelize(
        steps.make_update_fn(
            model=model, tx=tx, augment=Augmentation(rotation=20.0), combine=steps.beta_elbo(1.0)
        ),
        mode=mode,
        batch_size=16,
        devices=devices,
    )
    train_state = parallel.replicate(state.create(model=model, tx=tx, seed=1), devices)
    images = parallel.replicate(IMAGES, devices)
    losses = []
    for step in range(num_steps):
        indices = np.random.default_rng(step).integers(0, 20, 16).astype(np.int32)
        train_state, metrics = update(train_state, images, indices)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(train_state.variables)


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected
    )


@pytest.mark.slow
def test_eight_devices_and_both_modes_equal_one_device():
    losses, variables = run_updates("pmap", 1)
    assert losses[-1] < losses[0]
    for mode, num_devices in (("pmap", 8), ("shard_map", 8), ("shard_map", 1)):
        other_losses, other_variables = run_updates(mode, num_devices)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-4)
        assert_close(other_variables, variables)


def test_one_update_by_hand():
    """Against the loss written out on the whole batch, its gradient and a plain SGD step."""
    model, tx = small_model(), optax.sgd(0.01)
    before = state.create(model=model, tx=tx, seed=1)
    indices = np.arange(16, dtype=np.int32)
    update = parallel.parallelize(
        steps.make_update_fn(
            model=model, tx=tx, augment=Augmentation(), combine=steps.beta_elbo(2.0)
        ),
        mode="pmap",
        batch_size=16,
        devices=jax.devices()[:4],
    )
    variables = jax.tree.map(jnp.copy, before.variables)  # the update donates the state
    after, metrics = update(*parallel.replicate((before, IMAGES), jax.devices()[:4]), indices)

    keys = [
        jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), place))[0]
        for place in range(16)
    ]
    noise = jnp.stack([jax.random.normal(key, (3,)) for key in keys])
    x = jnp.asarray(IMAGES[:16]) / 255.0
    whole = small_model(axis_name=None)

    def loss(params):
        (logits, mean, logvar), _ = whole.apply(
            {**variables, "params": params}, x, noise, train=True, mutable=["batch_stats"]
        )
        p = jax.nn.sigmoid(logits)
        cross_entropy = -(x * jnp.log(p) + (1 - x) * jnp.log(1 - p)).sum() / 16
        kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar).sum() / 16
        return cross_entropy + 2 * kl, (cross_entropy, kl)

    (total, (cross_entropy, kl)), gradient = jax.value_and_grad(loss, has_aux=True)(
        variables["params"]
    )
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-4)
    np.testing.assert_allclose(metrics["reconstruction"], cross_entropy, rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-4)
    expected = jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], gradient)
    assert_close(jax.device_get(after.params), jax.device_get(expected))
    assert int(after.step) == 1


@pytest.mark.parametrize(
    ("mode", "batch_size", "message"),
    [
        ("threads", 16, "parallel.mode='threads' is unknown; choose one of pmap, shard_map"),
        ("pmap", 12, "train.batch_size=12 is not a multiple of the 8 devices"),
    ],
)
def test_impossible_parallelism(mode, batch_size, message):
    with pytest.raises(UserError, match=message):
        parallel.parallelize(lambda *args: args, mode=mode, batch_size=batch_size)


@pytest.fixture
def small_run(tmp_path):
    """A config whose model is the small one, and a workdir."""
    from vae_attn.config import default_config

    config = small_models.use(default_config(), "residual")
    config.model.latents = 3
    config.train.batch_size = 16
    config.train.log_every = 2
    config.train.checkpoint_every = 2
    config.train.steps = 6
    return config, tmp_path / "run"


def leaves(train_state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(train_state))]


def assert_equal_states(found, expected):
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def train(config, workdir, data=None):
    workdir.mkdir(exist_ok=True)
    return loop.train(config, workdir, data or small_data(IMAGES))


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(small_run):
    config, workdir = small_run
    whole = train(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8")

    other = workdir.with_name("other")
    config.train.steps = 4
    train(config, other)
    # As after a kill: a line behind the checkpoint, and half a line.
    with (other / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    config.train.steps = 6
    assert_equal_states(train(config, other), whole)
    assert (other / "metrics.jsonl").read_text(encoding="utf-8") == lines
    assert read_metrics(other)["validation_loss"][0] == [2, 4, 6]


def test_rerunning_a_finished_run_changes_nothing(small_run):
    config, workdir = small_run
    whole = train(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    assert_equal_states(train(config, workdir), whole)
    assert (workdir / "metrics.jsonl").read_text(encoding="utf-8") == lines


def test_best_and_two_latest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, loss in ((1, 5.0), (2, 1.0), (3, 4.0), (4, 3.0), (5, 2.0)):
        checkpoints.save({"x": jnp.full(3, step)}, step=step, validation_loss=loss)
    assert checkpoints.steps() == [2, 4, 5]
    template = {"x": jnp.zeros(3, jnp.int32)}
    assert checkpoints.restore(template)[1] == 5
    found, step = checkpoints.restore(template, which="best")
    assert (step, found["x"].tolist()) == (2, [2, 2, 2])
    checkpoints.close()


def flip_a_byte(folder):
    """In the largest file below a folder, in its middle."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder):
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        pytest.param(flip_a_byte, marks=pytest.mark.slow),
        pytest.param(shutil.rmtree, marks=pytest.mark.slow),
    ],
)
def test_damaged_newest_checkpoint_is_passed_over(small_run, damage, caplog):
    config, workdir = small_run
    whole = train(config, workdir)
    state_folder = workdir / "checkpoints" / "6" / "state"
    damage(state_folder)
    caplog.clear()
    assert_equal_states(train(config, workdir), whole)
    assert "checkpoints/6 is broken and passed over" in caplog.text
    checkpoints = Checkpoints(workdir)  # and has been written anew
    assert checkpoints.restore(whole)[1] == 6
    checkpoints.close()


def test_no_intact_checkpoint(small_run):
    config, workdir = small_run
    train(config, workdir)
    for folder in (workdir / "checkpoints").glob("[0-9]*"):
        truncate(folder / "state")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact"):
        train(config, workdir)


def test_no_checkpoint_at_all(small_run):
    config, workdir = small_run
    with pytest.raises(UserError, match="holds no checkpoint: train it first"):
        loop.restore(config, workdir, which="best")


def test_infinite_loss_stops_the_run_and_keeps_the_good_checkpoint(small_run):
    config, workdir = small_run
    config.train.steps = 2
    train(config, workdir)
    config.train.steps = 8
    config.train.learning_rate = 1e30
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step [4-8]: lower train.learn"):
        train(config, workdir)
    checkpoints = Checkpoints(workdir)
    assert 2 in checkpoints.steps()
    checkpoints.close()


def test_update_that_ruins_the_parameters_is_not_saved(small_run):
    """The loss of a step is from before its update: the validation loss sees what it made."""
    config, workdir = small_run
    config.train.steps = config.train.checkpoint_every = 1
    config.train.learning_rate = 1e30
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step 1: lower train.learn"):
        train(config, workdir)
    checkpoints = Checkpoints(workdir)
    assert checkpoints.steps() == []
    checkpoints.close()


def test_state_of_eight_devices_restores_on_one(small_run):
    config, workdir = small_run
    whole = train(config, workdir)
    found = loop.restore(config, workdir, which="latest")
    assert_equal_states(found, whole)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found)} == {1}


def test_full_disk_is_told(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", refuse)
    with pytest.raises(UserError, match=r"cannot save a checkpoint .* free some space"):
        checkpoints.save({"x": jnp.zeros(2)}, step=1, validation_loss=0.0)


def test_telemetry_writes_lines_and_events(tmp_path):
    telemetry = Telemetry(tmp_path, start_step=0, total_steps=10)
    telemetry.write(5, {"loss": 2.0})
    telemetry.write(10, {"loss": 1.0, "validation_loss": 1.5})
    telemetry.close()
    rows = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert rows[1] == {"step": 10, "loss": 1.0, "validation_loss": 1.5}
    assert read_metrics(tmp_path)["loss"] == ([5, 10], [2.0, 1.0])
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 100


@pytest.mark.slow
def test_bfloat16_computes_nearly_the_same_and_keeps_float32():
    model, tx, found = small_model(), optax.sgd(1.0), {}
    before = state.create(model=model, tx=tx, seed=1)
    for dtype in (jnp.float32, jnp.bfloat16):
        update = steps.make_update_fn(
            model=model, tx=tx, augment=Augmentation(), combine=steps.beta_elbo(1.0), dtype=dtype
        )
        step = parallel.parallelize(update, mode="pmap", batch_size=16, devices=jax.devices()[:1])
        arguments = parallel.replicate((before, IMAGES), jax.devices()[:1])
        found[dtype] = step(*arguments, np.arange(16, dtype=np.int32))
    (exact, losses), (rough, rough_losses) = found.values()
    assert {leaf.dtype for leaf in jax.tree.leaves((rough.params, rough.batch_stats))} == {
        jnp.dtype("float32")
    }
    assert rough_losses["loss"].dtype == jnp.float32
    assert float(rough_losses["loss"]) == pytest.approx(float(losses["loss"]), rel=1e-2)
    assert float(rough_losses["loss"]) != float(losses["loss"])  # it did compute in bfloat16
    steps_made = [
        np.concatenate(
            [
                (np.asarray(a) - b).ravel()
                for a, b in zip(
                    jax.tree.leaves(after.params), jax.tree.leaves(before.params), strict=True
                )
            ]
        )
        for after in (exact, rough)
    ]
    cosine = steps_made[0] @ steps_made[1] / np.prod([np.linalg.norm(s) for s in steps_made])
    assert cosine > 0.98
