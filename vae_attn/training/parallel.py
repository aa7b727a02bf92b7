"""Runs a per-device update on all devices at once."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from vae_attn.errors import UserError
from vae_attn.training.steps import AXIS, Images, Metrics

MODES = ("pmap", "shard_map")

GlobalUpdateFn = Callable[[PyTree, Images, Int[np.ndarray, "batch ..."]], tuple[PyTree, Metrics]]


def parallelize(
    update: Callable[..., tuple[PyTree, Metrics]],
    *,
    mode: str,
    batch_size: int,
    devices: Sequence[jax.Device] | None = None,
) -> GlobalUpdateFn:
    """The update over all devices: the batch's indices are split, all else is replicated.

    Args:
      update: per device, with its own `lax.pmean` over the axis `AXIS`.
      mode: `pmap`, or `shard_map` for an explicit mesh.
      batch_size: over all devices.
      devices: all of them, if None.

    Returns:
      `update(state, images, indices)` with the whole batch's indices. The state that goes in is
      donated: do not use it again. It is unstacked, one copy on every device.

    Raises:
      UserError: for an unknown mode, or a batch that the devices cannot share evenly.
    """
    devices = list(devices if devices is not None else jax.devices())
    if batch_size % len(devices):
        raise UserError(
            f"train.batch_size={batch_size} is not a multiple of the {len(devices)} devices: "
            "change it, so that every device gets the same number of images."
        )
    if mode == "pmap":
        mapped = jax.pmap(
            update,
            axis_name=AXIS,
            in_axes=(None, None, 0),
            out_axes=(None, None),
            devices=devices,
            donate_argnums=0,
        )
        return lambda state, images, indices: mapped(
            state, images, indices.reshape(len(devices), -1, *indices.shape[1:])
        )
    if mode == "shard_map":
        replicated = PartitionSpec()
        mapped = jax.shard_map(
            update,
            mesh=_mesh(devices),
            in_specs=(replicated, replicated, PartitionSpec(AXIS)),
            out_specs=(replicated, replicated),
            # The update averages its gradients itself; the check would have JAX add a sum.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0)
    raise UserError(f"parallel.mode={mode!r} is unknown; choose one of {', '.join(MODES)}.")


def replicate(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """Puts one copy of every array on each device."""
    mesh = _mesh(devices if devices is not None else jax.devices())
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=auto, devices=list(devices))
