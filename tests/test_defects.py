"""Drawn defects: the mask is the truth, and each image's defect is its own."""

import numpy as np
import pytest
import scipy.ndimage

from vae_attn.data import digits
from vae_attn.data.defects import SIZES, THRESHOLD, draw_defects
from vae_attn.errors import UserError

VARIANTS = [(kind, size) for kind in ("stroke", "erase") for size in ("small", "medium", "large")]


@pytest.fixture(scope="module")
def images():
    return digits.load(3).validation[:12]


@pytest.fixture(scope="module")
def drawn(images):
    return draw_defects(images)


def test_every_image_gets_every_kind_and_size(images, drawn):
    assert drawn.class_names == ("normal", *(f"{kind} {size}" for kind, size in VARIANTS))
    np.testing.assert_array_equal(drawn.labels.reshape(12, 6), [[1, 2, 3, 4, 5, 6]] * 12)
    assert drawn.names[:2] == ("00000/stroke_small", "00000/stroke_medium")
    assert drawn.has_mask.all()
    assert len(drawn) == len(drawn.names) == 72


def test_mask_is_exactly_where_pixels_changed(images, drawn):
    before = np.repeat(images, 6, axis=0)[..., 0].astype(int)
    change = drawn.images[..., 0].astype(int) - before
    np.testing.assert_array_equal(drawn.masks, change != 0)  # elsewhere equal to the bit
    assert np.abs(change[drawn.masks]).min() > THRESHOLD
    assert (drawn.masks.sum((1, 2)) >= [SIZES[size].min_pixels for _, size in VARIANTS] * 12).all()


def test_strokes_add_ink_and_erasing_removes_it(images, drawn):
    change = drawn.images[..., 0].astype(int) - np.repeat(images, 6, axis=0)[..., 0]
    is_stroke = drawn.labels <= 3
    assert (change[is_stroke] >= 0).all()
    assert (change[~is_stroke] <= 0).all()


def test_erased_part_is_a_disc_emptied_in_its_middle(images, drawn):
    for index in np.flatnonzero(drawn.labels == 6):
        mask, after = drawn.masks[index], drawn.images[index, ..., 0]
        where = np.argwhere(mask)
        assert (np.ptp(where, axis=0) + 1 <= SIZES["large"].erased_diameter + 3).all()
        inner = scipy.ndimage.binary_erosion(mask, iterations=3)
        assert (after[inner] <= THRESHOLD).all()


def test_strokes_are_as_wide_as_a_pen(images):
    blank = np.zeros((8, 28, 28, 1), np.uint8)
    blank[:, 0, 0] = np.arange(8)[:, None]  # images that differ, so that strokes do
    strokes = draw_defects(blank, kinds=("stroke",), sizes=("large",))
    ink = strokes.images[..., 0] / 255.0
    width = ink.sum((1, 2)) / SIZES["large"].stroke_length
    assert (width > 1.5).all()
    assert (width < 4.5).all()
    assert (strokes.images[..., 0].reshape(8, -1).max(1) > 0.8 * 255).all()
    labels = [scipy.ndimage.label(mask, np.ones((3, 3)))[1] for mask in strokes.masks]
    assert labels == [1] * 8  # one connected stroke each


def test_larger_defects_have_larger_masks(drawn):
    for kind in (0, 3):
        areas = [drawn.masks[drawn.labels == 1 + kind + size].sum() for size in range(3)]
        assert areas[0] < areas[1] < areas[2]


def test_same_seed_same_defects_other_seed_others(images, drawn):
    np.testing.assert_array_equal(draw_defects(images).images, drawn.images)
    other = draw_defects(images, seed=1)
    assert all((a != b).any() for a, b in zip(other.images, drawn.images, strict=True))


def test_a_defect_depends_on_neither_batch_nor_order_nor_the_other_kinds(images, drawn):
    order = np.random.default_rng(0).permutation(12)
    shuffled = draw_defects(images[order]).images.reshape(12, 6, 28, 28)
    np.testing.assert_array_equal(shuffled, drawn.images.reshape(12, 6, 28, 28)[order])
    alone = draw_defects(images[5:6], kinds=("erase",), sizes=("medium",))
    np.testing.assert_array_equal(alone.images[0], drawn.images[5 * 6 + 4])
    np.testing.assert_array_equal(alone.masks[0], drawn.masks[5 * 6 + 4])


def test_defects_grow_with_the_frame(images, drawn):
    doubled = images.repeat(2, axis=1).repeat(2, axis=2)
    masks = draw_defects(doubled).masks
    for kind in (drawn.labels <= 3, drawn.labels > 3):
        assert 3.5 < masks[kind].sum() / drawn.masks[kind].sum() < 4.5


def test_names_are_kept_and_counted(images):
    named = draw_defects(images[:2], kinds=("erase",), sizes=("large",), names=("a", "b"))
    assert named.names == ("a/erase_large", "b/erase_large")
    with pytest.raises(UserError, match="1 names for 2 images"):
        draw_defects(images[:2], names=("a",))


def test_impossible_requests_are_refused(images):
    with pytest.raises(UserError, match="one or more of stroke, erase"):
        draw_defects(images, kinds=("scratch",))
    with pytest.raises(UserError, match="one or more of small, medium, large"):
        draw_defects(images, sizes=())
    blank = np.zeros((1, 28, 28, 1), np.uint8)
    with pytest.raises(UserError, match="image empty has no room for the defect 'erase small'"):
        draw_defects(blank, names=("empty",))
