"""Runs a per-device update on all devices at once."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from vae_attn import backend
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
      `update(state, images, indices)` with the whole batch's indices, of which each process takes
      its devices' share. The state that goes in is donated: do not use it again. It is unstacked,
      one copy on every device.

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
        if jax.process_count() == 1:  # pmap itself takes no compiler's options
            mapped = backend.jit(mapped, donate_argnums=0)
        # What one process gives to pmap is for its own devices.
        here = [n for n, d in enumerate(devices) if d.process_index == jax.process_index()]
        return lambda state, images, indices: mapped(
            state, images, indices.reshape(len(devices), -1, *indices.shape[1:])[here]
        )
    if mode == "shard_map":
        mesh, replicated = _mesh(devices), PartitionSpec()
        split = NamedSharding(mesh, PartitionSpec(AXIS))
        mapped = jax.shard_map(
            update,
            mesh=mesh,
            in_specs=(replicated, replicated, PartitionSpec(AXIS)),
            out_specs=(replicated, replicated),
            # The update averages its gradients itself; the check would have JAX add a sum.
            check_vma=False,
        )
        jitted = backend.jit(mapped, donate_argnums=0)
        return lambda state, images, indices: jitted(
            state, images, jax.make_array_from_callback(indices.shape, split, indices.__getitem__)
        )
    raise UserError(f"parallel.mode={mode!r} is unknown; choose one of {', '.join(MODES)}.")


def replicate(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """Puts one copy of every array on each device; every process has the same arrays."""
    sharding = _replicated(devices)
    # `jax.device_put` would have several processes send one another all of it, to compare.
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda _: x),
        jax.device_get(tree),
    )


def as_global(tree: PyTree) -> PyTree:
    """Replicated arrays of this process' devices as arrays of all devices; nothing is copied."""
    sharding = _replicated()
    return jax.tree.map(
        lambda x: jax.make_array_from_single_device_arrays(
            x.shape, sharding, [shard.data for shard in x.addressable_shards]
        ),
        tree,
    )


def as_local(tree: PyTree) -> PyTree:
    """The copies of replicated arrays on this process' first device; nothing is copied."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _replicated(devices: Sequence[jax.Device] | None = None) -> NamedSharding:
    mesh = _mesh(devices if devices is not None else jax.devices())
    return NamedSharding(mesh, PartitionSpec())


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=auto, devices=list(devices))
