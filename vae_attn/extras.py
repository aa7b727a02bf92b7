"""Optional dependencies: one sentence that says what to install where one is missing."""

import importlib
import types

from vae_attn.errors import UserError


def load(module: str, *, extra: str, purpose: str) -> types.ModuleType:
    """Imports a module that `pip install vae_attn` alone does not bring.

    Args:
      module: its name.
      extra: of vae_attn that brings it, see pyproject.toml.
      purpose: what needs it, as the beginning of a sentence.

    Raises:
      UserError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs {module} ({error}): pip install 'vae_attn[{extra}]'."
        ) from error
