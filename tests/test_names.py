"""Every name is defined: ruff's own check must be off, as jaxtyping's shapes are strings."""

import builtins
import pathlib
import symtable

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = [
    path
    for folder in ("vae_attn", "configs", "launch", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "broken_config.py"
]


def undefined(source, name):
    """Global names that are read and never bound."""
    module = symtable.symtable(source, name, "exec")
    bound = {
        symbol.get_name()
        for symbol in module.get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
    } | {*dir(builtins), "__file__", "__name__"}
    tables, found = [module], set()
    for table in tables:
        tables += table.get_children()
        found |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced()
            and (symbol.is_global() or table is module)
            and symbol.get_name() not in bound
        }
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_defined(path):
    assert not undefined(path.read_text(encoding="utf-8"), str(path))


def test_an_undefined_name_is_found():
    assert undefined("def f(x):\n    return g(x)\n", "f.py") == {"g"}
