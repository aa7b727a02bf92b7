"""The cases of `benchmarks.accelerator` that time training steps."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import optax

from benchmarks import accelerator_rows as rows
from benchmarks import ours
from benchmarks.accelerator import Row
from vae_attn import backend
from vae_attn.data import sampling
from vae_attn.models import build
from vae_attn.models.discriminator import Discriminator
from vae_attn.training import factor, parallel, seeds, state, steps
from vae_attn.training.task import Task

# Model, side of its images and batch; and the smaller ones to try the program with.
SIZES = {"mnist": (28, 128), "ucsd_ped1": (100, 32), "mvtec_ad": (256, 8)}
SMALL = {"convnet": (32, 8)}

Wrap = Callable[[optax.GradientTransformation], optax.GradientTransformation]

_FACTOR_BATCH = 64
_TOLERANCE = 2e-2  # of gradients, in which both sides may round products to TF32


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
            milliseconds = 1e3 * rows.seconds(call) / at_once
            note = ""
            if at_once == 1 and (found := cost()):
                note = rows.share(found, dtype, milliseconds)
            yield rows.row(f"ours, {dtype}, {at_once} a call", milliseconds, "ms a step", note)


def step(name: str, small: bool) -> Iterator[Row]:
    """A VAE's step beside PyTorch's; all small ones are of one model, once beside PyTorch's."""
    beside_torch = _has_torch() and (name == "mnist" or not small)
    name = "convnet" if small else name
    size, batch = (SMALL if small else SIZES)[name]
    model, _, images = ours.setting(name, size=size)
    tx = optax.adam(1e-3)

    indices = functools.partial(
        sampling.batch_indices, seed=0, batch_size=batch, num_examples=len(images)
    )
    start = state.create(model=model, tx=tx, seed=0)
    dtypes = ("float32", "bfloat16")
    update_of = functools.partial(ours.vae_update, model, tx)
    yield from _our_steps(update_of, start, images, indices, batch, dtypes, small)
    if beside_torch:
        from benchmarks import training

        expected = training._ours(name, size, batch).values
        kinds = {"eager": "eager", "channels_last": "channels-last, fused Adam"}
        kinds["compiled"] = "channels-last, fused Adam, torch.compile with CUDA graphs"
        for kind, label in kinds.items():
            build_side = functools.partial(training._torch, name, size, batch, kind=kind)
            yield _beside(f"torch, {label}", build_side, expected)


def step_factor_vae(weight: float, small: bool) -> Iterator[Row]:
    """The step of FactorVAE, or with a weight of L_AD of AD-FactorVAE, beside PyTorch's."""
    batch = 4 if small else _FACTOR_BATCH
    task, images = _factor_task(small, weight)
    indices = functools.partial(
        task.batch_indices, seed=0, batch_size=batch, num_examples=len(images)
    )
    start = task.create(seed=0)
    yield from _our_steps(lambda _: task.update, start, images, indices, batch, ("float32",), small)
    if _has_torch() and not small:
        from benchmarks import factor as sides

        expected = sides._ours(weight).values
        yield _beside("torch, eager", functools.partial(sides._torch, weight), expected)


def _factor_task(
    small: bool, weight: float = 0.0, wrap: Wrap = lambda tx: tx
) -> tuple[Task, np.ndarray]:
    model = build.build("dsprites", image_size=64, latents=ours.LATENTS)
    networks = {
        "model": model,
        "discriminator": Discriminator(units=16) if small else Discriminator(),
        "tx": wrap(optax.adam(1e-4)),
        "discriminator_tx": wrap(optax.adam(1e-4, b1=0.5, b2=0.9)),
    }
    objective = factor.FactorObjective(gamma=40.0, ad_weight=weight)
    update = factor.make_factor_update_fn(**networks, objective=objective, pixels_of=steps.to_unit)
    create = functools.partial(factor.create, **networks)
    loss = steps.make_loss_fn(model=model, combine=steps.beta_elbo(1.0))
    images = np.where(ours.pictures(model.image_shape) > 127, 255, 0).astype(np.uint8)
    return Task(create, update, loss, factor.two_batches), images


def of_seeds(small: bool) -> Iterator[Row]:
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
        rate = count * at_once / rows.seconds(call)
        alone = alone or rate
        note = f"{rate / alone:.2f} times one after another" if count > 1 else ""
        yield rows.row(f"{count} seeds, {at_once} a call", rate, "seed-steps/s", note)


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
        seconds = rows.seconds(side.call)
    except Exception as error:  # torch.compile lacks a compiler, memory is too small, ...
        return {"side": label, "note": f"cannot: {str(error).splitlines()[0][:100]}"}
    row = rows.row(label, 1e3 * seconds, "ms a step", f"torch {torch.__version__}")
    row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0
    return row


class _Choice(NamedTuple):
    """What might make a step faster.

    Attributes:
      side: what it is called.
      patched: functions of `backend` in whose place others are; None for none.
      wrap: what becomes of the optimiser.
    """

    side: str
    patched: dict[str, Callable] | None = None
    wrap: Wrap = lambda tx: tx


_GRAPHS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,WHILE",
    "xla_gpu_graph_min_graph_size": "1",
}
_CHOICES = (
    _Choice("as it is"),
    _Choice("Adam on one flat vector", wrap=optax.flatten),
    _Choice("windows as on the CPU, pooling's gradient too", {"slow_windows": lambda: True}),
    _Choice("convolutions as products", {"as_products": lambda: True}),
    _Choice("all of it in CUDA graphs", {"compiler_options": lambda: _GRAPHS}),
)
_LOSS_TOLERANCE = 2e-2  # of the loss after some steps
_NOTHING = contextlib.nullcontext()


def options(small: bool) -> Iterator[Row]:
    """What else might make a step faster, each alone beside the step as it is."""
    at_once = 1 if small else 10
    for name in ("factor_vae", "mvtec_ad"):
        expected = float("nan")
        for choice in _CHOICES:
            side = f"{name}, {choice.side}"
            try:
                with mock.patch.multiple(backend, **choice.patched) if choice.patched else _NOTHING:
                    call = _optional_step(name, choice.wrap, at_once, small)
                    call()
                    loss = float(np.ravel(call()["loss"])[-1])
                    found = rows.seconds(call)
            except Exception as error:  # an option that this compiler does not know
                yield {"side": side, "note": f"cannot: {str(error).splitlines()[0][:100]}"}
                continue
            expected = loss if choice is _CHOICES[0] else expected
            off = abs(loss / expected - 1)
            note = "" if off < _LOSS_TOLERANCE else f"its loss is another: {loss:.6g}"
            yield rows.row(side, 1e3 * found / at_once, "ms a step", note)


def _optional_step(
    name: str, wrap: Wrap, at_once: int, small: bool
) -> Callable[[], dict[str, jax.Array]]:
    """A call of some steps, which gives their metrics."""
    if name == "factor_vae":
        batch = 4 if small else _FACTOR_BATCH
        task, images = _factor_task(small, wrap=wrap)
        update, start, indices = task.update, task.create(seed=0), task.batch_indices
    else:
        name = "convnet" if small else name
        size, batch = (SMALL if small else SIZES)[name]
        model, _, images = ours.setting(name, size=size)
        tx = wrap(optax.adam(1e-3))
        update = ours.vae_update(model, tx)
        start, indices = state.create(model=model, tx=tx, seed=0), sampling.batch_indices
    indices = functools.partial(indices, seed=0, batch_size=batch, num_examples=len(images))
    return _repeated(update, start, images, indices, batch, at_once)[0]
