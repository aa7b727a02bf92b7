"""What devices tell one another in a step: their gradients once, and their batches' statistics."""

import few_steps
import jax
import numpy as np
import pytest

from benchmarks.collectives import collectives, compiled, gpu_seconds, tpu_seconds
from vae_attn.training import parallel


def collectives_of(name, mode):
    first, update, columns = few_steps.make(name)
    run = parallel.parallelize(update, mode=mode, batch_size=few_steps.BATCH_SIZE)
    indices = np.zeros((few_steps.BATCH_SIZE, *columns), np.int32)
    first, images = parallel.replicate((first, few_steps.IMAGES))
    return first, collectives(compiled(run, first, images, indices))


def size_of(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("mode", parallel.MODES)
def test_gradients_are_reduced_once(mode):
    """With the means of the three losses, in one message."""
    first, found = collectives_of("vae", mode)
    assert found == [("all-reduce", size_of(first.params) + 3 * 4)]


def test_a_discriminator_adds_its_own_gradients_and_the_codes():
    """The VAE's gradients must arrive before the codes of the second batch, and those before it."""
    first, found = collectives_of("factor", "pmap")
    vae, psi = size_of(first.vae.params), size_of(first.discriminator)
    codes = few_steps.BATCH_SIZE * 3 * 4
    assert [kind for kind, _ in found] == ["all-reduce", "all-gather", "all-reduce"]
    assert found[1][1] == codes
    assert found[0][1] + found[2][1] == vae + psi + 8 * 4  # and the means of the metrics


def test_each_batch_normalisation_meets_once_each_way():
    """Of the gradients some go with the statistics of the layers below, and none twice."""
    first, found = collectives_of("resnet", "pmap")
    layers = [path for path, _ in jax.tree_util.tree_leaves_with_path(first.batch_stats)]
    num_layers = len(layers) // 2  # a mean and a variance each
    assert num_layers > 2
    gathered = [size for kind, size in found if kind == "all-gather"]
    assert len(gathered) == num_layers
    assert sum(gathered) == 8 * size_of(first.batch_stats)  # of eight devices
    reduced = [size for kind, size in found if kind == "all-reduce"]
    assert len(reduced) <= num_layers + 1
    # Backwards at most two numbers a channel, as many as the statistics: layers that end in one
    # sum share one of them.
    once = size_of(first.params) + 3 * 4
    assert once < sum(reduced) <= once + size_of(first.batch_stats)


def test_bytes_by_hand():
    program = """
  %a = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce(%x, %y), channel_id=1
  %b = f32[8,5]{1,0} all-gather-start(%z), dimensions={0}
  %c = f32[7]{0} add(%all-reduce, %d)
"""
    assert collectives(program) == [("all-reduce", 24 + 8), ("all-gather", 160)]


def test_least_times_by_hand():
    assert gpu_seconds(450, 8) == pytest.approx(2 * 7 / 8 * 450 / 450e9)
    between = 2 * 3 / 4 * (450 / 8) / 50e9
    assert gpu_seconds(450, 32) == pytest.approx(2 * 7 / 8 * 1e-9 + between)
    assert tpu_seconds(200, 4) == pytest.approx(1.5e-9)
