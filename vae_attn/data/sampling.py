"""Which images a step sees: a function of seed and step alone, so a run can resume anywhere."""

import functools

import numpy as np
from jaxtyping import Int


@functools.lru_cache(maxsize=64)  # two epochs of two streams of sixteen seeds
def _permutation(seed: int, epoch: int, stream: int, num_examples: int) -> Int[np.ndarray, "n"]:
    order = np.arange(num_examples, dtype=np.int32)
    return np.random.default_rng((seed, epoch, stream)).permutation(order)


def batch_indices(
    *, seed: int, step: int, batch_size: int, num_examples: int, stream: int = 0
) -> Int[np.ndarray, "batch"]:
    """Indices of the batch of a step.

    Every epoch is a fresh permutation of all examples; the permutations follow one another
    without a gap, so a batch may hold the end of one and the start of the next.

    Args:
      seed: of the run.
      step: from 0.
      batch_size: over all devices.
      num_examples: in the training set.
      stream: number of a sequence of batches; different ones are independent.

    Returns:
      The indices.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(position, num_examples)
    indices = np.empty(batch_size, dtype=np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _permutation(seed, int(epoch), stream, num_examples)[offsets[here]]
    return indices
