"""Several seeds in one program: their states stacked along a leading axis, their runs side by side.

One seed has no such axis. Several are trained together, and each keeps its own folder,
`workdir/seed_<seed>`, which is what a run of that seed alone would have for its workdir.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any as PyTree

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from vae_attn import backend
from vae_attn.training.task import Task


def runs(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> list[tuple[ml_collections.ConfigDict, pathlib.Path]]:
    """The config of each seed alone, and its folder: for one seed, what was given.

    Args:
      config: of all seeds, `config.seed` and the `config.num_seeds - 1` that follow it.
      workdir: of all seeds.
    """
    if config.num_seeds == 1:
        return [(config, workdir)]
    found = []
    for seed in range(config.seed, config.seed + config.num_seeds):
        one = config.copy_and_resolve_references()
        one.seed, one.num_seeds = seed, 1
        found.append((one, workdir / f"seed_{seed}"))
    return found


def split(tree: PyTree, num_seeds: int) -> list[PyTree]:
    """Each seed's part of a tree with a leading axis of seeds; of one seed, the tree itself."""
    if num_seeds == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, n=n: leaf[n], tree) for n in range(num_seeds)]


def join(trees: Sequence[PyTree]) -> PyTree:
    """The inverse of `split`."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def together(task: Task, num_seeds: int) -> Task:
    """The task of several seeds at once; with one seed the task itself.

    Args:
      task: of a single seed.
      num_seeds: how many follow the seed that `create` and `batch_indices` are given, it included.

    Returns:
      A task whose states and metrics have a leading axis of seeds, whose indices and losses an
      axis of seeds after that of the batch. Every seed sees and draws what it does alone.
    """
    if num_seeds == 1:
        return task

    def create(*, seed: int) -> PyTree:
        return jax.vmap(lambda seed: task.create(seed=seed))(seed + jnp.arange(num_seeds))

    def batch_indices(*, seed: int, **options: int) -> Int[np.ndarray, "batch seeds ..."]:
        each = [task.batch_indices(seed=seed + n, **options) for n in range(num_seeds)]
        return np.stack(each, axis=1)

    def loss(variables: PyTree, images: Array) -> Float[Array, "batch seeds"]:
        return each_seed(task.loss, num_seeds=num_seeds, in_axes=(0, None))(variables, images).T

    return Task(
        create=create,
        update=each_seed(task.update, num_seeds=num_seeds, in_axes=(0, None, 1)),
        loss=backend.jit(loss),
        batch_indices=batch_indices,
    )


def each_seed(
    fn: Callable[..., PyTree],
    *,
    num_seeds: int,
    in_axes: tuple[int | None, ...],
    vectorized: bool | None = None,
) -> Callable[..., PyTree]:
    """`jax.vmap(fn, in_axes)`; on the CPU the same written out, one seed after the other.

    Under vmap convolutions are traced as products of matrices (`backend.as_products`): with one
    kernel per seed XLA's would be grouped, which is slow. What was measured of those on the CPU:
    a step of two seeds took 4.3 times (configs/mnist.py) and 3.8 times (configs/dsprites.py:
    factor_vae_published,10) as long as one of one seed under vmap; written out 2.4 and 2.2 times;
    under `lax.map` about 70 times (mnist). All on two cores shared with another training.

    Args:
      fn: of one seed.
      num_seeds: how many there are.
      in_axes: the axis of seeds of each argument; None for what they share.
      vectorized: whether it is `jax.vmap`; None: unless on the CPU.

    Returns:
      The function of all seeds, whose results have a leading axis of seeds.
    """
    if jax.default_backend() != "cpu" if vectorized is None else vectorized:
        return jax.vmap(backend.products()(fn), in_axes=in_axes)

    def written_out(*arguments: PyTree) -> PyTree:
        def part(argument: PyTree, axis: int | None, n: int) -> PyTree:
            if axis is None:
                return argument
            return jax.tree.map(lambda x: lax.index_in_dim(x, n, axis, False), argument)

        return join(
            [
                fn(*(part(x, axis, n) for x, axis in zip(arguments, in_axes, strict=True)))
                for n in range(num_seeds)
            ]
        )

    return written_out
