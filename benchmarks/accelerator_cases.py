"""The cases of `benchmarks.accelerator`, each a generator of rows.

python -m benchmarks.accelerator_cases CASE FILE [--small]      measures one in this process
"""

import concurrent.futures
import functools
import importlib.util
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator_rows as rows
from benchmarks import accelerator_steps as steps
from benchmarks import ours
from benchmarks.accelerator import Row, append, measured
from benchmarks.accelerator_steps import SIZES, SMALL


def _chip(small: bool) -> Iterator[Row]:
    """What the device does in a large product and a large copy, by which others are judged."""
    device = jax.devices()[0]
    found = f"{len(jax.devices())} x {device.device_kind}"
    yield {"side": found, "note": f"JAX {jax.__version__}"}
    size = 256 if small else 8192
    product = jax.jit(jnp.matmul)
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.ones((size, size), dtype)
        seconds = rows.seconds(lambda x=x: product(x, x).block_until_ready())
        yield rows.row(f"product, {dtype.__name__}", 2 * size**3 / seconds / 1e12, "TFLOP/s")
    x = jnp.ones((2**18 if small else 2**28,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = rows.seconds(lambda: copy(x).block_until_ready())
    yield rows.row(rows.COPY, 2 * x.nbytes / seconds / 1e9, "GB/s")


def _maps(name: str, layer: str, small: bool) -> Iterator[Row]:
    """The maps of all latents, in encoder passes."""
    name, layer = ("convnet", "conv2") if small else (name, layer)
    size, batch = (SMALL if small else SIZES)[name]
    model, variables, images = ours.setting(name, size=size)
    variables, x = jax.device_put((variables, images[:batch]))
    encode, attend = ours.encoder(model), ours.latent_maps(model, layer)
    one = rows.seconds(lambda: jax.block_until_ready(encode(variables, x)))
    yield rows.row("one encoder pass", 1e3 * one, "ms")
    all_ = rows.seconds(lambda: attend(variables, x).block_until_ready())
    yield rows.row(f"32 maps at {layer}", 1e3 * all_, "ms", f"{all_ / one:.2f} encoder passes")


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
    _ = masks.regions  # found once, and not timed
    none = Threshold(None)

    def count() -> None:
        found = {one: collected.Collected(pixels=none, images=none) for one in variants}
        add = collected.Collected.add_test
        collected.add_to_each(found, add, raw, statistics, masks)

    for threads in (1, 2) if small else (1, 2, 4, 8):
        pool = functools.partial(concurrent.futures.ThreadPoolExecutor, threads)
        with mock.patch.object(collected, "threads", pool):
            seconds = rows.seconds(count)
        side = f"{len(variants)} variants, threads: {threads}"
        yield rows.row(side, 1e6 * seconds / n / len(variants), "us a map")


def _run(small: bool) -> Iterator[Row]:
    """A whole run by its phases: MNIST where its files are, else scikit-learn's digits."""
    start = time.perf_counter()
    from vae_attn.experiments import run as experiment
    from vae_attn.training import checkpoints, telemetry

    folders = (pathlib.Path(one) for one in ("data/mnist", "shared/data/mnist"))
    found = [folder for folder in folders if folder.is_dir() and not small]
    config = _config("mnist", "3") if found else _config("digits")
    config.data.dir = str(found[0]) if found else config.data.dir
    if small:
        config.train.update({"steps": 2, "log_every": 1, "checkpoint_every": 2})
        config.evaluate.max_images, config.evaluate.faithful_images = 8, 0
        config.evaluate.styles, config.report.tensorboard_images = ("contrast",), 0
    yield rows.row("start", time.perf_counter() - start, "s", config.data.name)
    compiling, saving, logged = [], [], []
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

    def noted(self: telemetry.Telemetry, step: int, *arguments, at: float, **options) -> None:
        logged.append((step, at))
        write(self, step, *arguments, at=at, **options)

    write = telemetry.Telemetry.write
    checkpoints.Checkpoints.save, telemetry.Telemetry.write = timed, noted
    with tempfile.TemporaryDirectory() as workdir:
        for mode in ("train", "evaluate") if small else ("train", "evaluate", "explain"):
            compiling.clear(), saving.clear()
            begun = time.perf_counter()
            experiment.run(config, pathlib.Path(workdir) / "run", mode=mode)
            note = f"of which {sum(compiling):.1f} s in the compiler, in all threads"
            note += f"; {len(saving)} checkpoints in {sum(saving):.1f} s beside" if saving else ""
            yield rows.row(mode, time.perf_counter() - begun, "s", note)
            if mode == "train":
                (first, since), (last, until) = logged[0], logged[-1]
                yield rows.row("its steps", until - since, "s", f"from step {first} to {last}")


def _config(name: str, *variant: str):
    path = pathlib.Path("configs") / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


CASES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "chip": _chip,
    "step_mnist": functools.partial(steps.step, "mnist"),
    "step_ped1": functools.partial(steps.step, "ucsd_ped1"),
    "step_mvtec": functools.partial(steps.step, "mvtec_ad"),
    "step_factor_vae": functools.partial(steps.step_factor_vae, 0.0),
    "step_ad_factor_vae": functools.partial(steps.step_factor_vae, 1.0),
    "seeds": steps.of_seeds,
    "options": steps.options,
    "maps_mnist": functools.partial(_maps, "mnist", "conv2"),
    "maps_ped1": functools.partial(_maps, "ucsd_ped1", "conv3"),
    "maps_mvtec": functools.partial(_maps, "mvtec_ad", "layer4"),
    "counts": _counts,
    "run": _run,
}


def main() -> None:
    """Measures one case, row by row."""
    name, path, *small = sys.argv[1:]
    if jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    found = measured(pathlib.Path(path))
    rows.MEASURED_OF_CHIP.update(
        {row["side"]: row["value"] for row in found if row["case"] == "chip" and "value" in row}
    )
    for row in CASES[name](small=bool(small)):
        append(pathlib.Path(path), {"case": name, **row})


if __name__ == "__main__":
    main()
