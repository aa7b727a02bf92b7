"""Runs a per-device update on all devices at once."""

from collections.abc import Callable, Sequence
from typing import Any as PyTree

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped, UInt8

from vae_attn import backend
from vae_attn.errors import UserError
from vae_attn.training.steps import AXIS, Metrics

MODES = ("pmap", "shard_map")

# On the host where each device is given its own.
Images = UInt8[np.ndarray | Array, "n ..."]

GlobalUpdateFn = Callable[[PyTree, Images, Int[np.ndarray, "batch ..."]], tuple[PyTree, Metrics]]


def parallelize(
    update: Callable[..., tuple[PyTree, Metrics]],
    *,
    mode: str,
    batch_size: int,
    split_images: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> GlobalUpdateFn:
    """The update over all devices: the batch's indices are split, all else is replicated.

    Args:
      update: per device, with its own `lax.pmean` over the axis `AXIS`.
      mode: `pmap`, or `shard_map` for an explicit mesh.
      batch_size: over all devices.
      split_images: whether each device has images of its own, and indices are places in those.
      devices: all of them, if None.

    Returns:
      `update(state, images, indices)` with the whole batch's indices, of which each process takes
      its devices' share. Where images are split, it is given those of its devices alone, as many
      for each. The state that goes in is donated: do not use it again. It is unstacked, one copy
      on every device. Its `lower`, of the same arguments, is that of `jax.jit`.

    Raises:
      UserError: for an unknown mode, or a batch that the devices cannot share evenly.
    """
    devices = list(devices if devices is not None else jax.devices())
    if batch_size % len(devices):
        raise UserError(
            f"train.batch_size={batch_size} is not a multiple of the {len(devices)} devices: "
            "change it, so that every device gets the same number of images."
        )
    if mode not in MODES:
        raise UserError(f"parallel.mode={mode!r} is unknown; choose one of {', '.join(MODES)}.")
    make = _make_pmap if mode == "pmap" else _make_shard_map
    mapped, put = make(update, devices, split_images=split_images)

    def arguments(state: PyTree, images: Images, indices: np.ndarray) -> tuple:
        return state, put(images) if split_images else images, put(share(indices, devices))

    def run(*given) -> tuple:
        return mapped(*arguments(*given))

    run.lower = lambda *given: mapped.lower(*arguments(*given))
    return run


def _make_pmap(
    update: Callable, devices: list[jax.Device], *, split_images: bool
) -> tuple[Callable, Callable[[np.ndarray], np.ndarray]]:
    """The mapped update, and what turns this process' share of a batch into its argument."""
    mapped = jax.pmap(
        update,
        axis_name=AXIS,
        in_axes=(None, 0 if split_images else None, 0),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=0,
    )
    if jax.process_count() == 1:  # pmap itself takes no compiler's options
        mapped = backend.jit(mapped, donate_argnums=0)
    # What one process gives to pmap is for its own devices.
    local = len(_here(devices))
    return mapped, lambda own: own.reshape(local, -1, *own.shape[1:])


def _make_shard_map(
    update: Callable, devices: list[jax.Device], *, split_images: bool
) -> tuple[Callable, Callable[[np.ndarray], jax.Array]]:
    """As `_make_pmap`."""
    mesh, replicated, split = _mesh(devices), PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        update,
        mesh=mesh,
        in_specs=(replicated, split if split_images else replicated, split),
        out_specs=(replicated, replicated),
        # The update averages its gradients itself; the check would have JAX add a sum.
        check_vma=False,
    )
    here, sharding = _here(devices), NamedSharding(mesh, split)

    def put(own: np.ndarray) -> jax.Array:
        each = len(own) // len(here)

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            n = here.index((index[0].start or 0) // each)
            return own[n * each : (n + 1) * each]

        shape = (each * len(devices), *own.shape[1:])
        return jax.make_array_from_callback(shape, sharding, of_device)

    return backend.jit(mapped, donate_argnums=0), put


def share(
    batch: Shaped[np.ndarray, "batch ..."], devices: Sequence[jax.Device] | None = None
) -> Shaped[np.ndarray, "own ..."]:
    """The part of a batch that goes to this process' devices, in the order of the batch."""
    devices = list(devices if devices is not None else jax.devices())
    by_device = batch.reshape(len(devices), -1, *batch.shape[1:])
    return by_device[_here(devices)].reshape(-1, *batch.shape[1:])


def _here(devices: Sequence[jax.Device]) -> list[int]:
    """Which of the devices are this process'."""
    return [n for n, d in enumerate(devices) if d.process_index == jax.process_index()]


def replicate(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """Puts one copy of every array on each device; every process has the same arrays."""
    sharding = _replicated(devices)
    # `jax.device_put` would have several processes send one another all of it, to compare.
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda _: x),
        jax.device_get(tree),
    )


def shapes(tree: PyTree) -> PyTree:
    """What arrays are like, and on which devices, without what they hold."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


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
    # `jax.make_mesh` may change the order of the devices, and `share` would not know.
    return Mesh(np.array(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
