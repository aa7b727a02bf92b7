"""Applies a jitted function to many images in batches of one size, so that it compiles once."""

import operator
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PyTree, Shaped


def map_batches(
    fn: Callable[[Shaped[np.ndarray, "batch ..."]], PyTree],
    inputs: Shaped[np.ndarray, "n ..."],
    batch_size: int,
) -> PyTree:
    """`fn(inputs)`, one batch at a time; the last batch is filled up and cut again.

    Args:
      fn: from a batch to arrays whose first axis is the batch; examples must not interact.
      inputs: at least one example.
      batch_size: examples at once.

    Returns:
      Numpy arrays with first axis n.
    """
    parts = []
    for start in range(0, len(inputs), batch_size):
        batch = np.asarray(inputs[start : start + batch_size])
        missing = batch_size - len(batch)
        filled = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        outputs = jax.device_get(fn(filled))
        parts.append(jax.tree.map(operator.itemgetter(slice(len(batch))), outputs))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
