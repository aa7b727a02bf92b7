"""Damaged and hostile files of torch.save: tensors or one sentence, and nothing is ever run."""

import collections
import io
import os
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest
from fuzzing import answer, damaged, examples, memory_limit
from hypothesis import given
from hypothesis import strategies as st
from torch_writer import (
    opcode_state,
    opcode_tensor,
    pickled,
    storages,
    write,
    write_legacy,
    write_zip,
)

from vae_attn.models.torch_files import read_torch_file

ARRAYS = {
    "conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "bn1.running_var": np.ones(3, np.float64),
    "bn1.num_batches_tracked": np.array(7),
}
BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def _write(path, body, legacy, contents=None):
    contents = storages(ARRAYS) if contents is None else contents
    (write_legacy if legacy else write_zip)(path, body, contents)


def _read(path):
    """Tensors that are whole, or one sentence."""
    found = answer(lambda: read_torch_file(path), path)
    for name, tensor in (found or {}).items():
        assert isinstance(name, str)
        assert tensor.dtype.isnative
        tensor.sum()  # reads all of it: a view beyond its storage would be met
    return found


@BOTH
@given(data=st.data())
@examples(150)
def test_damaged_files(tmp_path, legacy, data):
    path = tmp_path / "x.pth"
    write(path, ARRAYS, legacy)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = _read(path)
    if found is not None and not legacy:  # a checksum an entry
        for name in found.keys() & ARRAYS.keys():
            assert found[name].size <= 24


@BOTH
@given(data=st.data())
@examples(200)
def test_damaged_pickles_behind_right_checksums(tmp_path, legacy, data):
    path = tmp_path / "x.pth"
    _write(path, data.draw(damaged(pickled(ARRAYS))), legacy)
    with memory_limit(512):
        _read(path)


_PIECES = [
    *(opcode.code.encode("latin1") for opcode in pickletools.opcodes),
    *(
        b"(",
        b")",
        b"}",
        b"]",
        b"K\x01",
        b"X\x01\0\0\0a",
        b"\x8c\x01b",
        b"q\0",
        b"h\0",
        b"r\xff\xff\xff\xff",
    ),
    *(
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
    ),
    *(
        b"cbuiltins\neval\n",
        b"\x8c\x02os\x8c\x06system\x93",
        b"J\xff\xff\xff\x7f",
        b"\x86R",
        b"Q",
        b"u",
        b"b",
    ),
]


@BOTH
@given(body=st.lists(st.sampled_from(_PIECES), max_size=25).map(b"".join))
@examples(250)
def test_any_opcodes(tmp_path, legacy, body):
    path = tmp_path / "x.pth"
    _write(path, b"\x80\x02" + body + b".", legacy)
    with memory_limit(512):
        _read(path)


def _twice(levels):
    """A tuple that holds a tuple twice, and so on: its hash or its text takes 2**levels steps."""
    body = b")"
    for level in range(levels):
        body += b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86"
    return body


@BOTH
@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x02Nr\xff\xff\xff\xff.",  # pickle's memo would take 64 GiB
        b"\x80\x02}" + _twice(60) + b"Ns.",  # as a key
        b"\x80\x02ccollections\nOrderedDict\n" + _twice(60) + b"\x85\x85R.",
        b"\x80\x02(" + _twice(60) + b"NNNNtQ.",  # as the kind of a persistent identity
        b"\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\n" + _twice(60) + b"NK\1tQ.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.",  # a text of 1 TiB
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\1.",  # a number of 2 GiB
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",  # a bytearray of 1 TiB
        b"\x80\x02" + b"(" * 50_000 + b"l" * 50_000 + b".",  # deeply nested
        b"\x80\x02" + b")" + b"\x85" * 50_000 + b".",
        b"L" + b"9" * 100_000 + b"L\n.",
    ],
    ids=[
        "memo",
        "key",
        "argument",
        "kind",
        "name",
        "text",
        "number",
        "bytes",
        "lists",
        "tuples",
        "digits",
    ],
)
def test_small_pickles_that_ask_for_the_world(tmp_path, legacy, body):
    path = tmp_path / "x.pth"
    _write(path, body, legacy, {})
    with memory_limit(256):
        assert _read(path) is None
        path.write_bytes(body)
        assert _read(path) is None


class _Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@BOTH
@given(
    protocol=st.integers(0, 5),
    wrap=st.sampled_from(
        [lambda x: x, lambda x: [x], lambda x: {"w": x}, lambda x: {"a": (1, [x])}]
    ),
    name=st.sampled_from(["system", "exec", "eval", "mkdir", "OrderedDict"]),
)
@examples(60)
def test_nothing_that_a_pickle_names_is_run(tmp_path, legacy, protocol, wrap, name):
    proof = tmp_path / "proof"
    attack = {
        "system": _Attack(os.system, f"touch {proof}"),
        "exec": _Attack(exec, f"open({str(proof)!r}, 'w')"),
        "eval": _Attack(eval, f"open({str(proof)!r}, 'w')"),
        "mkdir": _Attack(os.mkdir, str(proof)),
        "OrderedDict": _Attack(collections.OrderedDict, [(_Attack(os.mkdir, str(proof)), 1)]),
    }[name]
    path = tmp_path / "x.pth"
    _write(path, pickle.dumps(wrap(attack), protocol), legacy, {})
    assert _read(path) is None
    path.write_bytes(pickle.dumps(wrap(attack), protocol))
    assert _read(path) is None
    assert not proof.exists()


@BOTH
def test_many_tensors_of_one_storage_take_its_memory_once(tmp_path, legacy):
    big = np.zeros(2**20, np.float32)  # 4 MiB, a thousand times
    tensors = {
        f"w{n}": opcode_tensor("0", big, shape=(1024, 1024), strides=(1, 1024)) for n in range(1000)
    }
    path = tmp_path / "x.pth"
    _write(path, opcode_state(tensors), legacy, {"0": big.tobytes()})
    with memory_limit(512):
        assert len(_read(path)) == 1000


def test_entries_of_a_zip_that_share_their_bytes_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    big = np.zeros(2**18, np.float32)
    write(path, {"w": big}, False)
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start, entries = archive.start_dir, len(archive.infolist())
    directory = content[start : content.rindex(b"PK\5\6")]
    last = directory[directory.rindex(b"PK\1\2") :]
    more = b"".join(last.replace(b"/data/0", b"/data/%c" % (65 + n)) for n in range(20))
    end = struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, *[entries + 20] * 2, len(directory + more), start, 0
    )
    path.write_bytes(content[:start] + directory + more + end)
    assert answer(lambda: read_torch_file(path), "share their bytes") is None
