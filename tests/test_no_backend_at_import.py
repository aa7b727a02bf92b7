"""No module computes when it is imported: several processes could not be joined after that."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

PROGRAM = """
import importlib, pkgutil
import vae_attn
for module in pkgutil.walk_packages(vae_attn.__path__, "vae_attn."):
    if ".configs" not in module.name:
        importlib.import_module(module.name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""


def test_importing_starts_no_backend():
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, check=True)
