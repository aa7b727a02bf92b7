"""Decoded images are kept whole or not at all, and found by content."""

import os
import pathlib

import numpy as np
import pytest

from vae_attn.data import cache

ARRAYS = {
    "images": np.arange(60, dtype=np.uint8).reshape(5, 2, 2, 3),
    "masks": np.eye(4, dtype=bool)[None],
}


def _load(cache_dir, build, key="k"):
    return cache.load_or_build(key, tuple(ARRAYS), build, cache_dir=cache_dir)


def _never() -> dict:
    raise AssertionError("built although kept")


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


def test_built_once_then_mapped(tmp_path):
    folder = tmp_path / "new" / "cache"
    first = _load(folder, lambda: ARRAYS)
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
    _load(tmp_path, lambda: ARRAYS)
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
    found = _load(tmp_path, lambda: built.append(1) or ARRAYS)
    assert built
    np.testing.assert_array_equal(found[name], ARRAYS[name])
    np.testing.assert_array_equal(_load(tmp_path, _never)[name], ARRAYS[name])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, error):
    def half(stream, array, **_):
        stream.write(b"\x93NUMPY half")
        raise error

    monkeypatch.setattr(np, "save", half)
    with pytest.raises(error):
        _load(tmp_path, lambda: ARRAYS)
    assert _files(tmp_path) == []


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail():
        raise ValueError("broken data")

    with pytest.raises(ValueError, match="broken data"):
        _load(tmp_path / "cache", fail)
    assert _files(tmp_path) == []


def test_a_folder_that_cannot_be_written_only_warns(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"file/cache: decoded images cannot be kept .*cache_dir"):
        found = _load(tmp_path / "file" / "cache", lambda: ARRAYS)
    np.testing.assert_array_equal(found["images"], ARRAYS["images"])


def test_a_full_disk_only_warns_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left"):
        found = _load(tmp_path, lambda: ARRAYS)
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
    found = _load(tmp_path / "cache", lambda: ARRAYS, key=None)
    assert found is ARRAYS
    assert _files(tmp_path) == []


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_dir() == tmp_path / "vae_attn"
    found = _load(None, lambda: ARRAYS)
    assert isinstance(found["images"], np.memmap)
    assert list((tmp_path / "vae_attn").glob("k-*.npy"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative"):  # the specification says to ignore a relative one
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.default_dir() == tmp_path / "home" / ".cache" / "vae_attn"
