"""Compiler options that only some backends and versions of XLA know."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from vae_attn import backend


@pytest.fixture(autouse=True)
def fresh():
    backend.compiler_options.cache_clear()
    yield
    backend.compiler_options.cache_clear()


def test_options_of_the_cpu_are_accepted():
    options = backend.compiler_options()
    assert options
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_an_option_that_this_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setitem(backend._CPU_OPTIONS, "xla_cpu_of_another_day", True)
    assert "xla_cpu_of_another_day" not in backend.compiler_options()
    assert backend.compiler_options()


def test_unfused_functions_stay_functions():
    """In the compiled program, where one that XLA inlines is gone; and compute the same."""
    x = jnp.arange(6.0).reshape(2, 3)

    def program(call):
        return jax.jit(lambda x: call(jnp.transpose, x + 1)).lower(x).compile()

    inlined, unfused = program(lambda fn, x: jax.jit(fn)(x)), program(backend.unfused)
    assert " call(" not in inlined.as_text()
    assert " call(" in unfused.as_text()
    np.testing.assert_array_equal(unfused(x), (np.arange(6.0).reshape(2, 3) + 1).T)
    elsewhere = jax.export.export(
        jax.jit(lambda x: backend.unfused(jnp.transpose, x)), platforms=["tpu"]
    )
    assert "inlineable" not in elsewhere(x).mlir_module()


def test_other_backends_get_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert backend.compiler_options() is None
    assert not backend.dilates_slowly()
