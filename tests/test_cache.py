"""Decoded images are kept whole or not at all, and found by content."""

import os
import pathlib

import numpy as np
import pytest

from vae_attn.data import cache, memory
from vae_attn.errors import UserError

ARRAYS = {
    "images": np.arange(60, dtype=np.uint8).reshape(5, 2, 2, 3),
    "masks": np.eye(4, dtype=bool)[[0, 2, 3]] & [[True], [False], [True]],
}


SPECS = {name: cache.Spec(array.shape, array.dtype) for name, array in ARRAYS.items()}


def _load(cache_dir, build, key="k"):
    return cache.load_or_build(key, SPECS, build, cache_dir=cache_dir)


def _build(keep):
    """The last row first; those of zeros are left out."""
    for name, array in ARRAYS.items():
        for index in reversed(range(len(array))):
            if array[index].any():
                keep(name, index, array[index])


def _never(keep):
    raise AssertionError("built although kept")


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


def test_built_once_then_mapped(tmp_path):
    folder = tmp_path / "new" / "cache"
    first = _load(folder, _build)
    again = _load(folder, _never)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(first[name], array)
        np.testing.assert_array_equal(again[name], array)
        assert isinstance(again[name], np.memmap)
        assert not again[name].flags.writeable
        assert again[name].dtype == array.dtype


@pytest.mark.parametrize("damage", ["cut", "cut_in_header", "empty", "longer", "garbage", "gone"])
@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_entry_is_built_anew(tmp_path, damage, name):
    _load(tmp_path, _build)
    (file,) = tmp_path.glob(f"*-{name}.npy")
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {
                "cut": whole[:-1],
                "cut_in_header": whole[:20],
                "empty": b"",
                "longer": whole + b"\0",
                "garbage": b"PK\x03\x04" + whole[4:],
            }[damage]
        )
    built = []
    found = _load(tmp_path, lambda keep: built.append(1) or _build(keep))
    assert built
    np.testing.assert_array_equal(found[name], ARRAYS[name])
    np.testing.assert_array_equal(_load(tmp_path, _never)[name], ARRAYS[name])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_an_interrupted_build_leaves_nothing(tmp_path, error):
    def half(keep):
        keep("images", 0, ARRAYS["images"][0])
        raise error("broken data")

    with pytest.raises(error, match="broken data"):
        _load(tmp_path / "cache", half)
    assert _files(tmp_path / "cache") == []


def test_nothing_is_found_before_all_is_written(tmp_path):
    def build(keep):
        _build(keep)
        assert cache._open_all({name: tmp_path / f"k-{name}.npy" for name in SPECS}) is None

    assert isinstance(_load(tmp_path, build)["images"], np.memmap)


def test_a_wrong_row_is_never_written(tmp_path):
    for row in (np.zeros((2, 3, 3), np.uint8), np.zeros((2, 2, 3))):
        with pytest.raises(ValueError, match="row 4"):
            _load(tmp_path, lambda keep, row=row: keep("images", 4, row))
    assert _files(tmp_path) == []


def test_without_a_cache_and_with_too_little_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(memory, "available_bytes", lambda: 10)
    with (
        pytest.warns(UserWarning, match="cannot be kept"),
        pytest.raises(UserError, match=r"decoded images take .* fit into memory: set data\.cache"),
    ):
        _load(tmp_path / "file" / "cache", _build)
    assert isinstance(_load(tmp_path / "cache", _build)["images"], np.memmap)


def test_a_folder_that_cannot_be_written_only_warns(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"file/cache: decoded images cannot be kept .*cache_dir"):
        found = _load(tmp_path / "file" / "cache", _build)
    np.testing.assert_array_equal(found["images"], ARRAYS["images"])


def test_a_full_disk_only_warns_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left"):
        found = _load(tmp_path, _build)
    np.testing.assert_array_equal(found["masks"], ARRAYS["masks"])
    assert _files(tmp_path) == []


def test_key_follows_content_order_and_settings_only(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    key = cache.content_key([a, b], size=256)
    os.utime(a, (1, 1))
    a.rename(tmp_path / "c")
    moved = tmp_path / "c"
    assert cache.content_key([moved, b], size=256) == key
    assert cache.content_key([b, moved], size=256) != key
    assert cache.content_key([moved, b], size=224) != key
    moved.write_bytes(b"onf")
    assert cache.content_key([moved, b], size=256) != key


def test_unreadable_source_has_no_key_and_nothing_is_kept(tmp_path):
    assert cache.content_key([tmp_path / "gone"]) is None
    found = _load(tmp_path / "cache", _build, key=None)
    assert not isinstance(found["images"], np.memmap)
    np.testing.assert_array_equal(found["images"], ARRAYS["images"])
    assert _files(tmp_path) == []


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_dir() == tmp_path / "vae_attn"
    found = _load(None, _build)
    assert isinstance(found["images"], np.memmap)
    assert list((tmp_path / "vae_attn").glob("k-*.npy"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative"):  # the specification says to ignore a relative one
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.default_dir() == tmp_path / "home" / ".cache" / "vae_attn"
