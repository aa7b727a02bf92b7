"""The cases of `benchmarks.accelerator`, each a generator of rows.

python -m benchmarks.accelerator_cases CASE FILE [--small]      measures one in this process
"""

import concurrent.futures
import contextlib
import functools
import importlib.util
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import ours
from benchmarks.accelerator import Row, append, measured
from vae_attn import backend
from vae_attn.data import sampling
from vae_attn.data.augment import Augmentation
from vae_attn.models import build
from vae_attn.models.discriminator import Discriminator
from vae_attn.training import factor, parallel, seeds, state, steps
from vae_attn.training.task import Task

# Model, side of its images and batch; and the smaller ones to try the program with.
_SIZES = {"mnist": (28, 128), "ucsd_ped1": (100, 32), "mvtec_ad": (256, 8)}
_SMALL = {"convnet": (32, 8)}
_FACTOR_BATCH = 64
_SECONDS = 1.0  # that the calls of one measurement take at least
_COPY = "copy, read and written"
_MEASURED_OF_CHIP: dict[str, float] = {}  # by the case `chip`, in this run
_TOLERANCE = 2e-2  # of gradients, in which both sides may round products to TF32


def _seconds(call: Callable[[], object], *, least: float = _SECONDS) -> float:
    """Median seconds of a call that waits for its result, without the first two."""
    call(), call()
    found: list[float] = []
    while not found or (sum(found) < least and len(found) < 1000):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def _row(side: str, value: float, unit: str, note: str = "") -> Row:
    stats = jax.local_devices()[0].memory_stats() or {}  # none on the CPU
    peak = stats.get("peak_bytes_in_use", 0) / 2**20
    return {"side": side, "value": value, "unit": unit, "peak_mib": peak, "note": note}


def _chip(small: bool) -> Iterator[Row]:
    """What the device does in a large product and a large copy, by which others are judged."""
    device = jax.devices()[0]
    found = f"{len(jax.devices())} x {device.device_kind}"
    yield {"side": found, "note": f"JAX {jax.__version__}"}
    size = 256 if small else 8192
    product = jax.jit(jnp.matmul)
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.ones((size, size), dtype)
        seconds = _seconds(lambda x=x: product(x, x).block_until_ready())
        yield _row(f"product, {dtype.__name__}", 2 * size**3 / seconds / 1e12, "TFLOP/s")
    x = jnp.ones((2**18 if small else 2**28,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = _seconds(lambda: copy(x).block_until_ready())
    yield _row(_COPY, 2 * x.nbytes / seconds / 1e9, "GB/s")


def _repeated(update: Callable, start, images, indices: Callable, batch: int, at_once: int):
    """A call that makes several steps at once and waits for them."""
    many = update if at_once == 1 else steps.repeated(update)
    run = parallel.parallelize(many, mode="pmap", batch_size=batch)
    current, images = parallel.replicate((start, images))
    counter = iter(range(0, 10**9, at_once))

    def batches(first: int) -> np.ndarray:
        each = [indices(step=first + n) for n in range(at_once)]
        return each[0] if at_once == 1 else np.stack(each, axis=1)

    def call() -> dict[str, jax.Array]:
        nonlocal current
        current, metrics = run(current, images, batches(next(counter)))
        return jax.block_until_ready((current, metrics))[1]

    def cost() -> dict[str, float]:
        lowered = run.lower(current, images, batches(0))
        # Compiled a second time, which JAX's cache saves where there is one.
        counted = lowered if jax.default_backend() == "cpu" else lowered.compile()
        return counted.cost_analysis() or {}

    return call, cost


def _our_steps(update_of, start, images, indices, batch, dtypes, small) -> Iterator[Row]:
    for dtype in dtypes:
        for at_once in (1, 2) if small else (1, 10, 50):
            call, cost = _repeated(update_of(dtype), start, images, indices, batch, at_once)
            milliseconds = 1e3 * _seconds(call) / at_once
            note = ""
            if at_once == 1 and (found := cost()):
                note = _share(found, dtype, milliseconds)
            yield _row(f"ours, {dtype}, {at_once} a call", milliseconds, "ms a step", note)


def _share(cost: dict[str, float], dtype: str, milliseconds: float) -> str:
    """How much of what the chip did in a large product and a large copy a step does."""
    shares = []
    for what, side, key, unit in (
        ("the product's arithmetic", f"product, {dtype}", "flops", 1e12),
        ("the copy's bytes", _COPY, "bytes accessed", 1e9),
    ):
        if side in _MEASURED_OF_CHIP:
            rate = cost.get(key, 0) / (milliseconds / 1e3) / unit
            shares.append(f"{rate / _MEASURED_OF_CHIP[side]:.1%} of {what}")
    return ", ".join(shares)


def _step(name: str, small: bool) -> Iterator[Row]:
    """A VAE's step beside PyTorch's; all small ones are of one model, once beside PyTorch's."""
    beside_torch = _has_torch() and (name == "mnist" or not small)
    name = "convnet" if small else name
    size, batch = (_SMALL if small else _SIZES)[name]
    model, _, images = ours.setting(name, size=size)
    tx = optax.adam(1e-3)

    def update_of(dtype: str) -> Callable:
        return steps.make_update_fn(
            model=model,
            tx=tx,
            augment=Augmentation(),
            combine=steps.beta_elbo(1.0),
            dtype=jnp.dtype(dtype),
        )

    indices = functools.partial(
        sampling.batch_indices, seed=0, batch_size=batch, num_examples=len(images)
    )
    start = state.create(model=model, tx=tx, seed=0)
    dtypes = ("float32", "bfloat16")
    yield from _our_steps(update_of, start, images, indices, batch, dtypes, small)
    if beside_torch:
        from benchmarks import training

        expected = training._ours(name, size, batch).values
        kinds = {"eager": "eager", "channels_last": "channels-last, fused Adam"}
        kinds["compiled"] = "channels-last, fused Adam, torch.compile with CUDA graphs"
        for kind, label in kinds.items():
            build_side = functools.partial(training._torch, name, size, batch, kind=kind)
            yield _beside(f"torch, {label}", build_side, expected)


def _options(small: bool) -> Iterator[Row]:
    """What else might make a step faster, each alone beside the step as it is."""
    graphs = {
        "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,WHILE",
        "xla_gpu_graph_min_graph_size": "1",
    }
    choices: dict[str, dict[str, object]] = {
        "as it is": {},
        "Adam on one flat vector": {"flat": True},
        "windows as on the CPU": {"slow_windows": lambda: True},
        "convolutions as products": {"as_products": lambda: True},
        "all of it in CUDA graphs": {"compiler_options": lambda: graphs},
    }
    at_once = 1 if small else 10
    for name in ("factor_vae", "mvtec_ad"):
        expected = None
        for choice, changes in choices.items():
            side = f"{name}, {choice}"
            changes = dict(changes)
            flat = bool(changes.pop("flat", False))
            with mock.patch.multiple(backend, **changes) if changes else contextlib.nullcontext():
                try:
                    call = _optional_step(name, flat, at_once, small)
                    loss = float(np.ravel(call()["loss"])[-1])
                    seconds = _seconds(call)
                except Exception as error:  # an option that this compiler does not know
                    yield {"side": side, "note": f"cannot: {str(error).splitlines()[0][:100]}"}
                    continue
            expected = loss if expected is None else expected
            off = abs(loss / expected - 1)
            note = "" if off < _TOLERANCE else f"the loss differs by {off:.1%}"
            yield _row(side, 1e3 * seconds / at_once, "ms a step", note)


def _optional_step(
    name: str, flat: bool, at_once: int, small: bool
) -> Callable[[], dict[str, jax.Array]]:
    """A call of some steps."""
    flatten = optax.flatten if flat else lambda tx: tx
    if name == "factor_vae":
        batch = 4 if small else _FACTOR_BATCH
        task, images = _factor_task(small, flatten)
        update, start, indices = task.update, task.create(seed=0), task.batch_indices
    else:
        name = "convnet" if small else name
        size, batch = (_SMALL if small else _SIZES)[name]
        model, _, images = ours.setting(name, size=size)
        tx = flatten(optax.adam(1e-3))
        elbo = steps.beta_elbo(1.0)
        update = steps.make_update_fn(model=model, tx=tx, augment=Augmentation(), combine=elbo)
        start, indices = state.create(model=model, tx=tx, seed=0), sampling.batch_indices
    indices = functools.partial(indices, seed=0, batch_size=batch, num_examples=len(images))
    return _repeated(update, start, images, indices, batch, at_once)[0]


def _step_factor_vae(small: bool) -> Iterator[Row]:
    """FactorVAE's step beside PyTorch's."""
    batch = 4 if small else _FACTOR_BATCH
    task, images = _factor_task(small)
    indices = functools.partial(
        task.batch_indices, seed=0, batch_size=batch, num_examples=len(images)
    )
    start = task.create(seed=0)
    yield from _our_steps(lambda _: task.update, start, images, indices, batch, ("float32",), small)
    if _has_torch() and not small:
        from benchmarks import factor as sides

        expected = sides._ours(0.0).values
        yield _beside("torch, eager", functools.partial(sides._torch, 0.0), expected)


def _factor_task(small: bool, flatten: Callable = lambda tx: tx) -> tuple[Task, np.ndarray]:
    model = build.build("dsprites", image_size=64, latents=ours.LATENTS)
    networks = {
        "model": model,
        "discriminator": Discriminator(units=16) if small else Discriminator(),
        "tx": flatten(optax.adam(1e-4)),
        "discriminator_tx": flatten(optax.adam(1e-4, b1=0.5, b2=0.9)),
    }
    objective = factor.FactorObjective(gamma=40.0)
    update = factor.make_factor_update_fn(**networks, objective=objective, pixels_of=steps.to_unit)
    create = functools.partial(factor.create, **networks)
    loss = steps.make_loss_fn(model=model, combine=steps.beta_elbo(1.0))
    images = np.where(ours.pictures(model.image_shape) > 127, 255, 0).astype(np.uint8)
    return Task(create, update, loss, factor.two_batches), images


def _seeds(small: bool) -> Iterator[Row]:
    """Seeds of FactorVAE in one program, against one after another."""
    batch, at_once = (4, 1) if small else (_FACTOR_BATCH, 10)
    alone = 0.0
    for count in (1, 2) if small else (1, 2, 5, 10):
        task, images = _factor_task(small)
        task = seeds.together(task, count)
        indices = functools.partial(
            task.batch_indices, seed=0, batch_size=batch, num_examples=len(images)
        )
        start = task.create(seed=0)
        call, _ = _repeated(task.update, start, images, indices, batch, at_once)
        rate = count * at_once / _seconds(call)
        alone = alone or rate
        note = f"{rate / alone:.2f} times one after another" if count > 1 else ""
        yield _row(f"{count} seeds, {at_once} a call", rate, "seed-steps/s", note)


def _maps(name: str, layer: str, small: bool) -> Iterator[Row]:
    """The maps of all latents, in encoder passes."""
    name, layer = ("convnet", "conv2") if small else (name, layer)
    size, batch = (_SMALL if small else _SIZES)[name]
    model, variables, images = ours.setting(name, size=size)
    variables, x = jax.device_put((variables, images[:batch]))
    encode, attend = ours.encoder(model), ours.latent_maps(model, layer)
    one = _seconds(lambda: jax.block_until_ready(encode(variables, x)))
    yield _row("one encoder pass", 1e3 * one, "ms")
    all_ = _seconds(lambda: attend(variables, x).block_until_ready())
    yield _row(f"32 maps at {layer}", 1e3 * all_, "ms", f"{all_ / one:.2f} encoder passes")


def _counts(small: bool) -> Iterator[Row]:
    """All variants of MNIST's maps, calibrated and counted on the host."""
    from vae_attn import attention
    from vae_attn.experiments.anomaly import calibration, collected, evaluation
    from vae_attn.experiments.anomaly.thresholds import Threshold

    n, layers = (4, ("conv1",)) if small else (1024, ("conv1", "conv2"))
    styles = attention.STYLES
    variants = [one for one in evaluation.variants(styles, layers, layers) if one.style in styles]
    random = np.random.default_rng(0)
    keys = {key for one in variants for key in one.keys}
    raw = {key: random.random((n, 28, 28), np.float32) for key in sorted(keys)}
    for maps in raw.values():
        maps[:, :6] = 0  # as beside a digit
    statistics = calibration.measure(raw)
    defects = np.zeros((n, 28, 28), bool)
    defects[:, 10:17, 12:18] = True
    masks = collected.Masks(np.ones(n, bool), defects)
    _ = masks.regions  # of both ways, found once
    none = Threshold(None)

    def count() -> None:
        found = {one: collected.Collected(pixels=none, images=none) for one in variants}
        add = collected.Collected.add_test
        collected.add_to_each(found, add, raw, statistics, masks)

    for threads in (1, 2) if small else (1, 2, 4, 8):
        pool = functools.partial(concurrent.futures.ThreadPoolExecutor, threads)
        with mock.patch.object(collected, "threads", pool):
            seconds = _seconds(count)
        side = f"{len(variants)} variants, threads: {threads}"
        yield _row(side, 1e6 * seconds / n / len(variants), "us a map")


def _run(small: bool) -> Iterator[Row]:
    """A whole run by its phases: MNIST where its files are, else scikit-learn's digits."""
    start = time.perf_counter()
    from vae_attn.experiments import run as experiment
    from vae_attn.training import checkpoints

    folders = (pathlib.Path(one) for one in ("data/mnist", "shared/data/mnist"))
    found = [folder for folder in folders if folder.is_dir() and not small]
    config = _config("mnist", "3") if found else _config("digits")
    config.data.dir = str(found[0]) if found else config.data.dir
    if small:
        config.train.steps = config.train.checkpoint_every = 2
        config.evaluate.max_images, config.evaluate.faithful_images = 8, 0
        config.evaluate.styles, config.report.tensorboard_images = ("contrast",), 0
    yield _row("start", time.perf_counter() - start, "s", config.data.name)
    compiling, saving = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiling.append(seconds) if event.endswith("backend_compile_duration") else None
        )
    )
    save = checkpoints.Checkpoints.save

    def timed(*arguments, **options) -> None:
        begun = time.perf_counter()
        save(*arguments, **options)
        saving.append(time.perf_counter() - begun)

    checkpoints.Checkpoints.save = timed
    with tempfile.TemporaryDirectory() as workdir:
        for mode in ("train", "evaluate") if small else ("train", "evaluate", "explain"):
            compiling.clear(), saving.clear()
            begun = time.perf_counter()
            experiment.run(config, pathlib.Path(workdir) / "run", mode=mode)
            note = f"of which {sum(compiling):.1f} s in the compiler, in all threads"
            note += f"; {len(saving)} checkpoints in {sum(saving):.1f} s beside" if saving else ""
            yield _row(mode, time.perf_counter() - begun, "s", note)


def _config(name: str, *variant: str):
    path = pathlib.Path("configs") / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _beside(label: str, build_side: Callable, expected) -> Row:
    """A side of PyTorch's, timed if it computes what ours does."""
    import torch

    from benchmarks.case import difference

    torch.set_float32_matmul_precision("high")  # TF32, as JAX's default is
    torch.backends.cudnn.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        side = build_side(device=device)
        for what, distance in difference(expected, side.values).items():
            if not distance <= _TOLERANCE:
                return {"side": label, "note": f"{what} differs from ours by {distance:.2g}"}
        seconds = _seconds(side.call)
    except Exception as error:  # torch.compile lacks a compiler, memory is too small, ...
        return {"side": label, "note": f"cannot: {str(error).splitlines()[0][:100]}"}
    row = _row(label, 1e3 * seconds, "ms a step", f"torch {torch.__version__}")
    row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0
    return row


CASES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "chip": _chip,
    "step_mnist": functools.partial(_step, "mnist"),
    "step_ped1": functools.partial(_step, "ucsd_ped1"),
    "step_mvtec": functools.partial(_step, "mvtec_ad"),
    "step_factor_vae": _step_factor_vae,
    "seeds": _seeds,
    "maps_mnist": functools.partial(_maps, "mnist", "conv2"),
    "maps_ped1": functools.partial(_maps, "ucsd_ped1", "conv3"),
    "maps_mvtec": functools.partial(_maps, "mvtec_ad", "layer4"),
    "counts": _counts,
    "options": _options,
    "run": _run,
}


def main() -> None:
    """Measures one case, row by row."""
    name, path, *small = sys.argv[1:]
    if jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    rows = measured(pathlib.Path(path))
    _MEASURED_OF_CHIP.update(
        {row["side"]: row["value"] for row in rows if row["case"] == "chip" and "value" in row}
    )
    for row in CASES[name](small=bool(small)):
        append(pathlib.Path(path), {"case": name, **row})


if __name__ == "__main__":
    main()
