"""Reads PyTorch's state dicts without PyTorch, and without running what a pickle asks to run.

A `.pth` file is a pickle: loading one the usual way calls any function it names. Here a name
stands for nothing but itself, all but the few that a state dict of tensors needs are refused, and
`torch_pickle` runs what is left. Tensors are views of the file's content: many of one storage
take no more memory than the file.

Both formats of `torch.save` are read (torch/serialization.py, `_save` and `_legacy_save`):
since 1.6 a zip archive with `data.pkl` and one entry of raw bytes a storage; before that five
pickles in a row (magic number, protocol, system, the object, the storages' keys), then for
each key its number of elements and its bytes.
"""

import dataclasses
import functools
import io
import math
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from vae_attn.errors import UserError, shown
from vae_attn.models import torch_pickle

_ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_NAMED = 10  # of the keys that are wrong, in a message
# What broken bytes make pickle, zipfile and numpy raise.
_CORRUPT = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclasses.dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _RebuildTensor:
    """Stands for torch._utils._rebuild_tensor_v2; keeps what the file says of the tensor."""

    def __call__(self, storage, offset, shape, strides, requires_grad, hooks, metadata=None):
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


@dataclasses.dataclass(frozen=True, slots=True)
class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter: a parameter is read as its tensor."""

    def __call__(self, tensor, requires_grad, hooks):
        return tensor


@dataclasses.dataclass(frozen=True, slots=True)
class _OrderedDict:
    """Stands for collections.OrderedDict, which pickles fill after they made it."""

    def __call__(self):
        return {}


_ALLOWED = {
    "collections.OrderedDict": _OrderedDict(),
    "torch._utils._rebuild_tensor_v2": _RebuildTensor(),
    "torch._utils._rebuild_parameter": _RebuildParameter(),
    "torch.DoubleStorage": _StorageType("f8"),
    "torch.FloatStorage": _StorageType("f4"),
    "torch.HalfStorage": _StorageType("f2"),
    "torch.LongStorage": _StorageType("i8"),
    "torch.IntStorage": _StorageType("i4"),
    "torch.ShortStorage": _StorageType("i2"),
    "torch.CharStorage": _StorageType("i1"),
    "torch.ByteStorage": _StorageType("u1"),
    "torch.BoolStorage": _StorageType("?"),
}


def _unpickle(file: io.BufferedIOBase, path: pathlib.Path) -> object:
    def find_global(name: str) -> object:
        if name not in _ALLOWED:
            raise UserError(
                f"{path} is refused: its pickle asks for {shown(name)}, which no state dict "
                "of tensors needs and which loading it could run; get the file from its official "
                "source, or use a safetensors file"
            )
        return _ALLOWED[name]

    return torch_pickle.load(file, find_global=find_global, persistent_load=_persistent_load)


def _persistent_load(identity: object) -> _Storage:
    kind, storage_type, key, _, count, *view = identity
    if kind != "storage" or not isinstance(storage_type, _StorageType):
        name = shown(kind) if isinstance(kind, str) else type(kind).__name__
        raise pickle.UnpicklingError(f"an object of the kind {name}")
    if view not in ([], [None]):
        raise pickle.UnpicklingError("a view of another storage, as torch 0.1 wrote it")
    if not isinstance(key, str):
        raise pickle.UnpicklingError("a storage without a name")
    return _Storage(key, storage_type.dtype, int(count))


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a state dict that `torch.save` wrote, in the zip or in the legacy format.

    Args:
      path: the file, `.pth` or `.pt`.

    Returns:
      The tensors by name, in the file's order; read-only.

    Raises:
      UserError: the file is missing, truncated or corrupt, is no dict of tensors, or its pickle
        names anything but what such a dict needs; nothing that it names is ever called.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP_START)) == _ZIP_START
            file.seek(0)
            return _read_zip(file, path) if is_zip else _read_legacy(file, path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except _CORRUPT as error:
        reason = shown((str(error) or type(error).__name__).splitlines()[0])
        raise UserError(
            f"{path} is no state dict of torch.save, or is truncated or corrupt ({reason}); "
            "get the file again"
        ) from error


def _read_zip(file: io.BufferedIOBase, path: pathlib.Path) -> dict[str, np.ndarray]:
    size = path.stat().st_size
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:  # a few bytes may unpack to gigabytes
                raise UserError(
                    f"{path} is refused: its entry {shown(entry.filename)} is compressed, which "
                    "torch.save never does; get the file from its official source"
                )
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise ValueError("entries that share their bytes")
        (pickle_name,) = (n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"])
        folder = pickle_name.removesuffix("data.pkl")
        order = b"little"
        if f"{folder}byteorder" in archive.namelist():
            order = archive.read(f"{folder}byteorder")
        endian = {b"little": "<", b"big": ">"}[order]
        state = _unpickle(io.BytesIO(archive.read(pickle_name)), path)

        @functools.cache  # once, however many tensors share it
        def read_storage(key: str, dtype: str) -> np.ndarray:
            return _native(archive.read(f"{folder}data/{key}"), np.dtype(endian + dtype))

        return _tensors(state, lambda stored: read_storage(stored.key, stored.dtype), path)


def _read_legacy(file: io.BufferedIOBase, path: pathlib.Path) -> dict[str, np.ndarray]:
    if (_unpickle(file, path), _unpickle(file, path)) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise ValueError("its magic number is not torch's")
    endian = "<" if _unpickle(file, path)["little_endian"] else ">"
    state = _unpickle(file, path)
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in _values(state, path)}
    contents = {}
    size = path.stat().st_size
    for key in _unpickle(file, path):
        if not isinstance(key, str) or key in contents:
            raise ValueError("its storages have no names of their own")
        (count,) = struct.unpack(f"{endian}q", file.read(8))
        dtype = np.dtype(endian + dtypes[key])
        if not 0 <= count * dtype.itemsize <= size - file.tell():
            raise ValueError(f"a storage of {count} elements, more than the file holds")
        contents[key] = _native(file.read(count * dtype.itemsize), dtype)
    return _tensors(state, lambda stored: contents[stored.key], path)


def _values(state: object, path: pathlib.Path) -> list[_Tensor]:
    """The tensors of a state dict; refuses anything else."""
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, not a state dict of tensors")
    others = [shown(key) for key, value in state.items() if not isinstance(value, _Tensor)]
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        raise UserError(
            f"{path} is no plain state dict: no tensors under {', '.join(others[:_NAMED])}{more}; "
            "save the model's state_dict() alone"
        )
    return list(state.values())


def _tensors(
    state: object, read_storage: Callable[[_Storage], np.ndarray], path: pathlib.Path
) -> dict[str, np.ndarray]:
    tensors = zip(state, _values(state, path), strict=True)
    return {name: _view(read_storage(tensor.storage), tensor) for name, tensor in tensors}


def _native(content: bytes, dtype: np.dtype) -> np.ndarray:
    """A storage in this machine's byte order."""
    return np.frombuffer(content, dtype).astype(dtype.newbyteorder("="), copy=False)


def _view(content: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """A tensor as a read-only view of its storage."""
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    steps = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    size = math.prod(shape)
    # Strides come from the file: unchecked, they would read outside the storage.
    if min((offset, *shape, *strides)) < 0:
        raise ValueError("a tensor that begins outside its storage")
    if size > content.size:
        raise ValueError("a tensor larger than its storage")
    if size and offset + sum(steps) >= content.size:
        raise ValueError("a tensor that reaches beyond its storage")
    if not size:
        return np.empty(shape, content.dtype)
    strides = [stride * content.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(content[offset:], shape, strides, writeable=False)
