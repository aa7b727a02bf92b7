"""The readers of dSprites files: the official archive, and tensorflow-datasets."""

import io
import os
import pathlib
import tracemalloc
import zipfile

import numpy as np
import PIL.Image
import pytest
from dsprites_grids import render, small_grid

from vae_attn.data import dsprites, dsprites_files
from vae_attn.errors import UserError

# The official archive

NPZ_GRID = small_grid(shape=[1.0, 2.0, 3.0], orientation=dsprites.GRID.values[3][:5])


class _Bomb:
    """Unpickling it creates a file: the reader must never do so."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.touch, (self.target,)


def _members(grid, target):
    classes = grid.classes(np.arange(grid.num_images))
    return {
        "metadata": np.array(_Bomb(target), dtype=object),
        "imgs": render(grid),
        "latents_classes": classes,
        "latents_values": grid.factor_values(classes),
    }


def _save(directory, members):
    path = directory / dsprites_files.NPZ_NAME
    np.savez_compressed(path, **members)
    return path


def test_npz_is_read_in_chunks_and_its_pickle_never(tmp_path, monkeypatch):
    monkeypatch.setattr(dsprites_files, "_CHUNK", 7)  # 120 images: 17 chunks and a rest
    target = tmp_path / "executed"
    members = _members(NPZ_GRID, target)
    _save(tmp_path, members)
    data = dsprites.load_dsprites(tmp_path, grid=NPZ_GRID)
    assert data.name == "dSprites"
    assert len(data) == 120
    np.testing.assert_array_equal(
        np.unpackbits(data.stored, axis=1).reshape(-1, 64, 64), members["imgs"]
    )
    assert not target.exists()


def test_npz_reader_never_holds_the_unpacked_images(tmp_path, monkeypatch):
    monkeypatch.setattr(dsprites_files, "_CHUNK", 64)
    grid = small_grid(posX=dsprites.GRID.values[4], posY=dsprites.GRID.values[5])
    path = _save(tmp_path, _members(grid, tmp_path / "executed"))
    tracemalloc.start()
    try:
        packed = dsprites_files.read_npz(path, grid)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(packed) == 8 * 1024
    assert peak < packed.nbytes + 4 * 2**20 < packed.nbytes * 8


def _damage(name):
    """The message a bad archive must give, and what makes it of a good one's members."""
    if name == "float images":
        return (
            "type float32, expected .* and type uint8 or bool",
            lambda m: m | {"imgs": m["imgs"].astype(np.float32)},
        )
    if name == "32x32 images":
        return "imgs has shape", lambda m: m | {"imgs": m["imgs"][:, ::2, ::2]}
    if name == "images missing":
        return "imgs has shape", lambda m: m | {"imgs": m["imgs"][:-1]}
    if name == "column order":
        return "column order", lambda m: m | {"imgs": np.asfortranarray(m["imgs"])}
    if name == "pickled images":
        return "imgs has shape", lambda m: m | {"imgs": m["metadata"]}
    if name == "grey images":
        return "pixels other than 0 and 1", lambda m: m | {"imgs": m["imgs"] * np.uint8(255)}
    if name == "no images":
        return "no array imgs", lambda m: {k: v for k, v in m.items() if k != "imgs"}
    if name == "another order":
        return (
            "latents_classes are not",
            lambda m: m | {"latents_classes": m["latents_classes"][::-1].copy()},
        )
    if name == "five factors":
        return (
            "latents_classes has shape",
            lambda m: m | {"latents_classes": m["latents_classes"][:, 1:].copy()},
        )
    assert name == "other values"
    return "latents_values are not", lambda m: m | {"latents_values": m["latents_values"] * 1.01}


@pytest.mark.parametrize(
    "name",
    [
        "float images",
        "32x32 images",
        "images missing",
        "column order",
        "pickled images",
        "grey images",
        "no images",
        "another order",
        "five factors",
        "other values",
    ],
)
def test_wrong_npz_names_the_file_and_the_fault(tmp_path, name):
    message, change = _damage(name)
    target = tmp_path / "executed"
    path = _save(tmp_path, change(_members(NPZ_GRID, target)))
    with pytest.raises(UserError, match=message) as caught:
        dsprites.load_dsprites(tmp_path, grid=NPZ_GRID)
    assert str(path) in str(caught.value)
    assert not target.exists()


def _cut(content, path):
    path.write_bytes(content[: len(content) // 2])


def _flip(content, path):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = archive.getinfo("imgs.npy")
    middle = member.header_offset + member.compress_size // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])


def _shorten_member(content, path):
    """A sound archive whose images end before their header says so."""
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            data = old.read(member)
            new.writestr(member, data[:-100] if member == "imgs.npy" else data)


def _lengthen_member(content, path):
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            new.writestr(member, old.read(member) + (b"x" if member == "imgs.npy" else b""))


def _empty(content, path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _flip, _shorten_member, _lengthen_member, _empty])
def test_damaged_npz_is_told(tmp_path, damage):
    path = _save(tmp_path, _members(NPZ_GRID, tmp_path / "executed"))
    damage(path.read_bytes(), path)
    with pytest.raises(UserError, match="truncated or damaged") as caught:
        dsprites_files.read_npz(path, NPZ_GRID)
    assert str(path) in str(caught.value)


def test_a_member_that_is_no_array_is_told(tmp_path):
    path = _save(tmp_path, _members(NPZ_GRID, tmp_path / "executed"))
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            new.writestr(member, b"not numpy" if member == "imgs.npy" else old.read(member))
    with pytest.raises(UserError, match="imgs is not an array of numbers"):
        dsprites_files.read_npz(path, NPZ_GRID)


# tensorflow-datasets, with its own builder and its own files, but our pictures

TFDS_GRID = small_grid(shape=[1.0, 2.0, 3.0])


def _prepare_tfds(directory, monkeypatch, *, images, classes):
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    import tensorflow_datasets as tfds

    def examples(self, filepath=None):
        del self, filepath
        for index, (image, (_, *labels)) in enumerate(zip(images, classes, strict=True)):
            # As an encoded file, since tensorflow-datasets needs tensorflow to encode one.
            encoded = io.BytesIO()
            PIL.Image.fromarray(image).save(encoded, "png")
            encoded.seek(0)
            names = ("shape", "scale", "orientation", "x_position", "y_position")
            yield (
                index,
                {"image": encoded}
                | {f"label_{name}": int(label) for name, label in zip(names, labels, strict=True)}
                | {f"value_{name}": 0.0 for name in names},
            )

    builder = tfds.builder("dsprites", data_dir=str(directory), file_format="array_record")
    monkeypatch.setattr(type(builder), "_split_generators", lambda self, _: {"train": examples(0)})
    monkeypatch.setattr(type(builder), "_generate_examples", examples)
    builder.download_and_prepare()


def test_tfds_examples_return_to_the_grids_order(tmp_path, monkeypatch):
    monkeypatch.setattr(dsprites_files, "_CHUNK", 20)
    images = render(TFDS_GRID)
    classes = TFDS_GRID.classes(np.arange(TFDS_GRID.num_images))
    _prepare_tfds(tmp_path, monkeypatch, images=images, classes=classes)
    data = dsprites.load_dsprites(tmp_path, grid=TFDS_GRID)
    assert data.name == "dSprites"
    np.testing.assert_array_equal(np.unpackbits(data.stored, axis=1).reshape(-1, 64, 64), images)


@pytest.mark.parametrize(
    "fault", ["one twice", "one missing", "one more", "other labels", "grey images"]
)
def test_wrong_tfds_is_told(tmp_path, monkeypatch, fault):
    images = render(TFDS_GRID)
    classes = TFDS_GRID.classes(np.arange(TFDS_GRID.num_images))
    if fault == "one twice":
        classes[3] = classes[4]
    elif fault == "one missing":
        images, classes = images[1:], classes[1:]
    elif fault == "one more":
        images, classes = np.append(images, images[:1], 0), np.append(classes, classes[:1], 0)
    elif fault == "other labels":
        classes[5, 3] = 39
    else:
        images = images * np.uint8(255)
    _prepare_tfds(tmp_path, monkeypatch, images=images, classes=classes)
    message = {
        "one twice": "fill 47 of the 48",
        "one missing": "47 examples",
        "one more": "49 examples fill 48 of the 48",
        "other labels": "labels are not the factors",
        "grey images": "pixels other than 0 and 1",
    }[fault]
    with pytest.raises(UserError, match=message) as caught:
        dsprites.load_dsprites(tmp_path, source="tfds", grid=TFDS_GRID)
    assert os.fspath(tmp_path / "dsprites") in str(caught.value)


def test_unprepared_tfds_tells_how_to_prepare_it(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    (tmp_path / "dsprites").mkdir()
    with pytest.raises(UserError, match="download_and_prepare"):
        dsprites.load_dsprites(tmp_path)
