"""Digits and MNIST: what is trained on, what is explained, and what is refused."""

import gzip
import hashlib
import importlib.util
import io
import struct

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vae_attn.data import digits, mnist
from vae_attn.errors import UserError

IDX_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def idx(array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (60, 28, 28), np.uint8),
        "train_labels": np.arange(60) % 10,
        "test_images": rng.integers(0, 256, (30, 28, 28), np.uint8),
        "test_labels": rng.permutation(30) % 10,
    }


@pytest.fixture
def folder(tmp_path, arrays):
    for key, name in IDX_FILES.items():
        (tmp_path / name).write_bytes(idx(arrays[key]))
    return tmp_path


def rows(images):
    return [image.tobytes() for image in images]


# Scikit-learn's digits.


def test_digits_split_is_disjoint_complete_and_of_one_class():
    data = digits.load(3)
    own = data.test.labels == 0
    parts = [rows(data.train), rows(data.validation), rows(data.test.images[own])]
    total = int(np.sum(load_digits().target == 3))
    assert [len(part) for part in parts] == [total - 2 * 37, 37, 37]
    assert len(set().union(*parts)) == total  # no image twice: nothing leaks
    assert len(data.test) == 1797 - total + 37
    assert data.test.masks is None
    assert not data.test.has_mask.any()


def test_digits_labels_follow_the_class_names():
    data = digits.load(3)
    assert data.test.class_names == ("3 (normal)", "0", "1", "2", "4", "5", "6", "7", "8", "9")
    indices = [int(name.removeprefix("digits/")) for name in data.test.names]
    named = [int(data.test.class_names[label].split()[0]) for label in data.test.labels]
    np.testing.assert_array_equal(named, load_digits().target[indices])


def test_digits_resized_images_keep_their_ink_where_it_was():
    data = digits.load(0)
    indices = [int(name.removeprefix("digits/")) for name in data.test.names]
    assert data.test.images.shape[1:] == (28, 28, 1)
    assert data.test.images.dtype == np.uint8
    frame = data.test.images[..., 0].astype(float)
    source = load_digits().images[indices]
    # Mean positions: source pixel centre (i + 0.5) * 2.5 + 4 of the frame.
    for axis in (1, 2):
        where = (np.arange(28) + 0.5) @ frame.sum(3 - axis).T / frame.sum((1, 2))
        expected = 4 + 2.5 * (np.arange(8) + 0.5) @ source.sum(3 - axis).T / source.sum((1, 2))
        np.testing.assert_allclose(where, expected, atol=0.2)
    assert frame.max() == 255
    assert max(frame[:, :2].max(), frame[:, -2:].max()) <= 1  # bicubic tails
    ratio = frame.sum((1, 2)) / (source.sum((1, 2)) * 6.25 * 255 / 16)
    np.testing.assert_allclose(ratio, 1, atol=0.06)


def test_digits_seed_changes_the_split_and_nothing_else():
    first, again, other = digits.load(1), digits.load(1), digits.load(1, seed=1)
    np.testing.assert_array_equal(first.train, again.train)
    assert set(rows(first.validation)) != set(rows(other.validation))
    assert len(first.train) == len(other.train)


@pytest.mark.parametrize("digit", [-1, 10])
def test_digit_outside_the_ten_is_refused(digit, folder):
    with pytest.raises(UserError, match=f"normal digit is {digit}"):
        digits.load(digit)
    with pytest.raises(UserError, match=f"normal digit is {digit}"):
        mnist.load(folder, digit)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 0.85, 1.5])
def test_a_validation_fraction_that_empties_a_part_is_refused(fraction):
    with pytest.raises(UserError, match=f"validation_fraction={fraction}"):
        digits.load(3, validation_fraction=fraction)


# MNIST from idx files.


def test_mnist_trains_on_one_digit_and_tests_on_the_whole_split(folder, arrays):
    data = mnist.load(folder, 4, validation_fraction=0.34)
    own = arrays["train_images"][arrays["train_labels"] == 4]
    assert (len(data.train), len(data.validation)) == (4, 2)
    assert sorted(rows(data.train) + rows(data.validation)) == sorted(rows(own))
    np.testing.assert_array_equal(data.test.images[..., 0], arrays["test_images"])
    named = [int(data.test.class_names[label].split()[0]) for label in data.test.labels]
    np.testing.assert_array_equal(named, arrays["test_labels"])
    assert data.test.class_names[0] == "4 (normal)"
    assert data.test.names[12] == "mnist/00012"


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_spellings(folder, dotted, compressed):
    expected = mnist.load(folder, 4)
    for name in IDX_FILES.values():
        path = folder / name
        content = path.read_bytes()
        path.unlink()
        spelling = name.replace("-idx", ".idx") if dotted else name
        if compressed:
            (folder / f"{spelling}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / spelling).write_bytes(content)
    np.testing.assert_array_equal(mnist.load(folder, 4).train, expected.train)


@pytest.mark.parametrize("place", ["MNIST/raw", "raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_where_torchvision_puts_it(folder, place, compressed):
    expected = mnist.load(folder, 4)
    (folder / place).mkdir(parents=True)
    for name in IDX_FILES.values():
        (folder / name).rename(folder / place / name)
        if compressed:  # torchvision keeps both
            content = (folder / place / name).read_bytes()
            (folder / place / f"{name}.gz").write_bytes(gzip.compress(content))
    found = mnist.load(folder, 4)
    np.testing.assert_array_equal(found.train, expected.train)
    np.testing.assert_array_equal(found.test.labels, expected.test.labels)
    for path in (folder / place).glob("t10k-labels*"):
        path.unlink()
    with pytest.raises(UserError, match=f"{place} lacks t10k-labels-idx1-ubyte"):
        mnist.load(folder, 4)


def corrupt_gzip(content):
    packed = bytearray(gzip.compress(content))
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("train_images", lambda c: c[:-5], "is truncated"),
        ("train_images", lambda c: c[:10], "is truncated"),
        ("test_labels", lambda c: c[:3], "is no idx file"),
        ("test_labels", lambda c: b"", "is no idx file"),
        ("test_images", lambda c: c + b"\0", "is too long"),
        ("train_labels", lambda c: gzip.compress(c)[:-6], "cannot be read"),
        ("train_images", corrupt_gzip, "cannot be read"),
        ("train_images", lambda c: b"\0\0\x0d\x03" + c[4:], "magic number is 3331"),
        ("train_labels", lambda c: idx(np.zeros((60, 28, 28))), "holds images"),
        ("test_labels", lambda c: idx(np.arange(29) % 10), "30 images and .* 29 labels"),
        ("test_labels", lambda c: idx(np.arange(30)), "label 10 at position 10"),
        ("train_images", lambda c: idx(np.zeros((60, 14, 14))), "14x14"),
    ],
)
def test_broken_idx_file_is_named(folder, key, change, message):
    path = folder / IDX_FILES[key]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        mnist.load(folder, 4)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mnist_missing_folder_and_missing_file_say_what_to_do(folder, tmp_path):
    with pytest.raises(UserError, match=r"nowhere is no folder: create it"):
        mnist.load(tmp_path / "nowhere", 4)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"lacks t10k-labels-idx1-ubyte \("):
        mnist.load(folder, 4)


def test_mnist_without_the_digit_is_refused(folder):
    (folder / IDX_FILES["train_labels"]).write_bytes(idx(np.full(60, 7)))
    with pytest.raises(UserError, match="no train image of digit 4"):
        mnist.load(folder, 4)


def test_real_mnist_is_read_to_the_official_bytes(shared_data):
    data = mnist.load(shared_data / "mnist", 1)
    assert (len(data.train), len(data.validation), len(data.test)) == (6068, 674, 10000)
    assert np.sum(data.test.labels == 0) == 1135
    header = struct.pack(">4I", 2051, 10000, 28, 28)
    assert (
        hashlib.sha256(header + data.test.images.tobytes()).hexdigest()
        == "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    )
    # The train file's digest needs every digit's images, back in the order of the labels.
    with gzip.open(shared_data / "mnist" / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    images, read_labels = mnist._read(shared_data / "mnist")[0]
    np.testing.assert_array_equal(read_labels, labels)
    header = struct.pack(">4I", 2051, 60000, 28, 28)
    assert (
        hashlib.sha256(header + images.tobytes()).hexdigest()
        == "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    )


# MNIST through tensorflow-datasets.


def as_png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    file.seek(0)
    return file


@pytest.fixture
def prepared(tmp_path, arrays, monkeypatch):
    """What tensorflow-datasets itself writes for its `mnist`, from our few images."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification.mnist import MNIST

    def split_generators(self, download_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def generate_examples(self, split):
        for index, image in enumerate(arrays[f"{split}_images"]):
            yield index, {"image": as_png(image), "label": int(arrays[f"{split}_labels"][index])}

    monkeypatch.setattr(MNIST, "_split_generators", split_generators)
    monkeypatch.setattr(MNIST, "_generate_examples", generate_examples)
    tfds.builder("mnist", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    return tmp_path


def test_mnist_prepared_by_tfds_is_read_without_tensorflow(prepared, arrays):
    data = mnist.load(prepared, 4)
    # tfds shuffles what it prepares, so images and labels are compared as sets of pairs.
    expected = sorted(zip(rows(arrays["test_images"]), arrays["test_labels"], strict=True))
    named = [int(data.test.class_names[label].split()[0]) for label in data.test.labels]
    assert sorted(zip(rows(data.test.images), named, strict=True)) == expected
    own = arrays["train_images"][arrays["train_labels"] == 4]
    assert sorted(rows(data.train) + rows(data.validation)) == sorted(rows(own))


def test_broken_tfds_data_is_named(prepared):
    (shard,) = prepared.glob("mnist/*/mnist-train.array_record*")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read by tensorflow-datasets") as caught:
        mnist.load(prepared, 4)
    assert str(prepared / "mnist") in str(caught.value)


def test_without_files_and_tensorflow_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no MNIST in .* or install the extra vae_attn\[tfds\]"):
        mnist.load(tmp_path, 4)


def test_with_tensorflow_mnist_is_prepared_on_demand(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    asked = []

    class Builder:
        def download_and_prepare(self):
            raise OSError("no network\nsecond line")

    def builder(name, **kwargs):
        asked.append((name, kwargs))
        return Builder()

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorflow")
    monkeypatch.setattr(tfds, "builder", builder)
    with pytest.raises(UserError, match=r"could not prepare MNIST in .* \(no network\);"):
        mnist.load(tmp_path, 4)
    assert asked == [("mnist", {"data_dir": tmp_path, "file_format": "array_record"})]
