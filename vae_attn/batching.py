"""Applies a jitted function to many images in batches of one size, so that it compiles once."""

import operator
from collections.abc import Callable
from typing import Any as PyTree

import jax
import numpy as np


def map_batches(
    fn: Callable[[PyTree], PyTree],
    inputs: PyTree,
    batch_size: int,
) -> PyTree:
    """`fn(inputs)`, one batch at a time; the last batch is filled up and cut again.

    Args:
      fn: from a batch to arrays whose first axis is the batch; examples must not interact.
      inputs: arrays with first axis n; for n = 0 `fn` gets one batch of zeros.
      batch_size: examples at once.

    Returns:
      Numpy arrays with first axis n.
    """
    num_examples = len(jax.tree.leaves(inputs)[0])
    if not num_examples:
        # What its results are like: a call of its own, as a jitted function with options of the
        # compiler can only be called.
        batch = jax.tree.map(lambda x: np.zeros((batch_size, *x.shape[1:]), x.dtype), inputs)
        return jax.tree.map(lambda x: np.asarray(x)[:0], jax.device_get(fn(batch)))
    parts, waiting = [], None
    for start in range(0, num_examples, batch_size):
        # The last example again and again, where there are too few.
        indices = np.minimum(np.arange(start, start + batch_size), num_examples - 1)
        batch = jax.tree.map(lambda x, i=indices: np.asarray(x[i]), inputs)
        following = fn(batch)
        # Fetched while the device has the next batch to work on.
        if waiting is not None:
            parts.append(jax.device_get(waiting))
        waiting = following
    kept = slice(num_examples - start)
    parts.append(jax.tree.map(operator.itemgetter(kept), jax.device_get(waiting)))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
