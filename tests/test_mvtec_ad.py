"""MVTec-AD: categories, the mirror table, the drawn twin and the real bottle."""

import itertools

import numpy as np
import pytest
import synthetic
from PIL import Image
from sklearn.metrics import jaccard_score

from vae_attn.data import mvtec_ad
from vae_attn.errors import UserError


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    root = tmp_path_factory.mktemp("mvtec") / "data"
    synthetic.write_mvtec_ad(root)
    return root


def test_categories():
    assert len(set(mvtec_ad.CATEGORIES)) == 15
    assert len(set(mvtec_ad.TABLE4_CATEGORIES)) == 10
    left = set(mvtec_ad.CATEGORIES) - set(mvtec_ad.TABLE4_CATEGORIES)
    assert left == {"bottle", "grid", "screw", "toothbrush", "zipper"}


def test_mirrors_keep_text_threads_reflections_and_places():
    assert set(mvtec_ad.MIRRORS) == set(mvtec_ad.CATEGORIES)
    for category in ("bottle", "cable", "capsule", "metal_nut", "pill", "screw", "transistor"):
        assert mvtec_ad.MIRRORS[category][:2] == (False, False)
    for category in ("carpet", "hazelnut", "leather", "tile", "wood"):
        assert mvtec_ad.MIRRORS[category][:2] == (True, True)
    assert all(mirror.reason for mirror in mvtec_ad.MIRRORS.values())


@pytest.mark.parametrize("category", ["carpet", "hazelnut", "grid"])
def test_twin_loads_as_rgb(twin, tmp_path, category):
    data = mvtec_ad.load(twin, category, image_size=32, cache_dir=tmp_path)
    assert data.name == f"MVTec-AD {category}"
    assert data.train.shape == (10, 32, 32, 3)
    assert data.validation.shape == (2, 32, 32, 3)
    assert data.test.class_names == ("good", "hole", "scratch", "stain")
    assert np.bincount(data.test.labels).tolist() == [4, 3, 3, 3]
    assert data.test.has_mask.all()
    assert (data.test.masks.any(axis=(1, 2)) == (data.test.labels > 0)).all()


def test_single_channel_category_has_equal_channels(twin, tmp_path):
    with Image.open(twin / "grid/train/good/000.png") as picture:
        assert picture.mode == "L"
    data = mvtec_ad.load(twin, "grid", image_size=64, cache_dir=tmp_path)
    assert (data.train == data.train[..., :1]).all()


@pytest.mark.parametrize("size", [224, 256])
def test_sizes_of_the_report(twin, tmp_path, size):
    data = mvtec_ad.load(twin, "carpet", image_size=size, cache_dir=tmp_path)
    assert data.test.images.shape[1:] == (size, size, 3)
    assert data.test.masks.shape[1:] == (size, size)


def test_unknown_category_and_missing_folder(twin, tmp_path):
    with pytest.raises(UserError, match=r"'carpets' is no category .* carpet,"):
        mvtec_ad.load(twin, "carpets")
    with pytest.raises(UserError, match=r"screw: no such folder; .*mvtec\.com.*screw/train/good"):
        mvtec_ad.load(twin, "screw")
    with pytest.raises(UserError, match=r"nowhere/bottle: no such folder"):
        mvtec_ad.load(tmp_path / "nowhere", "bottle")


def test_real_bottle(shared_data, tmp_path):
    data = mvtec_ad.load(shared_data / "mvtec_ad", "bottle", cache_dir=tmp_path)
    assert data.name == "MVTec-AD bottle"
    assert (len(data.train), len(data.validation), len(data.test)) == (167, 42, 83)
    test = data.test
    assert test.class_names == ("good", "broken_large", "broken_small", "contamination")
    assert np.bincount(test.labels).tolist() == [20, 20, 22, 21]
    # Every file is found once: the loader's pixels, against Pillow on the 256-pixel files.
    root = shared_data / "mvtec_ad" / "bottle"
    for index in (0, 25, 82):
        with Image.open(root / "test" / f"{test.names[index]}.png") as picture:
            np.testing.assert_array_equal(test.images[index], np.asarray(picture))
    normal = {image.tobytes() for image in itertools.chain(data.train, data.validation)}
    files = sorted((root / "train/good").glob("*.png"))
    assert len(normal) == len(files) == 209
    assert {np.asarray(Image.open(path)).tobytes() for path in files} == normal


def test_real_full_size_bottle_agrees_with_the_small_copy(shared_data, tmp_path):
    """Reading and resizing 900 pixels gives what was resized independently beforehand."""
    full = mvtec_ad.load(shared_data / "mvtec_ad_full_size", "bottle", cache_dir=tmp_path)
    small = mvtec_ad.load(shared_data / "mvtec_ad", "bottle", cache_dir=tmp_path)
    for index, name in enumerate(full.test.names):
        twin_index = small.test.names.index(name)
        difference = full.test.images[index].astype(int) - small.test.images[twin_index]
        assert np.abs(difference).max() <= 1
        overlap = jaccard_score(
            full.test.masks[index].ravel(), small.test.masks[twin_index].ravel(), zero_division=1
        )
        assert overlap > 0.99
