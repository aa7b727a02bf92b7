"""Images that are streamed, a batch at a time, train what images kept on the devices do."""

import functools
import os
import pathlib
import random
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import small_models
from PIL import Image
from small_data import small_data
from test_distributed import finish, start_several

from vae_attn import config as config_lib
from vae_attn import workdir as workdir_lib
from vae_attn.data import cache, memory, sampling, stream
from vae_attn.data.augment import Augmentation
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments import validation
from vae_attn.training import factor, feed, loop, parallel, state, steps
from vae_attn.training.telemetry import read_metrics

TESTS = pathlib.Path(__file__).parent
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)


def make():
    """The first state, and the update."""
    model = small_models.normalized(latents=3, image_shape=(8, 8, 1), axis_name=steps.AXIS)
    tx = optax.adam(1e-2)
    augment = Augmentation(rotation=20.0)
    update = steps.make_update_fn(model=model, tx=tx, augment=augment, combine=steps.beta_elbo(1.0))
    return state.create(model=model, tx=tx, seed=1), update


def few_steps(first, update, mode, *, resident, batch_indices=sampling.batch_indices):
    """What three steps leave and return."""
    update = parallel.parallelize(update, mode=mode, batch_size=16, split_images=not resident)
    current, every = parallel.replicate(first), []
    indices_of = functools.partial(batch_indices, seed=1, batch_size=16, num_examples=len(IMAGES))
    for batch in feed.batches(IMAGES, indices_of, resident=resident, start=0, stop=3):
        current, metrics = update(current, *batch)
        every.append(metrics)
    return current, every


def assert_equal(found, expected):
    """Bit for bit."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("mode", "num_devices"),
    [
        ("pmap", 8),
        pytest.param("pmap", 1, marks=pytest.mark.slow),
        pytest.param("shard_map", 2, marks=pytest.mark.slow),
    ],
)
def test_streamed_steps_equal_resident_ones_bit_for_bit(mode, num_devices, monkeypatch):
    devices = jax.devices()[:num_devices]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    first, update = make()
    streamed = few_steps(first, update, mode, resident=False)
    assert_equal(streamed, few_steps(first, update, mode, resident=True))
    losses = [metrics["loss"] for metrics in streamed[1]]
    assert losses[2] < losses[0]


def two_seeds(*, seed, **options):
    return np.stack([factor.two_batches(seed=seed + n, **options) for n in (0, 1)], axis=1)


@pytest.mark.parametrize("mode", parallel.MODES)
@pytest.mark.parametrize("batch_indices", [sampling.batch_indices, factor.two_batches, two_seeds])
def test_devices_see_the_same_images(mode, batch_indices):
    """Of one batch, of FactorVAE's two, of those of two seeds."""

    def see(count, images, indices):
        return count + 1, jax.lax.all_gather(images[indices], steps.AXIS, tiled=True)

    options = {"batch_indices": batch_indices}
    count, streamed = few_steps(np.int32(0), see, mode, resident=False, **options)
    assert count == 3
    assert_equal(streamed, few_steps(np.int32(0), see, mode, resident=True, **options)[1])
    for step, seen in enumerate(streamed):
        indices = batch_indices(seed=1, step=step, batch_size=16, num_examples=len(IMAGES))
        np.testing.assert_array_equal(seen, IMAGES[indices])


def test_processes_share_a_batch(monkeypatch):
    """Each has what its own of the 8 devices get, wherever these lie."""
    batch = np.arange(48).reshape(24, 2)
    monkeypatch.setattr(parallel, "_here", lambda devices: [0, 2, 7])
    expected = batch[[0, 1, 2, 6, 7, 8, 21, 22, 23]]
    np.testing.assert_array_equal(parallel.share(batch), expected)


def test_each_process_reads_its_share_alone(monkeypatch):
    read = []

    def read_ahead(images, indices_of, *, start, stop):
        read.extend(indices_of(step) for step in range(start, stop))
        return iter(read)

    monkeypatch.setattr(parallel, "_here", lambda devices: [2, 3])
    monkeypatch.setattr(stream, "read_ahead", read_ahead)
    indices_of = functools.partial(factor.two_batches, seed=3, batch_size=16, num_examples=20)
    given = list(feed.batches(IMAGES, indices_of, resident=False, start=5, stop=7))
    for step, (_, places) in zip((5, 6), given, strict=True):
        batch = indices_of(step=step)
        np.testing.assert_array_equal(read[step - 5], batch[4:8].ravel())
        # Every device finds its part of the batch among its own images.
        own = read[step - 5].reshape(2, -1)
        np.testing.assert_array_equal(own[0][places[4:6]], batch[4:6])
        np.testing.assert_array_equal(own[1][places[6:8]], batch[6:8])
        np.testing.assert_array_equal(places.reshape(8, 2, 2), [[[0, 1], [2, 3]]] * 8)


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Through the whole program; one process that keeps the images has the same losses."""
    flags = [
        *("--config=configs/digits.py", "--mode=train", "--config.train.steps=4"),
        *("--config.train.checkpoint_every=2", "--config.train.log_every=1"),
        *small_models.flags("digits"),
    ]
    program = [TESTS / "small_run.py", *flags]
    several = [*program, f"--workdir={tmp_path / 'two'}", "--config.data.resident=false"]
    finish(start_several(several, processes=2, devices=2))
    finish(start_several([*program, f"--workdir={tmp_path / 'one'}"], processes=1, devices=1))
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for name in ("loss", "kl", "reconstruction", "validation_loss"):
        assert two[name][0] == one[name][0]
        np.testing.assert_allclose(two[name][1], one[name][1], rtol=1e-4)


def test_read_by_several_threads_in_the_order_of_steps():
    """Whichever is first, and from any step."""
    threads = set()

    def indices_of(step):
        threads.add(threading.get_ident())
        time.sleep(random.random() / 50)
        return np.array([step % 20, (step + 7) % 20])

    def read(start):
        return list(stream.read_ahead(IMAGES, indices_of, start=start, stop=30))

    whole = read(0)
    expected = [IMAGES[[step % 20, (step + 7) % 20]] for step in range(30)]
    np.testing.assert_array_equal(whole, expected)
    assert len(threads) > 1
    np.testing.assert_array_equal(read(17), expected[17:])
    assert not read(30)


def test_threads_end_with_the_training():
    batches = stream.read_ahead(IMAGES, lambda step: np.array([0]), start=0, stop=100)
    before = set(threading.enumerate())
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def mapped(tmp_path):
    """Images mapped from a file of the cache, without the first of them."""
    spec = cache.Spec(IMAGES.shape, IMAGES.dtype)

    def build(keep):
        for index, image in enumerate(IMAGES):
            keep("images", index, image)

    return cache.load_or_build("key", {"images": spec}, build, cache_dir=tmp_path)["images"][1:]


@pytest.mark.parametrize("damage", ["cut", "deleted"])
def test_a_file_that_is_damaged_meanwhile(mapped, damage):
    path, damaged = pathlib.Path(mapped.filename), threading.Event()

    def indices_of(step):
        assert step < 3 or damaged.wait(10)
        return np.array([step])

    batches = stream.read_ahead(mapped, indices_of, start=0, stop=12)
    found = [next(batches) for _ in range(3)]
    if damage == "cut":
        os.truncate(path, 200)
    else:
        path.unlink()
    damaged.set()
    if damage == "cut":
        with pytest.raises(UserError, match=rf"^{path} was cut short while .* again, [^.]*\.$"):
            next(batches)
    else:
        np.testing.assert_array_equal([*found, *batches], IMAGES[1:13, None])


@pytest.fixture
def small_run(tmp_path):
    """A config whose model is the small one, and a folder."""
    config = small_models.use(config_lib.default_config(), "normalized")
    config.model.latents = 3
    config.train.batch_size = 16
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.train.steps = 4
    return config, tmp_path


def train(config, workdir, *, resident):
    config.data.resident = resident
    workdir.mkdir(exist_ok=True)
    data = small_data(IMAGES)
    return loop.train(config, workdir, data)


@pytest.mark.slow
def test_a_streamed_run_resumes_bit_for_bit(small_run):
    """And a run may go on another way than it began."""
    config, folder = small_run
    config.train.steps = 6
    whole = train(config, folder / "resident", resident="true")
    for config.train.steps, resident in ((2, "false"), (4, "false"), (6, "true")):
        found = train(config, folder / "streamed", resident=resident)
    assert_equal(found, whole)
    lines = [
        (folder / name / "metrics.jsonl").read_text(encoding="utf-8")
        for name in ("resident", "streamed")
    ]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_folder_over_the_limit_is_streamed(small_run, caplog):
    """From one's own images to the calibrated maps, with the figures of a resident run."""
    config, folder = small_run
    generator = np.random.default_rng(0)
    for name in (
        *(f"train/good/{n}" for n in range(30)),
        "test/good/0",
        "test/odd/0",
        "test/odd/1",
    ):
        path = folder / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (9, 9), np.uint8)).save(path)
    config.data.name, config.data.image_size, config.data.channels = "folder", 8, 1
    config.data.dir, config.data.cache_dir = str(folder / "data"), str(folder / "cache")
    config.data.validation_fraction = 0.2
    config.attention.projection_steps = 0
    config.attention.layers = config.evaluate.layers = ("conv1",)
    config.evaluate.styles = ("contrast",)
    config.evaluate.faithful_images = 0
    caplog.set_level("INFO", "vae_attn")
    results = {}
    for limit in (0.0016, 0.0015):  # 24 images of 64 bytes take 0.001536 MB
        config.data.resident_limit_mb = limit
        experiment.run(config, folder / str(limit), mode="train")
        results[limit] = (folder / str(limit) / "metrics.jsonl").read_text(encoding="utf-8")
        message = "streamed: they take 0.0 MB, and data.resident_limit_mb is 0.0 MB"
        assert (message in caplog.text) == (limit == 0.0015)
        calibration = dict(np.load(folder / str(limit) / "calibration.npz"))
        results[limit] = results[limit], {name: x.tolist() for name, x in calibration.items()}
    np.testing.assert_equal(results[0.0015], results[0.0016])  # NaN is equal to itself
    # The same workdir may go on with another limit.
    config.data.resident, config.data.resident_limit_mb = "false", 7.0
    workdir_lib.keep_or_compare(config, folder / "0.0016")


def test_what_auto_decides_by(monkeypatch):
    config = config_lib.default_config()
    images = np.broadcast_to(np.uint8(0), (100, 100, 100, 1))  # 1 MB
    tell = {"bytes_limit": 2_000_001}
    devices = [SimpleNamespace(memory_stats=lambda n=n: n and tell) for n in (True, True)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert feed.is_resident(config, images)
    tell["bytes_limit"] = 1_999_999
    assert not feed.is_resident(config, images)
    # A device that tells nothing, as the CPU's do: both take from the machine's memory.
    devices.append(SimpleNamespace(memory_stats=lambda: None))
    for available, resident in ((6_000_001, True), (5_999_999, False)):
        monkeypatch.setattr(memory, "available_bytes", lambda available=available: available)
        assert feed.is_resident(config, images) == resident
    for limit, resident in ((1.0, True), (0.999, False)):
        config.data.resident_limit_mb = limit
        assert feed.is_resident(config, images) == resident
    for value in ("true", "false"):
        config.data.resident = value
        assert feed.is_resident(config, images) == (value == "true")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("resident", "yes", "data.resident='yes' must be one of auto, true, false"),
        ("resident_limit_mb", -1.0, r"data.resident_limit_mb=-1.0 must be 0 or more"),
    ],
)
def test_impossible_settings(key, value, expected):
    config = config_lib.default_config()
    config.data[key] = value
    with pytest.raises(UserError, match=expected):
        validation.validate(config)


LARGE = """
import functools, pathlib, re, sys
import numpy as np
from vae_attn.data import cache, sampling
from vae_attn.training import feed

def anonymous():  # what no file backs, and no one could take back
    return int(re.search(r"RssAnon:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1e3

def build(keep):
    for index in range(len(row_of)):
        keep("images", index, np.full((512, 512, 1), row_of[index], np.uint8))
        peaks.append(anonymous())

row_of = np.random.default_rng(0).integers(0, 256, 384)
spec = cache.Spec((384, 512, 512, 1), np.dtype(np.uint8))
indices_of = functools.partial(sampling.batch_indices, seed=0, batch_size=4, num_examples=384)
small = np.zeros((384, 1), np.uint8)
for _ in feed.batches(small, indices_of, resident=False, start=0, stop=9): pass  # imports
before, peaks = anonymous(), []
images = cache.load_or_build("key", {"images": spec}, build, cache_dir=sys.argv[1])["images"]
step = 0
for step, (own, _) in enumerate(
    feed.batches(images, indices_of, resident=False, start=0, stop=96), 1
):
    peaks.append(anonymous())
    np.testing.assert_array_equal(own[:, 7, 9, 0], row_of[indices_of(step=step - 1)])
print(step, images.nbytes / 1e6, max(peaks) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_neither_cache_nor_stream_hold_all_images(tmp_path):
    """An epoch of 101 MB, built and read: the memory grows by the few MB of the batches ahead."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LARGE, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    num_steps, size, growth = map(float, done.stdout.split())
    assert num_steps == 96
    assert size > 100
    assert growth < 40
