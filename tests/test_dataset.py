"""A sample of labelled images holds every kind of them."""

import numpy as np
import pytest

from vae_attn.data.dataset import LabelledImages


def images_of(labels, has_mask=None):
    count = len(labels)
    has_mask = np.zeros(count, bool) if has_mask is None else np.array(has_mask)
    return LabelledImages(
        images=np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1),
        labels=np.array(labels),
        class_names=tuple(f"kind {n}" for n in range(max(labels) + 1)),
        names=tuple(f"image {n}" for n in range(count)),
        masks=np.zeros((count, 1, 1), bool) if has_mask.any() else None,
        has_mask=has_mask,
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_rare_kind_is_kept(seed):
    whole = images_of([0] * 90 + [1] * 8 + [2, 3], has_mask=[False] * 97 + [True] * 3)
    some = whole.sample(10, seed)
    assert len(some) == 10
    assert set(some.labels) == {0, 1, 2, 3}
    assert some.has_mask[some.labels == 1].any()  # of the eight the one with a mask
    drawn = np.random.default_rng(seed).permutation(100)[:10]
    assert not whole.labels[sorted(set(drawn) - set(some.images.ravel()))].any()  # of the frequent
    assert list(some.names) == sorted(some.names, key=whole.names.index)
    assert whole.sample(10, seed).names == some.names


def test_a_sample_with_every_kind_is_the_random_one():
    whole = images_of([0, 1] * 50)
    drawn = np.random.default_rng(3).permutation(100)[:20]
    assert set(whole.sample(20, 3).names) == {whole.names[n] for n in drawn}


def test_more_kinds_than_room():
    some = images_of([*range(12)] * 3).sample(5, 0)
    assert len(set(some.labels)) == 5
    assert len(images_of([0] * 30 + [1]).sample(1, 0)) == 1
    assert len(images_of([0] * 30 + [1]).sample(0, 0)) == 31
