"""Damaged and hostile data files: what they held, or one sentence; in bounded memory."""

import gzip
import io
import os
import zipfile

import numpy as np
import pytest
from dsprites_grids import render, small_grid
from fuzzing import answer, damaged, examples, memory_limit
from hypothesis import given
from hypothesis import strategies as st

from vae_attn.data import cache, dsprites_files, frame_labels, mnist
from vae_attn.data.dsprites import GRID

# MNIST's idx files

_IMAGES = np.full((90, 28, 28), 7, np.uint8)
_LABELS = np.full(90, 3, np.uint8)


def _idx(array):
    magic = bytes([0, 0, 8, array.ndim])
    return magic + np.array(array.shape, ">u4").tobytes() + array.tobytes()


IDX = {
    f"{split}-{kind}": _idx(array)
    for split in ("train", "t10k")
    for kind, array in (("images-idx3-ubyte", _IMAGES), ("labels-idx1-ubyte", _LABELS))
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", IDX)
@given(data=st.data())
@examples(30)
def test_damaged_idx_files(tmp_path, name, zipped, data):
    for other, content in IDX.items():
        (tmp_path / other).write_bytes(content)
    content = gzip.compress(IDX[name]) if zipped else IDX[name]
    (tmp_path / name).write_bytes(data.draw(damaged(content)))
    with memory_limit(256):
        found = answer(lambda: mnist.load(tmp_path, 3), tmp_path)
    if found is not None:
        assert found.train.shape[1:] == found.test.images.shape[1:] == (28, 28, 1)
        assert len(found.test.images) == len(found.test.labels) > 0


@pytest.mark.parametrize("sizes", [(2**32 - 1, 28, 28), (2**20, 28, 28), (1, 2**31, 2)])
def test_a_small_idx_file_that_unpacks_to_gigabytes(tmp_path, sizes):
    for name, content in IDX.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "train-images-idx3-ubyte"
    with gzip.open(path, "wb", 9) as file:
        file.write(bytes([0, 0, 8, 3]) + np.array(sizes, ">u4").tobytes())
        for _ in range(34):
            file.write(bytes(2**23))
    assert path.stat().st_size < 2**20
    with memory_limit(2**10):
        assert answer(lambda: mnist.load(tmp_path, 3), f"{path} holds more than") is None


# dSprites' npz

NPZ_GRID = small_grid(shape=[1.0, 2.0], scale=GRID.values[2][:2], orientation=GRID.values[3][:3])


class _Attack:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def _members(**others):
    classes = NPZ_GRID.classes(np.arange(NPZ_GRID.num_images))
    members = {"imgs": render(NPZ_GRID), "latents_classes": classes}
    members |= {"latents_values": NPZ_GRID.factor_values(classes), **others}
    return {f"{name}.npy": _npy(array) for name, array in members.items()}


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _read_npz(path):
    with memory_limit(256):
        return answer(lambda: dsprites_files.read_npz(path, NPZ_GRID), path)


@given(data=st.data())
@examples(150)
def test_damaged_archives(tmp_path, data):
    path = tmp_path / "x.npz"
    _zip(path, _members())
    whole = _read_npz(path)
    assert whole is not None
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = _read_npz(path)
    assert found is None or np.array_equal(found, whole)  # checksums


@given(name=st.sampled_from([*_members()]), data=st.data())
@examples(200)
def test_damaged_arrays_behind_right_checksums(tmp_path, name, data):
    members = _members()
    header, rest = members[name][:128], members[name][128:]
    members[name] = data.draw(damaged(header)) + rest
    _zip(tmp_path / "x.npz", members)
    found = _read_npz(tmp_path / "x.npz")
    assert found is None or found.shape == (NPZ_GRID.num_images, 512)


def _with_header(text, version=b"\1\0", length=None):
    size = len(text) if length is None else length
    return b"\x93NUMPY" + version + size.to_bytes(2 if version == b"\1\0" else 4, "little") + text


_SHAPE = f"{(NPZ_GRID.num_images, 64, 64)}"
HEADERS = {
    "nested": b"(" * 9000,
    "expression": b"{'descr': '|u1', 'shape': " + b"-" * 9000 + b"1}",
    "call": b"{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os').mkdir('proof')}",
    "python_2": b"{'descr': '|u1', 'fortran_order': False, 'shape': (12L, 64L, 64L), }",
    "open_string": b"{'descr': '|u1', 'shape': '''",
    "sizes": b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b", 64, 64), }",
    "wide": b"{'descr': '|V2147483647', 'fortran_order': False, 'shape': (12, 64, 64), }",
    "object": b"{'descr': '|O', 'fortran_order': False, 'shape': (12, 64, 64), }",
    "bytes": b"\xff\xfe" * 50,
    "name": b"{'descr': [('a', '|u1', (99999, 99999))], 'fortran_order': False, 'shape': (12,)}",
}


def _kept(name, array, folder):
    """The array as the cache has it, or makes it."""

    def build(keep):
        for n, row in enumerate(array):
            keep(name, n, row)

    specs = {name: cache.Spec(array.shape, array.dtype)}
    return cache.load_or_build("key", specs, build, cache_dir=folder)[name]


@pytest.mark.parametrize("header", HEADERS)
def test_headers_are_never_run_nor_believed(tmp_path, monkeypatch, header):
    monkeypatch.chdir(tmp_path)
    bad = _with_header(HEADERS[header]) + bytes(5000)
    _zip(tmp_path / "x.npz", _members() | {"imgs.npy": bad})
    assert _read_npz(tmp_path / "x.npz") is None
    (tmp_path / "key-images.npy").write_bytes(bad)
    built = np.ones((2, 3))
    kept = answer(lambda: _kept("images", built, tmp_path))
    np.testing.assert_array_equal(kept, built)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("kind", ["header", "images", "bz2", "lzma"])
def test_a_small_archive_that_unpacks_to_gigabytes(tmp_path, kind):
    path = tmp_path / "x.npz"
    huge = bytes(2**29)
    bombs = {"header": _with_header(huge, b"\2\0"), "images": _members()["imgs.npy"] + huge}
    compression = {"bz2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.get(
        kind, zipfile.ZIP_DEFLATED
    )
    small = _members()
    if kind in bombs:
        small["imgs.npy"] = bombs[kind]
    _zip(path, small, compression)
    with memory_limit(64):
        assert answer(lambda: dsprites_files.read_npz(path, NPZ_GRID), path) is None


def test_pickles_in_archives_are_never_loaded(tmp_path):
    attack = np.array([_Attack(tmp_path / "proof")], dtype=object)
    _zip(tmp_path / "x.npz", _members(metadata=attack))
    assert _read_npz(tmp_path / "x.npz") is not None
    for name in ("imgs", "latents_classes", "latents_values"):
        _zip(tmp_path / "x.npz", _members(**{name: attack}))
        assert _read_npz(tmp_path / "x.npz") is None
    assert not (tmp_path / "proof").exists()


# The cache of decoded images


@given(data=st.data())
@examples(150)
def test_damaged_cache_entries(tmp_path, data):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = _npy(array)
    (tmp_path / "key-a.npy").write_bytes(data.draw(damaged(content[:128])) + content[128:])
    with memory_limit(256):
        found = answer(lambda: _kept("a", array, tmp_path))
    assert found.nbytes <= 2**12
    assert not found.dtype.hasobject


# Ped1's .m file

_LINE = "TestVideoFile{end+1}.gt_frame = [5:90, 140:180];\n"
_TOKENS = [
    "TestVideoFile",
    "{end+1}",
    ".gt_frame",
    " = ",
    "[",
    "]",
    ";",
    ":",
    ",",
    "%",
    "\n",
    "0",
    "7",
]
_TOKENS += [
    "system('touch proof')",
    "9" * 5000,
    "٣",
    "\ufeff",
    "\0",
    "\u2028",
    "1e9",
    "-1",
    " " * 3000,
]


@given(
    content=st.one_of(
        damaged(("TestVideoFile = {};\n" + 3 * _LINE).encode()),
        st.lists(st.sampled_from([_LINE, *_TOKENS]), max_size=30).map(
            lambda t: "".join(t).encode()
        ),
    )
)
@examples(300)
def test_any_frame_labels(tmp_path, content):
    path = tmp_path / "UCSDped1.m"
    path.write_bytes(content)
    assert all(0 <= last < 10**9 for last in frame_labels.last_frames(path))
    found, problems = answer(lambda: frame_labels.read_frame_labels(path, [200, 200, 200]), path)
    assert problems or [len(labels) for labels in found] == [200] * 3
    assert all(problem.startswith(str(path)) for problem in problems)
