"""A data set's fingerprint: its training images and its split, not its names."""

import dataclasses
import shutil

import numpy as np
import pytest
from dsprites_grids import small_grid
from PIL import Image
from small_data import small_data

from vae_attn.data import digits, dsprites, folder
from vae_attn.data import fingerprint as module
from vae_attn.data.factor_grid import FactorData, FactorGrid
from vae_attn.data.fingerprint import fingerprint

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)


def test_contents_order_and_split_count():
    data = small_data(IMAGES)
    changed = IMAGES.copy()
    changed[19, 5, 4, 2] ^= 1
    others = [
        dataclasses.replace(data, train=changed),
        dataclasses.replace(data, train=IMAGES[:19]),
        dataclasses.replace(data, train=IMAGES[::-1]),
        small_data(IMAGES.reshape(20, 5, 6, 3)),
        dataclasses.replace(data, validation=changed[15:]),
        dataclasses.replace(data, train=IMAGES[:15], validation=IMAGES[15:]),
    ]
    found = {fingerprint(one) for one in [data, *others]}
    assert len(found) == 7
    assert all(len(one) == 64 for one in found)


def test_names_test_images_and_where_the_images_lie_do_not_count(tmp_path):
    data = small_data(IMAGES)
    path = tmp_path / "images.npy"
    np.save(path, IMAGES)
    same = [
        dataclasses.replace(data, name="other", scores_note="other"),
        dataclasses.replace(data, test=data.test.take(np.arange(3))),
        dataclasses.replace(data, train=np.load(path, mmap_mode="r")),
        dataclasses.replace(data, train=np.asfortranarray(IMAGES)),
    ]
    assert {fingerprint(one) for one in same} == {fingerprint(data)}


@pytest.mark.parametrize("piece", [1, 200, 2**24])
def test_it_is_the_same_in_pieces_of_any_size(monkeypatch, piece):
    expected = fingerprint(small_data(IMAGES))
    monkeypatch.setattr(module, "_PIECE", piece)
    assert fingerprint(small_data(IMAGES)) == expected


def test_factors_count_too():
    grid = small_grid(shape=[1.0, 2.0, 3.0])
    data = dsprites.load_dsprites(grid=grid)
    assert fingerprint(data) == fingerprint(dsprites.load_dsprites(grid=grid))
    renamed = FactorGrid(tuple(reversed(grid.names)), grid.values)
    assert fingerprint(dataclasses.replace(data, grid=renamed)) != fingerprint(data)
    assert fingerprint(FactorData("x", grid, ~data.stored, data.pixels)) != fingerprint(data)


def test_of_digits_it_follows_digit_and_seed():
    found = [fingerprint(digits.load(d, seed=s)) for d, s in ((3, 0), (3, 1), (4, 0), (3, 0))]
    assert len(set(found)) == 3
    assert found[0] == found[3]


def test_of_a_folder_it_follows_added_removed_and_changed_images(tmp_path):
    def load(root):
        return fingerprint(folder.load(root, image_size=5, cache_dir=tmp_path / "cache"))

    root, moved = tmp_path / "a", tmp_path / "elsewhere" / "b"
    (root / "train/good").mkdir(parents=True)
    for n, image in enumerate(IMAGES):
        Image.fromarray(image).save(root / f"train/good/{n:03d}.png")
    first = load(root)
    shutil.copytree(root, moved)
    for path in moved.glob("train/good/*"):
        path.rename(path.with_name(f"photo_{path.name}"))
    assert load(moved) == first
    (root / "test/good").mkdir(parents=True)
    shutil.copy(root / "train/good/000.png", root / "test/good/x.png")
    assert load(root) == first
    Image.fromarray(IMAGES[0] ^ 255).save(root / "train/good/100.png")
    assert load(root) != first
    (root / "train/good/100.png").unlink()
    assert load(root) == first
    (root / "train/good/007.png").unlink()
    assert load(root) != first
