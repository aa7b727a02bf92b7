"""Converted ImageNet weights: parity with torchvision, files of both formats, what is refused."""

import collections
import hashlib
import importlib.util
import json
import os
import pathlib
import pickle
import struct
import zipfile

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vae_attn.errors import UserError
from vae_attn.models import pretrained
from vae_attn.models.resnet import RESNET18_TRUNK
from vae_attn.models.tables import Layers
from vae_attn.models.torch_files import read_torch_file

THIRD_PARTY = pathlib.Path(__file__).resolve().parents[1] / "third_party" / "resnet18"
TORCH_NAMES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage"}
TORCH_NAMES |= {"i8": "LongStorage", "i4": "IntStorage", "u1": "ByteStorage"}


@pytest.fixture(scope="module")
def reference():
    path = THIRD_PARTY / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def manifest():
    return json.loads((THIRD_PARTY / "manifest.json").read_text())


@pytest.fixture(scope="module")
def state(reference, manifest):
    """All of ResNet18, from a seed; what torchvision's file has beside the trunk too."""
    trunk = reference.seeded_state({k: tuple(v) for k, v in manifest["tensors"].items()})
    trunk["bn1.num_batches_tracked"] = np.array(7)
    trunk["fc.weight"] = np.ones((1000, 512), np.float32)
    trunk["fc.bias"] = np.zeros(1000, np.float32)
    return trunk


# A writer of torch.save's two formats. It writes the few opcodes itself, since pickle could only
# name classes of torch where torch is installed.


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


def write_zip(path, body, contents):
    with zipfile.ZipFile(path, "w") as archive:
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


BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
ARRAYS = {
    "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "half": np.array([0.5, -2], np.float16),
    "counter": np.array(7),
    "bytes": np.arange(5, dtype=np.uint8),
}


# Parity and conversion.


@pytest.mark.parametrize("size", [(64, 64), (97, 130), (224, 224)], ids=str)
def test_trunk_equals_torchvision(reference, state, size):
    stored = np.load(THIRD_PARTY / "reference.npz")
    trunk_state = {k: v for k, v in state.items() if not k.startswith("fc.") and v.ndim}
    assert reference.digest(trunk_state) == stored["state_sha256"], "NumPy's stream changed"
    variables = pretrained.convert_resnet18(state)
    trunk = Layers(RESNET18_TRUNK)
    x, after = jnp.asarray(reference.seeded_images(*size)), None
    for place in reference.PLACES:
        run = jax.jit(
            lambda x, after=after, until=place: trunk.apply(variables, x, after=after, until=until)
        )
        x, after = run(x), place
        key = f"{size[0]}x{size[1]}/{place}"
        found = reference.summary(np.asarray(x))
        np.testing.assert_array_equal(found["shape"], stored[f"{key}/shape"])
        for kind in ("means", "samples"):
            expected = stored[f"{key}/{kind}"]
            np.testing.assert_allclose(
                found[kind], expected, rtol=0, atol=1e-5 * np.abs(expected).max()
            )


def test_converted_tree_is_the_trunk_own(state):
    trunk, images = Layers(RESNET18_TRUNK), jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(trunk.init, jax.random.key(0), images)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), dict(variables))
    converted = jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), pretrained.convert_resnet18(state)
    )
    assert converted == expected
    # The design's count: ResNet18 without avgpool and fc.
    params = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in params) == 11_176_512


def test_conversion_puts_every_value_in_its_place(state):
    converted = pretrained.convert_resnet18(state)
    block = converted["params"]["layer2_0"]
    kernel = state["layer2.0.conv1.weight"]
    assert block["conv1"]["kernel"][2, 1, 5, 9] == kernel[9, 5, 2, 1]
    np.testing.assert_array_equal(
        block["downsample_bn"]["bias"], state["layer2.0.downsample.1.bias"]
    )
    stats = converted["batch_stats"]["layer4_1"]["bn2"]
    np.testing.assert_array_equal(stats["mean"], state["layer4.1.bn2.running_mean"])
    np.testing.assert_array_equal(stats["var"], state["layer4.1.bn2.running_var"])


def test_manifest_says_what_the_code_checks(manifest):
    wanted = {name: list(shape) for name, (shape, _) in pretrained._wanted_tensors().items()}
    assert manifest["tensors"] == wanted
    assert (manifest["file"], manifest["url"]) == (pretrained.FILE_NAME, pretrained.URL)
    assert manifest["sha256"] == pretrained.SHA256
    assert f"-{manifest['sha256'][:8]}.pth" in manifest["url"]


def test_every_mismatch_is_listed_at_once(state, tmp_path):
    broken = dict(state)
    del broken["layer1.0.conv1.weight"]
    broken["layer5.0.conv1.weight"] = np.ones(1, np.float32)
    broken["conv1.weight"] = np.ones((64, 3, 3, 3), np.float32)
    broken["bn1.bias"] = np.zeros(64, np.int64)
    broken["bn1.weight"] = np.full(64, np.nan, np.float32)
    broken["bn1.running_var"] = np.full(64, -1, np.float32)
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(broken, path)
    with pytest.raises(UserError) as caught:
        pretrained.load_resnet18(path)
    message = str(caught.value)
    for part in (
        f"{path} is not torchvision's ResNet18 (7 mismatches)",
        "layer1.0.conv1.weight is missing",
        "layer5.0.conv1.weight is unexpected",
        "conv1.weight has the shape (64, 3, 3, 3), not (64, 3, 7, 7)",
        "bn1.bias has the type int64",
        "bn1.weight has values that are not finite",
        "bn1.running_var has negative variances",
        f"its sha256 is {hashlib.sha256(path.read_bytes()).hexdigest()}",
        pretrained.URL,
    ):
        assert part in message
    assert sorted(tmp_path.iterdir()) == [path]


# Reading torch's files.


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


# Loading, keeping the conversion, downloading.


def assert_same(variables, expected):
    found = flax.traverse_util.flatten_dict(variables, sep="/")
    expected = flax.traverse_util.flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.fixture
def official(tmp_path, state, monkeypatch):
    """A folder with a file that passes for the official one."""
    folder = tmp_path / "weights"
    folder.mkdir()
    path = folder / pretrained.FILE_NAME
    write(path, state, legacy=False)
    monkeypatch.setattr(pretrained, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_other_weights_load_where_they_are_asked_for(tmp_path, state, kind):
    path = tmp_path / "mine.bin"
    if kind == "safetensors":
        safetensors.numpy.save_file(state, path)
    else:
        write(path, state, legacy=kind == "legacy")
    with pytest.raises(UserError, match=r"\(1 mismatches\): its sha256 is"):
        pretrained.load_resnet18(path)
    loaded = pretrained.load_resnet18(path, official=False)
    assert_same(loaded, pretrained.convert_resnet18(state))
    # Now that its conversion lies beside it, it still does not pass for the official file.
    with pytest.raises(UserError, match=r"\(1 mismatches\): its sha256 is"):
        pretrained.load_resnet18(path)


def test_conversion_is_written_once_and_used(official, state, monkeypatch):
    expected = pretrained.convert_resnet18(state)
    assert_same(pretrained.load_resnet18(official), expected)
    converted = official.with_name("resnet18-f37072fd.flax.safetensors")
    assert sorted(official.parent.iterdir()) == sorted([official, converted])
    before = converted.stat().st_mtime_ns
    monkeypatch.setattr(pretrained, "read_torch_file", None)  # not read again
    assert_same(pretrained.load_resnet18(official.parent), expected)
    assert converted.stat().st_mtime_ns == before
    official.unlink()  # the conversion stands alone
    assert_same(pretrained.load_resnet18(official.parent), expected)
    assert_same(pretrained.load_resnet18(converted), expected)


def test_damaged_or_foreign_conversion_is_never_used(official, state, tmp_path):
    expected = pretrained.convert_resnet18(state)
    cache = tmp_path / "cache"
    pretrained.load_resnet18(official, cache_dir=cache)
    (converted,) = cache.iterdir()
    whole = converted.read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    for content in (flipped, whole[:5000], b"", whole):
        converted.write_bytes(content)
        assert_same(pretrained.load_resnet18(official, cache_dir=cache), expected)
        assert_same(pretrained.load_resnet18(converted), expected)  # written anew
    converted.write_bytes(flipped)
    with pytest.raises(UserError, match="is damaged"):
        pretrained.load_resnet18(converted)
    other = dict(state)
    other["bn1.bias"] = state["bn1.bias"] + 1
    write(official, other, legacy=False)  # same name, other content
    loaded = pretrained.load_resnet18(official, cache_dir=cache, official=False)
    np.testing.assert_array_equal(loaded["params"]["bn1"]["bias"], other["bn1.bias"])
    with pytest.raises(UserError, match="was made from a file with the sha256"):
        pretrained.load_resnet18(converted)


def test_unwritable_cache_does_not_stop_the_load(official, state, tmp_path):
    (tmp_path / "file").write_text("")
    loaded = pretrained.load_resnet18(official, cache_dir=tmp_path / "file" / "folder")
    assert_same(loaded, pretrained.convert_resnet18(state))


def test_missing_weights_say_where_to_get_and_put_them(tmp_path):
    with pytest.raises(UserError) as caught:
        pretrained.load_resnet18(tmp_path)
    assert str(tmp_path / pretrained.FILE_NAME) in str(caught.value)
    assert pretrained.URL in str(caught.value)


def test_download_checks_and_leaves_no_half_file(official, tmp_path):
    folder = tmp_path / "new" / "folder"
    url, sha256 = official.as_uri(), pretrained.SHA256
    path = pretrained.download_resnet18(folder, url=url, sha256=sha256)
    assert path.read_bytes() == official.read_bytes()
    # There already: not fetched again.
    assert pretrained.download_resnet18(folder, url="file:///absent", sha256=sha256) == path
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="remove it to download it"):
        pretrained.download_resnet18(folder, url=url, sha256=sha256)
    assert path.read_bytes() == b"half"
    path.unlink()
    with pytest.raises(UserError, match="came with the sha256"):
        pretrained.download_resnet18(folder, url=url, sha256="0" * 64)
    assert list(folder.iterdir()) == []


def test_download_without_connection_says_what_to_do_by_hand(tmp_path):
    # Port 9 of this very machine: nothing answers, and nothing leaves the machine.
    with pytest.raises(UserError, match=r"could not be downloaded .* put it at") as caught:
        pretrained.download_resnet18(tmp_path, url="http://127.0.0.1:9/resnet18.pth")
    assert str(tmp_path / pretrained.FILE_NAME) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
