"""What is chosen for a backend: options that its compiler knows, and ways around what is slow."""

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


def test_transpositions_stay_apart():
    """In the compiled program, where a function that XLA may inline is gone."""
    x = jnp.arange(6.0).reshape(2, 3)

    def program(transpose):
        return jax.jit(lambda x: transpose(x + 1)).lower(x).compile()

    inlined = program(jax.jit(jnp.transpose))
    apart = program(lambda x: backend.transpose(x, (1, 0)))
    assert " call(" not in inlined.as_text()
    assert " call(" in apart.as_text()
    np.testing.assert_array_equal(apart(x), (np.arange(6.0).reshape(2, 3) + 1).T)


def test_transpositions_elsewhere_are_plain():
    """And of any batch, as an exported function has it."""
    shape = jax.ShapeDtypeStruct((jax.export.symbolic_shape("batch")[0], 3), jnp.float32)
    function = jax.jit(lambda x: backend.transpose(x, (1, 0)))
    exported = jax.export.export(function, platforms=["tpu"])(shape)
    assert "inlineable" not in exported.mlir_module()
    assert exported.out_avals[0].shape[0] == 3


def test_other_backends_get_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert backend.compiler_options() is None
    assert not backend.slow_windows()
