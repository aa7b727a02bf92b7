"""What is chosen for one backend alone, in one place, with the measurement for it."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import xla_metadata
from jaxtyping import Array, Shaped

# XLA's CPU compiler: YNNPACK for matrix products but not for convolutions, whose Eigen kernels are
# faster; and updates in place of what is donated, without a copy before. What they bring:
# `python -m benchmarks.run train_options`.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "xla_cpu_copy_insertion_use_region_analysis": True,
}


def jit(fn: Callable, **options: Any) -> Callable:
    """`jax.jit` with the compiler's options for this backend.

    The backend is first asked for when the function is called, so that a module may jit at import.
    """

    @functools.cache
    def jitted() -> Callable:
        return jax.jit(fn, compiler_options=compiler_options(), **options)

    @functools.wraps(fn)
    def call(*arguments, **keywords):
        return jitted()(*arguments, **keywords)

    call.jitted = jitted
    call.lower = lambda *arguments, **keywords: jitted().lower(*arguments, **keywords)
    call.eval_shape = lambda *arguments, **keywords: jitted().eval_shape(*arguments, **keywords)
    return call


def slow_windows() -> bool:
    """Whether XLA's dilated convolutions, and its gradients of kernels and pools, are slow here.

    `models.operations` then goes around them. What it brings on the CPU to FactorVAE, which has no
    pool: `python -m benchmarks.run train_dilated`. Not measured on GPU and TPU, whose vendors'
    kernels are made for them. The choice is made when a function is traced, so an exported one
    keeps that of its machine.
    """
    return jax.default_backend() == "cpu"


_PRODUCTS = contextvars.ContextVar("windows_as_products", default=False)


@contextlib.contextmanager
def products() -> Iterator[None]:
    """Within it, functions are traced with windows as products of matrices (`as_products`)."""
    token = _PRODUCTS.set(True)
    try:
        yield
    finally:
        _PRODUCTS.reset(token)


def as_products() -> bool:
    """Whether `models.operations` writes convolutions as patches times a matrix.

    For several seeds under `jax.vmap`: with a kernel per seed XLA's convolutions become grouped
    ones, which are slow on GPUs as well, while a product of matrices becomes a batch of products.
    In a sketch on an H200 a step of FactorVAE with five seeds took 3.45 ms instead of 8.28.
    """
    return _PRODUCTS.get()


def transpose(x: Shaped[Array, "..."], axes: tuple[int, ...]) -> Shaped[Array, "..."]:
    """`x.transpose(axes)`, on the CPU as a function of its own in the compiled program.

    XLA's CPU compiler transposes fast what lies in memory, and several times slower what it would
    compute on the way, because it fuses the transposition with its operand. It fuses nothing across
    a function's bounds. What it brings: `python -m benchmarks.run train_fused`.
    """
    # Chosen when it is compiled, as an exported function may be for another backend.
    apart, plain = _transpositions(axes)
    return jax.lax.platform_dependent(x, cpu=apart, default=plain)


@functools.cache
def _transpositions(axes: tuple[int, ...]) -> tuple[Callable, Callable]:
    """Apart and plain; one of each for all calls, so that they are compiled once."""
    plain = jax.jit(lambda x: x.transpose(axes))

    def apart(x: Array) -> Array:
        with xla_metadata.set_xla_metadata(inlineable="false"):
            return plain(x)

    return apart, plain


@functools.cache
def compiler_options() -> dict[str, str | bool] | None:
    """For `jax.jit(compiler_options=...)`: those that this backend's compiler knows; or None."""
    if jax.default_backend() != "cpu":
        return None
    return {key: value for key, value in _CPU_OPTIONS.items() if _is_known(key, value)} or None


def _is_known(key: str, value: str | bool) -> bool:
    """Whether this version of XLA has an option; they come and go."""
    try:
        jax.jit(lambda: 0, compiler_options={key: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True
