"""Compiler options that only some backends and versions of XLA know."""

import jax
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


def test_other_backends_get_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert backend.compiler_options() is None
    assert not backend.dilates_slowly()
