"""A training state in one small file: the optimisers' moments in bfloat16, all else as it is."""

import json
import pathlib
import zlib
from typing import Any as PyTree

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.flax import load_file, save_file

from vae_attn import whole_files
from vae_attn.errors import UserError

_MOMENTS = "opt_state"  # in the names of the optimisers' leaves


def rounded(state: PyTree) -> PyTree:
    """The state as `load` will give it, its moments rounded to bfloat16.

    A run that continues from this each time it saves equals one that was stopped there and
    resumed.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(jnp.bfloat16).astype(x.dtype) if _is_moment(path, x) else x, state
    )


def save(path: pathlib.Path, state: PyTree, **about: str | int) -> None:
    """Writes a state, whole or not at all.

    Args:
      path: of the file.
      state: arrays of one device.
      **about: what `read` gives back of the file, such as the step.
    """
    leaves = {
        jax.tree_util.keystr(at): jnp.asarray(x).astype(jnp.bfloat16) if _is_moment(at, x) else x
        for at, x in jax.tree_util.tree_leaves_with_path(state)
    }
    leaves = {name: jnp.asarray(leaf) for name, leaf in leaves.items()}
    metadata = {"about": json.dumps(about), "checksum": _checksum(leaves)}
    with whole_files.writing(path) as temporary:
        save_file(leaves, temporary, metadata)


def read(path: pathlib.Path) -> dict[str, str | int] | None:
    """What a file says about its state; None where there is none.

    Raises:
      UserError: if it is broken.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return json.loads(file.metadata()["about"])
    except Exception as error:  # of safetensors' own kind, among others
        raise _broken(path) from error


def load(path: pathlib.Path, template: PyTree) -> PyTree:
    """The state in a file.

    Args:
      path: of the file.
      template: a state of the same structure, or its shapes and dtypes.

    Raises:
      UserError: if the file is broken, or of another structure.
    """
    try:
        leaves = load_file(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            intact = file.metadata()["checksum"] == _checksum(leaves)
        named, structure = jax.tree_util.tree_flatten_with_path(template)
        found = [leaves[jax.tree_util.keystr(at)].astype(x.dtype) for at, x in named]
        same = len(found) == len(leaves) and all(
            a.shape == x.shape for a, (_, x) in zip(found, named, strict=True)
        )
    except Exception as error:  # as in `read`
        raise _broken(path) from error
    if not (intact and same):
        raise _broken(path)
    return jax.tree.unflatten(structure, found)


def _is_moment(path: tuple, leaf: PyTree) -> bool:
    return _MOMENTS in jax.tree_util.keystr(path) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _checksum(leaves: dict[str, jax.Array]) -> str:
    found = 0
    for name in sorted(leaves):
        content = np.ascontiguousarray(jax.device_get(leaves[name])).view(np.uint8)
        found = zlib.crc32(content, zlib.crc32(name.encode(), found))
    return f"{found:08x}"


def _broken(path: pathlib.Path) -> UserError:
    return UserError(
        f"{path} is broken, or of another model: remove it, and that run starts from its beginning."
    )
