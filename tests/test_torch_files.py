"""Reading torch's files: both formats, what is refused, what is never run."""

import collections
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from torch_writer import (
    opcode_state,
    opcode_tensor,
    opcode_tuple,
    pickled,
    write,
    write_legacy,
    write_zip,
)

from vae_attn.errors import UserError
from vae_attn.models import pretrained
from vae_attn.models.torch_files import read_torch_file

BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
ARRAYS = {
    "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "half": np.array([0.5, -2], np.float16),
    "counter": np.array(7),
    "bytes": np.arange(5, dtype=np.uint8),
}


@BOTH
def test_torch_file_is_read(tmp_path, legacy):
    path = tmp_path / "small.pth"
    write(path, ARRAYS, legacy)
    read = read_torch_file(path)
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@BOTH
def test_parameters_are_read_as_tensors(tmp_path, legacy):
    array = ARRAYS["kernel"]
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + opcode_tensor("0", array)
    parameter += b"\x88ccollections\nOrderedDict\n)RtR"
    writer = write_legacy if legacy else write_zip
    writer(tmp_path / "x.pth", opcode_state({"w": parameter}), {"0": array.tobytes()})
    np.testing.assert_array_equal(read_torch_file(tmp_path / "x.pth")["w"], array)


class Attack:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@BOTH
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, legacy, protocol):
    proof = tmp_path / "proof"
    body = pickle.dumps(collections.OrderedDict(weight=Attack(f"touch {proof}")), protocol)
    pickle.loads(body)
    assert proof.exists()  # the attack works on who loads it the usual way
    proof.unlink()
    writer = write_legacy if legacy else write_zip
    writer(tmp_path / "evil.pth", body, {})
    with pytest.raises(UserError, match=rf"evil.pth is refused: .* asks for {os.name}\.system"):
        read_torch_file(tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"is refused"):
        pretrained.load_resnet18(tmp_path / "evil.pth", official=False)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["builtins\neval", "builtins\ngetattr", "torch\nBFloat16Storage"])
def test_every_other_global_is_refused_by_name(tmp_path, name):
    # Even in the legacy file's first pickle, before anything says that it is torch's.
    (tmp_path / "x.pth").write_bytes(f"\x80\x02c{name}\n.".encode("latin1"))
    with pytest.raises(UserError, match=name.replace("\n", r"\.")):
        read_torch_file(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("reason", "tensor"),
    [
        ("beyond its storage", opcode_tensor("0", ARRAYS["kernel"], offset=1)),
        ("outside its storage", opcode_tensor("0", ARRAYS["kernel"], offset=-1)),
        ("beyond its storage", opcode_tensor("0", ARRAYS["kernel"], strides=[12, 4, 2])),
        ("outside its storage", opcode_tensor("0", ARRAYS["kernel"], strides=[12, 4, -1])),
        ("larger than its storage", opcode_tensor("0", ARRAYS["kernel"], shape=(2, 3, 5))),
        (
            "larger than its storage",
            opcode_tensor("0", ARRAYS["kernel"], shape=(1000, 1000, 1000), strides=[0, 0, 0]),
        ),
        ("shorter|longer", opcode_tensor("0", ARRAYS["kernel"], shape=(2, 12))),
        ("outside its storage", opcode_tensor("0", ARRAYS["kernel"], shape=(2, -3, 4))),
        ("'[01]'|archive/data/1", opcode_tensor("1", ARRAYS["kernel"])),
        (
            "an object of the kind",
            opcode_tensor("0", ARRAYS["kernel"], storage="collections\nOrderedDict"),
        ),
        (
            "a view of another storage",
            opcode_tensor("0", ARRAYS["kernel"], view=opcode_tuple([0, 0, 0])),
        ),
    ],
)
@BOTH
def test_tensors_that_lie_about_their_storage_are_refused(tmp_path, legacy, tensor, reason):
    writer = write_legacy if legacy else write_zip
    writer(tmp_path / "x.pth", opcode_state({"w": tensor}), {"0": ARRAYS["kernel"].tobytes()})
    with pytest.raises(UserError, match=rf"x\.pth is no state dict .*\(.*({reason})"):
        read_torch_file(tmp_path / "x.pth")


@BOTH
def test_truncated_and_flipped_files_are_refused(tmp_path, legacy):
    path = tmp_path / "x.pth"
    write(path, {"w": np.arange(2000, dtype=np.float32)}, legacy)
    whole = path.read_bytes()
    for length in (0, 3, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"x\.pth is no state dict"):
            read_torch_file(path)
    if not legacy:  # the zip format has a checksum an entry; the legacy one has none
        path.write_bytes(whole.replace(struct.pack("<f", 1000), struct.pack("<f", 1001)))
        with pytest.raises(UserError, match=r"x\.pth is no state dict"):
            read_torch_file(path)


def test_a_compressed_entry_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "x.pth"
    bomb = {"0": bytes(50_000_000)}
    write_zip(path, pickled(ARRAYS), bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"x\.pth is refused: its entry archive/data\.pkl is"):
            read_torch_file(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_what_is_no_state_dict_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    write_zip(path, pickle.dumps({"epoch": 3, "state_dict": {}}, 2), {})
    with pytest.raises(UserError, match=r"no tensors under epoch, state_dict; save"):
        read_torch_file(path)
    write_zip(path, pickle.dumps([1], 2), {})
    with pytest.raises(UserError, match="holds a list"):
        read_torch_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_torch_file(tmp_path / "absent.pth")
