"""Writes torch.save's two formats without torch, also with what no torch would write.

It writes the few opcodes itself, since pickle could only name classes of torch where torch is
installed.
"""

import pickle
import struct
import zipfile

TORCH_NAMES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage"}
TORCH_NAMES |= {"i8": "LongStorage", "i4": "IntStorage", "u1": "ByteStorage"}


def opcode_int(value):
    return b"J" + struct.pack("<i", value)


def opcode_string(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def opcode_tuple(items):
    return b"(" + b"".join(map(opcode_int, items)) + b"t"


def opcode_tensor(key, array, *, shape=None, strides=None, offset=0, storage=None, view=b""):
    storage = storage or f"torch\n{TORCH_NAMES[array.dtype.str[1:]]}"
    strides = [s // array.itemsize for s in array.strides] if strides is None else strides
    persistent = b"(" + opcode_string("storage") + f"c{storage}\n".encode() + opcode_string(key)
    persistent += opcode_string("cpu") + opcode_int(array.size) + view + b"tQ"
    ordered_dict = b"ccollections\nOrderedDict\n)R"
    arguments = persistent + opcode_int(offset)
    arguments += opcode_tuple(array.shape if shape is None else shape) + opcode_tuple(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89" + ordered_dict + b"tR"


def opcode_state(values):
    items = b"".join(opcode_string(name) + value for name, value in values.items())
    # Module.state_dict() carries an attribute `_metadata`, which BUILD sets.
    metadata = b"}" + opcode_string("_metadata") + b"}s"
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u" + metadata + b"b."


def storages(arrays):
    """Bytes of each storage in memory order, as torch writes transposed tensors."""
    return {str(i): array.tobytes("A") for i, array in enumerate(arrays.values())}


def pickled(arrays):
    tensors = {name: opcode_tensor(str(i), a) for i, (name, a) in enumerate(arrays.items())}
    return opcode_state(tensors)


def write_zip(path, body, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/byteorder", "little")
        for key, content in contents.items():
            archive.writestr(f"archive/data/{key}", content)


def write_legacy(path, body, contents, itemsizes=None):
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    parts = [pickle.dumps(value, 2) for value in head] + [body, pickle.dumps(list(contents), 2)]
    for key, content in contents.items():
        size = (itemsizes or {}).get(key, 4)
        parts += [struct.pack("<q", len(content) // size), content]
    path.write_bytes(b"".join(parts))


def write(path, arrays, legacy):
    if legacy:
        sizes = {str(i): array.itemsize for i, array in enumerate(arrays.values())}
        write_legacy(path, pickled(arrays), storages(arrays), sizes)
    else:
        write_zip(path, pickled(arrays), storages(arrays))
